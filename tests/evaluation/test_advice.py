"""Plain words against tuning: where a program without training does as well as the tuned candidate."""

import json
from collections.abc import Iterable

import dspy
import pytest

from dspy_finetune import prompts
from dspy_finetune.errors import NoAnswerError
from dspy_finetune.evaluation import Comparison, ComparisonReport, baselines, compare, in_both_orders, metrics
from dspy_finetune.evaluation.compare import is_tuned
from dspy_finetune.predictors import Ensemble, OpenAIPredictor
from tests.evaluation.comparing import compare_programs

ROWS = [dspy.Example(title=f"title {n}", liked=n % 2 == 0).with_inputs("title") for n in range(40)]


class Knows(dspy.Module):
    """Knows the labels but for some; a model of that name stands in it."""

    def __init__(self, model: str, wrong: Iterable[int] = ()) -> None:
        super().__init__()
        self.inner = dspy.Predict("title -> liked: bool")
        self.inner.lm = dspy.LM(model, api_key="k")
        self.wrong = set(wrong)

    def forward(self, title: str) -> dspy.Prediction:
        number = int(title.split()[1])
        return dspy.Prediction(liked=(number % 2 == 0) != (number in self.wrong))


TUNED, PLAIN = "openai/ft:gpt-4.1-nano-2025-04-14:x::1", "openai/gpt-4.1-nano-2025-04-14"


@pytest.mark.parametrize(
    ("tuned_wrong", "plain_wrong", "margin", "said"),
    [
        (range(12), range(1), None, "Do not fine-tune: prompt, which needs no fine-tuning, is better."),
        ([1], [2], 0.2, "Do not fine-tune: prompt, which needs no fine-tuning, is as good, within the margin."),
        ([1, 2], [2], None, "prompt, which needs no fine-tuning, did as well on these items."),
        ([1], [2, 3], None, None),
        ([], range(12), None, None),
    ],
)
def test_the_report_says_plainly_not_to_tune(tuned_wrong, plain_wrong, margin, said):
    programs = {"tuned": Knows(TUNED, tuned_wrong), "prompt": Knows(PLAIN, plain_wrong)}
    found = compare_programs(programs, ROWS, [metrics.accuracy("liked")], margin=margin)
    assert (found.tuned, found.untuned) == (("tuned",), ("prompt",))
    assert (found.advice or "").startswith(said or "")
    assert (found.advice is None) is (said is None)
    assert (said or "accuracy") in ComparisonReport(comparison=found).verdict
    assert Comparison.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    turned = compare_programs(programs, ROWS, [metrics.accuracy("liked")], candidate="prompt")
    assert turned.advice is None  # nobody asks whether to tune what is not tuned


def test_lower_is_better_is_read_as_it_is():
    def close(offset: float, model: str) -> dspy.Module:
        class Guess(Knows):
            def forward(self, title: str) -> dspy.Prediction:
                return dspy.Prediction(liked=float(int(title.split()[1]) % 2 == 0) + offset)

        return Guess(model)

    metric = [metrics.mean_absolute_error("liked")]
    worse = compare_programs({"tuned": close(2.0, TUNED), "prompt": close(1.0, PLAIN)}, ROWS, metric)
    assert (worse.advice or "").endswith("is better.")
    assert compare_programs({"tuned": close(1.0, TUNED), "prompt": close(2.0, PLAIN)}, ROWS, metric).advice is None


def test_what_is_tuned_is_known_by_the_models_name():
    tuned = OpenAIPredictor(prompts.binary(), "ft:gpt-4.1-nano-2025-04-14:x::1")
    assert is_tuned(tuned) is True
    assert is_tuned(Ensemble([tuned, tuned])) is True
    assert is_tuned(OpenAIPredictor(prompts.binary(), "my-azure-deployment")) is True
    assert is_tuned(baselines.untuned(prompts.binary(), "gpt-4.1-nano-2025-04-14")) is False
    assert is_tuned(baselines.majority(ROWS, label="liked")) is False
    assert is_tuned(baselines.nearest_few_shot(ROWS, "title -> liked: bool")) is False
    assert is_tuned(in_both_orders(tuned)) is True
    assert is_tuned(lambda title: {}) is None


def test_a_baseline_that_compare_added_can_say_it_and_its_lack_is_told():
    never_right = {"tuned": Knows(TUNED, range(40))}
    report = compare(never_right, ROWS, [metrics.accuracy("liked")], train=ROWS[:1])
    assert "Do not fine-tune: TF-IDF + logistic, which needs no fine-tuning, is better." in report.verdict
    alone = compare(never_right, ROWS, [metrics.accuracy("liked")]).comparison
    assert "Whether tuning was worth it: tuned is tuned" in alone.not_checked[0]
    assert not any("Whether tuning" in one for one in report.comparison.not_checked)


@pytest.mark.parametrize(("n_cut", "is_mostly"), [(21, True), (20, False), (0, False)])
def test_answers_that_were_cut_off_are_told_with_the_reason_and_are_no_finding_on_tuning(n_cut: int, is_mostly: bool):
    class Cut(Knows):
        def forward(self, title: str) -> dspy.Prediction:
            if int(title.split()[1]) < n_cut:
                raise NoAnswerError("the answer was cut off; raise max_tokens=", text="", reason="length")
            return super().forward(title=title)

    report = compare({"tuned": Cut(TUNED, range(40))}, ROWS, [metrics.accuracy("liked")], train=ROWS[:1])
    told = (
        f"tuned gave no answer to {n_cut} of 40 items; the first: NoAnswerError: the answer was cut off; raise max_tok"
    )
    assert (told in report.verdict) is bool(n_cut)
    assert ("not how good its answers are" in report.verdict) is is_mostly
    assert ("Do not fine-tune" in report.verdict) is not is_mostly


def test_what_a_set_metric_makes_of_answers_that_were_cut_off_is_told():
    class Cut(Knows):
        def forward(self, title: str) -> dspy.Prediction:
            if title == "title 1":
                raise NoAnswerError("cut off", text="", reason="length")
            return super().forward(title=title)

    report = compare({"tuned": Cut(TUNED), "plain": Knows(PLAIN, [1])}, ROWS, [metrics.f1("liked")])
    assert "1 of 40 items of tuned have no answer or one that could not be read, which counts as nam" in report.verdict
