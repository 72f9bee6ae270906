"""A started job: poll it, wait for its end, read its metrics, pause, resume or cancel it.

In: a job's id and its host; nothing else is needed, so any process on any machine can poll it. Out: facts, events,
metrics, and the model. Not covered: creating jobs (plan.py, submit.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dspy_finetune._progress import ProgressBar
from dspy_finetune.catalog import load_catalog, parse_model_id, strip_model_id
from dspy_finetune.errors import HostError, JobCancelledError, JobError, JobFailedError, JobTimeoutError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.embedded import home
from dspy_finetune.hosts.failures import BACKOFF, Patience
from dspy_finetune.hosts.host import check_host, host_option
from dspy_finetune.jobs.model import READY_SECONDS, FinetunedModel
from dspy_finetune.jobs.records import (
    CANCELLED,
    CLOCK,
    FAILED,
    SUCCEEDED,
    Checkpoint,
    Event,
    JobFacts,
    Journal,
    Row,
    billed_cost,
    catalog_name,
    intent_of,
    journal_of,
    metrics_from_events,
    note_down,
    parse_metrics,
)
from dspy_finetune.jobs.records import checkpoint as read_checkpoint
from dspy_finetune.jobs.records import event as read_event
from dspy_finetune.jobs.records import job_facts as read_job
from dspy_finetune.jobs.submit import DATA_KEY, PROMPT_KEY
from dspy_finetune.report.blocks import Bullets, Facts, Section
from dspy_finetune.report.page import Reported


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """A job at one poll."""

    facts: JobFacts
    """All that the host says."""
    events: tuple[Event, ...]
    """So far, oldest first."""
    step: int | None
    """The last training step reported."""
    total_steps: int | None
    """The number of training steps."""
    losses: tuple[tuple[int, float], ...]
    """(step, training loss), for a curve."""
    elapsed_seconds: float
    """From the creation of the job until its end, or until now."""
    eta_seconds: float | None
    """Until its end: by the host, else by the steps; None where neither says."""
    cost_usd: float | None
    """What has been trained so far, at the price of training; None where a figure is unknown."""

    @property
    def status(self) -> str:
        """The host's word."""
        return self.facts.status

    @property
    def label(self) -> str:
        """The job."""
        return self.facts.id

    @property
    def n_done(self) -> int | None:
        """The last training step reported."""
        return self.step

    @property
    def n_total(self) -> int | None:
        """The number of training steps."""
        return self.total_steps

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None where the steps are unknown."""
        if self.facts.status == "succeeded":
            return 1.0
        return min(self.step / self.total_steps, 1.0) if self.step is not None and self.total_steps else None

    @property
    def message(self) -> str:
        """The last thing that the host said."""
        return self.events[-1].message if self.events else ""

    @property
    def note(self) -> str:
        """What a bar of the steps does not show: the loss, or how long it has taken where no step is known."""
        parts = [f"{self.elapsed_seconds:,.0f} s"] if self.step is None else []
        if self.losses:
            parts.append(f"loss {self.losses[-1][1]:.3f}")
        return ", ".join(parts)

    def __str__(self) -> str:
        """In words: `running, 125 s, step 10/25, loss 1.234, about 180 s left`; only what is known."""
        parts = [self.status, f"{self.elapsed_seconds:,.0f} s"]
        if self.step is not None:
            parts.append(f"step {self.step:,}" + (f"/{self.total_steps:,}" if self.total_steps else ""))
        if self.losses:
            parts.append(f"loss {self.losses[-1][1]:.3f}")
        if self.eta_seconds and self.step is not None:
            parts.append(f"about {self.eta_seconds:,.0f} s left")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, for `--json`."""
        return {
            "job_id": self.facts.id,
            "status": self.status,
            "step": self.step,
            "total_steps": self.total_steps,
            "train_loss": self.losses[-1][1] if self.losses else None,
            "elapsed_seconds": self.elapsed_seconds,
            "eta_seconds": self.eta_seconds,
            "cost_usd": self.cost_usd,
            "message": self.message,
        }


def make_progress(
    facts: JobFacts,
    events: Sequence[Event],
    *,
    n_tokens: int | None,
    cost: Callable[[JobFacts, int | None], float | None],
    now: float,
) -> JobProgress:
    """The progress at one poll, from facts and events.

    Args:
        facts: What the host says of the job.
        events: Oldest first.
        n_tokens: Of all epochs, by the plan.
        cost: The price of a number of trained tokens of this job.
        now: The hour.
    """
    # Below 0 or at it stands what the local host tried before its first step: it is no progress.
    steps = [event for event in events if isinstance(event.data.get("step"), (int, float)) and event.data["step"] > 0]
    step = int(steps[-1].data["step"]) if steps else None
    total = next(
        (int(e.data["total_steps"]) for e in reversed(steps) if isinstance(e.data.get("total_steps"), (int, float))),
        None,
    )
    losses = tuple(
        (int(event.data["step"]), float(event.data["train_loss"]))
        for event in steps
        if isinstance(event.data.get("train_loss"), (int, float))
    )
    done = step / total if step is not None and total else None
    trained = facts.trained_tokens
    if trained is None and n_tokens is not None and done is not None:
        trained = round(n_tokens * done)
    return JobProgress(
        facts=facts,
        events=tuple(events),
        step=step,
        total_steps=total,
        losses=losses,
        elapsed_seconds=max((facts.finished_at or now) - facts.created_at, 0.0) if facts.created_at else 0.0,
        eta_seconds=_eta(facts, steps, step, total, now),
        cost_usd=cost(facts, trained) if trained is not None else None,
    )


def _eta(facts: JobFacts, steps: Sequence[Event], step: int | None, total: int | None, now: float) -> float | None:
    if facts.is_final:
        return 0.0
    if facts.estimated_finish is not None:
        return max(facts.estimated_finish - now, 0.0)
    first = steps[0] if steps else None
    if first is None or first.created_at is None or step is None or not total:
        return None
    done = step - int(first.data["step"])
    return (total - step) * (now - first.created_at) / done if done > 0 else None


logger = logging.getLogger(__name__)

OUTAGE_SECONDS = 3600.0
"""Timeout of a host that does not answer: it ends the wait; the job itself goes on."""


class Job(Reported):
    """A fine-tuning job on a host; `attach(job_id, host=...)` gives it from anywhere."""

    def __init__(
        self,
        job_id: str,
        host: Host,
        *,
        facts: JobFacts | None = None,
        estimated_cost_usd: float | None = None,
        prompt_digest: str | None = None,
        data_sha256: str | None = None,
        n_tokens: int | None = None,
        intent: str | None = None,
        journal: Journal | None = None,
        is_new: bool = False,
    ) -> None:
        self.id = job_id
        self.host = host
        self.is_new = is_new
        """Whether `start` made it just now, or found it."""
        self._facts = facts
        self._estimated_cost_usd = estimated_cost_usd
        self._prompt_digest = prompt_digest
        self._data_sha256 = data_sha256
        self._n_tokens = n_tokens
        self._intent = intent
        self._journal = journal
        self._events: dict[str, Event] = {}

    def __repr__(self) -> str:
        return f"Job({self.id!r}, {self.host!r})"

    def section(self) -> Section:
        """The blocks of a report: the job at the last poll; it neither waits for the host nor fails with it."""
        facts = self._facts
        if facts is None:
            title, known = f"Job {self.id}", {"host": self.host.name}
            remarks: tuple[str, ...] = ("not polled yet: job.refresh() does it",)
        else:
            title, known = f"Job {self.id}: {facts.status}", self._told(facts)
            remarks = () if facts.is_final else ("as of the last poll; job.refresh() polls again",)
        return Section(title=title, blocks=(Facts(facts=known), *((Bullets(lines=remarks),) if remarks else ())))

    def _told(self, facts: JobFacts) -> dict[str, str]:
        settings = ", ".join(f"{name}={value}" for name, value in facts.hyperparameters.items())
        told = {
            "host": self.host.name,
            "method": facts.method,
            "base model": facts.model,
            "tuned model": facts.fine_tuned_model,
            "trained tokens": None if facts.trained_tokens is None else f"{facts.trained_tokens:,}",
            "hyperparameters": settings or None,
            "seed": None if facts.seed is None else str(facts.seed),
            "error": facts.error_message,
        }
        return {name: value for name, value in told.items() if value is not None}

    def refresh(self) -> JobFacts:
        """Ask the host for the job.

        Raises:
            HostError: It does not know the job, or does not answer.
        """
        with self.host.talking(f"ask for the job {self.id}"):
            self._facts = read_job(self.host.api().job(self.id))
        return self._facts

    @property
    def facts(self) -> JobFacts:
        """The job at the last poll; the first use polls the host."""
        return self._facts or self.refresh()

    @property
    def status(self) -> str:
        """The job's status in the host's word; polled now, unless it has ended."""
        if self._facts is not None and self._facts.is_final:
            return self._facts.status
        return self.refresh().status

    def events(self) -> list[Event]:
        """All events so far, oldest first, none lost or doubled in whatever order the host lists them."""
        with self.host.talking(f"list the events of {self.id}"):
            # The host lists the newest first.
            listed = [read_event(value) for value in self.host.api().events(self.id, self._events.keys())]
        for event in reversed(listed):
            self._events.setdefault(event.id, event)
        every = self._events.values()
        return sorted(every, key=lambda event: math.inf if event.created_at is None else event.created_at)

    def _events_if_any(self) -> list[Event]:
        try:
            return self.events()
        except HostError as error:
            # A host without events, a key that may not read them, a moment's failure: the job itself says enough.
            logger.info("%s", error)
            return list(self._events.values())

    def metrics(self) -> list[Row]:
        """The training metrics, one row per step: from the result file, else from the events."""
        for file_id in self.facts.result_files:
            with self.host.talking(f"read the result file {file_id}"):
                rows = parse_metrics(self.host.api().content(file_id))
            if rows:
                return rows
        return metrics_from_events(self.events())

    def checkpoints(self) -> list[Checkpoint]:
        """The models from before the end, as the host lists them."""
        with self.host.talking(f"list the checkpoints of {self.id}"):
            return [read_checkpoint(value) for value in self.host.api().checkpoints(self.id)]

    def cancel(self) -> JobFacts:
        """Stop the job for good; tokens that were trained until then are billed, as `trained_tokens` tells.

        Raises:
            HostError: The host refused: the job had ended, for one.
        """
        return self._steer("cancel")

    def pause(self) -> JobFacts:
        """Stop the job for a while.

        Raises:
            HostError: The host refused.
        """
        return self._steer("pause")

    def resume(self) -> JobFacts:
        """Let a paused job go on.

        Raises:
            HostError: The host refused.
        """
        return self._steer("resume")

    def _steer(self, how: Literal["cancel", "pause", "resume"]) -> JobFacts:
        with self.host.talking(f"{how} the job {self.id}"):
            self._facts = read_job(self.host.api().steer(self.id, how))
        return self._facts

    def wait(
        self,
        timeout_seconds: float | None = None,
        on_progress: Callable[[JobProgress], object] | None = None,
        *,
        poll_seconds: float | None = None,
    ) -> FinetunedModel:
        """Follow the job to its end; Ctrl-C, a timeout or an outage leave it alive on the host.

        Looks again after a pause that grows while nothing changes. Statuses that are not known count as still going.

        Args:
            timeout_seconds: Timeout; None waits for ever.
            on_progress: Called after each poll; without it a line on stderr shows status, step and loss now and then.
            poll_seconds: The longest interval between two polls; the host's own by default.

        Raises:
            JobFailedError: The host says that it failed; its code, message and param.
            JobCancelledError: Somebody cancelled it.
            JobTimeoutError: The time is over.
            HostError: The host refused, or did not answer for an hour; says how the job is followed again.
            Exception: What `on_progress` raised; a line says how the job is followed again.
        """
        with ProgressBar() as line:
            # Events tell step and loss; where nobody is told, they are not asked for.
            with_events = on_progress is not None or not line.is_quiet
            for progress in self.follow(timeout_seconds, poll_seconds=poll_seconds, with_events=with_events):
                if on_progress is not None:
                    self._tell(on_progress, progress)
                else:
                    # What changes at each look stands in the note: another label would begin another line.
                    n_done = progress.step if progress.total_steps else None
                    line.show(
                        f"{self.id} on {self.host.name}: {progress.status}",
                        n_done,
                        progress.total_steps,
                        progress.note,
                    )
        facts = self._end()
        model = self._model(facts)
        if self.host.kind.lists_models:
            try:
                # Of a job that ended long ago it is there, or was deleted.
                since = CLOCK.now() - facts.finished_at if facts.finished_at is not None else 0.0
                model.wait_until_ready(host=self.host, timeout_seconds=max(READY_SECONDS - since, 0.0))
            except HostError as error:  # the model is made and paid
                logger.warning("%s; the job has succeeded all the same, and made %s", error, model)
        return model

    def _tell(self, on_progress: Callable[[JobProgress], object], progress: JobProgress) -> None:
        try:
            on_progress(progress)
        except Exception as error:
            logger.warning("on_progress failed (%s); %s", type(error).__name__, self._goes_on())
            raise

    def follow(
        self, timeout_seconds: float | None = None, *, poll_seconds: float | None = None, with_events: bool = True
    ) -> Iterator[JobProgress]:
        """The same as a stream of progress, the last one final; raises errors of polling, not the job's failure."""
        started = CLOCK.now()
        first, longest = self.host.kind.poll_seconds
        longest = poll_seconds if poll_seconds is not None else longest
        pause = min(first, longest)
        patience = Patience(pause, longest)
        before: tuple[Any, ...] = ()
        while True:
            try:
                facts = self.refresh()
                events = self._events_if_any() if with_events else []
            except HostError as error:
                waited = patience.pause_after(error, self._bears(error), CLOCK.now())
                if waited is None:
                    raise self._left_alone(error) from error
                pause_now = waited
            else:
                patience.answered()
                yield make_progress(facts, events, n_tokens=self._n_tokens, cost=self._cost, now=CLOCK.now())
                if facts.is_final:
                    return
                now = (facts.status, len(events))
                pause = min(first, longest) if now != before else min(pause * BACKOFF, longest)
                before = now
                pause_now = pause
            left = None if timeout_seconds is None else started + timeout_seconds - CLOCK.now()
            if left is not None and left <= 0:
                raise JobTimeoutError(
                    f"{self.id} has not ended after {timeout_seconds:g} s; {self._goes_on()}", job_id=self.id
                )
            CLOCK.sleep(pause_now if left is None else min(pause_now, left))

    def _bears(self, error: HostError) -> float:
        """Seconds for which a failure like this one is waited out."""
        if error.retryable:
            return OUTAGE_SECONDS
        # A job that was there a moment ago: one machine of many may not know it yet.
        return self.host.kind.listing_lag_seconds if error.status == 404 and self._facts is not None else 0.0

    def _left_alone(self, error: HostError) -> HostError:
        """The error that ends the following of a job which the host still has."""
        if error.status == 404:
            return self._unknown(error)
        return type(error)(
            f"{error}; {self._goes_on()}",
            status=error.status,
            code=error.code,
            request_id=error.request_id,
            retryable=error.retryable,
        )

    def _unknown(self, error: HostError) -> HostError:
        lost = (
            "knows the job {} no more: it may have been deleted there"
            if self._facts is not None
            else "does not know the job {}"
        )
        return HostError(
            f"{self.host.name} {lost.format(self.id)}; check the id (list_jobs(host=...), or dspy-finetune jobs list"
            f" {host_option(self.host)}, shows the host's jobs) and that the key is of the project that started it",
            status=error.status,
            code=error.code,
            request_id=error.request_id,
        )

    def _goes_on(self) -> str:
        again = f"attach({self.id!r}, host=...), or dspy-finetune jobs follow {self.id} {host_option(self.host)}"
        if self.host.stops_with_process():
            return f"the local host stops with this program; its job goes on with {again}"
        return f"the job itself goes on at {self.host.name}; follow it again with {again}"

    def model(self) -> FinetunedModel:
        """The model of a job that has succeeded.

        Raises:
            JobFailedError: It failed.
            JobCancelledError: It was cancelled.
            JobError: It is still going.
        """
        return self._model(self._end())

    def _end(self) -> JobFacts:
        facts = self.facts if self.facts.is_final else self.refresh()
        self._note_end(facts)
        if facts.status == FAILED:
            raise JobFailedError(
                f"{self.id} failed on {self.host.name}: {facts.error_message or 'no reason given'}"
                + (f" ({facts.error_code})" if facts.error_code else "")
                + "; mend it, or try the same again with new=True (--new)",
                job_id=self.id,
                code=facts.error_code,
                param=facts.error_param,
            )
        if facts.status == CANCELLED:
            raise JobCancelledError(
                f"{self.id} was cancelled on {self.host.name}; it made no model; new=True (--new) makes another job",
                job_id=self.id,
            )
        if facts.status != SUCCEEDED:
            raise JobError(f"{self.id} has not ended (it is {facts.status}); wait() follows it", job_id=self.id)
        return facts

    def _model(self, facts: JobFacts) -> FinetunedModel:
        if not facts.fine_tuned_model:
            raise JobError(f"{self.id} succeeded, but {self.host.name} names no model; ask again later", job_id=self.id)
        named = parse_model_id(facts.fine_tuned_model)
        return FinetunedModel(
            id=facts.fine_tuned_model,
            base=named.base if named.is_tuned else strip_model_id(facts.model),
            host_name=self.host.name,
            host_description=self.host.to_dict(),
            method=facts.method,
            job_id=self.id,
            # A job from another machine carries both in its metadata.
            prompt_digest=self._prompt_digest or facts.metadata.get(PROMPT_KEY),
            data_sha256=self._data_sha256 or facts.metadata.get(DATA_KEY),
            trained_tokens=facts.trained_tokens,
            cost_usd=self._cost(facts, facts.trained_tokens),
            estimated_cost_usd=self._estimated_cost_usd,
            hyperparameters=facts.hyperparameters,
            seed=facts.seed,
        )

    def _cost(self, facts: JobFacts, trained_tokens: int | None) -> float | None:
        catalog = load_catalog()
        name = catalog_name(self.host, catalog)
        return billed_cost(
            strip_model_id(facts.model),
            facts.method,
            trained_tokens,
            name,
            catalog,
            is_full=facts.hyperparameters.get("lora") is False,
        )

    def _note_end(self, facts: JobFacts) -> None:
        if self._journal is None or self._intent is None or not facts.is_final:
            return
        if any(e.event == "ended" and e.facts.get("job_id") == self.id for e in self._journal.entries(self._intent)):
            return
        seconds = facts.finished_at - facts.created_at if facts.finished_at and facts.created_at else None
        note_down(
            self._journal,
            self._intent,
            "ended",
            job_id=self.id,
            status=facts.status,
            model=facts.fine_tuned_model,
            trained_tokens=facts.trained_tokens,
            seconds=seconds,
        )


def attach(job_id: str, *, host: Host | None = None) -> Job:
    """A job by its id: from another process or machine, with or without the journal, started by this library or not.

    Args:
        job_id: The host's id.
        host: Where it runs; without it this machine's journal is asked.

    Raises:
        UsageError: No host was given, and the journal does not know the job.
        HostError: The host does not know the job.
    """
    check_host(host)
    job = unpolled(job_id, host=host)
    try:
        job.refresh()
    except HostError as error:
        if error.status != 404:
            raise
        raise job._unknown(error) from error
    return job


def unpolled(job_id: str, *, host: Host | None = None) -> Job:
    """The same before the host is asked for it: `follow` waits for one that is down just now.

    Raises:
        UsageError: No host was given, and the journal does not know the job.
    """
    noted = _noted(job_id, host)
    if host is None:
        if "host" not in noted:
            raise UsageError(
                f"this machine's journal does not know the job {job_id}; say where it runs:"
                f" attach({job_id!r}, host=...), or dspy-finetune jobs show {job_id} --host openai;"
                " `dspy-finetune jobs list --host ...` shows a host's jobs"
            )
        host = Host.from_dict(noted["host"])
    return Job(
        job_id,
        host,
        estimated_cost_usd=noted.get("estimated_cost_usd"),
        prompt_digest=noted.get("prompt_digest"),
        data_sha256=noted.get("data_sha256"),
        n_tokens=noted.get("n_tokens"),
        intent=noted.get("intent"),
        journal=journal_of(host) if "intent" in noted else None,
    )


def list_jobs(*, host: Host, limit: int = 20, metadata: dict[str, str] | None = None) -> list[Job]:
    """The host's jobs, newest first, whoever started them.

    Args:
        host: Where.
        limit: Maximum number.
        metadata: Only jobs with these pairs.

    Raises:
        HostError: The host does not list jobs, or does not answer.
    """
    check_host(host)
    found: list[Job] = []
    with host.talking("list the jobs"):
        for value in host.api().jobs(metadata, limit=min(limit, 100)):
            facts = read_job(value)
            if metadata and any(facts.metadata.get(name) != text for name, text in metadata.items()):
                continue  # a host may not know the filter
            if len(found) >= limit:
                break
            found.append(Job(facts.id, host, facts=facts, intent=None))
    return found


def _noted(job_id: str, host: Host | None) -> dict[str, Any]:
    """What this machine's journal knows of a job: the notes of its intent."""
    journals = [journal_of(host)] if host is not None else [Journal(home() / "journal.jsonl"), journal_of(Host.local())]
    wanted = next((found for journal in journals if (found := intent_of(journal, job_id)) is not None), None)
    return {} if wanted is None else {**wanted.facts, "intent": wanted.intent}
