"""`dspy-finetune jobs` and `models`: list, look at, follow and steer jobs, whoever started them; what they made.

`follow_job` shows a job on the terminal: status, steps, loss curve, time left, cost so far; Ctrl-C leaves the job
alive. Everything shown goes to stderr.
"""

from __future__ import annotations

import datetime
import itertools
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import dspy_finetune as ft
from dspy_finetune._files import atomic_writer
from dspy_finetune._progress import ProgressBar
from dspy_finetune.cli.app import fit, is_a_step, out, print_json, remark, say, talk, warn
from dspy_finetune.cli.options import AsJson, EnvPath, HostText, RootPath, a_host, host_named, load_env
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.host import host_option
from dspy_finetune.report import blocks
from dspy_finetune.report.blocks import as_text

JobHost = Annotated[
    str | None,
    typer.Option(
        "--host",
        help="Where it runs, as for `train`; without it this machine's journal is asked.",
        autocompletion=a_host,
    ),
]
JobId = Annotated[str, typer.Argument(help="The host's id of the job.")]

_BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 24


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="List, look at, follow and steer jobs.")
    for command in (list_, show, follow, events, metrics, checkpoints, cancel, pause, resume):
        group.command(command.__name__.rstrip("_"))(command)
    app.add_typer(group, name="jobs")
    app.command("models")(models)


def list_(
    host: HostText = "openai",
    root: RootPath = None,
    limit: Annotated[int, typer.Option("--limit", help="Maximum number.", min=1)] = 20,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """The host's jobs, newest first, whoever started them.

    Example: dspy-finetune jobs list --host local
    """
    load_env(env_file)
    where = host_named(host, root=root)
    try:
        found = [job.facts for job in ft.list_jobs(host=where, limit=limit)]
    finally:
        where.close()
    if as_json:
        print_json([facts.to_dict() for facts in found])
        return
    rows = [
        (facts.id, facts.status, facts.method, facts.model, facts.fine_tuned_model or "", _hour(facts.created_at))
        for facts in found
    ]
    head = ("job", "status", "method", "model", "tuned model", "created")
    say(_table(head, rows) if found else "no jobs")


def show(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """All that the host says of a job.

    Example: dspy-finetune jobs show ftjob-123
    """
    with _attached(job_id, host, root, env_file) as job:
        _tell(job.facts, as_json=as_json)


def follow(
    job_id: JobId,
    host: JobHost = None,
    root: RootPath = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Stop following after this many seconds.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Keep one page for a browser, which loads itself anew while it runs.")
    ] = None,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Show a job until it ends; Ctrl-C leaves it alive.

    Example: dspy-finetune jobs follow ftjob-123
    """
    with _attached(job_id, host, root, env_file, polled=False) as job:
        tell_model(follow_job(job, job.host, timeout, html), as_json=as_json)


def events(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """What the host said while the job ran, oldest first.

    Example: dspy-finetune jobs events ftjob-123
    """
    with _attached(job_id, host, root, env_file) as job:
        found = job.events()
    if as_json:
        print_json([dict(one.__dict__) for one in found])
        return
    for one in found:
        say(f"{_hour(one.created_at)}  {one.message}", indent=25)


def metrics(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """The training metrics, one row per step.

    Example: dspy-finetune jobs metrics ftjob-123 --json
    """
    with _attached(job_id, host, root, env_file) as job:
        rows = job.metrics()
    if as_json:
        print_json(rows)
        return
    if not rows:
        say("no figures yet")
        return
    cells = [
        tuple(
            "" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in row.values()
        )
        for row in rows
    ]
    say(_table(tuple(rows[0]), cells))


def checkpoints(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """The models from before the end of the training.

    Example: dspy-finetune jobs checkpoints ftjob-123
    """
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
    """Stop a job for good; tokens trained until then are billed.

    Example: dspy-finetune jobs cancel ftjob-123
    """
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
    """Stop a job for a while.

    Example: dspy-finetune jobs pause ftjob-123
    """
    with _attached(job_id, host, root, env_file) as job:
        _tell(job.pause(), as_json=as_json)


def resume(
    job_id: JobId, host: JobHost = None, root: RootPath = None, env_file: EnvPath = None, as_json: AsJson = False
) -> None:
    """Let a paused job go on.

    Example: dspy-finetune jobs resume ftjob-123
    """
    with _attached(job_id, host, root, env_file) as job:
        _tell(job.resume(), as_json=as_json)


class _attached:  # reads as the word that it is: with _attached(...) as job
    """A job by its id, and its host closed at the end."""

    def __init__(
        self, job_id: str, host: str | None, root: Path | None, env_file: Path | None, *, polled: bool = True
    ) -> None:
        load_env(env_file)
        self._host = host_named(host, root=root) if host else Host.local(root=root) if root else None
        self._job_id = job_id
        self._find = ft.attach if polled else ft.jobs.job.unpolled

    def __enter__(self) -> ft.Job:
        job = self._find(self._job_id, host=self._host)
        self._host = job.host
        return job

    def __exit__(self, *error: object) -> None:
        if self._host is not None:
            self._host.close()


def _tell(facts: ft.jobs.JobFacts, *, as_json: bool) -> None:
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


def models(
    host: HostText = "openai",
    root: RootPath = None,
    every: Annotated[bool, typer.Option("--all", help="Base models too.")] = False,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """The tuned models of a host, with the day on which each is shut down.

    Example: dspy-finetune models --host openai
    """
    load_env(env_file)
    where = host_named(host, root=root)
    try:
        found = ft.jobs.model.list_models(where, tuned_only=not every, today=ft.jobs.records.CLOCK.today())
    finally:
        where.close()
    if as_json:
        print_json([one.to_dict() for one in found])
        return
    say(_table(("model", "base", "answers until"), [_row(one) for one in found]) if found else "no tuned models")
    warn(tuple(dict.fromkeys(note for one in found for note in one.warnings)))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table whose cells are neither broken nor cut short: ids are there to be copied."""
    return as_text(blocks.Table(head=head, rows=tuple(rows), holds_text=True))


def _row(one: ft.jobs.model.ListedModel) -> tuple[str, ...]:
    return one.id, one.base, one.shutdown_date.isoformat() if one.shutdown_date else ""


def follow_job(
    job: ft.Job | ft.jobs.sequence.SequenceJob, host: Host, timeout_seconds: float | None, html: Path | None = None
) -> ft.FinetunedModel:
    """Show a job until it ends, on the terminal and on a page.

    Raises:
        KeyboardInterrupt: Ctrl-C; how to go on has been printed.
        JobError: As `Job.wait`.
    """
    seen: set[str] = set()
    try:
        with ProgressBar(waits=False, stays=False) as bar:

            def show(look: ft.jobs.JobProgress) -> None:
                for event in look.events:
                    # The bar shows the figures of single steps.
                    if event.id not in seen and (event.type != "metrics" or "candidate" in event.data):
                        bar.say(fit(f"  {event.message}", sys.stderr, indent=4))
                    seen.add(event.id)
                if html is not None:
                    told = [one.message for one in look.events if one.type != "metrics" or "candidate" in one.data]
                    with atomic_writer(html) as file:
                        file.write(live_page(look, told).encode())
                if look.facts.is_final:
                    bar.say(f"  {', '.join(part for part in (look.status, summary(look)) if part)}")
                else:
                    n_done = (look.step or 0) if look.total_steps else None
                    bar.show(look.status, n_done, look.total_steps, summary(look))

            return job.wait(timeout_seconds, show)
    except KeyboardInterrupt:
        if host.stops_with_process():
            how = "the local host stops with this command; start it again, and its job goes on, with"
        else:
            how = "the job goes on; follow it again with"
        if not is_a_step():
            remark(f"{how}:\n  dspy-finetune jobs follow {job.id} {host_option(host)}")
        raise


def tell_model(model: ft.FinetunedModel, *, as_json: bool) -> None:
    """A finished model: its id on stdout, what it cost and what is left to do on stderr."""
    if as_json:
        print_json(model.to_dict())
    else:
        out().print(model.id, highlight=False, soft_wrap=True)
    if model.cost_usd is not None and model.estimated_cost_usd:
        talk().print(f"cost ${model.cost_usd:,.2f}; planned ${model.estimated_cost_usd:,.2f}", highlight=False)
    command = model.host.deployment_command(model, deployment="NAME", resource_group="GROUP")
    if command:
        talk().print(
            f"it answers after a deployment, billed by the hour:\n  {command}", highlight=False, soft_wrap=True
        )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">{refresh}<title>{status}: {job}</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<style>body{{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere}}
progress{{width:100%}} .loss{{font-size:2rem;letter-spacing:0}}</style></head><body>
<h1>{model}</h1><p>{job}: <strong>{status}</strong>{position}</p><progress max="1" value="{fraction:.3f}"></progress>
<p class="loss">{curve}</p><p>{summary}</p><ul>{events}</ul></body></html>
"""
REFRESH_SECONDS = 5


def live_page(look: ft.jobs.JobProgress, told: Sequence[str]) -> str:
    """A page of one look; a browser loads it anew until the job has ended."""
    facts = look.facts
    return _PAGE.format(
        refresh="" if facts.is_final else f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">',
        status=escape(look.status),
        job=escape(facts.id),
        model=escape(facts.fine_tuned_model or facts.model),
        position=f", step {look.step} of {look.total_steps or '?'}" if look.step else "",
        fraction=1.0 if facts.is_final else look.fraction or 0.0,
        curve=curve([loss for _, loss in look.losses], width=60) if look.losses else "",
        summary=escape(summary(look)),
        events="".join(f"<li>{escape(line)}</li>" for line in told),
    )


def summary(look: ft.jobs.JobProgress) -> str:
    """The figures of one look."""
    parts = []
    if look.losses:
        parts.append(f"loss {look.losses[-1][1]:.3f} {curve([loss for _, loss in look.losses])}")
    if look.eta_seconds and not look.step:  # from the first step on the bar tells it
        parts.append(f"about {duration(look.eta_seconds)} left")
    elif look.elapsed_seconds and look.facts.is_final:
        parts.append(f"after {duration(look.elapsed_seconds)}")
    if look.cost_usd:
        parts.append(f"${look.cost_usd:,.2f} so far")
    return ", ".join(parts)


def curve(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """A line of bars, one per value or per mean of neighbouring values.

    >>> curve([4.0, 3.0, 2.0, 1.0])
    '█▆▃▁'
    """
    values = [value for value in values if math.isfinite(value)]  # a loss that ran away is NaN
    if not values:
        return ""
    if len(values) > width:
        edges = [round(index * len(values) / width) for index in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    if high <= low:
        return _BARS[0] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)


def duration(seconds: float) -> str:
    """A time in the two largest units.

    >>> [duration(s) for s in (42, 95, 4000, 90_000)]
    ['42 s', '1 min 35 s', '1 h 6 min', '1 d 1 h']
    """
    whole = round(seconds)
    for size, unit, below, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // below} {smaller}"
    return f"{whole} s"
