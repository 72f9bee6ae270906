"""Follow a job on the terminal: status, steps, loss curve, time left, cost so far; Ctrl-C leaves the job alive.

In: a job. Out: its model; everything shown goes to stderr. Where nothing can be redrawn, each change is a line.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dspy_finetune.cli.options import host_option
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel, Job, JobProgress
from dspy_finetune.jobs.sequence import SequenceJob

_BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 24
BAR_WIDTH = 24
QUIET_SECONDS = 15.0


def follow(job: Job | SequenceJob, host: Host, console: Console, timeout_seconds: float | None) -> FinetunedModel:
    """Show a job until it ends.

    Raises:
        KeyboardInterrupt: Ctrl-C; how to go on has been printed.
        JobError: As `Job.wait`.
    """
    live = Live(console=console, transient=False, refresh_per_second=4) if console.is_terminal else None
    told = _Told()

    def show(look: JobProgress) -> None:
        for line in told.news(look):
            console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)
        if live is not None:
            live.update(Text(summary(look)))
        elif told.is_due(look):
            console.print(summary(look), highlight=False, soft_wrap=True)

    try:
        if live is not None:
            with live:
                return job.wait(timeout_seconds, show)
        return job.wait(timeout_seconds, show)
    except KeyboardInterrupt:
        if host.stops_with_process():
            how = "the local host stops with this command; start it again, and its job goes on, with"
        else:
            how = "the job goes on; follow it again with"
        command = f"dspy-finetune jobs follow {job.id} {host_option(host)}"
        console.print(f"{how}:\n  {command}", highlight=False, soft_wrap=True)
        raise


def summary(look: JobProgress) -> str:
    """One look in one line."""
    parts = [look.facts.id, look.status]
    if look.fraction is not None:
        done = round(look.fraction * BAR_WIDTH)
        parts.append(f"{'━' * done}{'─' * (BAR_WIDTH - done)} {look.step or 0}/{look.total_steps or '?'}")
    if look.losses:
        parts.append(f"loss {look.losses[-1][1]:.3f} {curve([loss for _, loss in look.losses])}")
    if look.eta_seconds:
        parts.append(f"about {duration(look.eta_seconds)} left")
    elif look.elapsed_seconds:
        parts.append(f"after {duration(look.elapsed_seconds)}")
    if look.cost_usd:
        parts.append(f"${look.cost_usd:,.2f} so far")
    return "  ".join(parts)


def curve(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """A line of bars, one per value or per mean of neighbouring values.

    >>> curve([4.0, 3.0, 2.0, 1.0])
    '█▆▃▁'
    """
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


class _Told:
    """What was printed last, so that a log holds changes and a sign of life now and then."""

    def __init__(self) -> None:
        self._status = ""
        self._at = 0.0
        self._seen: set[str] = set()

    def news(self, look: JobProgress) -> list[str]:
        """What the host said since the last look, without the figures of single steps: the bar shows those."""
        fresh = [event for event in look.events if event.id not in self._seen]
        self._seen.update(event.id for event in fresh)
        return [event.message for event in fresh if event.type != "metrics" or "candidate" in event.data]

    def is_due(self, look: JobProgress) -> bool:
        now = time.monotonic()
        if look.status == self._status and now - self._at < QUIET_SECONDS:
            return False
        self._status, self._at = look.status, now
        return True
