"""The pace: a limit learnt from refusals, pauses learnt from headers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_finetune.bulk.rate_limit import Pace, backoff_seconds, reset_seconds, retry_after_seconds


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def pace_of(most: int = 100) -> tuple[Pace, Clock]:
    clock = Clock()
    return Pace(most=most, clock=clock, generator=random.Random(0)), clock


def fill(pace: Pace) -> list[int]:
    eras = []
    while pace.wait_seconds() == 0:
        eras.append(pace.leave())
    return eras


def test_the_limit_doubles_until_a_refusal_then_halves_once_and_grows_by_one_a_round() -> None:
    pace, clock = pace_of(1000)
    sizes = []
    for _ in range(4):
        eras = fill(pace)
        sizes.append(len(eras))
        for era in eras:
            pace.answered(era, {})
    assert sizes == [8, 16, 32, 64]
    eras = fill(pace)
    at_most = len(eras)
    for era in eras:  # all that were under way are refused: that is one message, not many
        pace.refused(era, {"retry-after": "3"})
    assert pace.limit == pytest.approx(at_most / 2)
    assert pace.wait_seconds() == 3.0
    clock.now += 3.0
    before = pace.limit
    for era in fill(pace):
        pace.answered(era, {})
    assert before < pace.limit <= before + 1.01


@given(st.lists(st.sampled_from(["answer", "refuse", "fail", "drop"]), max_size=200), st.integers(1, 20))
def test_the_limit_stays_between_one_and_the_most(events: list[str], most: int) -> None:
    pace, clock = pace_of(most)
    for event in events:
        clock.now = max(clock.now, pace.open_at)
        era = pace.leave()
        if event == "answer":
            pace.answered(era, {})
        elif event == "refuse":
            pace.refused(era, {})
        elif event == "fail":
            pace.failed(era)
        else:
            pace.dropped()
        assert 1 <= pace.limit <= most
        assert pace.n_in_flight == 0


def test_a_budget_that_runs_out_is_waited_for_before_it_is_gone() -> None:
    pace, _ = pace_of()
    eras = fill(pace)  # 8 under way
    headers = {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "9.6s",  # 96 come back in 9.6 s: ten a second
    }
    pace.answered(eras[0], headers)
    # 7 are under way and one more is wanted, but 4 are left: four more are there in 0.4 s.
    wait = pace.open_at - 50.0
    assert wait == pytest.approx(0.4)
    pace.answered(eras[1], {**headers, "x-ratelimit-remaining-requests": "90"})
    assert pace.open_at - 50.0 == pytest.approx(wait)


def test_tokens_count_as_requests_of_the_usual_size() -> None:
    pace, _ = pace_of()
    era = fill(pace)[0]
    headers = {
        "x-ratelimit-limit-tokens": "10000",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "59s",
    }
    pace.answered(era, headers, n_tokens=200)
    # 8 x 200 tokens are wanted, 100 are left; 9,900 come back in 59 s.
    assert pace.open_at - 50.0 == pytest.approx(59 * 1500 / 9900)


@pytest.mark.parametrize("remaining", ["", "many", "-1", "nan", "inf"])
def test_headers_that_make_no_sense_are_passed_over(remaining: str) -> None:
    pace, _ = pace_of()
    pace.answered(pace.leave(), {"x-ratelimit-remaining-requests": remaining, "x-ratelimit-reset-requests": "1s"})
    assert pace.open_at == 0.0
    pace.answered(pace.leave(), {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "later"})
    assert pace.open_at == 0.0


def test_durations_and_dates() -> None:
    assert reset_seconds("1h2m3.5s") == 3723.5
    assert reset_seconds("6m0") is None
    assert reset_seconds("1.2.3s") is None
    assert retry_after_seconds({"retry-after": "Sat, 21 Nov 2026 04:00:10 GMT"}, now=1795233600.0) == 10.0
    assert retry_after_seconds({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after_seconds({}) is None


@given(st.integers(1, 10_000), st.integers(0, 100))
def test_backoff_is_half_to_all_of_a_doubling_that_ends(n_failures: int, seed: int) -> None:
    longest = min(0.5 * 2.0 ** min(n_failures, 30), 60.0)
    assert longest / 2 <= backoff_seconds(n_failures, random.Random(seed)) <= longest
