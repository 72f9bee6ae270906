"""Bulk: a tuned model asked about every row of a file, however many, across crashes, within a budget.

>>> import json, tempfile
>>> from pathlib import Path
>>> import dspy
>>> from dspy_finetune import bulk
>>> def likes(title):
...     return dspy.Prediction(is_favorite="bees" in title.lower())
>>> output = Path(tempfile.mkdtemp()) / "predicted.jsonl"
>>> done = bulk.predict(likes, [{"title": "How bees count"}, {"title": "Ten habits"}], output)
>>> done.n_answered, [json.loads(line)["is_favorite"] for line in output.read_text("utf-8").splitlines()]
(2, [True, False])
"""

from dspy_finetune.bulk import batch_api, ray
from dspy_finetune.bulk.rate_limit import RetryPolicy
from dspy_finetune.bulk.reader import FileOptions
from dspy_finetune.bulk.run import BulkProgress, BulkResult, apredict, predict

__all__ = ["BulkProgress", "BulkResult", "FileOptions", "RetryPolicy", "apredict", "batch_api", "predict", "ray"]
