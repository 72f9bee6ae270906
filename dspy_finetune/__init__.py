"""dspy-finetune: labelled DSPy examples -> a small fine-tuned model -> a `dspy.Module`, and an honest verdict.

import dspy_finetune as ft

examples = ft.load_examples("titles.jsonl", inputs=["title"])
train, validation, test = ft.split(examples, stratify_by="is_favorite")
prompt = ft.prompts.binary("title -> is_favorite: bool", rubric="Likes pieces that explain how things work.")
dataset = ft.export_sft(train, prompt, "train.jsonl")
host = ft.Host.local()
job = ft.plan(dataset, base_model="smollm2-135m-instruct", host=host).start()
tuned = ft.OpenAIPredictor(prompt, job.wait())
report = ft.compare({"tuned": tuned, "TF-IDF": ft.baselines.tfidf_logistic(train, label="is_favorite")}, test,
                    [ft.metrics.accuracy("is_favorite")])
print(report.table())

A name is imported when it is first used: `import dspy_finetune` alone costs next to nothing, and does not import dspy.
Errors are in `ft.errors`; what is needed less often is in the subpackages: `ft.data`, `ft.export`, `ft.jobs`, ...
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_finetune import (
        bulk,
        errors,
        prompts,
    )
    from dspy_finetune import (
        data as data,
    )
    from dspy_finetune import (
        evaluation as evaluation,
    )
    from dspy_finetune import (
        export as export,
    )
    from dspy_finetune import (
        hosts as hosts,
    )
    from dspy_finetune import (
        integrations as integrations,
    )
    from dspy_finetune import (
        jobs as jobs,
    )
    from dspy_finetune import (
        optimizers as optimizers,
    )
    from dspy_finetune import (
        predictors as predictors,
    )
    from dspy_finetune import (
        report as report,
    )
    from dspy_finetune import (
        verification as verification,
    )
    from dspy_finetune.data import items_from_pairs, iter_examples, load_examples, make_pairs, split
    from dspy_finetune.evaluation import (
        ComparisonReport,
        advise,
        baselines,
        compare,
        learning_curve,
        load_optimized,
        metrics,
    )
    from dspy_finetune.export import (
        CheckReport,
        TrainingFile,
        check,
        convert,
        export_dpo,
        export_sft,
        fix,
        preferences_from_program,
    )
    from dspy_finetune.hosts import Host
    from dspy_finetune.jobs import (
        FinetunedModel,
        Job,
        Plan,
        WandB,
        advise_host,
        attach,
        list_jobs,
        plan,
        sft_then_dpo,
    )
    from dspy_finetune.migration import migrate
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

__version__ = "0.2.0"

__all__ = [
    "Cascade",
    "CheckReport",
    "ComparisonReport",
    "DPOPredictor",
    "DecisionLM",
    "Ensemble",
    "FinetuneProvider",
    "FinetunedModel",
    "Host",
    "Job",
    "OpenAIPredictor",
    "PairwisePredictor",
    "Plan",
    "PreferenceFinetune",
    "PromptFormat",
    "TrainingFile",
    "WandB",
    "__version__",
    "advise",
    "advise_host",
    "attach",
    "baselines",
    "bulk",
    "calibrate",
    "calibrate_interval",
    "check",
    "compare",
    "convert",
    "errors",
    "export_dpo",
    "export_sft",
    "fix",
    "items_from_pairs",
    "iter_examples",
    "learning_curve",
    "list_jobs",
    "load_examples",
    "load_optimized",
    "load_predictor",
    "make_pairs",
    "metrics",
    "migrate",
    "plan",
    "preferences_from_program",
    "prompts",
    "rank",
    "replace",
    "sft_then_dpo",
    "split",
]

_SUBPACKAGES = {
    "bulk": "",
    "data": "items_from_pairs iter_examples load_examples make_pairs split",
    "errors": "",
    "evaluation": "ComparisonReport advise baselines compare learning_curve load_optimized metrics",
    "export": "CheckReport TrainingFile check convert export_dpo export_sft fix preferences_from_program",
    "hosts": "Host",
    "integrations": "",
    "jobs": "FinetunedModel Job Plan WandB advise_host attach list_jobs plan sft_then_dpo",
    "migration": "migrate",
    "optimizers": "FinetuneProvider PreferenceFinetune",
    "predictors": (
        "Cascade DPOPredictor DecisionLM Ensemble OpenAIPredictor PairwisePredictor calibrate calibrate_interval "
        "load_predictor rank replace"
    ),
    "prompts": "PromptFormat",
    "report": "",
    "verification": "",
}
"""Where each public name comes from. The imports above say the same to type checkers; a test compares the two."""

_IMPORTING = threading.RLock()

if not TYPE_CHECKING:  # type checkers would take any name for granted

    def __getattr__(name: str) -> Any:
        # One thread at a time: Python's own locks are one for each module, and two threads that meet in the middle of
        # an import are given modules that are not whole.
        with _IMPORTING:
            if name in _SUBPACKAGES:
                return importlib.import_module(f"{__name__}.{name}")
            for subpackage, names in _SUBPACKAGES.items():
                if name in names.split():
                    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{subpackage}"), name)
                    return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
