"""Programs saved by DSPy 2.5 to 3.4: files that those versions wrote, loaded and compared."""

import json
from pathlib import Path

import dspy
import pytest

from dspy_finetune import prompts
from dspy_finetune.errors import DataError, FileError
from dspy_finetune.evaluation import load_optimized, metrics
from dspy_finetune.evaluation.saved_programs import is_dspy_program
from dspy_finetune.predictors import OpenAIPredictor, replace
from tests.evaluation.comparing import compare_programs

SAVED = Path(__file__).parent / "saved"
VERSIONS = ["2.5.6", "2.5.43", "2.6.27", "3.0.4", "3.2.0", "3.3.0", "3.4.1"]


class Sig(dspy.Signature):
    """Say whether the reader would like the title."""

    title: str = dspy.InputField(desc="a headline")
    is_favorite: bool = dspy.OutputField()


class Program(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.judge = dspy.Predict(Sig)

    def forward(self, title: str) -> dspy.Prediction:
        return self.judge(title=title)


def predictor(program: dspy.Module) -> dspy.Predict:
    ((_, one),) = program.named_predictors()
    return one


@pytest.mark.parametrize("version", VERSIONS)
def test_files_of_every_version_give_back_words_and_demonstrations(version):
    plain = predictor(load_optimized(Sig, SAVED / f"dspy-{version}-predict.json"))
    assert [demo["title"] for demo in plain.demos] == ["Tides", "Taxes"]
    thought = load_optimized(Sig, SAVED / f"dspy-{version}-cot.json")
    assert isinstance(thought, dspy.ChainOfThought)
    assert predictor(thought).demos[0]["reasoning"] == "Nature."
    for shape in (Program(), Sig, "title -> is_favorite: bool"):
        held = predictor(load_optimized(shape, SAVED / f"dspy-{version}-program.json"))
        assert held.signature.instructions == "Optimized words."
        assert held.demos[1]["is_favorite"] is False


def test_a_loaded_program_is_compared_and_shows_its_demonstrations_to_the_model():
    class Looks(dspy.utils.DummyLM):
        seen = ""

        def __call__(self, prompt: object = None, messages: object = None, **options: object) -> list[str]:
            Looks.seen = str(messages)
            return ["[[ ## is_favorite ## ]]\nTrue"]

    shape = Program()
    rows = [dspy.Example(title="Moons", is_favorite=True).with_inputs("title")]
    program = load_optimized(shape, SAVED / "dspy-2.5.43-program.json", lm=Looks([]))
    found = compare_programs({"optimized": program}, rows, [metrics.accuracy("is_favorite")])
    assert found.programs[0].scores["accuracy"].value == 1.0
    assert "Optimized words." in Looks.seen
    assert "Tides" in Looks.seen
    assert shape.judge.demos == []  # the caller's module stays as it was


def test_a_key_in_an_old_file_is_neither_used_nor_kept(caplog):
    program = predictor(load_optimized(Sig, SAVED / "dspy-2.6.27-predict.json"))
    assert program.lm.model == "openai/gpt-4o-mini"
    assert "planted-key" not in str(program.dump_state()) + str(vars(program.lm))
    assert "holds api_key: take it out" in caplog.text


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_another_shape_is_told_from_a_file_that_is_none(tmp_path):
    state = json.loads((SAVED / "dspy-3.4.1-program.json").read_text())
    two = write(tmp_path / "two.json", {"first": state["judge"], "second": state["judge"]})
    with pytest.raises(DataError, match=r"several predictors: first, second"):
        load_optimized(Sig, two)
    with pytest.raises(DataError, match=r"holds the predictors first, second; the program has judge"):
        load_optimized(Program(), two)
    with pytest.raises(DataError, match=r"2 fields was saved; the program's has 3"):
        load_optimized("title, text -> is_favorite: bool", SAVED / "dspy-3.4.1-predict.json")
    for value in ([1], {}, {"a": 1}, {"demos": [], "signature": 3}):
        with pytest.raises(DataError, match="not a program that DSPy saved"):
            load_optimized(Sig, write(tmp_path / "bad.json", value))
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_optimized(Sig, tmp_path / "torn.json")
    with pytest.raises(FileError):
        load_optimized(Sig, tmp_path / "missing.json")


def test_a_tuned_part_comes_back_into_a_program_that_has_it_and_into_one_that_has_a_predict(tmp_path):
    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look = dspy.Predict("title -> topic")
            self.judge = dspy.ChainOfThought(Sig)

    saved = Two()
    tuned = OpenAIPredictor(prompts.binary(), "ft:gpt-4.1-nano-2025-04-14:x::1", threshold=0.4)
    saved.judge = tuned
    saved.look.demos = [dspy.Example(title="Tides", topic="sea")]
    saved.save(tmp_path / "two.json")
    for shape in (saved, Two()):
        found = load_optimized(shape, tmp_path / "two.json")
        assert isinstance(found.judge, OpenAIPredictor)
        assert (found.judge.model, found.judge.threshold) == (tuned.model, 0.4)
        assert found.look.demos[0]["topic"] == "sea"
    alone = Program()
    replace(alone, "judge", tuned)
    alone.save(tmp_path / "one.json")
    assert load_optimized(Sig, tmp_path / "one.json").model == tuned.model


def test_a_retriever_keeps_its_own_state(tmp_path):
    class Looks(dspy.Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.retrieve = dspy.Retrieve(k=k)
            self.judge = dspy.Predict(Sig)

    state = {**json.loads((SAVED / "dspy-3.4.1-program.json").read_text()), "retrieve": {"k": 7}}
    found = load_optimized(Looks(3), write(tmp_path / "rag.json", state))
    assert (found.retrieve.k, found.judge.signature.instructions) == (7, "Optimized words.")
    with pytest.raises(DataError, match="retriever"):
        load_optimized(Sig, tmp_path / "rag.json")


def test_a_file_of_dspy_2_4_is_told_from_no_program(tmp_path):
    old = {
        "judge": {
            "lm": None, "traces": [], "train": [], "demos": [{"title": "Tides", "is_favorite": "True"}],
            "signature_instructions": "Optimized words.", "signature_prefix": "Is Favorite:",
        }
    }  # fmt: skip
    for value in (old, old["judge"]):
        path = write(tmp_path / "old.json", value)
        assert is_dspy_program(path)
        with pytest.raises(DataError, match=r"old\.json was saved before DSPy 2\.5"):
            load_optimized(Program(), path)
