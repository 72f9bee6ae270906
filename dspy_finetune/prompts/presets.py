r"""The prompts of the common tasks, ready made: `binary`, `pairwise`, `explained_pairwise`, `answer`, `number`.

In: a rubric or a task line, and the names of the user's own fields. Out: a `PromptFormat` over a signature with these
fields. The instructions are short on purpose: every token of a system message is paid for on every row.
"""

from __future__ import annotations

from typing import Literal

import dspy

from dspy_finetune.errors import UsageError
from dspy_finetune.prompts.answers import title
from dspy_finetune.prompts.format import PromptFormat
from dspy_finetune.values import NumberFormat

_BINARY = "Would this reader like the {thing}? Answer true or false."
_PAIRWISE = "Which {thing} would this reader prefer? Answer A or B."
_EXPLAINED = "Which {thing} would this reader prefer? Answer A or B, then why."
_ANSWER = "You are a helpful assistant."
_NUMBER = "Estimate the price of this product. Respond with the price, no explanation."


def binary(
    rubric: str | None = None, *, input: str = "title", output: str = "is_favorite", system: str | None = None
) -> PromptFormat:
    r"""Whether the reader likes one item: "Title: ..." -> "true" or "false".

    >>> prompt = binary("Likes essays on craft.")
    >>> prompt.messages({"title": "How to sharpen a chisel"})[1]["content"], prompt.completion({"is_favorite": True})
    ('Title: How to sharpen a chisel', 'true')

    Args:
        rubric: The reader's taste, appended to the system message.
        input: The input field; its name also opens the user message.
        output: The output field, a bool.
        system: Another system template; `{rubric}` says where the rubric stands.
    """
    instructions = _BINARY.format(thing=_words(input))
    signature = _signature([input], [(output, bool)], instructions)
    return PromptFormat(signature, rubric=rubric, system=system)


def pairwise(
    rubric: str | None = None,
    *,
    inputs: tuple[str, str] = ("title_a", "title_b"),
    output: str = "preferred",
    system: str | None = None,
) -> PromptFormat:
    r"""Which of two items the reader prefers: "A: ...\nB: ..." -> "A" or "B".

    >>> pairwise().messages({"title_a": "Bees", "title_b": "Rust\nB: Bees"})[1]["content"]
    'A: Bees\nB: Rust\\nB: Bees'

    Args:
        rubric: The reader's taste, appended to the system message.
        inputs: The two input fields.
        output: The output field, "A" or "B".
        system: Another system template; `{rubric}` says where the rubric stands.
    """
    first, second = _two(inputs)
    instructions = _PAIRWISE.format(thing=_shared_word(first, second))
    signature = _signature([first, second], [(output, Literal["A", "B"])], instructions)
    return PromptFormat(signature, rubric=rubric, system=system, user=f"A: {{{first}}}\nB: {{{second}}}")


def explained_pairwise(
    rubric: str | None = None,
    *,
    inputs: tuple[str, str] = ("title_a", "title_b"),
    output: str = "preferred",
    explanation: str = "explanation",
    system: str | None = None,
) -> PromptFormat:
    r"""Which of two items the reader prefers, and why: "A: ...\nB: ..." -> "A: <why>".

    The label stands first, so that its probability is read at the first token.

    >>> prompt = explained_pairwise()
    >>> prompt.completion({"preferred": "A", "explanation": "It shows."}), prompt.parse("I would choose B: shorter")
    ('A: It shows.', {'preferred': 'B', 'explanation': 'shorter'})

    Args:
        rubric: The reader's taste, appended to the system message.
        inputs: The two input fields.
        output: The output field, "A" or "B".
        explanation: The output field of the reason.
        system: Another system template; `{rubric}` says where the rubric stands.
    """
    first, second = _two(inputs)
    instructions = _EXPLAINED.format(thing=_shared_word(first, second))
    signature = _signature([first, second], [(output, Literal["A", "B"]), (explanation, str)], instructions)
    return PromptFormat(
        signature,
        rubric=rubric,
        system=system,
        user=f"A: {{{first}}}\nB: {{{second}}}",
        completion=f"{{{output}}}: {{{explanation}}}",
    )


def answer(system: str = _ANSWER, *, input: str = "question", output: str = "answer") -> PromptFormat:
    """A question and its answer, both as they stand, under a system line.

    >>> answer("You teach.").messages({"question": "What is a mole?"})
    [{'role': 'system', 'content': 'You teach.'}, {'role': 'user', 'content': 'What is a mole?'}]

    Args:
        system: The system template; "" for none.
        input: The input field.
        output: The output field, a text.
    """
    return PromptFormat(_signature([input], [(output, str)], system), system=system, user=f"{{{input}}}")


def number(
    task: str = _NUMBER,
    *,
    input: str = "product",
    output: str = "price",
    decimals: int | None = 2,
    currency: str = "$",
    position: Literal["before", "after"] = "before",
    thousands: bool = False,
    strict: bool = False,
    system: str = "",
) -> PromptFormat:
    r"""A product and its price: the task, a blank line, the product -> "$1199.99".

    >>> prompt = number()
    >>> prompt.completion({"price": 1199.99}), prompt.parse("$1,199.99"), prompt.parse("about 12")
    ('$1199.99', {'price': 1199.99}, {'price': 12.0})

    Args:
        task: What to estimate, at the head of the user message; "" for none.
        input: The input field, a text of any length.
        output: The output field, a float.
        decimals: Digits after the point; None for the shortest text that gives the number back.
        currency: A sign or a code; "" for bare numbers.
        position: Whether the currency stands before or after the digits.
        thousands: Whether to write thousands separators; they are read back anyway.
        strict: Whether "about 12" and "12-15" are refused.
        system: The system template; none by default.
    """
    style = NumberFormat(decimals=decimals, currency=currency, position=position, thousands=thousands, strict=strict)
    head = task.replace("{", "{{").replace("}", "}}") + "\n\n" if task else ""
    signature = _signature([input], [(output, float)], task or f"Estimate the {_words(output)}.")
    return PromptFormat(signature, system=system, user=f"{head}{{{input}}}", number=style)


def _signature(inputs: list[str], outputs: list[tuple[str, object]], instructions: str) -> type[dspy.Signature]:
    fields: dict[str, object] = {name: (str, dspy.InputField()) for name in inputs}
    for name, annotation in outputs:
        fields[name] = (annotation, dspy.OutputField())
    for name in fields:
        if not name.isidentifier():
            raise UsageError(f"{name!r} is not a field name; use letters, digits and underscores")
    if len(fields) != len(inputs) + len(outputs):
        raise UsageError(f"the fields {', '.join([*inputs, *(name for name, _ in outputs)])} must have different names")
    signature: type[dspy.Signature] = dspy.Signature(
        fields, instructions, signature_name=title(outputs[0][0]).replace(" ", "")
    )
    return signature


def _two(inputs: tuple[str, str]) -> tuple[str, str]:
    if isinstance(inputs, str) or len(inputs) != 2:
        raise UsageError(f"inputs: the names of two fields are needed, got {inputs!r}")
    return inputs[0], inputs[1]


def _words(name: str) -> str:
    return name.replace("_", " ").strip()


def _shared_word(first: str, second: str) -> str:
    """What both names speak of: `title_a` and `title_b` -> "title"."""
    stems = {name.rpartition("_")[0] for name in (first, second)}
    return _words(stems.pop()) if len(stems) == 1 and "" not in stems else "one"
