"""A host's failures: from a client's exception to one of this library's errors, and how long one is waited out.

In: an exception of the `openai` package (or any with `status_code`, `code`, `request_id`). Out: HostError,
TrainingClosedError or ModelGoneError with those fields, the exception chained and keys taken out of the text;
`Patience`: seconds to wait before the host is asked again, or None. Policy reads `.retryable`, not the text. No client
waits longer than two seconds without a line: `tell_wait` says it for all of them.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from dspy_finetune._progress import SHORT_SECONDS
from dspy_finetune.errors import HostError, ModelGoneError, TrainingClosedError

logger = logging.getLogger(__name__)

RETRYABLE_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""A 429 that no waiting mends."""

_KEY_SHAPE = re.compile(r"\b(?:sk|sess|pk)-[A-Za-z0-9_\-*.]{6,}")
# Ids of organisations and projects, as OpenAI's messages about limits name them.
_ID_SHAPE = re.compile(r"\b(?:org-|proj_)[A-Za-z0-9]{16,}")
_URL_SECRET = re.compile(r"(?<=://)[^/@\s]+@")

CLOSED_SINCE = (
    "OpenAI takes no new jobs from organisations that never fine-tuned (since 2026-05-07), from those that used no"
    " tuned model for 60 days (since 2026-07-02), and from nobody after 2027-01-06"
)
CLOSED_ELSEWHERE = (
    "the same file trains on Host.local() for nothing, on Host.azure(...) for its existing customers,"
    " and on any Host.compatible(...) that takes OpenAI's job API"
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Take keys out of a text: the given ones, whatever has the shape of a key or of an organisation's id, and user
    names in addresses.

    >>> redact("Incorrect API key provided: sk-abcdef123456")
    'Incorrect API key provided: ***'
    """
    for secret in sorted({one for one in secrets if one}, key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, "***")
        else:  # a key as short as "k" is one where it stands alone, not inside every word
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", "***", text)
    return _URL_SECRET.sub("", _ID_SHAPE.sub("***", _KEY_SHAPE.sub("***", text)))


def scrub(exception: BaseException, secrets: Iterable[str] = ()) -> None:
    """Take keys out of an exception that others raised, and out of those behind it, in place.

    A host that refuses a key may repeat it, and a traceback shows the client's own exception beside ours.
    """
    known, seen = tuple(secrets), set[int]()
    behind: list[BaseException | None] = [exception]
    while behind:
        one = behind.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(_scrubbed(value, known) for value in one.args)
        for name, value in list(vars(one).items()):
            if isinstance(value, (str, dict, list)):
                setattr(one, name, _scrubbed(value, known))
        behind += [one.__cause__, one.__context__]


def _scrubbed(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, dict):
        return {name: _scrubbed(item, secrets) for name, item in value.items()}
    return [_scrubbed(item, secrets) for item in value] if isinstance(value, list) else value


def describe_failure(exception: BaseException, *, host: str, doing: str = "", secrets: Iterable[str] = ()) -> HostError:
    """The HostError that stands for a client's exception; chained to it.

    Args:
        exception: What the client raised.
        host: The host's name, for the message.
        doing: What was asked, for the message: "upload train.jsonl".
        secrets: Texts that must not appear in the message, nor in the exception's own.
    """
    secrets = tuple(secrets)
    scrub(exception, secrets)
    status = _first(exception, "status_code", "status")
    status = status if isinstance(status, int) else None
    body = getattr(exception, "body", None)
    body = body if isinstance(body, Mapping) else {}
    inner = body.get("error")
    details: Mapping[str, Any] = inner if isinstance(inner, Mapping) else body
    code = details.get("code") or getattr(exception, "code", None)
    code = str(code) if code else None
    request_id = getattr(exception, "request_id", None)
    text = details.get("message") or getattr(exception, "message", None) or str(exception) or type(exception).__name__
    text = redact(" ".join(str(text).split()), secrets)
    start = f"{host}: cannot {doing}" if doing else host
    retryable = (status in RETRYABLE_STATUSES and code not in _NO_MONEY) or (
        status is None and _never_answered(exception)
    )
    fields: dict[str, Any] = {
        "status": status,
        "code": code,
        "request_id": str(request_id) if request_id else None,
        "retryable": retryable,
    }
    error: HostError
    if code == "training_not_available":
        error = TrainingClosedError(
            f"{start}: it no longer trains for you ({CLOSED_SINCE}); {CLOSED_ELSEWHERE}", **fields
        )
    elif status == 410 or code in {"model_not_found", "model_deprecated", "model_shutdown"}:
        remedy = (
            "it was deleted, or lies in another --root: dspy-finetune models --host local lists what there is"
            if host == "local"
            else "check that the key belongs to the project that owns the model and that it is not past its shutdown"
            " date; if it was trained minutes ago, try again"
        )
        error = ModelGoneError(f"{start}: {text} (HTTP {status}); {remedy}", **fields)
    elif status is None:
        reason = _cause(exception, secrets)
        error = HostError(f"{start}: no answer ({reason or text}); check the address and the network", **fields)
    else:
        error = HostError(f"{start}: HTTP {status}: {text}{_remedy(status, code, is_told=bool(details))}", **fields)
    error.__cause__ = exception
    return error


def told_pause_seconds(error: HostError, now: float) -> float | None:
    """The pause that the host asked for with this failure; None where it asked for none."""
    response = getattr(error.__cause__, "response", None)
    return retry_after_seconds(response.headers, now) if response is not None else None


def retry_after_seconds(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """What `Retry-After-Ms` or `Retry-After` (seconds or a date) asks for; None where it is absent or makes no sense.

    At most `LONGEST_TOLD_SECONDS`.

    >>> retry_after_seconds({"retry-after": "1.5"}), retry_after_seconds({"retry-after": "soon"})
    (1.5, None)
    """
    told = _retry_after(headers, now)
    return None if told is None else min(told, LONGEST_TOLD_SECONDS)


def _retry_after(headers: Mapping[str, str], now: float | None) -> float | None:
    milliseconds = header_number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    if text is None or (seconds := header_number(text)) is not None:
        return None if text is None else seconds
    at = _instant(text)
    if at is None:
        return None
    # A date is one of the host's clock, from which ours may be minutes apart: its own hour comes first.
    hour = _instant(headers.get("date") or "")
    return max(at - (hour if hour is not None else time.time() if now is None else now), 0.0)


def header_number(text: str | None) -> float | None:
    """The number that a header holds; None where it holds none that makes sense."""
    try:
        value = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return value if 0.0 <= value < 1e12 else None


def _instant(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


_told_until: dict[str, float] = {}
_telling = threading.Lock()


def tell_wait(host: str, seconds: float, status: int | None = None) -> None:
    """Say in one line that a client waits for a host, if that is longer than two seconds; once for all that wait.

    Args:
        host: Its name.
        seconds: From now on.
        status: What the host answered; None where it did not.
    """
    if seconds <= SHORT_SECONDS:
        return
    until = time.monotonic() + seconds
    with _telling:
        if until <= _told_until.get(host, 0.0) + SHORT_SECONDS:
            return
        _told_until[host] = until
    why = f"{host} answered HTTP {status}" if status is not None else f"no answer from {host}"
    logger.warning("%s, waiting %d s", f"rate limited by {host}" if status == 429 else why, round(seconds))


_told_slow: dict[str, float] = {}


def tell_slow(host: str, text: str) -> None:
    """Say in one line that a request waits for its answer; once in a while, as a busy host is asked often."""
    now = time.monotonic()
    with _telling:
        if now < _told_slow.get(host, 0.0):
            return
        _told_slow[host] = now + TELL_AGAIN_SECONDS
    logger.warning(text)


BACKOFF = 1.5
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_TOLD_SECONDS = 120.0
"""A host that asks for a longer pause is asked again all the same: a Retry-After of a day is seldom meant."""
TELL_AGAIN_SECONDS = 120.0


class Patience:
    """How long to wait after a host's failure before it is asked again, and when to stop asking.

    Of failures in a row; their time is counted in our own pauses: a laptop that slept for hours has not been refused
    for hours. A host that says `Retry-After` is heeded. One line tells the first failure, and again now and then while
    it lasts.
    """

    def __init__(self, first_seconds: float = 1.0, longest_seconds: float = LONGEST_PAUSE_SECONDS) -> None:
        self._first = first_seconds
        self._longest = max(first_seconds, longest_seconds)
        self.answered()

    def answered(self) -> None:
        """The host has answered: the next failure is a first one."""
        # Apart, so that a long outage leaves a 404 behind it its own time.
        self._waited = {True: 0.0, False: 0.0}
        self._pause = self._first
        self._tell_at = 0.0
        self._told: int | None = -1

    def pause_after(self, error: HostError, limit_seconds: float, now: float) -> float | None:
        """Seconds to wait before the host is asked again; None where it has failed for longer than the limit.

        Args:
            error: What came.
            limit_seconds: So long failures like this one are waited out; 0 for one that will not pass.
            now: Seconds since 1970.
        """
        waited = self._waited[error.retryable]
        if waited >= limit_seconds:
            return None
        told = told_pause_seconds(error, now)
        pause = max(self._pause, told or 0.0)
        if waited >= self._tell_at or error.status != self._told:
            logger.warning("%s; asking again in %g s", error, round(pause, 1))
            self._told, self._tell_at = error.status, max(2 * waited, TELL_AGAIN_SECONDS)
        self._waited[error.retryable] += pause
        self._pause = min(self._pause * BACKOFF, self._longest)
        return pause


def never_sent(exception: BaseException) -> bool:
    """True if the request certainly did not reach the host: the connection could not even be opened."""
    seen: BaseException | None = exception
    while seen is not None:
        # httpx and httpx2 share the names; their own import would tie this module to one of the two.
        if type(seen).__name__ in {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}:
            return True
        seen = seen.__cause__
    return False


def _never_answered(exception: BaseException) -> bool:
    names = {kind.__name__ for kind in type(exception).__mro__}
    return bool(names & {"APIConnectionError", "ConnectionError", "TimeoutError", "TransportError"})


def _first(exception: BaseException, *names: str) -> Any:
    for name in names:
        value = getattr(exception, name, None)
        if value is not None:
            return value
    return None


def _cause(exception: BaseException, secrets: Iterable[str]) -> str:
    cause = exception.__cause__
    return redact(" ".join(str(cause).split()), secrets) if cause is not None else ""


def _remedy(status: int, code: str | None, *, is_told: bool) -> str:
    if status in {404, 405, 501} and not is_told:
        return "; nothing there answers as OpenAI's API does: check the address, with /v1 where it has that"
    if (code or "").endswith(("_organization", "_project")):
        return "; check OPENAI_ORG_ID and OPENAI_PROJECT_ID in the environment: they must be those of the key"
    if status == 401:
        return "; check the key in the environment"
    if status == 403:
        return "; check the key's project and permissions"
    if status == 429 and code == "insufficient_quota":
        return "; check plan and billing"
    if status == 429:
        return "; wait and try again"
    return ""
