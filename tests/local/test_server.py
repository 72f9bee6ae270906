"""What the server works out before it serves."""

from __future__ import annotations

from dspy_finetune.local.server import is_loopback


def test_only_loopback_needs_no_key() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "localhost", "::1")))
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "", "10.0.0.1", "192.168.1.5", "my.machine", "127.0.0.1.example"))
    )
