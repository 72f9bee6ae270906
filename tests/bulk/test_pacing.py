"""The limiter: a limit learnt from refusals, pauses learnt from headers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_finetune.bulk.rate_limit import AdaptiveRateLimiter, backoff_seconds, reset_seconds
from dspy_finetune.hosts.failures import retry_after_seconds


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def limiter_of(most: int = 100) -> tuple[AdaptiveRateLimiter, Clock]:
    clock = Clock()
    return AdaptiveRateLimiter(most=most, clock=clock, generator=random.Random(0)), clock


def fill(limiter: AdaptiveRateLimiter) -> list[int]:
    eras = []
    while limiter.wait_seconds() == 0:
        eras.append(limiter.leave())
    return eras


def test_the_limit_doubles_until_a_refusal_then_halves_once_and_grows_by_one_a_round() -> None:
    limiter, clock = limiter_of(1000)
    sizes = []
    for _ in range(4):
        eras = fill(limiter)
        sizes.append(len(eras))
        for era in eras:
            limiter.answered(era, {})
    assert sizes == [8, 16, 32, 64]
    eras = fill(limiter)
    at_most = len(eras)
    for era in eras:  # all that were under way are refused: that is one message, not many
        limiter.refused(era, {"retry-after": "3"})
    assert limiter.limit == pytest.approx(at_most / 2)
    assert limiter.wait_seconds() == 3.0
    clock.now += 3.0
    before = limiter.limit
    for era in fill(limiter):
        limiter.answered(era, {})
    assert before < limiter.limit <= before + 1.01


@given(st.lists(st.sampled_from(["answer", "refuse", "fail", "drop"]), max_size=200), st.integers(1, 20))
def test_the_limit_stays_between_one_and_the_most(events: list[str], most: int) -> None:
    limiter, clock = limiter_of(most)
    for event in events:
        clock.now = max(clock.now, limiter.open_at)
        era = limiter.leave()
        if event == "answer":
            limiter.answered(era, {})
        elif event == "refuse":
            limiter.refused(era, {})
        elif event == "fail":
            limiter.failed(era)
        else:
            limiter.dropped()
        assert 1 <= limiter.limit <= most
        assert limiter.n_in_flight == 0


def test_a_budget_that_runs_out_is_waited_for_before_it_is_gone() -> None:
    limiter, _ = limiter_of()
    eras = fill(limiter)  # 8 under way
    headers = {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "9.6s",  # 96 come back in 9.6 s: ten a second
    }
    limiter.answered(eras[0], headers)
    # 7 are under way and one more is wanted, but 4 are left: four more are there in 0.4 s.
    wait = limiter.open_at - 50.0
    assert wait == pytest.approx(0.4)
    limiter.answered(eras[1], {**headers, "x-ratelimit-remaining-requests": "90"})
    assert limiter.open_at - 50.0 == pytest.approx(wait)


def test_tokens_count_as_requests_of_the_usual_size() -> None:
    limiter, _ = limiter_of()
    era = fill(limiter)[0]
    headers = {
        "x-ratelimit-limit-tokens": "10000",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "59s",
    }
    limiter.answered(era, headers, n_tokens=200)
    # 8 x 200 tokens are wanted, 100 are left; 9,900 come back in 59 s.
    assert limiter.open_at - 50.0 == pytest.approx(59 * 1500 / 9900)


@pytest.mark.parametrize("remaining", ["", "many", "-1", "nan", "inf"])
def test_headers_that_make_no_sense_are_passed_over(remaining: str) -> None:
    limiter, _ = limiter_of()
    limiter.answered(limiter.leave(), {"x-ratelimit-remaining-requests": remaining, "x-ratelimit-reset-requests": "1s"})
    assert limiter.open_at == 0.0
    limiter.answered(limiter.leave(), {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "later"})
    assert limiter.open_at == 0.0


def test_durations_and_dates() -> None:
    assert reset_seconds("1h2m3.5s") == 3723.5
    assert reset_seconds("6m0") is None
    assert reset_seconds("1.2.3s") is None
    assert retry_after_seconds({"retry-after": "Sat, 21 Nov 2026 04:00:10 GMT"}, now=1795233600.0) == 10.0
    assert retry_after_seconds({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after_seconds({}) is None
    assert retry_after_seconds({"retry-after": "86400"}) == 120.0  # of a day: seldom meant
    # Both dates are by the host's clock: one that is ten minutes off asks for the same ten seconds.
    dates = {"retry-after": "Sat, 21 Nov 2026 04:00:10 GMT", "date": "Sat, 21 Nov 2026 04:00:00 GMT"}
    assert retry_after_seconds(dates, now=1795233600.0 + 600) == 10.0


@given(st.integers(1, 10_000), st.integers(0, 100))
def test_backoff_is_half_to_all_of_a_doubling_that_ends(n_failures: int, seed: int) -> None:
    longest = min(0.5 * 2.0 ** min(n_failures, 30), 60.0)
    assert longest / 2 <= backoff_seconds(n_failures, random.Random(seed)) <= longest
