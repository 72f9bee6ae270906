"""Every command explains itself, gives its facts as JSON, and stands in docs/cli.md with all its options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dspy_finetune.cli.app import build_app
from dspy_finetune.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from commands(below, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(commands(typer.main.get_command(build_app())))


def options(command: Any) -> set[str]:
    return {name for one in command.params for name in one.opts if name.startswith("--")}


def sections() -> dict[str, set[str]]:
    """The options that the page names for each command: the first cells of the table under its heading."""
    found = {}
    for section in re.split(r"^## ", (DOCS / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        for name in re.findall(r"`([^`]+)`", heading):
            found[name] = set(re.findall(r"^\| `(--[a-z-]+)` \|", body, flags=re.MULTILINE))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS[name].help
    assert [one.name for one in COMMANDS[name].params if not one.help] == []
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert f"dspy-finetune {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_gives_its_facts_as_json(name: str) -> None:
    # serve prints one JSON line always.
    assert name == "serve" or "--json" in options(COMMANDS[name])


def test_the_page_names_every_command_and_option_and_no_other() -> None:
    assert sections() == {name: options(command) - {"--help"} for name, command in COMMANDS.items()}


def test_the_list_of_pages_names_each_once() -> None:
    linked = re.findall(r"^\| \[[a-z-]+\]\(([a-z-]+\.md)\)", (DOCS / "index.md").read_text(), flags=re.MULTILINE)
    assert sorted(linked) == sorted(path.name for path in DOCS.glob("*.md") if path.name != "index.md")


@pytest.mark.parametrize("page", ["../README.md", *sorted(path.name for path in DOCS.glob("*.md"))])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", (DOCS / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (DOCS / page).parent.joinpath(link).exists()] == []
