"""Examples to training files: written, checked, counted and priced.

>>> import dspy, tempfile
>>> from dspy_finetune.export import export_sft
>>> from dspy_finetune.prompts import binary
>>> rows = [dspy.Example(title=f"Title {i}", is_favorite=i % 2 == 0).with_inputs("title") for i in range(12)]
>>> dataset = export_sft(rows, binary("I like even numbers."), tempfile.mkdtemp() + "/train.jsonl")
>>> dataset.n_rows, dataset.report.ok
(12, True)
"""

from dspy_finetune.export.checks.checker import RowChecker, check
from dspy_finetune.export.checks.fix import FixReport, fix
from dspy_finetune.export.checks.lint import LintReport, lint
from dspy_finetune.export.checks.report import CheckReport, Issue
from dspy_finetune.export.checks.show import show
from dspy_finetune.export.cost import (
    InferenceCost,
    TrainingCost,
    default_epochs,
    evaluation_cost,
    inference_cost,
    training_cost,
)
from dspy_finetune.export.dataset import Manifest, TrainingFile
from dspy_finetune.export.preferences import (
    Preference,
    Preferences,
    preferences_from_corrections,
    preferences_from_mistakes,
    preferences_from_program,
)
from dspy_finetune.export.tokens import TokenCounter, count_messages, count_tokens
from dspy_finetune.export.writer import convert, export_dpo, export_sft

__all__ = [
    "CheckReport",
    "FixReport",
    "InferenceCost",
    "Issue",
    "LintReport",
    "Manifest",
    "Preference",
    "Preferences",
    "RowChecker",
    "TokenCounter",
    "TrainingCost",
    "TrainingFile",
    "check",
    "convert",
    "count_messages",
    "count_tokens",
    "default_epochs",
    "evaluation_cost",
    "export_dpo",
    "export_sft",
    "fix",
    "inference_cost",
    "lint",
    "preferences_from_corrections",
    "preferences_from_mistakes",
    "preferences_from_program",
    "show",
    "training_cost",
]
