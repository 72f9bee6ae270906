"""Cards: what the items were and how each program was asked, as facts beside the numbers.

In: a `Comparison`, the programs. Out: cards, each a mapping from a fact's name to its text. Facts of the user's own
stand first on the card of the same name. Not covered: showing them (tables.py, html.py).
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from dspy_finetune.evaluation.metric import AnyMetric, Metric
from dspy_finetune.evaluation.result import Comparison
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.report.plots import number_field
from dspy_finetune.report.tables import figure
from dspy_finetune.values import read_number

Cards = Mapping[str, Mapping[str, str]]
"""Name of the card to its facts."""

MAX_LABELS = 8
"""Labels that a card counts one by one."""


def make(
    comparison: Comparison, programs: Mapping[str, Any], own: Cards, metrics: Sequence[AnyMetric] = ()
) -> dict[str, dict[str, str]]:
    """All cards: the user's own, with the facts that items, programs and judges tell by themselves."""
    cards = {name: dict(card) for name, card in own.items()}
    judges = {
        one.name[:1].upper() + one.name[1:]: dict(one.card) for one in metrics if isinstance(one, Metric) and one.card
    }
    for name, card in {"Data": data_card(comparison), **prompt_cards(programs), **judges}.items():
        cards[name] = {
            **cards.get(name, {}),
            **{key: text for key, text in card.items() if key not in cards.get(name, {})},
        }
    return cards


def data_card(comparison: Comparison) -> dict[str, str]:
    """What the programs were asked about: how many, how long, which labels, and a digest to know them again."""
    items = comparison.items
    inputs = [json.dumps(dict(item.inputs), sort_keys=True, ensure_ascii=False) for item in items]
    card = {"items": f"{len(items):,}"}
    if n_doubled := len(inputs) - len(set(inputs)):
        card["doubled"] = f"{n_doubled:,} have the inputs of another"
    for name in items[0].inputs:
        lengths = [len(str(item.inputs.get(name, ""))) for item in items]
        card[f"length of {name}"] = f"{statistics.median(lengths):,.0f} characters (median), {max(lengths):,} at most"
    for name in {metric.field for metric in comparison.metrics if metric.field}:
        if all(name in item.labels for item in items):
            card[name] = _labels(comparison, name)
    text = "\n".join(inputs).encode("utf-8", "surrogatepass")
    card["sha256 of the items"] = hashlib.sha256(text).hexdigest()[:16]
    return card


def _labels(comparison: Comparison, field: str) -> str:
    labels = [item.labels[field] for item in comparison.items]
    if number_field(comparison) == field:
        numbers = sorted(map(read_number, labels))
        return f"from {figure(numbers[0])} to {figure(numbers[-1])}, median {figure(statistics.median(numbers))}"
    counts = Counter(str(label) for label in labels)
    if len(counts) > MAX_LABELS or len(counts) == len(labels) > 2:
        return f"{len(counts):,} different ones"
    return ", ".join(f"{label}: {n:,}" for label, n in counts.most_common())


def prompt_cards(programs: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """How the programs ask their models: one card per prompt, and one per DSPy program; none for what asks no model."""
    cards: dict[str, dict[str, str]] = {}
    owner: dict[str, str] = {}
    for name, program in programs.items():
        modules = _modules(program)
        n_predictors = sum(isinstance(module, dspy.Predict) for _, module in modules)
        for inner, module in modules:
            prompt = getattr(module, "prompt", None)
            if isinstance(prompt, PromptFormat):
                model = str(getattr(module, "model", ""))
                # The same prompt under several programs is one card.
                title = owner.setdefault(prompt.digest, f"Prompt of {name}")
                card = cards.setdefault(title, _prompt_card(prompt))
                _add(card, "asked by", name)
                _add(card, "models", model)
            elif isinstance(module, dspy.Predict):
                card = cards.setdefault(f"Prompt of {name}", {})
                where = f" of {inner.removeprefix('self.')}" if n_predictors > 1 else ""
                card[f"instructions{where}"] = str(module.signature.instructions)
                card[f"demonstrations{where}"] = f"{len(module.demos):,}"
                _add(card, "models", str(getattr(module.lm, "model", "") or ""))
    return cards


def _modules(program: Any) -> list[tuple[str, Any]]:
    if not isinstance(program, dspy.Module):
        return [("", program)]
    found = [("", program), *((name, one) for name, one in program.named_sub_modules())]
    return list({id(one): (name, one) for name, one in reversed(found)}.values())[::-1]


def _prompt_card(prompt: PromptFormat) -> dict[str, str]:
    outputs = ", ".join(prompt.output_fields)
    if prompt.labels is not None:
        outputs = f"{prompt.label_field}: {', '.join(prompt.labels.texts)}"
    return {
        "asked by": "",
        "models": "",
        "system": prompt.system or "(none)",
        "user": prompt.user,
        "answer": outputs,
        "digest": prompt.digest[:16],
    }


def _add(card: dict[str, str], key: str, text: str) -> None:
    """Add a text to a list of texts, once."""
    known = [one for one in card.get(key, "").split(", ") if one]
    if text and text not in known:
        known.append(text)
    if known:
        card[key] = ", ".join(known)
