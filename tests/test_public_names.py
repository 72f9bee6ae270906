"""The names that users type: breaking one of them has to break this file first."""

from __future__ import annotations

import inspect

import pytest

import dspy_finetune as ft

PARAMETERS = {
    "load_examples": ["source", "inputs", "rename", "split", "limit"],
    "iter_examples": ["source", "inputs", "rename", "split", "limit"],
    "split": ["examples", "fractions", "group_by", "stratify_by", "seed"],
    "make_pairs": ["examples", "text", "label", "n_per_positive", "seed"],
    "PromptFormat": ["signature", "rubric", "system", "user", "labels", "completion"],
    "export_sft": ["examples", "prompt", "path", "base_model"],
    "export_dpo": ["pairs", "prompt", "path", "base_model"],
    "check": ["path", "method", "base_model", "host"],
    "preferences_from_program": ["program", "examples", "metric"],
    "plan": [
        "train", "validation", "base_model", "method", "host", "hyperparameters", "suffix", "seed", "metadata",
    ],
    "attach": ["job_id", "host"],
    "jobs": ["host"],
    "FinetuneProvider": ["host", "method", "suffix", "seed", "validation", "hyperparameters", "on_progress"],
    "PreferenceFinetune": [
        "metric", "base_model", "host", "n_samples", "temperature", "min_difference", "how", "method",
        "hyperparameters", "max_usd",
    ],
    "OpenAIPredictor": ["prompt", "model", "host", "threshold"],
    "PairwisePredictor": ["prompt", "model", "host", "both_orders"],
    "DPOPredictor": ["prompt", "model", "host", "both_orders"],
    "load_predictor": ["path", "host"],
    "calibrate": ["predictor", "examples", "how", "threshold_for"],
    "Ensemble": ["members", "weights", "how"],
    "Cascade": ["members", "min_confidence"],
    "rank": ["items", "predictor", "budget", "seed", "checkpoint"],
    "replace": ["program", "name", "tuned"],
    "compare": ["programs", "examples", "metrics"],
}  # fmt: skip
ATTRIBUTES = {
    "bulk": ["predict", "BulkResult", "Progress"],
    "PromptFormat": ["messages", "completion", "parse", "digest", "from_adapter"],
    "Host": ["openai", "azure", "local", "compatible"],
    "Plan": ["start"],
    "FinetuneProvider": ["lm", "finetune"],
    "PreferenceFinetune": ["compile"],
    "Job": ["status", "events", "metrics", "checkpoints", "pause", "resume", "cancel", "wait"],
    "Report": ["table", "verdict", "to_html", "to_json"],
}
FIELDS = {
    "Dataset": ["path", "manifest", "n_rows", "n_tokens", "report"],
    "Plan": ["cost_usd", "n_tokens", "n_epochs", "eta_seconds", "warnings"],
    "FinetunedModel": ["id", "base", "method", "prompt_digest", "data_sha256", "trained_tokens", "cost_usd"],
}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_function_takes_the_documented_parameters(name: str) -> None:
    value = getattr(ft, name)
    # DSPy's metaclass hides a module's own parameters from inspect.signature.
    found = list(inspect.signature(value.__init__ if inspect.isclass(value) else value).parameters)
    assert [parameter for parameter in PARAMETERS[name] if parameter in found] == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_a_class_has_the_documented_attributes(name: str) -> None:
    for attribute in ATTRIBUTES[name]:
        assert hasattr(getattr(ft, name), attribute), f"{name}.{attribute}"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_value_has_the_documented_fields(name: str) -> None:
    found = {*getattr(ft, name).__dataclass_fields__, *dir(getattr(ft, name))}
    assert set(FIELDS[name]) <= found


def test_the_presets_and_every_public_name_are_there() -> None:
    assert {"binary", "pairwise", "explained_pairwise", "answer", "number"} <= set(dir(ft.prompts))
    for name in ft.__all__:
        assert getattr(ft, name) is not None
