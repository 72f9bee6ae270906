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
from tests import public_surface

LISTED = [
    "load_examples", "iter_examples", "split", "make_pairs", "prompts", "PromptFormat", "export_sft", "export_dpo",
    "check", "preferences_from_program", "Host", "plan", "attach", "list_jobs", "FinetuneProvider",
    "PreferenceFinetune", "OpenAIPredictor", "PairwisePredictor", "DPOPredictor", "Ensemble", "Cascade", "calibrate",
    "rank", "replace", "metrics", "compare", "Job", "Plan", "FinetunedModel", "CheckReport", "errors", "baselines",
    "bulk", "learning_curve", "migrate",
]  # fmt: skip
"""What the documentation promises under `ft.`, whatever else comes and goes."""
PUBLIC_SUBPACKAGES = {"bulk", "errors", "prompts"}


def test_the_public_surface_is_the_one_on_record() -> None:
    """Names, parameters with defaults, fields, methods, commands with options; tests/cli compares the JSON keys."""
    recorded = public_surface.recorded()
    del recorded["json"]
    changes = public_surface.changes(recorded, public_surface.surface())
    assert not changes, f"{changes}\n\n{public_surface.HOW}"


def test_the_promised_names_are_there() -> None:
    assert set(LISTED) <= set(ft.__all__)
    assert len(ft.__all__) < 50
    assert not [name for name in ft.__all__ if name.endswith("Error")]


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
    names = {f"{home}.{name}" for home, names in ft._SUBPACKAGES.items() for name in names.split()}
    subpackages = set(ft._SUBPACKAGES) - {"migration"}
    # `__getattr__` answers for each subpackage; some of them are public names too, as ft.prompts is.
    assert shown == names | subpackages
    assert set(ft.__all__) == {name.rpartition(".")[2] for name in names} | {"__version__", *PUBLIC_SUBPACKAGES}
    assert set(ft.__all__) <= set(dir(ft))


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'OpenAIPredicter'"):
        _ = ft.OpenAIPredicter  # type: ignore[attr-defined]  # it is not there, which is the test
    with pytest.raises(ImportError):
        from dspy_finetune import nothing  # type: ignore[attr-defined]  # noqa: F401  # likewise


def test_a_name_is_the_same_by_every_road() -> None:
    """Plain import, star import, a subpackage by attribute, a function whose name is also a module's."""
    code = """
import dspy_finetune as ft
assert ft.predictors.OpenAIPredictor is ft.OpenAIPredictor
assert ft.evaluation.compare is ft.compare
import dspy_finetune.jobs.submit
assert ft.jobs.list_jobs is ft.list_jobs
assert callable(ft.plan) and callable(ft.check) and callable(ft.migrate)
space = {}
exec("from dspy_finetune import *", space)
assert set(ft.__all__) <= set(space)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr


def test_threads_may_ask_for_their_first_names_at_the_same_time() -> None:
    """Two threads that met in the middle of an import were given modules that are not whole."""
    code = """
import threading
import dspy
import dspy_finetune as ft
ft.Host.compatible("http://127.0.0.1:9/v1", api_key="x")
failed = []
def ask(name):
    try:
        getattr(ft, name)
    except BaseException as error:
        failed.append(repr(error))
threads = [threading.Thread(target=ask, args=(name,)) for name in ("list_jobs", "OpenAIPredictor")]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", (done.stdout, done.stderr)


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
