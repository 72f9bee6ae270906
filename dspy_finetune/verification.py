"""`verify`: does a server answer as the tuned model does? Both are asked the same prompts, and their beliefs compared.

In: a tuned model where it was trained, and another server that is said to serve it. Out: a `Verification`: how far the
log-probabilities of the labels lie apart, compared with the noise between two runs of either server, and what differs:
a missing adapter (the server answers as the base does), another chat template (it reads another number of tokens), or
other weights. Not covered: whether the answers are right (evaluation/).
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from dspy_finetune._jsonl import read_jsonl
from dspy_finetune.catalog import parse_model_id
from dspy_finetune.errors import DataError, EmptyDatasetError, HostError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.lm import positions_on_wire
from dspy_finetune.hosts.protocol import present
from dspy_finetune.jobs import FinetunedModel, list_jobs
from dspy_finetune.predictors.ask import in_threads
from dspy_finetune.predictors.probabilities import label_masses
from dspy_finetune.report.blocks import Bullets, Facts, Section
from dspy_finetune.report.page import Reported

__all__ = ["Verification", "verify"]

Verdict = Literal["same", "rounded", "same answers", "different"]

MOST_LABELS = 64
LEAST_MASS = 1e-4
"""Below this a probability decides nothing, and its logarithm is mostly rounding."""
LEAST_NOISE = 1e-3
"""Nats: servers round what they send, and 16 bits hold no more."""
LISTED_JOBS = 1000


@dataclass(frozen=True, kw_only=True)
class Verification(Reported):
    """One server compared with the model's own host."""

    model: str
    """The tuned model, where it was trained."""
    at: str
    """The other server."""
    served_as: str
    """What the model is called there."""
    n_prompts: int
    """Prompts that both were asked, each twice."""
    n_wanted: int
    """Maximum number; the rows hold fewer where this is more."""
    source: str
    """The rows: a file, or the validation or training file of the model's job."""
    labels: tuple[str, ...]
    """Whose log-probabilities were compared; empty: those of the most likely first tokens."""
    verdict: Verdict
    """same: within twice the noise between two runs, or a thousandth of a nat. rounded: as far apart as rounding the
    weights makes it. same answers: the server tells no log-probabilities, and no answer differs where the model is
    sure. different: something else answers."""
    difference: float | None
    """Mean distance of the log-probabilities, in nats; None where the server tells none."""
    largest: float | None
    """The largest distance of one prompt."""
    noise: float | None
    """The same mean between two runs of one server, the noisier of the two."""
    n_changed: int
    """Prompts to which the servers answer differently."""
    findings: tuple[str, ...]
    """What differs, in sentences; empty where nothing does."""

    @property
    def ok(self) -> bool:
        """Whether the server answers as the model does."""
        return self.verdict != "different"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**self.__dict__, "ok": self.ok, "labels": list(self.labels), "findings": list(self.findings)}

    def __str__(self) -> str:
        figures = (f"{name}: {told}" for name, told in self._figures().items())
        return "\n".join([self._head(), *figures, *self.findings])

    def section(self) -> Section:
        """The blocks of a report: the verdict, the distances, what differs."""
        asked = {"model": self.model, "labels": ", ".join(self.labels)}
        facts = {name: told for name, told in asked.items() if told}
        return Section(
            title=f"Does {self.at} serve {self.model}?",
            verdict=self._head(),
            outcome="equivalent" if self.ok else "worse",
            blocks=(Facts(facts=facts | self._figures()), *((Bullets(lines=self.findings),) if self.findings else ())),
        )

    def _head(self) -> str:
        words = {
            "same": f"answers as the model does: within twice the noise between two runs, or {LEAST_NOISE:g} nats",
            "rounded": "answers as the model does, but for rounded weights",
            "same answers": "gives the same answers where the model is sure (it tells no log-probabilities)",
            "different": "does NOT answer as the model does",
        }
        return f"{self.served_as} at {self.at} {words[self.verdict]}"

    def _figures(self) -> dict[str, str]:
        few = f" ({self.n_wanted:,} were wanted, and it holds no more)" if self.n_prompts < self.n_wanted else ""
        told = {"prompts": f"{self.n_prompts:,} of {self.source}{few}"}
        if self.difference is not None:
            told["log-probabilities"] = (
                f"{self.difference:.4f} nats apart on average, {self.largest:.4f} at most;"
                f" between two runs {self.noise:.4f}"
            )
        return told | {"answers": f"{self.n_changed} of {self.n_prompts} differ"}


@dataclass(frozen=True, kw_only=True)
class _Reply:
    text: str
    beliefs: Mapping[str, float] | None
    """Label -> log-probability; token -> log-probability where there are no labels."""
    tokens: Mapping[str, float]
    """The most likely first tokens, likewise."""
    prompt_tokens: int | None


def verify(
    model: str | FinetunedModel,
    at: str | Host,
    *,
    served_as: str | None = None,
    host: Host | None = None,
    data: str | os.PathLike[str] | None = None,
    n_prompts: int = 50,
    tolerance: float = 0.1,
    n_threads: int = 4,
) -> Verification:
    """Ask a server and the model's own host the same prompts, each twice, and compare what they believe.

    Args:
        model: The tuned model.
        at: The other server: its address, or a host.
        served_as: What the model is called there; without it the one model that the server lists, or the model's id.
        host: Where the model was trained; the local host for its own models without it.
        data: Rows in OpenAI's chat or preference format; without it the job's validation file, else its training file.
        n_prompts: Maximum number.
        tolerance: Nats; as far as that the log-probabilities may be apart because weights were rounded to 16 bits
            (0.004 and 0.065 were measured in bfloat16; a missing adapter was 1.05).
        n_threads: Requests at the same time.

    Raises:
        UsageError: The model answers by a linear head, and the server is no local host with it; no prompts are to be
            had, or the server does not say which of its models is meant.
        HostError: One of the two does not answer.
    """
    own, name = _own_host(model, host)
    other = at if isinstance(at, Host) else Host.compatible(at)
    if _has_head(own, name) and not _has_head(other, served_as or name):
        address = other.base_url or other.name
        raise UsageError(
            f"{name} answers by a linear head, which no chat server has: what answers at {address} is another model;"
            f" export it (dspy-finetune export-model {shlex.quote(name)} --format head --out FOLDER), serve it in"
            " Python by ft.load_predictor('FOLDER'), and hold it against the host's by dspy-finetune compare ROWS"
            " --program export=FOLDER --program host=PREDICTOR.json"
        )
    prompts, labels, source = _prompts(name, own, data, n_prompts)
    there = served_as or _served_as(other, name)
    ours = [_ask(own, name, prompts, labels, n_threads) for _ in range(2)]
    theirs = [_ask(other, there, prompts, labels, n_threads) for _ in range(2)]
    changed = [one for one, two in zip(ours[0], theirs[0], strict=True) if one.text != two.text]
    # Where the model is torn between two answers, rounding decides.
    n_decisive = sum(_margin(one) > 2 * tolerance for one in changed)
    facts: dict[str, Any] = {
        "model": name,
        "at": other.base_url or other.name,
        "served_as": there,
        "n_prompts": len(prompts),
        "n_wanted": n_prompts,
        "source": source,
        "labels": labels,
        "n_changed": len(changed),
    }
    if theirs[0][0].beliefs is None or ours[0][0].beliefs is None:
        silent = other.name if theirs[0][0].beliefs is None else own.name
        found = _template_findings(ours[0], theirs[0])
        verdict: Verdict = "different" if n_decisive or found else "same answers"
        notes = (*found, f"{silent} tells no log-probabilities; only the answers could be compared")
        if changed:
            widest = max(map(_margin, changed))
            notes += (f"where the answers differ, the model itself prefers its own by {widest:.3f} nats at most",)
        return Verification(**facts, verdict=verdict, difference=None, largest=None, noise=None, findings=notes)
    distances = _distances(ours[0], theirs[0])
    difference = fmean(distances)
    noise = max(fmean(_distances(*ours)), fmean(_distances(*theirs)))
    if difference <= max(2 * noise, LEAST_NOISE):
        verdict = "same"
    elif difference <= tolerance and not n_decisive:
        verdict = "rounded"
    else:
        verdict = "different"
    findings = () if verdict != "different" else _findings(own, name, prompts, labels, ours[0], theirs[0])
    return Verification(
        **facts, verdict=verdict, difference=difference, largest=max(distances), noise=noise, findings=findings
    )


def _own_host(model: str | FinetunedModel, host: Host | None) -> tuple[Host, str]:
    if isinstance(model, FinetunedModel):
        return host or model.host, model.id
    if host is None and parse_model_id(model).organisation not in (None, "local"):
        raise UsageError(f"say where {model} was trained: host=... (--host)")
    return host or Host.local(), model


def _prompts(
    model: str, host: Host, data: str | os.PathLike[str] | None, n_prompts: int
) -> tuple[list[list[dict[str, Any]]], tuple[str, ...], str]:
    """(the conversations up to where the assistant speaks, the labels among their answers, whose rows they are)."""
    if data is not None:
        source, rows = os.fspath(data), [row for _, row in read_jsonl(data)]
    else:
        source, rows = _rows_of_job(model, host)
    prompts, answers, seen = [], [], set()
    for row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"{source}: a row is no JSON object; give rows in OpenAI's format")
        pair = row.get("input")
        messages = pair.get("messages") if isinstance(pair, Mapping) else row.get("messages")
        if not isinstance(messages, list) or not messages:
            raise DataError(f"{source}: a row has no 'messages'; give rows in OpenAI's format")
        replies = row.get("preferred_output") or [one for one in messages if one.get("role") == "assistant"]
        answers += [str(one.get("content")) for one in replies]
        last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].get("role") == "assistant"), None)
        prompt = messages[:last] if last is not None and not isinstance(pair, Mapping) else messages
        prompt = [{"role": one["role"], "content": one["content"]} for one in prompt]
        key = json.dumps(prompt, sort_keys=True)
        if key not in seen and prompt:
            seen.add(key)
            prompts.append(prompt)
    if not prompts:
        raise EmptyDatasetError(f"{source}: no rows to ask; name rows with data=... (--data FILE)")
    distinct = tuple(sorted({answer.strip() for answer in answers}))
    is_closed = len(distinct) <= MOST_LABELS and len(distinct) * 2 <= len(answers)
    # Spread over the file: it may be sorted by label.
    step = max(len(prompts) / n_prompts, 1.0)
    chosen = [prompts[int(number * step)] for number in range(min(n_prompts, len(prompts)))]
    return chosen, distinct if is_closed else (), source


def _rows_of_job(model: str, host: Host) -> tuple[str, list[Any]]:
    tuned = model.split(":ckpt-step-")[0]
    facts = next(
        (one.facts for one in list_jobs(host=host, limit=LISTED_JOBS) if one.facts.fine_tuned_model == tuned), None
    )
    file_id = (facts.validation_file or facts.training_file) if facts is not None else None
    if facts is None or file_id is None:
        raise UsageError(f"no prompts for {model}: {host.name} lists no job that made it; name rows with --data FILE")
    with host.talking(f"fetch the file {file_id}"):
        content = host.api().content(file_id)
    is_held_out = file_id == facts.validation_file
    source = f"the {'validation' if is_held_out else 'training'} file of its job"
    return source, [json.loads(line) for line in content.splitlines() if line.strip()]


def _served_as(host: Host, model: str) -> str:
    with host.talking("list the models"):
        listed = [one.id for one in host.api().models()]
    if model in listed:
        return model
    if len(listed) == 1:
        return listed[0]
    raise UsageError(
        f"{host.base_url or host.name} serves {', '.join(listed[:8]) or 'no model'}; say which one is meant:"
        " served_as=... (--as NAME)"
    )


def _ask(
    host: Host, model: str, prompts: Sequence[list[dict[str, Any]]], labels: Sequence[str], n_threads: int
) -> list[_Reply]:
    longest = max((len(label.encode()) for label in labels), default=1)

    def one(messages: Any) -> _Reply:
        with host.talking(f"ask {model}"):
            answer = present(
                host.client().chat.completions.create(
                    model=model,
                    messages=messages,
                    max_tokens=min(longest, 16),
                    temperature=0,
                    logprobs=True,
                    top_logprobs=20,
                ),
                "choices.message",
            )
        choice = answer.choices[0]
        listed = choice.logprobs.content if choice.logprobs is not None else None
        content = [entry.model_dump() for entry in listed or ()]
        first = _beliefs(content, ()) if content else {}
        beliefs = (_beliefs(content, labels) if labels else first) if content else None
        tokens = answer.usage.prompt_tokens if answer.usage is not None else None
        return _Reply(
            text=_first(choice.message.content or "", labels), beliefs=beliefs, tokens=first, prompt_tokens=tokens
        )

    return in_threads(one, prompts, n_threads)


def _first(text: str, labels: Sequence[str]) -> str:
    """The label that an answer begins with, else its first word: what follows is another server's way to stop."""
    text = text.strip()
    begun = [label for label in labels if text.casefold().startswith(label.casefold())]
    return max(begun, key=len) if begun else (text.split() or [""])[0]


def _beliefs(content: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, float]:
    positions = positions_on_wire(content)
    if labels:
        masses = label_masses(positions, labels)
    else:
        masses = {t: math.exp(v) for t, v in positions[0][1].items() if not _is_part(t)}
    return {name: math.log(max(mass, LEAST_MASS)) for name, mass in masses.items()}


def _is_part(token: str) -> bool:
    """Whether it is a part of a character: some servers send its bytes, vLLM one name for all such parts."""
    return any(one == "\ufffd" or "\udc80" <= one <= "\udcff" for one in token)


def _distances(ours: Sequence[_Reply], theirs: Sequence[_Reply]) -> list[float]:
    """For each prompt the mean distance of the log-probabilities; what one of the two does not list is next to none."""
    return [
        _distance(one.beliefs or {}, two.beliefs or {}) or _distance(one.tokens, two.tokens)
        for one, two in zip(ours, theirs, strict=True)
    ]


def _distance(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """0 where neither believes in anything that is named: then the tokens have to tell."""
    least = math.log(LEAST_MASS)
    names = [
        name for name in first.keys() | second.keys() if max(first.get(name, least), second.get(name, least)) > least
    ]
    return fmean(abs(first.get(name, least) - second.get(name, least)) for name in names) if names else 0.0


def _margin(reply: _Reply) -> float:
    """By how much the first choice leads the second, in nats; without log-probabilities nobody knows: much."""
    first, second = (*sorted((reply.beliefs or {}).values(), reverse=True), -math.inf, -math.inf)[:2]
    return first - second if first > -math.inf else math.inf


def _findings(
    own: Host,
    model: str,
    prompts: Sequence[list[dict[str, Any]]],
    labels: Sequence[str],
    ours: Sequence[_Reply],
    theirs: Sequence[_Reply],
) -> tuple[str, ...]:
    found = list(_template_findings(ours, theirs))
    # Held against all first tokens: labels in which neither believes tell nothing.
    to_base = _distance_to_base(own, model, prompts, labels, theirs)
    to_tuned = fmean(_distance(one.tokens, two.tokens) for one, two in zip(ours, theirs, strict=True))
    if to_base is not None and to_base < to_tuned / 2:
        found.append(
            f"the server answers as the base model does ({to_base:.4f} nats from it, {to_tuned:.4f} from the tuned"
            " one): the adapter is missing; load it, and ask for it by its own name"
        )
    if not found:
        found.append(
            "both read the same number of tokens, and the server does not answer as the base does: other weights"
            " (another model or step), weights that were rounded further than the tolerance, or a template of the same"
            " length; export again, with --precision f32 to see whether it was the rounding"
        )
    return tuple(found)


def _template_findings(ours: Sequence[_Reply], theirs: Sequence[_Reply]) -> tuple[str, ...]:
    more = [
        two.prompt_tokens - one.prompt_tokens
        for one, two in zip(ours, theirs, strict=True)
        if one.prompt_tokens is not None and two.prompt_tokens is not None
    ]
    if not more or not any(more):
        return ()
    low, high = min(more), max(more)
    by = f"{low:+d}" if low == high else f"{low:+d} to {high:+d}"
    return (
        f"the server reads {by} tokens for the same prompts: another chat template or tokenizer (a system message that"
        " is added or left out, a doubled opening token); serve the template of the export",
    )


def _has_head(host: Host, model: str) -> bool:
    """Whether a host says that a model answers by a linear head; the local host does."""
    if parse_model_id(model).organisation != "local":
        return False
    try:
        with host.talking(f"ask for the model {model}"):
            told: Any = present(host.client().models.retrieve(model), "id")
    except HostError:
        return False  # no such model there; what asks it says so
    return "linear head" in str((told.model_extra or {}).get("description"))


def _distance_to_base(
    own: Host, model: str, prompts: Sequence[list[dict[str, Any]]], labels: Sequence[str], theirs: Sequence[_Reply]
) -> float | None:
    if own.kind.name != "local":
        return None  # elsewhere asking the base costs money, and it may not be offered
    try:
        with own.talking(f"ask for the model {model}"):
            told: Any = present(own.client().models.retrieve(model), "id")
        base = str((told.model_extra or {}).get("root") or parse_model_id(model).base)
        replies = _ask(own, base, prompts, labels, 4)
    except HostError:
        return None
    return fmean(_distance(one.tokens, two.tokens) for one, two in zip(replies, theirs, strict=True))
