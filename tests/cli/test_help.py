"""Every command explains itself, gives its facts as JSON, and stands in docs/cli.md with all its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dspy_finetune.cli.app import build_app
from dspy_finetune.cli.main import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


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


def test_the_list_of_pages_and_the_navigation_name_each_once() -> None:
    linked = re.findall(r"^\| \[[^]]+\]\(([a-z/-]+\.md)\)", (DOCS / "index.md").read_text(), flags=re.MULTILINE)
    assert sorted(linked) == [page for page in PAGES if page != "index.md"]
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert sorted(re.findall(r"\b[a-z/-]+\.md$", navigation, flags=re.MULTILINE)) == PAGES


@pytest.mark.parametrize("page", ["../README.md", "../SKILL.md", *PAGES])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", (DOCS / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (DOCS / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", ["../README.md", "../SKILL.md", *(page for page in PAGES if page != "cli.md")])
def test_the_command_line_takes_each_command_that_a_page_shows(page: str) -> None:
    text = re.sub(r" *\\\n +", " ", (DOCS / page).read_text(encoding="utf-8"))  # a line that goes on
    pattern = r"^ {4,}(?:\$ )?(dspy-finetune [a-z].*)$"
    if page == "../SKILL.md":  # there commands stand in sentences, elsewhere only parts of some
        pattern = r"`(dspy-finetune [a-z][^`\n]*)`"
    for line in re.findall(pattern, text, re.MULTILINE):
        if "..." in line:
            continue
        words = shlex.split(line, comments=True)[1:]
        words = words[: next((n for n, word in enumerate(words) if word in ("|", ">", "&&")), None)]
        group: Any = typer.main.get_command(build_app())
        while hasattr(group, "commands"):
            name, *words = words
            group = group.commands[name]
        if words and words != ["--help"]:
            group.make_context(name, words)  # raises where an option or a value is wrong
