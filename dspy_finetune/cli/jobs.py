"""`dspy-finetune jobs`: list, look at, follow and steer jobs, whoever started them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from dspy_finetune.cli.app import out, print_json, talk
from dspy_finetune.cli.follow import follow as follow_job
from dspy_finetune.cli.options import host_named, load_env
from dspy_finetune.cli.plan import AsJson, EnvPath, HostText, RootPath
from dspy_finetune.cli.train import tell_model
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import Job, JobFacts, attach, list_jobs

JobHost = Annotated[
    str | None,
    typer.Option("--host", help="Where it runs, as for `train`; without it this machine's journal is asked."),
]
JobId = Annotated[str, typer.Argument(help="The host's id of the job.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="List, look at, follow and steer jobs.")
    for command in (list_, show, follow, events, metrics, checkpoints, cancel, pause, resume):
        group.command(command.__name__.rstrip("_"))(command)
    app.add_typer(group, name="jobs")


def list_(
    host: HostText = "openai",
    root: RootPath = None,
    limit: Annotated[int, typer.Option("--limit", help="Maximum number.", min=1)] = 20,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """The host's jobs, newest first, whoever started them."""
    load_env(env_file)
    where = host_named(host, root=root)
    try:
        found = [job.facts for job in list_jobs(host=where, limit=limit)]
    finally:
        where.close()
    if as_json:
        print_json([facts.to_dict() for facts in found])
        return
    table = Table("job", "status", "method", "model", "tuned model", "created", box=None, pad_edge=False)
    for facts in found:
        table.add_row(
            facts.id, facts.status, facts.method, facts.model, facts.fine_tuned_model or "", _hour(facts.created_at)
        )
    out().print(table if found else "no jobs")


def show(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """All that the host says of a job."""
    with _attached(job_id, host, root, env_file) as job:
        _tell(job.facts, as_json=as_json)


def follow(
    job_id: JobId,
    host: JobHost = None,
    root: RootPath = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Stop following after this many seconds.")] = None,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Show a job until it ends; Ctrl-C leaves it alive."""
    with _attached(job_id, host, root, env_file) as job:
        tell_model(follow_job(job, job.host, talk(), timeout), as_json=as_json)


def events(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """What the host said while the job ran, oldest first."""
    with _attached(job_id, host, root, env_file) as job:
        found = job.events()
    if as_json:
        print_json([dict(one.__dict__) for one in found])
        return
    for one in found:
        out().print(f"{_hour(one.created_at)}  {one.message}", highlight=False, soft_wrap=True, markup=False)


def metrics(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """The figures of the training, one row per step."""
    with _attached(job_id, host, root, env_file) as job:
        rows = job.metrics()
    if as_json:
        print_json(rows)
        return
    if not rows:
        out().print("no figures yet")
        return
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            *(
                "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                for value in row.values()
            )
        )
    out().print(table)


def checkpoints(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """The models from before the end of the training."""
    with _attached(job_id, host, root, env_file) as job:
        found = job.checkpoints()
    if as_json:
        print_json([dict(one.__dict__) for one in found])
        return
    for one in found:
        out().print(f"{one.step}  {one.model}", highlight=False, soft_wrap=True)


def cancel(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """Stop a job for good; tokens trained until then are billed."""
    with _attached(job_id, host, root, env_file) as job:
        facts = job.cancel()
    trained = (
        "the host does not say how many tokens" if facts.trained_tokens is None else f"{facts.trained_tokens:,} tokens"
    )
    talk().print(f"cancelled; billed is what was trained until now: {trained}", highlight=False)
    _tell(facts, as_json=as_json)


def pause(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """Stop a job for a while."""
    with _attached(job_id, host, root, env_file) as job:
        _tell(job.pause(), as_json=as_json)


def resume(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """Let a paused job go on."""
    with _attached(job_id, host, root, env_file) as job:
        _tell(job.resume(), as_json=as_json)


class _attached:  # reads as the word that it is: with _attached(...) as job
    """A job by its id, and its host closed at the end."""

    def __init__(self, job_id: str, host: str | None, root: Path | None, env_file: Path | None) -> None:
        load_env(env_file)
        self._host = host_named(host, root=root) if host else Host.local(root=root) if root else None
        self._job_id = job_id

    def __enter__(self) -> Job:
        job = attach(self._job_id, host=self._host)
        self._host = job.host
        return job

    def __exit__(self, *error: object) -> None:
        if self._host is not None:
            self._host.close()


def _tell(facts: JobFacts, *, as_json: bool) -> None:
    if as_json:
        print_json(facts.to_dict())
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.to_dict().items():
        if value not in (None, "", [], {}):
            table.add_row(name.replace("_", " "), Text(_hour(value) if name in _HOURS else str(value)))
    out().print(table)


_HOURS = frozenset({"created_at", "finished_at", "estimated_finish"})


def _hour(seconds: Any) -> str:
    if not isinstance(seconds, int):
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
