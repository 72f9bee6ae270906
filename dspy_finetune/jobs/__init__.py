"""Jobs: planned before they cost anything, paid once, followed from anywhere.

>>> from dspy_finetune.hosts import Host
>>> from dspy_finetune.jobs import plan
>>> plan("missing.jsonl", base_model="smollm2-135m-instruct", host=Host.local())
Traceback (most recent call last):
...
dspy_finetune.errors.FileError: cannot read missing.jsonl: no such file or folder; check the path

With data, the way is `model = plan(dataset, base_model=..., host=...).start(max_usd=5).wait()`.
"""

from dspy_finetune.jobs.job import Job, JobProgress, attach, list_jobs
from dspy_finetune.jobs.model import FinetunedModel, ListedModel, list_models
from dspy_finetune.jobs.model_export import ExportedModel
from dspy_finetune.jobs.offers import HostAdvice, HostOffer, advise_host
from dspy_finetune.jobs.plan import Hyperparameter, Plan, WandB, plan
from dspy_finetune.jobs.records import Checkpoint, Event, JobFacts, Journal
from dspy_finetune.jobs.sequence import SequenceJob, SequencePlan, sft_then_dpo

__all__ = [
    "Checkpoint",
    "Event",
    "ExportedModel",
    "FinetunedModel",
    "HostAdvice",
    "HostOffer",
    "Hyperparameter",
    "Job",
    "JobFacts",
    "JobProgress",
    "Journal",
    "ListedModel",
    "Plan",
    "SequenceJob",
    "SequencePlan",
    "WandB",
    "advise_host",
    "attach",
    "list_jobs",
    "list_models",
    "plan",
    "sft_then_dpo",
]
