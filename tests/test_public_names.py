"""The names that users type: breaking one of them has to break this file first."""

from __future__ import annotations

import ast
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

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
    "sft_then_dpo": ["pairs", "sft", "base_model", "host", "sft_hyperparameters", "dpo_hyperparameters"],
    "migrate": ["model", "to", "host", "base_model", "train", "hyperparameters"],
    "WandB": ["project", "name", "entity", "tags"],
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
    "calibrate_interval": ["predictor", "examples", "level", "how"],
    "Ensemble": ["members", "weights", "how"],
    "Cascade": ["members", "min_confidence"],
    "rank": ["items", "predictor", "budget", "seed", "checkpoint"],
    "replace": ["program", "name", "tuned"],
    "compare": ["programs", "examples", "metrics"],
    "learning_curve": ["train", "sizes", "models", "epochs", "host", "test", "prompt", "metric", "max_usd"],
}  # fmt: skip
ATTRIBUTES = {
    "bulk": ["predict", "BulkResult", "Progress"],
    "PromptFormat": ["messages", "completion", "parse", "digest", "from_adapter"],
    "Host": ["openai", "azure", "local", "compatible"],
    "Plan": ["start"],
    "FinetuneProvider": ["lm", "finetune"],
    "PreferenceFinetune": ["compile"],
    "Job": ["status", "events", "metrics", "checkpoints", "pause", "resume", "cancel", "wait"],
    "Migration": ["start", "compare", "new_predictor"],
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


def test_what_type_checkers_see_is_what_there_is() -> None:
    """The imports that only type checkers read, the rooms' names and `__all__` agree."""
    tree = ast.parse(Path(str(ft.__file__)).read_text(encoding="utf-8"))
    shown = {
        f"{node.module}.{alias.name}".removeprefix("dspy_finetune.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    rooms = {f"{room}.{name}" for room, names in ft._ROOMS.items() for name in names.split()}
    # A room may be public itself, as ft.prompts is.
    assert {name for name in shown if "." in name} == rooms
    assert shown - rooms <= set(ft._ROOMS)
    assert sorted(ft.__all__) == sorted({name.rpartition(".")[2] for name in shown} | {"__version__"})
    assert set(ft.__all__) <= set(dir(ft))


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'OpenAIPredicter'"):
        _ = ft.OpenAIPredicter  # type: ignore[attr-defined]  # it is not there, which is the test
    with pytest.raises(ImportError):
        from dspy_finetune import nothing  # type: ignore[attr-defined]  # noqa: F401  # likewise


def test_a_name_is_the_same_by_every_road() -> None:
    """Plain import, star import, a room by attribute; `jobs` is the function, also after its room was imported."""
    code = """
import dspy_finetune as ft
assert ft.predictors.OpenAIPredictor is ft.OpenAIPredictor
assert ft.report.compare is ft.compare
import dspy_finetune.jobs.submit
from dspy_finetune import jobs
from dspy_finetune.jobs import jobs as function
assert jobs is ft.jobs is function and callable(jobs)
space = {}
exec("from dspy_finetune import *", space)
assert set(ft.__all__) <= set(space)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr


def test_public_functions_and_classes_can_be_pickled() -> None:
    for name in ft.__all__:
        value = getattr(ft, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert pickle.loads(pickle.dumps(value)) is value


def test_a_program_of_a_script_that_names_the_package_is_saved_whole(tmp_path: Path) -> None:
    """`program.save(folder, save_program=True)` pickles a script's classes by value, and with them the module `ft`."""
    code = """
import sys
import dspy
import dspy_finetune as ft

class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.likes = ft.OpenAIPredictor(ft.prompts.binary(), "tuned")

    def forward(self, title):
        return ft.prompts.binary().digest

Program().save(sys.argv[1], save_program=True)
print(dspy.load(sys.argv[1], allow_pickle=True)(title="Bees") == ft.prompts.binary().digest)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "True", done.stderr
