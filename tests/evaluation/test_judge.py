"""A judge: read strictly, asked in both orders, and its own faults counted apart from the program's."""

import dspy
import pytest

from dspy_finetune.errors import AnswerError, JudgeError, UsageError
from dspy_finetune.evaluation import CompareProgress, compare, metrics
from tests.evaluation.comparing import compare_programs

ROWS = [dspy.Example(question=f"Question {n}?", answer=f"right {n}").with_inputs("question") for n in range(6)]
RUBRIC = "Short and true."


class Failing(dspy.utils.DummyLM):
    def __call__(self, *args: object, **options: object) -> object:
        raise ConnectionError("no route to the judge")


def judge(**words: str) -> dspy.BaseLM:
    """Says a word for each text that the last message may hold; mumbles otherwise."""
    return dspy.utils.DummyLM({text.replace("_", " "): {"grade": word, "better": word} for text, word in words.items()})


def test_grades_become_shares_and_nothing_but_a_grade_is_read():
    graded = metrics.rubric_score("answer", rubric=RUBRIC, lm=judge(Question_0="5", Question_1="2", Question_2="4.5"))
    said = dspy.Prediction(answer="an answer")
    assert (graded(ROWS[0], said), graded(ROWS[1], said)) == (1.0, 0.25)
    for row in ROWS[2:4]:  # a grade between grades; a judge that mumbles
        with pytest.raises(JudgeError, match="none of 1, 2, 3, 4, 5"):
            graded(row, said)
    assert graded(ROWS[0], dspy.Prediction(answer=None)) == 0.0  # the program's fault, and the judge is not asked
    with pytest.raises(JudgeError, match="no route to the judge"):
        metrics.rubric_score("answer", rubric=RUBRIC, lm=Failing([]))(ROWS[0], said)


def test_the_judge_sees_question_rubric_and_the_reference_only_where_asked():
    def grade(seen: str, *, with_reference: bool = False) -> float:
        graded = metrics.rubric_score(
            "answer", rubric=RUBRIC, lm=judge(**{seen: "3"}), n_grades=3, with_reference=with_reference
        )
        return graded(ROWS[4], dspy.Prediction(answer="mine"))

    # It gives its grade only where it sees the text.
    assert grade("Question_4?") == grade("Short_and_true.") == grade("mine") == 1.0
    assert grade("right_4", with_reference=True) == 1.0
    with pytest.raises(JudgeError):
        grade("right_4")


def test_two_answers_are_judged_in_both_orders():
    def preferred(**words: str) -> float:
        lm = dspy.utils.DummyLM({text: {"better": word} for text, word in words.items()})
        return metrics.rubric_preference("answer", rubric=RUBRIC, lm=lm)(ROWS[0], dspy.Prediction(answer="mine"))

    mine_first, mine_second = "[[ ## answer_1 ## ]]\nmine", "[[ ## answer_1 ## ]]\nright 0"
    assert preferred(**{mine_first: "1", mine_second: "2"}) == 1.0
    assert preferred(**{mine_first: "2", mine_second: "1"}) == 0.0
    assert preferred(**{mine_first: "1", mine_second: "1"}) == 0.5  # a judge that loves the first place decides nothing
    assert preferred(**{mine_first: "tie", mine_second: "2"}) == 0.75
    with pytest.raises(JudgeError, match="none of 1, 2, tie"):
        preferred(**{mine_first: "1", mine_second: "both"})


def test_what_the_judge_cannot_say_is_counted_apart_from_what_the_program_cannot():
    def program(question: str) -> dspy.Prediction:
        if question.startswith("Question 5"):
            raise AnswerError("mumble", text="?")
        return dspy.Prediction(answer="an answer")

    told: list[CompareProgress] = []
    graded = metrics.rubric_score(
        "answer",
        rubric=RUBRIC,
        lm=judge(Question_0="5", Question_1="5", Question_2="1", Question_3="3", Question_5="5"),
    )
    found = compare_programs({"p": program}, ROWS, [graded], on_progress=told.append)
    row = found.programs[0]
    assert (row.n_parse_failures, row.n_failed, row.n_unjudged) == (1, 0, {"rubric score by dummy": 1})
    assert found.item_scores["rubric score by dummy"]["p"] == (1.0, 1.0, 0.0, 0.5, None, 0.0)
    assert row.scores["rubric score by dummy"].n == 5
    assert any("the judge gave no verdict that could be read for 1 of 6 items" in one for one in found.not_checked)
    assert (told[-1].program, told[-1].n_done, told[-1].n_total) == ("rubric score by dummy of p", 6, 6)


def test_wrong_arguments_are_named():
    for arguments in ({"rubric": " "}, {"n_grades": 1}, {"lm": "gpt"}):
        with pytest.raises(UsageError, match=r"rubric|n_grades|lm"):
            metrics.rubric_score("answer", **{"rubric": RUBRIC, "lm": judge(), **arguments})


def test_who_judged_and_by_what_stands_in_the_report():
    """A judge's figure means nothing without its name."""
    graded = metrics.rubric_preference("answer", rubric=RUBRIC, lm=judge(Question="tie"))
    alike = metrics.semantic_similarity("answer", dspy.Embedder(lambda texts: [[1.0, len(one)] for one in texts]))
    report = compare({"p": lambda question: dspy.Prediction(answer="mine")}, ROWS, [graded, alike])
    assert report.cards["Preferred to the reference by dummy"] == {
        "judge": "dummy",
        "rubric": RUBRIC,
        "asked": "for the better of answer and reference, both orders",
    }
    assert "preferred to the reference by dummy 0.500" in report.verdict
    assert "Semantic similarity" not in report.cards  # a function has no name to tell
    named = metrics.semantic_similarity("answer", dspy.Embedder("openai/text-embedding-3-small"))
    assert named.name == "semantic similarity by openai/text-embedding-3-small"


def test_a_reference_that_is_needed_is_missed_before_anything_is_asked():
    asked: list[str] = []

    def program(question: str) -> dspy.Prediction:
        asked.append(question)
        return dspy.Prediction(answer="so")

    rows = [dspy.Example(question="Why?").with_inputs("question")]
    with pytest.raises(UsageError, match='"answer"'):
        compare_programs({"p": program}, rows, [metrics.rubric_preference("answer", rubric=RUBRIC, lm=judge())])
    assert asked == []
    without = metrics.rubric_score("answer", rubric=RUBRIC, lm=judge(Why="5"))
    assert compare_programs({"p": program}, rows, [without]).programs[0].scores[without.name].value == 1.0
