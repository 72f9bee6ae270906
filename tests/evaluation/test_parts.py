"""Subgroups and the noise floor: parts of the items, and the same program asked twice."""

import itertools
import json
from typing import Any

import dspy
import pytest

from dspy_finetune.errors import UsageError
from dspy_finetune.evaluation import Comparison, metrics
from dspy_finetune.evaluation.collect import uncached
from dspy_finetune.evaluation.scoring import parts_of
from dspy_finetune.hosts import Host
from dspy_finetune.predictors import OpenAIPredictor
from dspy_finetune.prompts import binary
from tests.evaluation.comparing import compare_programs
from tests.fake_openai import FakeOpenAI

ROWS = [
    dspy.Example(title=f"title {n}", topic="owls" if n < 30 else "tax", length=n, liked=n % 2 == 0).with_inputs("title")
    for n in range(40)
]
RIGHT = metrics.accuracy("liked")


def number(title: str) -> int:
    return int(title.split()[1])


def good_at_owls(title: str) -> dspy.Prediction:
    n = number(title)
    return dspy.Prediction(liked=(n % 2 == 0) == (n < 30))


def good_at_tax(title: str) -> dspy.Prediction:
    n = number(title)
    return dspy.Prediction(liked=(n % 2 == 0) == (n >= 30))


def test_each_part_has_its_scores_its_difference_and_a_corrected_p():
    found = compare_programs(
        {"owls": good_at_owls, "tax": good_at_tax},
        ROWS,
        [RIGHT],
        subgroups={"topic": lambda row: row.topic, "odd": lambda row: number(row.title) % 2},
    )
    by_part = {(row.field, row.value): row for row in found.subgroups}
    assert set(by_part) == {("topic", "owls"), ("topic", "tax"), ("odd", "0"), ("odd", "1")}
    tax = by_part["topic", "tax"]
    assert (tax.n, tax.scores["owls"].value, tax.scores["tax"].value) == (10, 0.0, 1.0)
    assert tax.difference is not None
    assert tax.difference.value == -1.0
    assert tax.p_holm == pytest.approx(2 * 0.5**10)  # the larger of two p-values keeps its size under Holm
    assert by_part["topic", "owls"].p_holm == pytest.approx(4 * 0.5**30)
    assert Comparison.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_numbers_are_parted_at_their_quartiles_and_rare_values_put_together():
    parts = parts_of(ROWS, ["length", "title"])
    assert {abs(len(places) - 10) for places in parts["length"].values()} == {0, 1}
    assert list(parts["length"])[:2] == ["up to 10", "above 10, up to 20"]
    assert len(parts["title"]) == 12
    assert sorted(itertools.chain(*parts["title"].values())) == list(range(40))
    with pytest.raises(UsageError, match=r"topics.*title, topic"):
        parts_of(ROWS, ["topics"])


def test_set_metrics_have_parts_too_and_one_program_has_no_difference():
    found = compare_programs({"owls": good_at_owls}, ROWS, [metrics.f1("liked")], subgroups=["topic"], n_resamples=120)
    assert [row.scores["owls"].value for row in found.subgroups] == [1.0, 0.0]
    assert {(row.difference, row.p_holm) for row in found.subgroups} == {(None, None)}


def test_the_noise_floor_is_what_a_second_answer_changes(tmp_path):
    calls = itertools.count()

    def fickle(title: str) -> dspy.Prediction:
        is_second = next(calls) >= 40
        return dspy.Prediction(liked=(number(title) % 2 == 0) != (is_second and number(title) < 8))

    found = compare_programs(
        {"fickle": fickle, "firm": good_at_owls}, ROWS, [RIGHT], noise_floor=True, num_threads=1,
        checkpoint=tmp_path / "c.jsonl",
    )  # fmt: skip
    fickle_floor, firm = found.noise_floor
    assert (fickle_floor.program, fickle_floor.n, fickle_floor.n_changed) == ("fickle", 40, 8)
    assert fickle_floor.difference.value == pytest.approx(-8 / 40)
    assert (firm.n_changed, firm.difference.value, firm.is_from_cache) == (0, 0.0, False)
    assert found.programs[0].n == 40
    assert not any("noise floor" in one for one in found.not_checked)
    again = compare_programs(
        {"fickle": fickle, "firm": good_at_owls}, ROWS, [RIGHT], noise_floor=10, checkpoint=tmp_path / "c.jsonl"
    )
    assert next(calls) == 80  # the second answers are in the checkpoint as well
    assert again.noise_floor[0].n == 10
    assert Comparison.from_dict(json.loads(json.dumps(again.to_dict()))) == again


def test_a_second_answer_passes_by_the_cache_in_every_kind_of_program(monkeypatch):
    server = FakeOpenAI()
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    host = Host.openai()
    try:
        tuned = OpenAIPredictor(binary(), "ft:gpt-4.1-nano-2025-04-14:x::00000001", host=host, logprobs=False)

        class Holds(dspy.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = tuned

            def forward(self, title: str) -> dspy.Prediction:
                return self.inner(title=title)

        for program in (tuned, Holds()):
            n_before = server.count("POST /chat/completions")
            program(title="once")
            program(title="once")
            n_cached = server.count("POST /chat/completions") - n_before
            twin = uncached(program)
            twin(title="once")
            twin(title="once")
            assert n_cached <= 1
            assert server.count("POST /chat/completions") - n_before - n_cached == 2
        assert "cache" not in tuned.lm_options  # the program itself stays as it was
    finally:
        host.close()
        server.close()


def test_models_of_predicts_and_of_the_settings_pass_by_the_cache():
    lm = dspy.LM("openai/gpt-none", api_key="k")
    own = dspy.Predict("title -> liked: bool")
    own.lm = lm
    twin: Any = uncached(own)
    assert twin.program.lm.cache is False
    assert lm.cache is True
    seen: list[bool] = []

    class Looks(dspy.Module):
        def forward(self, title: str) -> dspy.Prediction:
            seen.append(dspy.settings.lm.cache)
            return dspy.Prediction(liked=True)

    with dspy.context(lm=lm):
        uncached(Looks())(title="x")
    assert seen == [False]

    def plain(title: str) -> dict[str, bool]:
        return {"liked": True}

    assert uncached(plain) is plain
