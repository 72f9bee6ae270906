"""The keys that each command prints with `--json` are on record: a script that reads them is not broken unseen."""

from __future__ import annotations

import pytest

from tests import json_keys, public_surface
from tests.cli.test_help import COMMANDS

NOT_RUN = {
    "quickstart": "trains a model",
    "migrate": "needs two hosts; tests/cli/test_migrate.py",
    "serve": "is a server",
    "export-model": "needs the local host; the keys are the fields of ExportedModel, which are on record",
    "verify": "needs two servers; the keys are the fields of Verification, and ok",
    "jobs cancel": "prints the job, as `jobs show` does",
    "jobs pause": "the same",
    "jobs resume": "the same",
}


def test_the_keys_are_those_on_record() -> None:
    changes = public_surface.changes(public_surface.recorded()["json"], json_keys.json_keys())
    assert not changes, f"{changes}\n\n{public_surface.HOW}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_run_or_says_why_not(command: str) -> None:
    assert (command in json_keys.RUNS) != (command in NOT_RUN)


def test_a_key_that_changes_is_seen() -> None:
    """The paths are those of the values, whatever a list holds."""
    assert json_keys.keys({"a": [{"b": 1}, {"c": None}], "d": [], "e": 2}) == {"a[].b", "a[].c", "d[]", "e"}
