"""batch_files.py: rows cut into files of requests for a batch interface, and answers found again by their custom id.

In: input rows, or the files that a host sent back. Out: `rows.jsonl` (a line for each row), `part-0001.jsonl` (its
requests, within the interface's limits), and for each row its completions. A row's requests stand in one part. Only
the places of a part's answers are held in memory, never the answers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dspy_finetune._files import atomic_writer, read_jsonl
from dspy_finetune.bulk.asking import RowFailedError, is_completion
from dspy_finetune.bulk.rows import InputRow, dump_json
from dspy_finetune.bulk.tokens import Tokens
from dspy_finetune.hosts.failures import RETRYABLE_STATUSES

logger = logging.getLogger(__name__)

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
"""Of one file, as OpenAI's guide has them."""
ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of requests."""

    name: str
    """part-0001, ..."""
    n_rows: int
    """Rows of the input that it covers, bad ones among them."""
    n_requests: int
    """Its lines."""
    n_bytes: int
    """Its size; 0 where there is nothing to ask."""


def cut(
    rows: Iterable[InputRow], folder: Path, *, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES
) -> list[Part]:
    """Write `rows.jsonl` and the parts. Raises FileError."""
    parts: list[Part] = []
    stream = iter(rows)
    row = next(stream, None)
    with atomic_writer(folder / "rows.jsonl") as kept:
        while row is not None:
            name = f"part-{len(parts) + 1:04d}"
            n_rows = n_requests = n_bytes = 0
            with atomic_writer(folder / f"{name}.jsonl") as target:
                while row is not None:
                    lines = [request_line(custom_id(row.index, number), body) for number, body in enumerate(row.bodies)]
                    size = sum(map(len, lines))
                    if n_rows and (n_requests + len(lines) > max_requests or n_bytes + size > max_bytes):
                        break
                    target.writelines(lines)
                    kept.write(_row_line(row))
                    n_rows, n_requests, n_bytes = n_rows + 1, n_requests + len(lines), n_bytes + size
                    row = next(stream, None)
            parts.append(Part(name=name, n_rows=n_rows, n_requests=n_requests, n_bytes=n_bytes))
    return parts


def saved_rows(folder: Path) -> Iterator[tuple[InputRow, int]]:
    """The rows of `rows.jsonl`, each with the number of its requests."""
    for _, saved in read_jsonl(folder / "rows.jsonl"):
        n_requests = saved.pop("n_requests")
        yield InputRow(**saved, bodies=()), n_requests


def custom_id(index: int, number: int) -> str:
    """What joins a request and its answer."""
    return f"row-{index}-{number}"


def request_line(identity: str, body: bytes) -> bytes:
    """One line of a request file; the body goes in as it is."""
    head = f'{{"custom_id":"{identity}","method":"POST","url":"{ENDPOINT}","body":'
    return head.encode("ascii") + body + b"}\n"


class Answers:
    """The answers of one part, in files in the order of the attempts: a later answer replaces an earlier failure."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._places: dict[str, tuple[int, int]] = {}
        self._failed: set[str] = set()
        self.retryable: set[str] = set()
        """Requests whose failure may pass."""
        self.tokens = Tokens()
        """What the host counted for all of them."""
        for number, path in enumerate(files):
            place = 0
            with open(path, "rb") as stream:
                for line in stream:
                    if line.strip():
                        self._take_in(line, number, place)
                    place += len(line)

    def _take_in(self, line: bytes, number: int, place: int) -> None:
        try:
            answer = json.loads(line)
            identity = answer["custom_id"]
        except (ValueError, KeyError, TypeError):
            # Whose answer it was cannot be told: that request has none, and is asked again.
            logger.warning("%s: byte %d begins no answer; passed over", self._files[number], place)
            return
        self._places[identity] = (number, place)
        self.retryable.discard(identity)
        self._failed.discard(identity)
        body = (answer.get("response") or {}).get("body")
        if body is not None and is_completion(body):
            self.tokens += Tokens.of(body)
        else:
            self._failed.add(identity)
        if _is_passing(answer):
            self.retryable.add(identity)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def n_failed(self) -> int:
        """Answers that are failures."""
        return len(self._failed)

    def __contains__(self, identity: object) -> bool:
        return identity in self._places

    def completion(self, identity: str) -> Any:
        """The completion, or the RowFailedError that says why there is none."""
        found = self._places.get(identity)
        if found is None:
            return RowFailedError("the batch holds no answer to this request")
        with open(self._files[found[0]], "rb") as stream:
            stream.seek(found[1])
            answer = json.loads(stream.readline())
        response = answer.get("response") or {}
        body = response.get("body")
        if response.get("status_code") == 200 and is_completion(body):
            return body
        error = answer.get("error") or (body.get("error") if isinstance(body, Mapping) else None) or {}
        message = error.get("message") if isinstance(error, Mapping) else str(error)
        return RowFailedError(f"HTTP {response.get('status_code')}: {message}" if response else str(message))


def _is_passing(answer: Mapping[str, Any]) -> bool:
    response = answer.get("response")
    if not response:
        return True  # expired, or never begun
    status = response.get("status_code")
    is_odd = status == 200 and not is_completion(response.get("body"))
    return is_odd or status in RETRYABLE_STATUSES or (isinstance(status, int) and status >= 500)


def _row_line(row: InputRow) -> bytes:
    saved = {
        "index": row.index,
        "place": row.place,
        "inputs": row.inputs,
        "kept": row.kept,
        "digest": row.digest,
        "problem": row.problem,
        "n_requests": len(row.bodies),
    }
    return dump_json(saved) + b"\n"
