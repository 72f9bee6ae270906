"""Jobs: planned before they cost anything, paid once, followed from anywhere.

>>> from dspy_finetune.hosts import Host
>>> from dspy_finetune.jobs import plan
>>> plan("missing.jsonl", base_model="smollm2-135m-instruct", host=Host.local())
Traceback (most recent call last):
...
dspy_finetune.errors.FileError: cannot read missing.jsonl: no such file or folder; check the path

With data, the way is `model = plan(dataset, base_model=..., host=...).start(max_usd=5).wait()`.
"""

from dspy_finetune.jobs.clock import SYSTEM_CLOCK, Clock
from dspy_finetune.jobs.hyperparameters import Hyperparameter
from dspy_finetune.jobs.job import Job, attach, jobs
from dspy_finetune.jobs.journal import Journal
from dspy_finetune.jobs.lifetime import ListedModel, list_models
from dspy_finetune.jobs.model import FinetunedModel
from dspy_finetune.jobs.optimizers import PreferenceFinetune, PreferenceTuning
from dspy_finetune.jobs.options import WandB
from dspy_finetune.jobs.plan import Plan, plan
from dspy_finetune.jobs.progress import Progress
from dspy_finetune.jobs.provider import FinetuneProvider
from dspy_finetune.jobs.records import Checkpoint, Event, JobFacts
from dspy_finetune.jobs.sequence import SequenceJob, SequencePlan, sft_then_dpo
from dspy_finetune.jobs.serving import attach_adapter, load_program

__all__ = [
    "SYSTEM_CLOCK",
    "Checkpoint",
    "Clock",
    "Event",
    "FinetuneProvider",
    "FinetunedModel",
    "Hyperparameter",
    "Job",
    "JobFacts",
    "Journal",
    "ListedModel",
    "Plan",
    "PreferenceFinetune",
    "PreferenceTuning",
    "Progress",
    "SequenceJob",
    "SequencePlan",
    "WandB",
    "attach",
    "attach_adapter",
    "jobs",
    "list_models",
    "load_program",
    "plan",
    "sft_then_dpo",
]
