"""Every Python block of the README and of docs/ runs as it stands, block after block; so do the examples in docstrings.

A comment on the line before a block says what it needs; without one it needs nothing but the package.

    <!-- runs: local -->           the small model, on this machine; titles.csv lies in the folder
    <!-- runs: openai -->          a small server in OpenAI's place
    <!-- runs: hosts -->           the same, and doubles of Nebius, Together and Fireworks that hold each request to the
                                   published description; train.jsonl lies in the folder
    <!-- runs: never: reason -->   it is compiled only, for that reason

`print(...)  # -> text` shows what is printed, with `...` for any text.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import dspy_finetune
from dspy_finetune.hosts import Host
from dspy_finetune.jobs.records import CLOCK
from dspy_finetune.quickstart import write_example
from tests import reference_page
from tests.fake_hosts import FakeFireworks, FakeNebius, FakeTogether
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import write_sft

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
BLOCK = re.compile(r"^(?:<!-- runs: (?P<needs>.*?) -->\n+)?(?P<indent> *)```python\n(?P<code>.*?)^ *```", re.M | re.S)
NEEDS = {None, "local", "openai", "hosts"}
N_TITLES = 50
MODULES = ["dspy_finetune", *(found.name for found in pkgutil.walk_packages(dspy_finetune.__path__, "dspy_finetune."))]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One Python block of a page."""

    code: str
    """Line breaks stand before it, so that errors name the page's own line."""
    needs: str | None
    """What the comment before it says."""


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    # Each block is seen, each comment stands before one.
    assert len(found) == len(re.findall(r"^ *```python", text, re.M))
    assert sum(match["needs"] is not None for match in found) == text.count("<!-- runs:")
    return [
        Block(code="\n" * text[: match.start("code")].count("\n") + match["code"], needs=match["needs"])
        for match in found
    ]


def marked(page: str) -> object:
    """Pages with a block for the small model are marked `local`, as it takes a minute or two."""
    is_local = any(block.needs == "local" for block in blocks_of(page))
    marks = [pytest.mark.local, pytest.mark.timeout(900)] if is_local else []
    return pytest.param(page, marks=marks, id=page)


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    """What `Host.openai()` talks to: jobs succeed at once, and every answer is yes."""
    server = FakeOpenAI()
    server.reply = "[[ ## is_favorite ## ]]\nTrue\n\n[[ ## completed ## ]]"
    server.script = ["succeeded"]
    yield server
    server.close()


@pytest.fixture
def own_apis(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nebius, Together and Fireworks, whose jobs succeed at once and whose clocks do not wait."""
    servers = {"NEBIUS": FakeNebius(), "TOGETHER": FakeTogether(), "FIREWORKS": FakeFireworks()}
    for name, script in (("NEBIUS", "succeeded"), ("TOGETHER", "completed"), ("FIREWORKS", "COMPLETED")):
        server = servers[name]
        server.script, server.now = [script], CLOCK.now()
        url = server.inference_url if isinstance(server, FakeFireworks) else server.url
        monkeypatch.setenv(f"{name}_BASE_URL", url)
        monkeypatch.setenv(f"{name}_API_KEY", "k")
    monkeypatch.setattr(CLOCK, "sleep", lambda seconds: None)
    yield
    for server in servers.values():
        server.close()


def write_titles(path: Path) -> None:
    """The first rows of the packaged file."""
    write_example(path)
    path.write_text(
        "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[: N_TITLES + 1]), encoding="utf-8"
    )


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if blocks_of(page)])
def test_every_block_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openai: FakeOpenAI, request: pytest.FixtureRequest
) -> None:
    blocks = blocks_of(page)
    monkeypatch.chdir(tmp_path)
    if any(block.needs == "hosts" for block in blocks):
        request.getfixturevalue("own_apis")
        write_sft(tmp_path / "train.jsonl")
        monkeypatch.setenv("DSPY_FINETUNE_HOME", str(tmp_path / "home"))
    if any(block.needs in {"openai", "hosts"} for block in blocks):
        monkeypatch.setenv("OPENAI_BASE_URL", openai.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
    if not any("write_example" in block.code for block in blocks):
        write_titles(tmp_path / "titles.csv")
    names: dict[str, object] = {"__name__": page}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            for block in blocks:
                code = compile(block.code, page, "exec")
                if not (block.needs or "").startswith("never: "):
                    assert block.needs in NEEDS
                    exec(code, names)
    finally:
        for value in names.values():
            if isinstance(value, Host):
                value.close()
    lines = iter(printed.getvalue().splitlines())
    for shown in re.findall(r"^ *print\(.*\)  # -> (.*)$", "\n".join(block.code for block in blocks), re.M):
        pattern = re.compile(".*".join(re.escape(part) for part in shown.split("...")))
        assert any(pattern.fullmatch(line) for line in lines), f"{page} shows {shown!r}, which was not printed there"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_show_what_happens(name: str) -> None:
    module = importlib.import_module(name)
    # An example that is skipped is not known to be true.
    assert "doctest: " + "+SKIP" not in Path(module.__file__ or "").read_text(encoding="utf-8")
    assert doctest.testmod(module).failed == 0


def test_the_reference_names_every_public_name() -> None:
    """Made by `python -m tests.reference_page --write`."""
    assert reference_page.FILE.read_text(encoding="utf-8") == reference_page.text()
