"""Baselines that ask an untuned model: the nearest examples reach its prompt, and the tuned model's prompt is kept."""

import dspy
import numpy as np
import pytest

from dspy_finetune import prompts
from dspy_finetune.errors import EmptyDatasetError, UsageError
from dspy_finetune.evaluation import baselines, metrics
from dspy_finetune.predictors import DPOPredictor, OpenAIPredictor, PairwisePredictor
from tests.evaluation.comparing import compare_programs

TRAIN = [
    dspy.Example(title=f"{word} {n}", liked=word == "owls").with_inputs("title")
    for n in range(10)
    for word in ("owls", "golf")
]
SIGNATURE = "title -> liked: bool"


def test_the_nearest_examples_stand_last_and_equal_ones_in_trainings_order():
    few = baselines.nearest_few_shot(TRAIN, SIGNATURE, lm=dspy.utils.DummyLM([]), n_shots=3)
    assert [row.title for row in few.nearest(title="golf at dawn")] == ["golf 2", "golf 1", "golf 0"]
    assert few.nearest(title="golf 7 at dawn")[-1].title == "golf 7"
    assert len(baselines.nearest_few_shot(TRAIN[:2], SIGNATURE, n_shots=5).nearest(title="x")) == 2


def test_the_model_sees_the_examples_with_each_question():
    class Copies(dspy.utils.DummyLM):
        """Says what the last example in its prompt says."""

        def __call__(self, prompt: object = None, messages: object = None, **options: object) -> list[str]:
            assert isinstance(messages, list)
            said = [one["content"] for one in messages if one["role"] == "assistant"]
            return [said[-1]]

    few = baselines.nearest_few_shot(TRAIN, SIGNATURE, lm=Copies([]), n_shots=2)
    rows = [
        dspy.Example(title=f"{word} at dusk", liked=word == "owls").with_inputs("title") for word in ("owls", "golf")
    ]
    found = compare_programs({"few-shot": few}, rows, [metrics.accuracy("liked")])
    assert found.programs[0].scores["accuracy"].value == 1.0
    assert few.predict.demos == []  # nothing sticks to the program


def test_an_embedder_can_say_what_is_near():
    def embed(texts: list[str]) -> list[list[float]]:
        return [[float("golf" in text), float("owls" in text), 0.0] for text in texts]

    few = baselines.nearest_few_shot(
        TRAIN, SIGNATURE, n_shots=4, embed=dspy.Embedder(lambda texts: np.array(embed(texts)))
    )
    assert {row.liked for row in few.nearest(title="owls")} == {True}
    assert len(few.nearest(title="neither")) == 4


def test_wrong_arguments_are_named():
    with pytest.raises(EmptyDatasetError, match="nearest-neighbour"):
        baselines.nearest_few_shot([], SIGNATURE)
    with pytest.raises(UsageError, match="n_shots"):
        baselines.nearest_few_shot(TRAIN, SIGNATURE, n_shots=0)
    with pytest.raises(UsageError, match=r"titel.*title, liked"):
        baselines.nearest_few_shot(TRAIN, SIGNATURE, text=["titel"])
    with pytest.raises(UsageError, match="no word"):
        baselines.nearest_few_shot([dspy.Example(title="?!", liked=True).with_inputs("title")], SIGNATURE)


def test_the_untuned_model_is_asked_as_the_tuned_one_was_trained():
    assert isinstance(baselines.untuned(prompts.binary(), "m"), OpenAIPredictor)
    assert type(baselines.untuned(prompts.pairwise(), "m")) is PairwisePredictor
    assert isinstance(baselines.untuned(prompts.explained_pairwise(), "m"), DPOPredictor)
    one = baselines.untuned(prompts.binary("Likes owls."), "m")
    assert one.render(title="t") == prompts.binary("Likes owls.").messages({"title": "t"})


def test_a_prompt_is_optimized_on_the_same_examples():
    """The model's own answers that are right stand in its prompt, with labelled examples; wrong ones never."""
    lm = dspy.utils.DummyLM({"owls": {"liked": "True"}, "golf": {"liked": "a matter of taste"}})
    program = baselines.optimized(TRAIN, SIGNATURE, lm=lm, metric=metrics.accuracy("liked"))
    demos = program.predictors()[0].demos
    own = [demo for demo in demos if demo.get("augmented")]
    assert len(own) == 4
    assert all("owls" in demo.title for demo in own)
    assert {str(demo.liked) for demo in demos} == {"True", "False"}
    assert program(title="owls 3").liked is True
    with pytest.raises(EmptyDatasetError):
        baselines.optimized([], SIGNATURE, lm=lm, metric=metrics.accuracy("liked"))
