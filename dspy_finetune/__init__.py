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
"""

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
from dspy_finetune.evaluation import baselines, metrics
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
from dspy_finetune.jobs import FinetunedModel, FinetuneProvider, Job, Plan, PreferenceFinetune, attach, jobs, plan
from dspy_finetune.predictors import (
    Cascade,
    DPOPredictor,
    Ensemble,
    OpenAIPredictor,
    PairwisePredictor,
    calibrate,
    load_predictor,
    rank,
    replace,
)
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.report import Report, compare, write_html

__version__ = "0.1.0"

__all__ = [
    "AmbiguousJobError",
    "AnswerError",
    "BudgetError",
    "Cascade",
    "CheckReport",
    "DPOPredictor",
    "DataError",
    "Dataset",
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
    "LeakageError",
    "LogprobsError",
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
    "__version__",
    "attach",
    "baselines",
    "bulk",
    "calibrate",
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
    "iter_examples",
    "jobs",
    "lint",
    "load_examples",
    "load_predictor",
    "make_pairs",
    "metrics",
    "plan",
    "preferences_from_corrections",
    "preferences_from_mistakes",
    "preferences_from_program",
    "prompts",
    "rank",
    "replace",
    "split",
    "swap",
    "write_html",
]
