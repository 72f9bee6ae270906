"""data: files, tables and Hugging Face datasets -> dspy.Example; splits and pairs in which no item is on two sides.

>>> rows = [{"headline": f"Title {n}", "liked": "yes" if n % 2 else "no"} for n in range(40)]
>>> examples = load_examples(rows, rename={"headline": "title"}, types={"liked": bool}, inputs=["title"])
>>> train, validation, test = split(examples, stratify_by="liked", seed=1)
>>> pairs = make_pairs(train, label="liked", n_per_positive=3)
>>> len(train), len(test), len(pairs), bool(find_leakage(pairs, test))
(32, 4, 48, False)
"""

from dspy_finetune.data.items import (
    Conflict,
    Deduplicated,
    Duplicate,
    deduplicate,
    find_conflicts,
    normalize_text,
)
from dspy_finetune.data.load import Examples, ExampleStream, iter_examples, load_examples
from dspy_finetune.data.pairs import items_from_pairs, make_pairs, swap
from dspy_finetune.data.split import Leakage, LeakedItem, Split, find_leakage, split

__all__ = [
    "Conflict",
    "Deduplicated",
    "Duplicate",
    "ExampleStream",
    "Examples",
    "Leakage",
    "LeakedItem",
    "Split",
    "deduplicate",
    "find_conflicts",
    "find_leakage",
    "items_from_pairs",
    "iter_examples",
    "load_examples",
    "make_pairs",
    "normalize_text",
    "split",
    "swap",
]
