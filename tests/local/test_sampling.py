"""The choice of a token, against the formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dspy_finetune.local.sampling import LOWEST_LOGPROB, Answer, Settings, Token, choose, seeded
from dspy_finetune.local.schemas import ApiError

LOGITS = [0.5, 2.0, -1.0, 1.9, 0.0]


def answer(*earlier: int, guide: Any = None, **settings: Any) -> Answer:
    given = Settings(max_tokens=9, **settings)
    tokens = [Token(id=one, logprob=0.0, top=()) for one in earlier]
    return Answer(settings=given, generator=seeded(given.seed, 0), tokens=tokens, guide=guide)


def chosen(*answers: Answer, logits: list[float] = LOGITS) -> list[Any]:
    return choose(torch.tensor([logits] * len(answers)), answers)


def test_biases_and_penalties_are_openais_formula() -> None:
    """logit + bias - count * frequency_penalty - (count > 0) * presence_penalty; figures stay the model's own."""
    total = math.log(sum(math.exp(one) for one in LOGITS))
    for earlier in ((), (1,), (1, 1, 3), (1, 3, 3, 3, 0)):
        for frequency, presence in ((0.0, 0.0), (0.4, 0.0), (0.0, 1.5), (-1.0, 0.3)):
            for bias in ((), ((4, 2.2),), ((1, -100.0), (3, -100.0))):
                [found] = chosen(
                    answer(
                        *earlier,
                        temperature=0,
                        frequency_penalty=frequency,
                        presence_penalty=presence,
                        logit_bias=bias,
                        n_top=5,
                    )
                )
                scores = [
                    logit + dict(bias).get(one, 0.0) - frequency * earlier.count(one) - presence * (one in earlier)
                    for one, logit in enumerate(LOGITS)
                ]
                assert found.id == max(range(5), key=scores.__getitem__)
                assert found.logprob == pytest.approx(LOGITS[found.id] - total, abs=1e-5)
                assert [one for one, _ in found.top] == [1, 3, 0, 4, 2]


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e-4, 0.0])
def test_a_temperature_near_zero_takes_the_most_likely(temperature: float) -> None:
    assert chosen(answer(temperature=temperature, seed=1))[0].id == 1


def test_a_row_that_cannot_be_answered_leaves_the_others() -> None:
    class Stuck:
        def allowed(self, n_tokens: int) -> Any:
            raise ApiError(400, "stuck")

    good, outside, stuck = chosen(
        answer(temperature=0), answer(temperature=0, logit_bias=((5, 1.0),)), answer(temperature=0, guide=Stuck())
    )
    assert good.id == 1
    assert (outside.param, outside.status) == ("logit_bias", 400)
    assert stuck.message == "stuck"
    [diverged] = chosen(answer(temperature=0), logits=[math.nan] * 5)
    assert diverged.code == "model_diverged"


def test_a_token_that_cannot_come_has_a_figure_that_json_has() -> None:
    [found] = chosen(answer(temperature=0, n_top=2), logits=[0.0, -math.inf])
    assert found.top == ((0, 0.0), (1, LOWEST_LOGPROB))


def test_samples_follow_the_temperature_and_top_p() -> None:
    """Frequencies of 4,000 draws lie within four standard errors of the formula."""
    one = answer(temperature=0.7, top_p=0.9, seed=7)
    draws = [chosen(one)[0].id for _ in range(4000)]
    weights = [math.exp(logit / 0.7) for logit in LOGITS]
    shares = sorted(((weight / sum(weights), token) for token, weight in enumerate(weights)), reverse=True)
    kept, mass = {}, 0.0
    for share, token in shares:
        if mass < 0.9:
            kept[token] = share
        mass += share
    for token in range(5):
        expected = kept.get(token, 0.0) / sum(kept.values())
        tolerance = 4 * math.sqrt(expected * (1 - expected) / len(draws))
        assert draws.count(token) / len(draws) == pytest.approx(expected, abs=tolerance + 1e-9)
