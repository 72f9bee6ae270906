"""docs/architecture.md against the code: every file once, and the files that each call passes, by running it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from tests import reference_page
from tests.fake_openai import FakeOpenAI

PACKAGE = Path(str(ft.__file__)).parent
MODEL = "gpt-4.1-mini-2025-04-14"


def walks() -> dict[str, list[str]]:
    """Call to the files that the page says it passes, in order."""
    text = reference_page.ARCHITECTURE.read_text(encoding="utf-8")
    section = text.partition("## Which files a call passes")[2].partition("\n## ")[0]
    found = re.split(r"^`([\w.]+)\(.*\)`$", section, flags=re.M)[1:]
    return {
        name: re.findall(r"^\d+\. `([^`]+)`", body, re.M) for name, body in zip(found[::2], found[1::2], strict=True)
    }


def files_entered(call: Callable[[], Any]) -> tuple[list[str], Any]:
    """The package's files in the order in which a call first enters them, and what it gives."""
    seen: dict[str, None] = {}
    package = f"{PACKAGE}{os.sep}"

    def note(frame: Any, event: str, argument: Any) -> None:
        # It is called at every call of anything, so it does little.
        if event == "call" and frame.f_code.co_filename.startswith(package) and frame.f_code.co_name != "<module>":
            seen.setdefault(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        result = call()
    finally:
        sys.setprofile(before)
    return [Path(path).relative_to(PACKAGE).as_posix() for path in seen], result


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    server.reply, server.script = "true", ["succeeded"]
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    yield server
    server.close()


def test_each_call_passes_the_files_that_the_page_names(tmp_path: Path, openai: FakeOpenAI) -> None:
    for name in ft.__all__:
        getattr(ft, name)  # what is imported at first use is no step of a walk
    rows = [
        dspy.Example(title=f"On {word}, part {n}", is_favorite=word == "bees").with_inputs("title")
        for n in range(10)
        for word in ("bees", "taxes")
    ]
    prompt, host = ft.prompts.binary(), ft.Host.openai()
    entered: dict[str, list[str]] = {}
    entered["export_sft"], file = files_entered(lambda: ft.export_sft(rows, prompt, tmp_path / "train.jsonl"))
    entered["plan"], plan = files_entered(lambda: ft.plan(file, base_model=MODEL, host=host))
    model = plan.start(max_usd=5).wait()
    tuned = ft.OpenAIPredictor(prompt, model, host=host)
    entered["OpenAIPredictor.forward"], _ = files_entered(lambda: tuned(title="On bees, part 3"))
    metrics = [ft.metrics.accuracy("is_favorite")]
    entered["compare"], text = files_entered(
        lambda: str(ft.compare({"tuned": tuned, "again": tuned}, rows, metrics, num_threads=1))
    )
    assert "again" in text
    other = ft.Host.compatible("https://llm.example.com/v1", name="example")

    def moved() -> None:
        ft.migrate(tuned, to=other, base_model="some-model").new_predictor("some-model:tuned")

    entered["migrate"], _ = files_entered(moved)
    told = walks()
    assert set(told) == set(entered)
    for name, files in told.items():
        assert files == [file for file in entered[name] if file in files], name


def test_the_page_names_every_file_with_the_first_line_of_its_docstring() -> None:
    """Made by `python -m tests.reference_page --write`."""
    assert reference_page.ARCHITECTURE.read_text(encoding="utf-8") == reference_page.architecture()
    named = re.findall(r"`([\w/]+\.(?:py|json))`", reference_page.LIST.sub("", reference_page.architecture()))
    assert [name for name in named if not any(PACKAGE.rglob(name)) and not (PACKAGE.parent / name).exists()] == []
