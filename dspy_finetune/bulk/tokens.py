"""tokens.py: what a host counted: requests and tokens, as they stand in the `usage` of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Counts, which can be added.

    >>> Tokens(n_requests=1, n_input=40) + Tokens(n_requests=1, n_input=2, n_output=1)
    Tokens(n_requests=2, n_input=42, n_cached=0, n_output=1)
    """

    n_requests: int = 0
    """Answered requests."""
    n_input: int = 0
    """Prompt tokens, cached ones among them."""
    n_cached: int = 0
    """Prompt tokens from the host's cache."""
    n_output: int = 0
    """Answer tokens."""

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            n_requests=self.n_requests + other.n_requests,
            n_input=self.n_input + other.n_input,
            n_cached=self.n_cached + other.n_cached,
            n_output=self.n_output + other.n_output,
        )

    @classmethod
    def of(cls, completion: Mapping[str, Any]) -> Tokens:
        """One answer's; 0 where the host counts nothing."""
        usage = completion.get("usage") or {}
        return cls(
            n_requests=1,
            n_input=int(usage.get("prompt_tokens") or 0),
            n_cached=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
            n_output=int(usage.get("completion_tokens") or 0),
        )
