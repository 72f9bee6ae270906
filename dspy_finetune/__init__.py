"""dspy-finetune: labelled DSPy examples -> a small fine-tuned model -> a `dspy.Module`, and an honest verdict.

import dspy_finetune as ft

examples = ft.load_examples("titles.jsonl", inputs=["title"])
train, validation, test = ft.split(examples, stratify_by="is_favorite")
prompt = ft.prompts.binary("Likes pieces that explain how things work.")
dataset = ft.export_sft(train, prompt, "train.jsonl")
host = ft.Host.local()
job = ft.plan(dataset, base_model="smollm2-135m-instruct", host=host).start()
tuned = ft.OpenAIPredictor(prompt, job.wait())
report = ft.compare({"tuned": tuned, "TF-IDF": ft.baselines.tfidf_logistic(train, label="is_favorite")}, test,
                    [ft.metrics.accuracy("is_favorite")])
print(report.table())

A name is imported when it is first used: `import dspy_finetune` alone costs next to nothing, and does not import dspy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_finetune import bulk, errors, prompts
    from dspy_finetune.data import (
        deduplicate,
        find_conflicts,
        find_leakage,
        iter_examples,
        load_examples,
        make_pairs,
        split,
        swap,
    )
    from dspy_finetune.errors import (
        AmbiguousJobError,
        AnswerError,
        BudgetError,
        DataError,
        EmptyDatasetError,
        FileError,
        FinetuneError,
        HostError,
        JobCancelledError,
        JobError,
        JobFailedError,
        JobTimeoutError,
        JudgeError,
        LeakageError,
        LogprobsError,
        MissingExtraError,
        ModelGoneError,
        PromptMismatchError,
        RowError,
        RowsError,
        TrainingClosedError,
        UsageError,
    )
    from dspy_finetune.evaluation import baselines, in_both_orders, load_optimized, metrics
    from dspy_finetune.export import (
        CheckReport,
        Dataset,
        check,
        convert,
        export_dpo,
        export_sft,
        fix,
        lint,
        preferences_from_corrections,
        preferences_from_mistakes,
        preferences_from_program,
    )
    from dspy_finetune.hosts import Host
    from dspy_finetune.jobs import (
        FinetunedModel,
        Job,
        Plan,
        WandB,
        attach,
        jobs,
        plan,
        sft_then_dpo,
    )
    from dspy_finetune.migration import Migration, migrate
    from dspy_finetune.optimizers import FinetuneProvider, PreferenceFinetune
    from dspy_finetune.predictors import (
        Cascade,
        DecisionLM,
        DPOPredictor,
        Ensemble,
        OpenAIPredictor,
        PairwisePredictor,
        calibrate,
        calibrate_interval,
        load_predictor,
        rank,
        replace,
    )
    from dspy_finetune.prompts import PromptFormat
    from dspy_finetune.report import CurveReport, Report, compare, learning_curve, write_html

__version__ = "0.1.0"

__all__ = [
    "AmbiguousJobError",
    "AnswerError",
    "BudgetError",
    "Cascade",
    "CheckReport",
    "CurveReport",
    "DPOPredictor",
    "DataError",
    "Dataset",
    "DecisionLM",
    "EmptyDatasetError",
    "Ensemble",
    "FileError",
    "FinetuneError",
    "FinetuneProvider",
    "FinetunedModel",
    "Host",
    "HostError",
    "Job",
    "JobCancelledError",
    "JobError",
    "JobFailedError",
    "JobTimeoutError",
    "JudgeError",
    "LeakageError",
    "LogprobsError",
    "Migration",
    "MissingExtraError",
    "ModelGoneError",
    "OpenAIPredictor",
    "PairwisePredictor",
    "Plan",
    "PreferenceFinetune",
    "PromptFormat",
    "PromptMismatchError",
    "Report",
    "RowError",
    "RowsError",
    "TrainingClosedError",
    "UsageError",
    "WandB",
    "__version__",
    "attach",
    "baselines",
    "bulk",
    "calibrate",
    "calibrate_interval",
    "check",
    "compare",
    "convert",
    "deduplicate",
    "errors",
    "export_dpo",
    "export_sft",
    "find_conflicts",
    "find_leakage",
    "fix",
    "in_both_orders",
    "iter_examples",
    "jobs",
    "learning_curve",
    "lint",
    "load_examples",
    "load_optimized",
    "load_predictor",
    "make_pairs",
    "metrics",
    "migrate",
    "plan",
    "preferences_from_corrections",
    "preferences_from_mistakes",
    "preferences_from_program",
    "prompts",
    "rank",
    "replace",
    "sft_then_dpo",
    "split",
    "swap",
    "write_html",
]

_ROOMS = {
    "bulk": "",
    "data": "deduplicate find_conflicts find_leakage iter_examples load_examples make_pairs split swap",
    "errors": (
        "AmbiguousJobError AnswerError BudgetError DataError EmptyDatasetError FileError FinetuneError HostError "
        "JobCancelledError JobError JobFailedError JobTimeoutError JudgeError LeakageError LogprobsError "
        "MissingExtraError ModelGoneError PromptMismatchError RowError RowsError TrainingClosedError UsageError"
    ),
    "evaluation": "baselines in_both_orders load_optimized metrics",
    "export": (
        "CheckReport Dataset check convert export_dpo export_sft fix lint preferences_from_corrections "
        "preferences_from_mistakes preferences_from_program"
    ),
    "hosts": "Host",
    "jobs": "FinetunedModel Job Plan WandB attach jobs plan sft_then_dpo",
    "migration": "Migration migrate",
    "optimizers": "FinetuneProvider PreferenceFinetune",
    "predictors": (
        "Cascade DPOPredictor DecisionLM Ensemble OpenAIPredictor PairwisePredictor calibrate calibrate_interval "
        "load_predictor rank replace"
    ),
    "prompts": "PromptFormat",
    "report": "CurveReport Report compare learning_curve write_html",
}
"""The public names of each room. The imports at the top say the same to type checkers; a test compares the two."""

_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}


class _Door(ModuleType):
    """This package as a module: `jobs` is the function, also when the room of that name has been imported."""

    @property
    def jobs(self) -> Any:
        return importlib.import_module("dspy_finetune.jobs").jobs

    @jobs.setter
    def jobs(self, value: object) -> None:
        # Python binds an imported room to its package here; `from dspy_finetune.jobs import ...` does not need that.
        pass

    def __reduce__(self) -> tuple[Any, ...]:
        # cloudpickle knows modules by their exact type: a program of a script that says `ft.` could not be saved whole.
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Door


if not TYPE_CHECKING:  # type checkers would take any name for granted

    def __getattr__(name: str) -> Any:
        if name in _ROOM_OF:
            value = getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
            globals()[name] = value
            return value
        if name in _ROOMS:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
