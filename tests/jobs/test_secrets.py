"""Planted keys, an organisation, a cookie and a request's id are searched for in everything that the library leaves."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.failures import redact, scrub
from dspy_finetune.jobs import plan
from tests.cassettes import recorder
from tests.fake_openai import FakeOpenAI
from tests.jobs.conftest import FakeTime

BASE = "gpt-4.1-mini-2025-04-14"
SHAPED = "sk-planted-4f8c2e71d9aa"
SHAPELESS = "planted~4f8c2e71d9aa~without~the~shape~of~a~key"
ORGANISATION = "org-planted4f8c2e71d9aa0b1c"
PROJECT = "proj_planted4f8c2e71d9aa0b1c"
COOKIE = "__cf_bm=planted4f8c2e71d9aa"
REQUEST_ID = "req_0123456789abcdef"
"""Not secret in an error, which a user shows to the host's support; but no cassette needs it."""
PLANTED = "4f8c2e71d9aa"
"""A part of each of the others."""

PROMPT = ft.prompts.binary("Likes sailing.")
HEADERS = {"Set-Cookie": COOKIE, "openai-organization": ORGANISATION, "x-request-id": REQUEST_ID}


class Found:
    """All that was left: texts under a word that says where they come from."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def keep(self, where: str, value: object) -> None:
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        self.texts[f"{len(self.texts)} {where}"] = text

    def keep_error(self, where: str, error: BaseException) -> None:
        self.keep(f"{where}: traceback", "".join(traceback.format_exception(error)))
        self.keep(f"{where}: repr", repr(error))
        self.keep(f"{where}: fields", vars(error))

    def keep_value(self, where: str, value: Any) -> None:
        self.keep(f"{where}: repr", repr(value))
        self.keep(f"{where}: pickle", pickle.dumps(value))
        if hasattr(value, "to_dict"):
            self.keep(f"{where}: dict", value.to_dict())

    def leaks(self) -> list[str]:
        found = {where: text.find(PLANTED) for where, text in self.texts.items()}
        return [f"{where}: {self.texts[where][max(at - 80, 0) : at + 20]!r}" for where, at in found.items() if at >= 0]


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SHAPED)
    monkeypatch.setenv("OPENAI_ORG_ID", ORGANISATION)
    monkeypatch.setenv("OPENAI_PROJECT_ID", PROJECT)


@pytest.fixture
def quiet_cache() -> Iterator[None]:
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    yield
    dspy.cache = before


def echo(key: str) -> str:
    """What a host says that repeats what it was sent."""
    return f"bad key {key} of the organization {ORGANISATION}, project {PROJECT}"


def refuse(fake: FakeOpenAI, route: str, key: str, times: int = 1) -> None:
    fake.fail(route, status=401, times=times, headers=HEADERS, body={"error": {"message": echo(key), "code": "bad"}})


@pytest.mark.usefixtures("quiet_cache")
def test_what_is_planted_is_nowhere(
    fake: FakeOpenAI, time: FakeTime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    found = Found()
    rows = [{"title": f"Boat {n}" if n % 2 else f"Tax {n}", "is_favorite": n % 2 == 1} for n in range(20)]
    data = ft.export_sft(rows, PROMPT, tmp_path / "train.jsonl", base_model=BASE)
    hosts = [Host.openai(), Host.openai(SHAPED), Host.compatible(fake.url, SHAPELESS, "other")]
    for number, host in enumerate(hosts):
        key = host.api_key()
        made = plan(data, base_model=BASE, host=host, suffix=f"s{number}")
        fake.drop("POST /fine_tuning/jobs")
        job = made.start(allow_unknown_price=True)
        fake.jobs[job.id]["organization_id"] = ORGANISATION
        fake.emit(job.id, f"Created by {ORGANISATION}")
        model = job.wait(on_progress=lambda look: found.keep("progress", look.to_dict()))
        for what, value in (("plan", made), ("host", host), ("model", model), ("facts", job.facts)):
            found.keep_value(what, value)
        found.keep("job", repr(job))
        found.keep("events", [vars(one) for one in job.events()])

        for route, act in (
            ("GET /fine_tuning/jobs/*", job.refresh),
            ("GET /fine_tuning/jobs/*/events", job.events),
            ("GET /models/*", lambda model=model, host=host: model.wait_until_ready(host=host)),
        ):
            refuse(fake, route, key)
            with pytest.raises(ft.errors.HostError) as refused:
                act()
            found.keep_error(route, refused.value)
            found.keep(f"{route}: pickle", pickle.dumps(refused.value))

        fake.script, fake.failure = ["failed"], {"code": "bad", "message": echo(SHAPED), "param": "file"}
        failed = plan(data, base_model=BASE, host=host, suffix=f"f{number}")
        with pytest.raises(ft.errors.JobFailedError) as ended:
            failed.start(allow_unknown_price=True).wait()
        found.keep_error("a failed job", ended.value)
        fake.script = ["succeeded"]

        predictor = ft.OpenAIPredictor(PROMPT, model, host=host, num_retries=0)
        program = dspy.Module()
        program.inner = predictor
        predictor.save(tmp_path / f"predictor{number}.json")
        program.save(tmp_path / f"program{number}.json")
        found.keep("predictor: pickle", pickle.dumps(predictor))
        refuse(fake, "POST /chat/completions", key, times=3)
        with pytest.raises(Exception, match="key") as asked:
            predictor(title="Boat")
        found.keep_error("an answer that was refused", asked.value)
        test = [dspy.Example(row).with_inputs("title") for row in rows[:3]]
        report = ft.compare({"tuned": predictor}, test, [ft.metrics.accuracy("is_favorite")], num_threads=1)
        assert report.rows[0].n_failed == 2
        for name in ("html", "json", "markdown"):
            getattr(report, f"to_{name}")(tmp_path / f"report{number}.{name}")

    with recorder("all", folder=tmp_path / "cassettes").use_cassette("recorded.json"):
        client = hosts[0].client()
        job_id = client.fine_tuning.jobs.list(limit=1).data[0].id
        refuse(fake, "GET /fine_tuning/jobs/*", SHAPED)
        with pytest.raises(ft.errors.HostError):
            ft.attach(job_id, host=hosts[0])
        client.fine_tuning.jobs.retrieve(job_id)

    for record in caplog.records:
        if record.name.startswith(("dspy_finetune", "dspy.")):  # the client's own log of its traffic is the client's
            found.keep(f"log of {record.name}", record.getMessage())
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {"journal.jsonl", "train.jsonl.manifest.json", "report2.html", "predictor0.json", "recorded.json"}
    assert kinds <= {path.name for path in left}
    assert "req_" not in (tmp_path / "cassettes" / "recorded.json").read_text().replace("req_filtered", "")
    for path in left:
        found.keep(path.name, path.read_bytes())
    # It was sent and said, so that there was something to leak.
    sent = str(fake.headers)
    assert all(secret in sent for secret in (SHAPED, SHAPELESS, ORGANISATION, PROJECT))
    leaks = found.leaks()
    assert not leaks, "\n".join(leaks)


def test_an_exception_loses_what_it_repeats_with_all_that_is_behind_it() -> None:
    def raise_all() -> None:
        try:
            raise ValueError({"message": [echo(SHAPELESS)]}, 7)
        except ValueError as first:
            first.body = {"error": {"message": echo(SHAPELESS)}}  # type: ignore[attr-defined]  # as a client's exception has it
            try:
                raise KeyError(echo(SHAPELESS)) from first
            except KeyError:
                raise RuntimeError(echo(SHAPELESS))  # noqa: B904  # what was being handled is shown in a traceback too

    with pytest.raises(RuntimeError) as caught:
        raise_all()
    scrub(caught.value, [SHAPELESS])
    assert PLANTED not in "".join(traceback.format_exception(caught.value))
    first = caught.value.__context__ and caught.value.__context__.__cause__
    assert isinstance(first, ValueError)
    assert PLANTED not in str(vars(first))
    assert first.args[1] == 7


@pytest.mark.parametrize("name", ["ft:gpt-4.1-mini-2025-04-14:org-short:taste:abc12345", "ftjob-abc", "file-123"])
def test_names_that_users_need_stay(name: str) -> None:
    assert redact(name, [""]) == name
