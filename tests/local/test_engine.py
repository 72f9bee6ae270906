"""Batches, cached beginnings and decoding give the numbers of a plain forward pass."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dspy_finetune.local.chat import encode_prompt
from dspy_finetune.local.engine import ContextLengthError, Engine, Source
from dspy_finetune.local.forward import PrefixCache, prefill
from dspy_finetune.local.models import load_model, load_tokenizer
from dspy_finetune.local.sampling import Settings, find_stop, json_grammar
from dspy_finetune.local.schemas import ApiError
from tests.local.toy import write_toy_adapter

SYSTEMS = ("Answer with true or false. The reader likes this title.", "Which title does the reader prefer? Be brief.")


def conversation(text: str, system: int = 0) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEMS[system]}, {"role": "user", "content": text}]


TEXTS = ["a", "Title: that one", "Title: this reader", "", "A: long " * 12, "<|im_end|>"]


@pytest.fixture(scope="module")
def loaded(toy_model: Path) -> tuple[Any, Any]:
    return load_model(toy_model, []), load_tokenizer(toy_model)


@pytest.fixture(scope="module")
def engine(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    adapter = write_toy_adapter(tmp_path_factory.mktemp("adapters") / "one")
    sources = {"toy": Source(folder=toy_model), "tuned": Source(folder=toy_model, adapters=(adapter,))}
    running = Engine(sources.__getitem__, device="cpu")
    yield running
    running.close()


def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """The second, plain definition: one row, no cache, no batch."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    result: torch.Tensor = torch.log_softmax(logits.float(), dim=-1)
    return result


def test_a_text_that_is_too_long_by_far_is_refused_without_being_encoded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 MB of text held everybody up for minutes while it was encoded."""
    encoded: list[str] = []

    def encode(tokenizer: Any, messages: Any) -> list[int]:
        encoded.append(messages[-1]["content"])
        return encode_prompt(tokenizer, messages)

    monkeypatch.setattr("dspy_finetune.local.engine.encode_prompt", encode)
    monkeypatch.setattr("dspy_finetune.local.features.encode_text", lambda *_: pytest.fail("it was encoded"))
    with pytest.raises(ContextLengthError, match=r"resulted in more than 256 tokens"):
        engine.submit("toy", conversation("a b " * 2000), Settings(max_tokens=1)).result(60)
    assert encoded == []
    with pytest.raises(ContextLengthError, match=r"resulted in \d+ tokens"):  # near the limit the number is told
        engine.submit("toy", conversation("ab " * 200), Settings(max_tokens=1)).result(60)
    assert len(encoded) == 1
    with pytest.raises(ApiError, match=r"the input 1 has more than 256"):
        engine.embed("toy", ["a", "a b " * 2000]).result(60)
    with pytest.raises(ApiError, match=r"have more than 300000 tokens"):
        engine.embed("toy", ["a b " * 600] * 2048).result(60)


def test_a_grammar_is_compiled_once_for_all_answers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large schema and n=128 held everybody up for minutes; the answers go their own ways all the same."""
    import llguidance

    made: list[str] = []
    build = llguidance.LLMatcher

    def count(tokens: Any, grammar: str, **options: Any) -> Any:
        made.append(grammar)
        return build(tokens, grammar, **options)

    grammar = json_grammar({"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}, "required": ["a"]})
    monkeypatch.setattr(llguidance, "LLMatcher", count)
    asked = [engine.submit("toy", conversation("a"), Settings(max_tokens=40, grammar=grammar), n=8) for _ in range(2)]
    texts = {answer.text for one in asked for answer in one.result(60).answers}
    assert texts == {'{"a": "x"}', '{"a": "yy"}'}
    assert made == [grammar]


def test_a_panic_of_rust_is_one_requests_answer_and_ends_no_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    def panic(*_: Any) -> list[int]:
        raise PanicException("assertion failed")

    with monkeypatch.context() as patched:
        patched.setattr("dspy_finetune.local.engine.encode_prompt", panic)
        with pytest.raises(RuntimeError, match=r"PanicException: assertion failed"):
            engine.submit("toy", conversation("a"), Settings(max_tokens=1)).result(60)
        patched.setattr("dspy_finetune.local.engine.encode_prompt", encode_prompt)
        patched.setattr("dspy_finetune.local.engine.choose", panic)
        with pytest.raises(RuntimeError, match=r"PanicException: assertion failed"):
            engine.submit("toy", conversation("a"), Settings(max_tokens=1)).result(60)
    assert engine.submit("toy", conversation("a"), Settings(max_tokens=1)).result(60).answers


def test_the_loading_of_a_model_is_told_where_it_lasts(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []

    @contextlib.contextmanager
    def record(text: str, tell: Any) -> Iterator[None]:
        waits.append(text)
        yield

    monkeypatch.setattr("dspy_finetune.local.engine.told_if_slow", record)
    running = Engine({"toy": Source(folder=toy_model)}.__getitem__, device="cpu")
    try:
        running.submit("toy", conversation("a"), Settings(max_tokens=1)).result(60)
    finally:
        running.close()
    assert waits == ["requests wait for toy to be loaded"]


def test_a_packed_batch_equals_single_passes_cold_and_from_the_cache(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = [encode_prompt(tokenizer, conversation(text)) for text in TEXTS]
    expected = torch.stack([plain(model, row) for row in rows])
    cache = PrefixCache()
    for _ in range(2):
        filled = prefill(model, rows, cache)
        torch.testing.assert_close(torch.log_softmax(filled.logits, -1), expected, atol=1e-4, rtol=0)
    assert len(cache.entries) == 1
    other = [encode_prompt(tokenizer, conversation(text, 1)) for text in TEXTS[:2]]
    for row in (rows[0], other[0], rows[1], other[1]):
        single = torch.log_softmax(prefill(model, [row], cache).logits[0], -1)
        torch.testing.assert_close(single, plain(model, row), atol=1e-4, rtol=0)


def test_the_cache_forgets_the_least_recently_used_beginning_when_full(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    cache = PrefixCache(max_bytes=1)
    for system in (0, 1, 0):
        prefill(model, [encode_prompt(tokenizer, conversation("x", system))], cache)
        assert len(cache.entries) == 1


def test_concurrent_requests_get_the_plain_greedy_answer_and_its_logprobs(
    engine: Engine, loaded: tuple[Any, Any]
) -> None:
    model, tokenizer = loaded
    settings = Settings(max_tokens=12, temperature=0, n_top=20)
    futures: list[Any] = [None] * 12

    def ask(index: int) -> None:
        futures[index] = engine.submit("toy", conversation(TEXTS[index % 6], index // 6), settings)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, future in enumerate(futures):
        [answer] = future.result(60).answers
        ids = encode_prompt(tokenizer, conversation(TEXTS[index % 6], index // 6))
        for token in answer.tokens:
            expected = plain(model, ids)
            assert token.id == int(expected.argmax())
            assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
            top = torch.topk(expected, 20)
            assert [value for _, value in token.top] == pytest.approx(top.values.tolist(), abs=1e-4)
            ids.append(token.id)
        ended = int(plain(model, ids).argmax()) == 2
        assert answer.finish_reason == ("length" if len(answer.tokens) == 12 else "stop")
        assert ended or len(answer.tokens) == 12


def test_a_tuned_model_is_the_base_with_its_adapter_merged(engine: Engine, loaded: tuple[Any, Any]) -> None:
    settings = Settings(max_tokens=1, temperature=0, n_top=5)
    base, tuned = (engine.submit(name, conversation("x"), settings).result(60).answers[0] for name in ("toy", "tuned"))
    assert base.tokens[0].top != tuned.tokens[0].top


def test_a_seed_repeats_an_answer_and_each_choice_differs(engine: Engine) -> None:
    settings = Settings(max_tokens=8, temperature=1.5, seed=5)
    first, again = (engine.submit("toy", conversation("x"), settings, n=3).result(60) for _ in range(2))
    texts = [answer.text for answer in first.answers]
    assert texts == [answer.text for answer in again.answers]
    assert len(set(texts)) == 3


def test_top_p_near_zero_is_greedy(engine: Engine) -> None:
    greedy = engine.submit("toy", conversation("x"), Settings(max_tokens=6, temperature=0)).result(60)
    narrow = engine.submit("toy", conversation("x"), Settings(max_tokens=6, temperature=2.0, top_p=1e-6)).result(60)
    assert narrow.answers[0].text == greedy.answers[0].text


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    whole = engine.submit("toy", conversation("y"), Settings(max_tokens=20, temperature=0)).result(60).answers[0]
    stop = whole.text[3:5]
    cut = engine.submit("toy", conversation("y"), Settings(max_tokens=20, temperature=0, stop=(stop,))).result(60)
    assert cut.answers[0].text == whole.text[: find_stop(whole.text, (stop,))]
    assert cut.answers[0].finish_reason == "stop"


def test_a_prompt_beyond_the_context_is_refused_alone(engine: Engine) -> None:
    settings = Settings(max_tokens=1, temperature=0)
    long, short = (engine.submit("toy", conversation(text), settings) for text in ("word " * 300, "x"))
    with pytest.raises(ContextLengthError, match="256 tokens"):
        long.result(60)
    assert short.result(60).answers[0].finish_reason == "length"


def test_embeddings_of_many_texts_keep_no_answer_and_no_other_texts_waiting(engine: Engine) -> None:
    long = engine.embed("toy", ["word " * 20] * 1200)
    short = engine.embed("toy", ["reader"])
    answer = engine.submit("toy", conversation("x"), Settings(max_tokens=4, temperature=0))
    assert len(answer.result(60).answers[0].tokens) > 0
    assert short.result(60)[0].shape[0] == 1
    assert not long.done()
    vectors, n_tokens = long.result(60)
    assert vectors[0] == pytest.approx(vectors[1199], abs=1e-6)
    assert n_tokens == 1200 * engine.embed("toy", ["word " * 20]).result(60)[1]


def test_texts_in_any_order_get_their_own_vectors(engine: Engine) -> None:
    texts = [word * n for n in (60, 1, 30, 7) for word in ("a b ", "title ")]
    together = engine.embed("toy", texts).result(60)[0]
    for place, text in enumerate(texts):
        alone = engine.embed("toy", [text]).result(60)[0][0]
        assert int((together @ alone).argmax()) == place
        assert together[place] == pytest.approx(alone, abs=1e-2)  # padding and half precision round otherwise


def test_what_nobody_waits_for_is_not_read_on(engine: Engine) -> None:
    asked: list[bool] = []

    def is_wanted() -> bool:
        asked.append(len(asked) < 2)
        return asked[-1]

    left = engine.embed("toy", ["word " * 20] * 1200, is_wanted=is_wanted)
    with pytest.raises(ApiError, match="client has left"):
        left.result(60)
    assert asked == [True, True, False]
    unread = engine.submit("toy", conversation("x"), Settings(max_tokens=4), is_wanted=lambda: False)
    with pytest.raises(ApiError, match="client has left"):
        unread.result(60)
    assert engine.health() == {"ok": True, "n_rows": 0}
