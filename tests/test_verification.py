"""A server held against the model's own host: the same, rounded, or something else, and what."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_finetune.errors import EmptyDatasetError, HostError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel
from dspy_finetune.verification import verify
from tests.fake_openai import FakeOpenAI
from tests.local.plain_server import load, served
from tests.local.test_export_model import ROWS, train
from tests.local.toy import build_toy_model
from tests.local.toy_server import ToyServer, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyServer]:
    folder = build_toy_model(tmp_path_factory.mktemp("models") / "toy")
    running = start_server(tmp_path_factory.mktemp("host") / "root", folder)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def tuned(server: ToyServer) -> str:
    return train(server, "toy", suffix="taste", seed=1)


@pytest.fixture(scope="module")
def others(server: ToyServer, tuned: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyServer]:
    """Another server with the merged export, the same in 16 bits, the same with another template, and the base."""
    folder = tmp_path_factory.mktemp("exports")
    host = Host.local(server.url)
    model = FinetunedModel(id=tuned, base="toy", host_name="local", host_description=host.to_dict())
    model.export(folder / "exact", precision="f32")
    model.export(folder / "rounded", precision="bf16")
    shutil.copytree(folder / "exact", folder / "template")
    template = folder / "template" / "chat_template.jinja"
    template.write_text(
        template.read_text().replace("<|im_start|>assistant", "<|im_start|>Now, reader, answer as an assistant")
    )
    (folder / "base").symlink_to(Path(server.facts["models"][0]))
    names = [str(folder / name) for name in ("exact", "rounded", "template", "base")]
    running = start_server(tmp_path_factory.mktemp("other") / "root", folder / "exact", models=names)
    yield running
    running.stop()


def at(others: ToyServer) -> Host:
    return Host.compatible(others.url, name="other")


def test_an_exact_copy_is_the_same(server: ToyServer, tuned: str, others: ToyServer) -> None:
    found = verify(tuned, at(others), served_as="exact", host=Host.local(server.url))
    assert found.verdict == "same"
    assert found.labels == ("false", "true")
    assert found.n_prompts == 12
    assert "prompts: 12 of the training file of its job (50 were wanted, and it holds no more)" in str(found)
    assert found.n_changed == 0
    assert found.findings == ()
    assert found.difference is not None
    assert found.difference < 1e-3


# peft asks transformers for an attribute under its former name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["peft", "merged", "gguf"])
def test_each_export_is_the_same_on_a_server_of_transformers_alone(
    kind: Any, server: ToyServer, tuned: str, tmp_path: Path
) -> None:
    """None of this package's code stands between the files and the answers; without the adapter it is found out."""
    model = FinetunedModel(id=tuned, base="toy", host_name="local", host_description=Host.local(server.url).to_dict())
    made = model.export(tmp_path / "out", format=kind, precision=None if kind == "peft" else "f32")
    base = Path(server.facts["models"][0]) if kind == "peft" else None
    gguf = next((name for name in made.files if name.endswith(".gguf")), None)
    with served(*load(made.folder, base=base, gguf=gguf), name="plain") as url:
        found = verify(tuned, url, host=Host.local(server.url))
        assert (found.verdict, found.n_prompts, found.n_changed) == ("same", 12, 0), str(found)
    if kind == "peft":
        with served(*load(Path(server.facts["models"][0])), name="plain") as url:
            found = verify(tuned, url, host=Host.local(server.url))
            assert found.verdict == "different"
            assert any("the adapter is missing" in one for one in found.findings)


def test_a_copy_in_sixteen_bits_is_rounded(server: ToyServer, tuned: str, others: ToyServer) -> None:
    found = verify(tuned, at(others), served_as="rounded", host=Host.local(server.url), tolerance=0.2)
    assert found.verdict == "rounded"
    assert found.ok


def test_a_server_that_misses_the_adapter_is_found_out(server: ToyServer, tuned: str, others: ToyServer) -> None:
    """The server answers without an error, as the base does: the findings say so."""
    found = verify(tuned, at(others), served_as="base", host=Host.local(server.url))
    assert found.verdict == "different"
    assert not found.ok
    assert any("the adapter is missing" in one for one in found.findings)


def test_another_chat_template_is_found_out(server: ToyServer, tuned: str, others: ToyServer) -> None:
    found = verify(tuned, at(others), served_as="template", host=Host.local(server.url))
    assert found.verdict == "different"
    assert any("reads +" in one and "another chat template" in one for one in found.findings), "\n".join(found.findings)
    assert not any("adapter is missing" in one for one in found.findings)


def test_a_server_without_log_probabilities_is_judged_by_its_answers(server: ToyServer, tuned: str) -> None:
    with contextlib.closing(FakeOpenAI()) as fake:
        fake.listed, fake.reply = {}, "perhaps"
        host = Host.compatible(fake.url, "sk-test-0000", name="mute")
        found = verify(tuned, host, served_as="any", host=Host.local(server.url))
    assert found.difference is None
    assert found.verdict == "different"
    assert found.n_changed == 12
    assert any("mute tells no log-probabilities" in one for one in found.findings)


def test_what_is_to_be_asked_has_to_be_known(server: ToyServer, tuned: str, others: ToyServer, tmp_path: Path) -> None:
    own = Host.local(server.url)
    with pytest.raises(UsageError, match=r"say which one is meant: served_as=\.\.\. \(--as NAME\)"):
        verify(tuned, at(others), host=own)
    with pytest.raises(UsageError, match="lists no job that made it"):
        verify("ft:toy:local:gone:0123", at(others), served_as="exact", host=own)
    with pytest.raises(UsageError, match="say where ft:gpt-4o:acme::1 was trained"):
        verify("ft:gpt-4o:acme::1", at(others))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(EmptyDatasetError, match=r"empty\.jsonl: no rows to ask"):
        verify(tuned, at(others), served_as="exact", host=own, data=tmp_path / "empty.jsonl")
    with pytest.raises(HostError, match="no answer"):
        verify(tuned, Host.compatible("http://127.0.0.1:9/v1", name="nobody"), served_as="x", host=own)


def test_the_command_exits_with_1_where_something_else_answers(
    server: ToyServer, tuned: str, others: ToyServer, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]))
    command = [sys.executable, "-m", "dspy_finetune.cli.main", "verify", tuned, "--at", others.url]
    command += ["--host", f"local={server.url}", "--data", str(rows), "--json"]
    same = subprocess.run([*command, "--as", "exact"], capture_output=True, text=True)
    assert same.returncode == 0, same.stdout + same.stderr
    assert json.loads(same.stdout)["verdict"] == "same"
    told = json.loads(same.stdout)
    assert (told["n_prompts"], told["n_wanted"], told["source"]) == (4, 50, str(rows))
    base = subprocess.run([*command, "--as", "base"], capture_output=True, text=True)
    assert base.returncode == 1
    assert json.loads(base.stdout)["ok"] is False
