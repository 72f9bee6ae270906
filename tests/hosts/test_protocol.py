"""An answer that is not what the API describes is told as the host's fault; a fault of our own code is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dspy_finetune.errors import HostError, MalformedResponseError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.protocol import HostApi, pages, part, present, rows, whole
from tests.fake_openai import FakeOpenAI


@pytest.mark.parametrize("fault", [KeyError("x"), TypeError("x"), AttributeError("x"), ValueError("x")])
def test_a_fault_of_our_own_is_not_told_as_the_hosts(fault: Exception) -> None:
    with pytest.raises(type(fault)) as caught, Host.compatible("http://127.0.0.1:9/v1", "k").talking("ask"):
        raise fault
    assert caught.value is fault


@pytest.mark.parametrize(
    ("value", "path"),
    [({}, "id"), ("<html>", "id"), ([], "id"), (None, "id"), ({"id": None}, "id"), ({"choices": []}, "choices.message"),
     ({"choices": [{"message": 1}, {}]}, "choices.message")],
)  # fmt: skip
def test_what_is_missing_is_named(value: Any, path: str) -> None:
    with pytest.raises(MalformedResponseError, match=f'no "{path}"'):
        present(value, path)


def test_lists_and_objects_are_held_to_their_shape() -> None:
    assert rows({"data": [{"a": 1}]}, "data") == [{"a": 1}]
    assert rows({}, "data") == [] == rows({"data": None}, "data")
    assert part({"a": {"b": 1}}, "a") == {"b": 1}
    assert part({"a": None}, "a") == {} == part({}, "a")
    for wrong in ("x", 5, ["x"], {"a": 1}):
        with pytest.raises(MalformedResponseError, match="no list of objects"):
            rows({"data": wrong}, "data")
    with pytest.raises(MalformedResponseError, match="is no object"):
        part({"a": "text"}, "a")
    assert [whole(one) for one in (3, 3.9, True, float("nan"), float("inf"), "3", None)] == [3, 3, *[None] * 5]


def test_a_list_that_gives_the_same_page_again_ends() -> None:
    asked: list[dict[str, Any]] = []

    def ask(**options: Any) -> SimpleNamespace:
        asked.append(options)
        return SimpleNamespace(content=b'{"data": [{"id": "a"}, {"id": "b"}]}')

    assert [one["id"] for one in pages(ask, limit=2)] == ["a", "b"]
    assert asked == [{"limit": 2}, {"limit": 2, "after": "b"}]
    turns = itertools.cycle([b'{"data": [{"id": "a"}]}', b'{"data": [{"id": "b"}]}'])
    assert [one["id"] for one in pages(lambda **options: SimpleNamespace(content=next(turns)))] == ["a", "b"]


ROUTES: dict[str, Callable[[HostApi], Any]] = {
    "GET /fine_tuning/jobs/*": lambda api: api.job("j"),
    "GET /fine_tuning/jobs": lambda api: list(api.jobs()),
    "GET /fine_tuning/jobs/*/events": lambda api: list(api.events("j")),
    "GET /fine_tuning/jobs/*/checkpoints": lambda api: list(api.checkpoints("j")),
    "GET /files": lambda api: list(api.files()),
    "GET /files/*": lambda api: api.file("f"),
    "GET /models": lambda api: list(api.models()),
    "GET /models/*": lambda api: api.model("m"),
    "POST /fine_tuning/jobs/*/cancel": lambda api: api.steer("j", "cancel"),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_odd_answer_is_one_line(fake: FakeOpenAI, route: str) -> None:
    """A proxy's page, no JSON under a header that promises it, a list, nothing."""
    host = Host.compatible(fake.url, "own-key-of-mine")
    odd: list[Any] = [
        "<html>own-key-of-mine</html>",
        b"<html>\nbusy</html>",
        b"",
        ["x"],
        [],
        {},
        None,
        5,
        {"data": "x"},
    ]
    for body in odd:
        fake.fail(route, status=200, body=body)
        with pytest.raises(HostError, match="the answer is not what its API describes") as caught, host.talking("ask"):
            ROUTES[route](host.api())
        assert caught.value.retryable
        assert "\n" not in str(caught.value)
        assert "own-key-of-mine" not in str(caught.value)
    host.close()
