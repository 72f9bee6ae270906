"""What tests of jobs share: a small OpenAI, a clock that moves only when something sleeps, a home of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_finetune.hosts import Host
from dspy_finetune.jobs.records import CLOCK
from tests.fake_openai import FakeOpenAI


class FakeTime:
    """Hours that pass in no time."""

    def __init__(self, fake: FakeOpenAI) -> None:
        self.fake = fake
        self.slept: list[float] = []

    def now(self) -> float:
        return float(self.fake.now)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.fake.now += seconds


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    yield server
    server.close()


@pytest.fixture
def time(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The clock that jobs go by while this test runs."""
    made = FakeTime(fake)
    monkeypatch.setattr(CLOCK, "now", made.now)
    monkeypatch.setattr(CLOCK, "sleep", made.sleep)
    return made


@pytest.fixture
def host(fake: FakeOpenAI) -> Iterator[Host]:
    """A host of OpenAI's kind whose address is the small one's."""
    one = Host.openai()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake: FakeOpenAI) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
    # Not as an argument: a key is not pickled, and the children of some tests read it here.
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-tests")
    for name in ("OPENAI_ORG_ID", "DSPY_FINETUNE_CATALOG"):
        monkeypatch.delenv(name, raising=False)


def write_sft(path: Path, n: int = 20, seed: int = 0) -> Path:
    """A file that every host takes."""
    rows = []
    for i in range(n):
        title = f"Title {seed * 1000 + i}: {'sailing' if i % 2 else 'taxes'} number {i * 7 + seed}"
        messages = [{"role": "system", "content": "Is it liked?"}, {"role": "user", "content": f"Title: {title}"}]
        rows.append({"messages": [*messages, {"role": "assistant", "content": "true" if i % 2 else "false"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_dpo(path: Path, n: int = 20) -> Path:
    """Pairs that every host takes."""
    rows = []
    for i in range(n):
        good, bad = ("A", "B") if i % 2 else ("B", "A")
        rows.append(
            {
                "input": {"messages": [{"role": "user", "content": f"A: sailing {i}\nB: taxes {i * 3}"}]},
                "preferred_output": [{"role": "assistant", "content": good}],
                "non_preferred_output": [{"role": "assistant", "content": bad}],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def sft_file(tmp_path: Path) -> Path:
    return write_sft(tmp_path / "train.jsonl")


@pytest.fixture
def dpo_file(tmp_path: Path) -> Path:
    return write_dpo(tmp_path / "pairs.jsonl")
