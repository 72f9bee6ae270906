"""Examples to training files: written, checked, counted and priced.

>>> import dspy, tempfile
>>> from dspy_finetune.export import export_sft
>>> from dspy_finetune.prompts import binary
>>> rows = [dspy.Example(title=f"Title {i}", is_favorite=i % 2 == 0).with_inputs("title") for i in range(12)]
>>> dataset = export_sft(rows, binary("I like even numbers."), tempfile.mkdtemp() + "/train.jsonl")
>>> dataset.n_rows, dataset.report.ok
(12, True)
"""

from dspy_finetune.export.dataset import Dataset
from dspy_finetune.export.dpo import export_dpo
from dspy_finetune.export.manifest import Manifest
from dspy_finetune.export.preferences import Preference
from dspy_finetune.export.sft import export_sft

__all__ = ["Dataset", "Manifest", "Preference", "export_dpo", "export_sft"]
