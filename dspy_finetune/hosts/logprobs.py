"""The log-probabilities of an answer's tokens, kept in one text.

In: the responses of DSPy's wire code. Out: the same responses with their log-probabilities as one text among the
provider's data, and the positions read back from any response.

Why: DSPy's history holds 10,000 answers, each with some sixty objects for twenty listed tokens: in the response, and
once more in what it shows. The garbage collector goes through all of them while every caller waits. A text is one
object, which it does not look at.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy.lm15 import Response

Position = tuple[str, Mapping[str, float]]
"""The token that the model chose, and the log-probability of each listed token (the chosen one among them)."""

_KEY = "logprobs"


def packed(response: Response) -> Response:
    """The response with its log-probabilities as a text of its `provider_data`."""
    if not response.logprobs:
        return response
    data = dict(response.provider_data or {})
    for choice in data.get("choices", ()):
        choice.pop("logprobs", None)  # the same once more, as the host wrote it
    data[_KEY] = json.dumps(_positions(response.logprobs), separators=(",", ":"))
    return dataclasses.replace(response, logprobs=None, provider_data=data)


def positions_of(response: Any) -> list[Position] | None:
    """The positions of a response, packed or as DSPy gives it; None where the host sent no log-probabilities."""
    if response.logprobs:
        return _positions(response.logprobs)
    text = (response.provider_data or {}).get(_KEY)
    return None if text is None else [(token, listed) for token, listed in json.loads(text)]


def positions_on_wire(content: Sequence[Mapping[str, Any]]) -> list[Position]:
    """The positions of a choice's `logprobs.content`, as OpenAI's chat completions have it."""
    return [
        _position(
            one["token"],
            one["logprob"],
            one.get("bytes"),
            [(top["token"], top["logprob"], top.get("bytes")) for top in one.get("top_logprobs") or ()],
        )
        for one in content
    ]


def spelling(token: str, codes: Sequence[int] | None) -> str:
    r"""A token's text; of a part of a character, which hosts write as "bytes:..." or U+FFFD, its bytes, escaped.

    >>> spelling(" true", None), spelling("bytes:f09f", [0xF0, 0x9F]).encode("utf-8", "surrogateescape")
    (' true', b'\xf0\x9f')
    """
    if codes and (token.startswith("bytes:") or "\ufffd" in token):
        return bytes(codes).decode("utf-8", "surrogateescape")
    return token


def _positions(tokens: Sequence[Any]) -> list[Position]:
    return [
        _position(one.token, one.logprob, one.bytes, [(top.token, top.logprob, top.bytes) for top in one.top])
        for one in tokens
    ]


def _position(
    token: str, logprob: float, codes: Sequence[int] | None, top: Sequence[tuple[str, float, Sequence[int] | None]]
) -> Position:
    chosen = spelling(token, codes)
    return chosen, {spelling(text, part): share for text, share, part in top} | {chosen: logprob}
