"""The catalog holds the published figures, names are taken apart rightly, and a user's file is merged over it."""

from __future__ import annotations

import json
from datetime import date

import pytest

from dspy_finetune.catalog import CATALOG_VARIABLE, ModelId, load_catalog, parse_model_id, strip_model_id
from dspy_finetune.errors import DataError, FileError
from dspy_finetune.local.guards import MAX_UPLOAD_BYTES
from dspy_finetune.local.scheduler import MIN_EXAMPLES

# OpenAI's fine-tuning price table as stored in 2026, USD per million tokens:
# training, standard (input, cached, output), batch (input, cached, output). Read 2026-11-20.
PRICES = {
    "gpt-4.1-2025-04-14": (25.00, (3.00, 0.75, 12.00), (1.50, 0.50, 6.00)),
    "gpt-4.1-mini-2025-04-14": (5.00, (0.80, 0.20, 3.20), (0.40, 0.10, 1.60)),
    "gpt-4.1-nano-2025-04-14": (1.50, (0.20, 0.05, 0.80), (0.10, 0.025, 0.40)),
    "gpt-4o-2024-08-06": (25.00, (3.75, 1.875, 15.00), (2.225, 0.90, 12.50)),
    "gpt-4o-mini-2024-07-18": (3.00, (0.30, 0.15, 1.20), (0.15, 0.075, 0.60)),
    "gpt-3.5-turbo-0125": (8.00, (3.00, None, 6.00), (1.50, None, 3.00)),
    "gpt-3.5-turbo-1106": (8.00, (3.00, None, 6.00), (1.50, None, 3.00)),
    "o4-mini-2025-04-16": (None, (4.00, 1.00, 16.00), (2.00, 0.50, 8.00)),
    "davinci-002": (6.00, (12.00, None, 12.00), (6.00, None, 6.00)),
    "babbage-002": (0.40, (1.60, None, 1.60), (0.80, None, 0.90)),
}
# OpenAI's guides to supervised, preference and vision fine-tuning and to best practices ("Use with" and token tables),
# and the deprecations page: methods, images, training context, inference context, no new job from, shut down on. Read
# 2026-11-20.
LIMITS = {
    "gpt-4.1-2025-04-14": (("sft", "dpo"), False, 65_536, 128_000, date(2027, 1, 6), date(2027, 1, 14)),
    "gpt-4.1-mini-2025-04-14": (("sft", "dpo"), False, 65_536, 128_000, date(2027, 1, 6), date(2027, 1, 14)),
    "gpt-4.1-nano-2025-04-14": (("sft", "dpo"), False, 65_536, 128_000, date(2026, 10, 23), date(2026, 10, 23)),
    "gpt-4o-2024-08-06": (("sft", "dpo"), True, 65_536, 128_000, date(2027, 1, 6), date(2027, 1, 14)),
    "gpt-4o-mini-2024-07-18": (("sft",), False, 65_536, 128_000, date(2027, 1, 6), date(2027, 1, 14)),
    "gpt-3.5-turbo-0125": (("sft",), False, 16_385, 16_385, date(2026, 10, 23), date(2026, 10, 23)),
    "gpt-3.5-turbo-1106": (("sft",), False, 16_385, 16_385, date(2026, 10, 23), date(2026, 10, 23)),
    "o4-mini-2025-04-16": (("rft",), False, None, None, date(2026, 10, 23), date(2026, 10, 23)),
}
# Prices of the untuned models, for comparison: input, output. Read 2026-11-20.
BASE_PRICES = {
    "gpt-4.1-2025-04-14": (2.00, 8.00),
    "gpt-4.1-mini-2025-04-14": (0.40, 1.60),
    "gpt-4o-2024-08-06": (2.50, 10.00),
    "gpt-4o-mini-2024-07-18": (0.15, 0.60),
}


@pytest.mark.parametrize("model", PRICES)
def test_prices_are_the_published_ones(model: str) -> None:
    facts = load_catalog().models[model]
    training, standard, batch = PRICES[model]
    prices = facts.prices
    assert prices.training == training
    assert (prices.input, prices.cached_input, prices.output) == standard
    assert (prices.batch_input, prices.batch_cached_input, prices.batch_output) == batch
    assert prices.training_hour == (100.0 if model.startswith("o4") else None)


@pytest.mark.parametrize("model", LIMITS)
def test_limits_and_end_dates_are_the_published_ones(model: str) -> None:
    facts = load_catalog().models[model]
    assert (
        facts.methods,
        facts.has_vision,
        facts.train_context_tokens,
        facts.context_tokens,
        facts.training_ends,
        facts.shutdown_date,
    ) == LIMITS[model]


def test_base_prices_are_the_published_ones() -> None:
    found = {
        name: (facts.base_prices.input, facts.base_prices.output)
        for name, facts in load_catalog().models.items()
        if facts.base_prices is not None and facts.host == "openai"
    }
    assert found == BASE_PRICES


def test_every_figure_has_a_source_and_a_date() -> None:
    catalog = load_catalog()
    dated = [(facts.source, facts.as_of) for facts in catalog.models.values()]
    dated += [(facts.source, facts.as_of) for facts in catalog.hosts.values()]
    for source, as_of in dated:
        assert as_of is not None
        assert {name.strip() for name in source.split(",")} <= set(catalog.sources)


def test_limits_of_files_are_the_hosts_own() -> None:
    """OpenAI: 10 rows, 512 MB, suffix 64. Azure: suffix 18 without dots, BOM, 64 images. Fireworks: 3 rows, 150 MB."""
    hosts = load_catalog().hosts
    assert (hosts["openai"].min_rows, hosts["openai"].max_file_bytes, hosts["openai"].max_suffix_chars) == (
        10,
        512 * 1024 * 1024,
        64,
    )
    assert (hosts["azure"].max_suffix_chars, hosts["azure"].suffix_forbidden, hosts["azure"].has_bom) == (18, ".", True)
    assert (hosts["openai"].max_images_per_row, hosts["azure"].max_images_per_row) == (10, 64)
    assert (hosts["fireworks"].min_rows, hosts["fireworks"].max_file_bytes) == (3, 150 * 1024 * 1024)
    assert hosts["together"].min_rows == 1  # MIN_SAMPLES of its own client
    assert not hosts["local"].is_billed
    assert (hosts["local"].min_rows, hosts["local"].max_file_bytes) == (MIN_EXAMPLES, MAX_UPLOAD_BYTES)


def test_azure_trains_some_models_by_other_methods() -> None:
    catalog = load_catalog()
    assert catalog.methods("gpt-4.1-nano", "azure") == ("sft", "dpo")
    assert catalog.methods("gpt-oss-20b", "azure") == ("sft",)
    assert catalog.methods("gpt-4o-mini", "openai") == ("sft",)
    assert catalog.methods("gpt-4o-mini", "fireworks") is None
    assert catalog.methods("nobody-knows", "openai") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4.1-mini-2025-04-14", ModelId(base="gpt-4.1-mini-2025-04-14")),
        ("openai/gpt-4.1-mini", ModelId(base="gpt-4.1-mini")),
        (
            "ft:gpt-4o-mini-2024-07-18:personal::Ajo5kvNY",
            ModelId(base="gpt-4o-mini-2024-07-18", organisation="personal", id="Ajo5kvNY"),
        ),
        (
            "openai/ft:gpt-4.1-2025-04-14:acme:titles:Ajo5kvNY:ckpt-step-88",
            ModelId(base="gpt-4.1-2025-04-14", organisation="acme", suffix="titles", id="Ajo5kvNY", step=88),
        ),
        ("gpt-4.1-2025-04-14.ft-0e45ab", ModelId(base="gpt-4.1-2025-04-14", id="0e45ab")),
        (
            "ft:HuggingFaceTB/SmolLM2-135M-Instruct:local:x:12345678",
            ModelId(base="HuggingFaceTB/SmolLM2-135M-Instruct", organisation="local", suffix="x", id="12345678"),
        ),
        (
            "ft:C:\\models\\small:local:x:12345678",
            ModelId(base="C:\\models\\small", organisation="local", suffix="x", id="12345678"),
        ),
        ("ft:gpt-4.1:acme", ModelId(base="gpt-4.1", organisation="acme")),
        ("meta-llama/Llama-3.3-70B", ModelId(base="meta-llama/Llama-3.3-70B")),
        ("ft:", ModelId(base="")),
    ],
)
def test_model_names_are_taken_apart(name: str, expected: ModelId) -> None:
    assert parse_model_id(name) == expected
    assert strip_model_id(name) == expected.base


def test_tuned_names_find_their_base() -> None:
    catalog = load_catalog()
    for name in (
        "gpt-4.1",
        "ft:gpt-4.1:a::b",
        "openai/ft:gpt-4.1-2025-04-14:a:b:c:ckpt-step-1",
        "gpt-4.1-2025-04-14.ft-ab",
    ):
        facts = catalog.model(name)
        assert facts is not None
        assert facts.id == "gpt-4.1-2025-04-14"
    assert catalog.model("somebody/model") is None
    assert catalog.model("") is None


def test_a_users_file_is_merged_over_field_by_field(tmp_path, monkeypatch) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {
                "models": {
                    "gpt-4.1-2025-04-14": {"prices": {"training": 20.0}},
                    "my-model": {"host": "together", "prices": {"training": 0.5}},
                },
                "hosts": {"together": {"min_rows": 7}},
            }
        )
    )
    monkeypatch.setenv(CATALOG_VARIABLE, str(path))
    catalog = load_catalog()
    changed = catalog.models["gpt-4.1-2025-04-14"]
    assert (changed.prices.training, changed.prices.input) == (20.0, 3.0)
    assert catalog.models["my-model"].prices.training == 0.5
    assert catalog.models["my-model"].prices.input is None
    assert catalog.hosts["together"].min_rows == 7
    monkeypatch.delenv(CATALOG_VARIABLE)
    assert load_catalog().models["gpt-4.1-2025-04-14"].prices.training == 25.0
    assert load_catalog(path).models["gpt-4.1-2025-04-14"].prices.training == 20.0


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("{", DataError, "not JSON"),
        ("[]", DataError, "must be an object"),
        ('{"models": {"gpt-4.1-2025-04-14": {"prices": {"trainnig": 1}}}}', DataError, "trainnig"),
        ('{"models": {"gpt-4.1-2025-04-14": {"prices": {"training": -1}}}}', DataError, "training"),
        ('{"models": []}', DataError, "form"),
        (None, FileError, "no such file"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(tmp_path, text: str | None, error: type[Exception], says: str) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=says) as caught:
        load_catalog(path)
    assert str(path) in str(caught.value)
