"""What tells one prompt from another: a digest, and a readable difference.

In: a prompt's identity, a dict of JSON types with all that changes a byte of it. Out: `digest_of`, `difference`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any


def digest_of(identity: dict[str, Any]) -> str:
    """SHA-256 of JSON types, whatever the order of keys."""
    text = json.dumps(identity, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What differs, as a unified diff from one identity to the other; empty if nothing does."""
    lines = difflib.unified_diff(
        _lines(one), _lines(other), f"prompt {digest_of(one)[:12]}", f"prompt {digest_of(other)[:12]}", lineterm=""
    )
    return "\n".join(lines)


def _lines(identity: dict[str, Any]) -> list[str]:
    """One readable line per fact, texts line by line."""
    lines: list[str] = []
    for key, value in identity.items():
        if isinstance(value, str):
            lines += [f"{key}: {line}" for line in value.split("\n")]
        elif isinstance(value, list):
            lines += [f"{key}: {json.dumps(item, ensure_ascii=False)}" for item in value]
        elif isinstance(value, dict):
            lines += [f"{key}.{name}: {json.dumps(item, ensure_ascii=False)}" for name, item in value.items()]
        else:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    return lines
