"""A question without its input is told: by the export and the check alike, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_finetune as ft
from dspy_finetune import prompts
from dspy_finetune.export import check, export_dpo, export_sft

TITLES = [f"A quiet town, part {n}" for n in range(1200)]


def found(report: Any) -> list[tuple[int | None, str, str]]:
    return [(issue.line, issue.path, issue.message) for issue in report.issues if issue.code == "input-empty"]


@pytest.mark.parametrize("blank", ["", " ", "\t \u00a0"])
@pytest.mark.parametrize("extra", [{}, {"dedupe": True}])
def test_a_blank_title_is_told(tmp_path: Path, blank: str, extra: dict[str, Any]) -> None:
    """By the export, its manifest and the check of its file."""
    rows = [{"title": title, "is_favorite": n % 2 == 0} for n, title in enumerate(TITLES)]
    rows[700]["title"] = rows[1100]["title"] = blank
    dataset = export_sft(rows, prompts.binary("Likes towns."), tmp_path / "train.jsonl", **extra)
    place = "messages[1].content"
    said = 'nothing stands behind "Title:"'
    assert found(dataset.report) == ([(701, place, said)] if extra else [(701, place, said), (1101, place, said)])
    assert dataset.manifest.issues["input-empty"] == len(found(dataset.report))
    assert dataset.report.ok
    assert check(dataset.path).issues == dataset.report.issues


def test_a_blank_side_of_a_preference_is_told(tmp_path: Path) -> None:
    rows = [
        {"title_a": title, "title_b": f"Ten deals, {n}", "preferred": "AB"[n % 2]} for n, title in enumerate(TITLES)
    ]
    rows[5]["title_a"] = ""
    rows[6]["title_b"] = " "
    rows[7]["title_a"] = rows[7]["title_b"] = ""
    dataset = export_dpo(rows, prompts.pairwise(), tmp_path / "dpo.jsonl")
    assert found(dataset.report) == [
        (6, "input.messages[1].content", 'nothing stands behind "A:"'),
        (7, "input.messages[1].content", 'nothing stands behind "B:"'),
        (8, "input.messages[1].content", 'nothing stands behind "A:"'),
    ]
    assert check(dataset.path).issues == dataset.report.issues


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()])
def test_a_blank_field_of_an_adapters_prompt_is_told(tmp_path: Path, adapter: dspy.Adapter) -> None:
    rows = [{"title": title, "place": "Ulm", "liked": n % 2 == 0} for n, title in enumerate(TITLES[:20])]
    rows[3]["title"] = ""
    prompt = prompts.PromptFormat.from_adapter("title, place -> liked: bool", adapter)
    assert [line for line, _, _ in found(export_sft(rows, prompt, tmp_path / "train.jsonl").report)] == [4]


def test_what_follows_a_task_is_told_where_it_is_missing(tmp_path: Path) -> None:
    rows = [{"product": title, "price": float(n)} for n, title in enumerate(TITLES[:20])]
    rows[3]["product"] = ""
    dataset = export_sft(rows, prompts.number(), tmp_path / "train.jsonl")
    assert [(line, path) for line, path, _ in found(dataset.report)] == [(4, "messages[0].content")]


@pytest.mark.parametrize(
    "questions",
    [
        [f"Review: it was {n}\nSentiment:" for n in range(20)],  # a template that ends with a label
        [
            f"Review: it was {n}\nSentiment: good\nSentiment:" if n == 3 else f"Review: {n}\nSentiment:"
            for n in range(20)
        ],
        [f"Why we moved {n} times:" for n in range(20)],
        [f"Title: part {n}: " for n in range(20)],
        [f"Summarise.\n\nText:\nline {n}\n\nmore" for n in range(20)],
        [f"<p>\n\n{n}</p>" for n in range(20)],
        [f"Question {n} " for n in range(20)],
        [f"Note {n}:\nKeys: none" for n in range(20)],
    ],
)
def test_what_belongs_to_the_template_or_the_text_is_not_told(tmp_path: Path, questions: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    answers = [{"role": "assistant", "content": f"answer {n}"} for n in range(20)]
    rows = [{"messages": [{"role": "user", "content": q}, a]} for q, a in zip(questions, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert not found(check(path))


def test_a_file_of_nothing_but_labels_is_told(tmp_path: Path) -> None:
    rows = [{"title_a": "", "title_b": " ", "preferred": "AB"[n % 2]} for n in range(12)]
    report = export_sft(rows, prompts.pairwise(), tmp_path / "train.jsonl").report
    assert report.counts["input-empty"] == 12


def test_a_huge_row_hides_nothing_behind_it(tmp_path: Path) -> None:
    rows = [
        {"title": "x " * 3_000_000 if n == 0 else title, "is_favorite": n % 9 != 0} for n, title in enumerate(TITLES)
    ]
    rows[7]["title"] = ""
    report = export_sft(rows, prompts.binary(), tmp_path / "train.jsonl", dialect="together").report
    assert [line for line, _, _ in found(report)] == [8]
    assert "label-imbalance" in report.codes
    assert not any("behind line" in reason for reason in report.not_checked)


@pytest.mark.parametrize("preset", [ft.prompts.pairwise(), ft.prompts.pairwise(output="better")])
def test_pairs_are_written_in_both_orders(preset: ft.PromptFormat, tmp_path: Path) -> None:
    """The sides and the label are exchanged, whatever the label's name; every count is of the pairs given."""
    field = str(preset.label_field)
    pairs = [
        dspy.Example(title_a="Bees", title_b="Ants", **{field: "A"}).with_inputs("title_a", "title_b"),
        dspy.Example(title_a="Gates", title_b="Locks", **{field: "A"}).with_inputs("title_a", "title_b"),
    ]
    done = ft.export_sft(pairs, preset, tmp_path / "sft.jsonl", both_orders=True)
    rows = [json.loads(line)["messages"] for line in (tmp_path / "sft.jsonl").read_text("utf-8").splitlines()]
    assert [row[-1]["content"] for row in rows] == ["A", "B", "A", "B"]
    assert [row[-2]["content"] for row in rows[:2]] == ["A: Bees\nB: Ants", "A: Ants\nB: Bees"]
    assert (done.manifest.n_rows_in, done.n_rows, done.manifest.both_orders) == (2, 4, True)
    assert not ft.export_sft(pairs, preset, tmp_path / "one.jsonl").manifest.both_orders
    ft.export_dpo(pairs, preset, tmp_path / "dpo.jsonl", both_orders=True)
    lines = [json.loads(line) for line in (tmp_path / "dpo.jsonl").read_text("utf-8").splitlines()]
    assert [line["preferred_output"][0]["content"] for line in lines] == ["A", "B", "A", "B"]
    assert [line["non_preferred_output"][0]["content"] for line in lines] == ["B", "A", "B", "A"]
    with pytest.raises(ft.errors.UsageError, match="both_orders: the prompt must have"):
        ft.export_sft(pairs, ft.prompts.binary(), tmp_path / "no.jsonl", both_orders=True)
    with pytest.raises(ft.errors.UsageError, match="both_orders: the prompt must have"):
        ft.export_dpo([], None, tmp_path / "no.jsonl", both_orders=True)
