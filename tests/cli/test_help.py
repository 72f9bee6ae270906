"""Every command explains itself, gives its facts as JSON, and stands in docs/cli.md with all its options."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dspy_finetune import __version__
from dspy_finetune._progress import Heartbeat
from dspy_finetune.cli import export
from dspy_finetune.cli import options as options_of_commands
from dspy_finetune.cli.app import GROUPS, build_app
from dspy_finetune.cli.main import main
from dspy_finetune.evaluation import metrics
from dspy_finetune.export import dialects

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


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ru", ["run"]),
        ("quickstart --size ", ["full", "small"]),
        ("train train.jsonl --host t", ["together"]),
        ("jobs follow ftjob-1 --host lo", ["local"]),
        ("compare test.jsonl --metric exact", ["exact_match"]),
        ("convert a b --to tog", ["together"]),
        ("export-model m --format g", ["gguf"]),
        ("train train.jsonl --recipe head", ["head", "head+lora"]),
    ],
)
def test_the_shell_is_offered_what_an_option_takes_and_nothing_is_drawn_into_its_line(
    line: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"dspy-finetune {line}"
    monkeypatch.setattr("sys.argv", ["dspy-finetune"])
    monkeypatch.setattr("dspy_finetune.cli.main.Heartbeat", lambda label: pytest.fail("a line of its own"))
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    monkeypatch.setenv("_DSPY_FINETUNE_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert capsys.readouterr().out.split() == offered


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_the_command_line_takes(name: str) -> None:
    found = re.search(r"^Example: dspy-finetune (.*)$", COMMANDS[name].help, flags=re.MULTILINE)
    assert found is not None
    assert found[1].startswith(name)
    COMMANDS[name].make_context(name, shlex.split(found[1].removeprefix(name)))


def test_options_are_grouped_and_each_stands_in_one_group() -> None:
    grouped = [option for names in GROUPS.values() for option in names.split()]
    assert len(grouped) == len(set(grouped))
    known = set().union(*map(options, COMMANDS.values()))
    assert set(grouped) <= known


def test_the_list_of_commands_cuts_no_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = " ".join(capsys.readouterr().out.partition("Commands:")[2].split())
    assert "..." not in listed
    assert "compare and report, in one command; each step's own command is printed." in listed


def test_help_shows_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out
    places = [said.index(f"{heading}:") for heading in ("Arguments", "The rows", "Where it runs", "What it may cost")]
    assert places == sorted(places)
    assert said.index("The rows:") < said.index("--validation") < said.index("The model and its training:")


def test_help_completion_and_wrong_arguments_wait_for_no_heavy_module() -> None:
    """DSPy alone takes a second, at every TAB; a process of its own, as the tests have imported it."""
    code = (
        "import os, sys\n"
        "from dspy_finetune.cli.main import main\n"
        "for line in ('--version', '--help', *(f'{name} --help' for name in sys.argv[1:]), 'split --seed x a'):\n"
        "    try: main(line.split())\n"
        "    except SystemExit as end: assert end.code == (2 if line[-1] == 'a' else 0), line\n"
        "os.environ |= {'_DSPY_FINETUNE_COMPLETE': 'complete_bash'}\n"
        "os.environ |= {'COMP_WORDS': 'dspy-finetune t', 'COMP_CWORD': '1'}\n"
        "try: main([])\n"
        "except SystemExit: pass\n"
        "heavy = {'dspy', 'torch', 'openai', 'litellm', 'numpy', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} are imported' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"dspy-finetune {__version__}\nUsage: dspy-finetune")
    assert done.stdout.rstrip().endswith("train")


def test_names_that_the_help_shows_are_all_that_there_are() -> None:
    def is_plain(name: str) -> bool:
        given = inspect.signature(getattr(metrics, name)).parameters.values()
        return name.islower() and sum(one.default is one.empty for one in given) <= 1

    apart = {"within", "per_class", "order_agreement", *options_of_commands.JUDGED, *options_of_commands.EMBEDDED}
    assert tuple(name for name in metrics.__all__ if name not in apart and is_plain(name)) == options_of_commands.PLAIN
    assert tuple(dialects.DIALECTS) == export.DIALECTS


@pytest.mark.parametrize(("command", "begun"), [("doctor", ["dspy-finetune doctor"]), ("serve", [])])
def test_a_server_does_not_say_that_it_is_at_work(
    command: str, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would do so for as long as it runs."""
    labels: list[str] = []

    class Silent(Heartbeat):
        def __init__(self, label: str) -> None:
            labels.append(label)
            super().__init__(label)

    monkeypatch.setattr("dspy_finetune.cli.main.Heartbeat", Silent)
    monkeypatch.setattr("sys.argv", ["dspy-finetune", command, "--help"])
    with pytest.raises(SystemExit):
        main()
    assert labels == begun


def test_a_shell_can_complete_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_DSPY_FINETUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "dspy-finetune quic")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main(["quic"])
    assert capsys.readouterr().out.split() == ["quickstart"]


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


def test_the_site_asks_no_other_server_for_fonts() -> None:
    """Zensical's own setting loads them from Google, from every reader's browser."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^theme:\n(?:  .*\n)*?  font: false\b", settings, flags=re.MULTILINE)


@pytest.mark.parametrize("page", ["../README.md", "../SKILL.md", *PAGES])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", (DOCS / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (DOCS / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_stay_in_the_site(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+\.\w+)", (DOCS / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (DOCS / page).parent.joinpath(link).resolve().is_relative_to(DOCS)] == []


def shown_commands(text: str) -> list[str]:
    """The commands of a page: in indented blocks, and in fenced ones that are not Python."""
    command = re.compile(r"^ *(?:\$ )?(?:[A-Z_]+=\S+ )*(dspy-finetune [a-z].*)$", re.MULTILINE)
    fenced = re.findall(r"^ *```([a-z]*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [
        *re.findall(r"^ {4,}(?:\$ )?(?:[A-Z_]+=\S+ )*(dspy-finetune [a-z].*)$", text, re.MULTILINE),
        *(line for language, block in fenced if language != "python" for line in command.findall(block)),
    ]


def test_commands_are_seen_in_every_kind_of_block() -> None:
    text = "a `dspy-finetune no`\n\n    $ dspy-finetune split a.csv\n\n```bash\nK=1 dspy-finetune doctor  # ok\n```\n"
    assert shown_commands(text) == ["dspy-finetune split a.csv", "dspy-finetune doctor  # ok"]


@pytest.mark.parametrize("page", ["../README.md", "../SKILL.md", *(page for page in PAGES if page != "cli.md")])
def test_the_command_line_takes_each_command_that_a_page_shows(page: str) -> None:
    text = re.sub(r" *\\\n +", " ", (DOCS / page).read_text(encoding="utf-8"))  # a line that goes on
    # In the skill commands stand in sentences, elsewhere only parts of some.
    in_sentences = re.findall(r"`(dspy-finetune [a-z][^`\n]*)`", text)
    lines = in_sentences if page == "../SKILL.md" else shown_commands(text)
    assert len(lines) >= {"../README.md": 1, "quickstart.md": 7, "own-model.md": 2}.get(page, 0)
    for line in lines:
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
