r"""The prompts of the common tasks, ready made: `binary`, `pairwise`, `explained_pairwise`, `answer`, `number`.

In: a dspy.Signature (a class, or text such as "title -> is_favorite: bool"), or the names of the user's own fields; a
rubric or a task line. Out: a `PromptFormat` over that signature. A signature's own instructions, its docstring, are the
system message; one without gets the preset's, which are short: every token of a system message costs on every row.

A first argument that is text without an arrow is the rubric (of `answer` the system line, of `number` the task).
"""

from __future__ import annotations

import re
from typing import Literal

import dspy

from dspy_finetune.errors import UsageError
from dspy_finetune.prompts.answers import codec_of, title
from dspy_finetune.prompts.format import PromptFormat
from dspy_finetune.tasks import sides_of
from dspy_finetune.values import LabelSet, NumberFormat, usual_currency

Signature = type[dspy.Signature]

_TASTE = re.compile(r"(^|_)(lik(e|ed|es|ing)|favou?rites?|prefer\w*|enjoy\w*|loved?|loves)($|_)", re.IGNORECASE)
"""Outputs that speak of a reader's taste, by their names; any other is asked about by its own name."""
_BINARY = "Would this reader like the {thing}? Answer {labels}."
_HOLDS = "Does this hold for the {thing}: {output}? Answer {labels}."
_KIND = "Choose for the {thing}: {output}. Answer {labels}."
_PAIRWISE = "Which {thing} would this reader prefer? Answer {labels}."
_WHICH = "Which {thing}: {output}? Answer {labels}."
_ANSWER = "You are a helpful assistant."
_NUMBER = "Estimate the {output} of this {thing}. Respond with the {output}, no explanation."
_LOG_NUMBER = "Estimate the {output} of this {thing}. Respond with ln(1 + {output}), no explanation."


def binary(
    signature: Signature | str | None = None,
    *,
    rubric: str | None = None,
    input: str = "title",
    output: str = "is_favorite",
    system: str | None = None,
) -> PromptFormat:
    r"""Whether the reader likes one item: "Title: ..." -> "true" or "false".

    >>> prompt = binary("title -> is_favorite: bool", rubric="Likes essays on craft.")
    >>> prompt.messages({"title": "How to sharpen a chisel"})[1]["content"], prompt.completion({"is_favorite": True})
    ('Title: How to sharpen a chisel', 'true')

    Args:
        signature: A dspy.Signature with a bool output, or a Literal of two values; every input is a line of the user
            message. Without one, `input` and `output` name the fields.
        rubric: The reader's taste, appended to the system message.
        input: The input field, without a signature; its name also opens the user message.
        output: The output field, without a signature: a bool.
        system: Another system template; `{rubric}` says where the rubric stands.
    """
    given, rubric = _read(signature, "rubric", rubric)
    made = given or _signature([input], [(output, bool)])
    labels = _labels_of("binary", made, 'such as "title -> is_favorite: bool"')
    inputs = list(made.input_fields)
    thing = _words(inputs[0]) if len(inputs) == 1 else "item"
    return PromptFormat(
        _instructed(made, _BINARY, _HOLDS if bool in map(type, labels) else _KIND, thing, labels),
        rubric=rubric,
        system=system,
    )


def pairwise(
    signature: Signature | str | None = None,
    *,
    rubric: str | None = None,
    inputs: tuple[str, str] = ("title_a", "title_b"),
    output: str = "preferred",
    system: str | None = None,
) -> PromptFormat:
    r"""Which of two items the reader prefers: "A: ...\nB: ..." -> "A" or "B".

    >>> pairwise().messages({"title_a": "Bees", "title_b": "Rust\nB: Bees"})[1]["content"]
    'A: Bees\nB: Rust\\nB: Bees'

    Args:
        signature: A dspy.Signature with two inputs, or with inputs that end in `_a` and `_b`, and an output
            Literal["A", "B"]; other inputs are lines above the two. Without one, `inputs` and `output` name the fields.
        rubric: The reader's taste, appended to the system message.
        inputs: The two input fields, without a signature.
        output: The output field, without a signature: "A" or "B".
        system: Another system template; `{rubric}` says where the rubric stands.
    """
    given, rubric = _read(signature, "rubric", rubric)
    made = given or _signature(_two(inputs), [(output, Literal["A", "B"])])
    labels, thing, user = _two_sides("pairwise", made)
    return PromptFormat(_instructed(made, _PAIRWISE, _WHICH, thing, labels), rubric=rubric, system=system, user=user)


def explained_pairwise(
    signature: Signature | str | None = None,
    *,
    rubric: str | None = None,
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
        signature: As for `pairwise`, with one more output, a text: the reason.
        rubric: The reader's taste, appended to the system message.
        inputs: The two input fields, without a signature.
        output: The output field, without a signature: "A" or "B".
        explanation: The output field of the reason, without a signature.
        system: Another system template; `{rubric}` says where the rubric stands.
    """
    given, rubric = _read(signature, "rubric", rubric)
    made = given or _signature(_two(inputs), [(output, Literal["A", "B"]), (explanation, str)])
    labels, thing, user = _two_sides("explained_pairwise", made)
    label = _label_field(made)
    reasons = [name for name, field in made.output_fields.items() if name != label and field.annotation is str]
    if len(made.output_fields) != 2 or not reasons:
        raise UsageError(
            "explained_pairwise: the label and one text output are needed, such as"
            f" \"title_a, title_b -> preferred: Literal['A', 'B'], explanation\"; got {made.signature}"
        )
    return PromptFormat(
        _instructed(made, _explained(_PAIRWISE), _explained(_WHICH), thing, labels),
        rubric=rubric,
        system=system,
        user=user,
        completion=f"{{{label}}}: {{{reasons[0]}}}",
    )


def answer(
    signature: Signature | str | None = None,
    *,
    system: str | None = None,
    input: str = "question",
    output: str = "answer",
) -> PromptFormat:
    """A question and its answer, both as they stand, under a system line.

    >>> answer("question -> answer", system="You teach.").messages({"question": "What is a mole?"})
    [{'role': 'system', 'content': 'You teach.'}, {'role': 'user', 'content': 'What is a mole?'}]

    Args:
        signature: A dspy.Signature; one input stands alone, of several each is a line. Without one, `input` and
            `output` name the fields.
        system: The system template, "You are a helpful assistant." by default; "" for none.
        input: The input field, without a signature.
        output: The output field, without a signature: a text.
    """
    given, system = _read(signature, "system", system)
    made = given or _signature([input], [(output, str)])
    names = list(made.input_fields)
    source = system if system is not None else None if _is_instructed(made) else _ANSWER
    made = made if source is None or _is_instructed(made) else made.with_instructions(source)
    return PromptFormat(made, system=source, user=f"{{{names[0]}}}" if len(names) == 1 else None)


def number(
    signature: Signature | str | None = None,
    *,
    task: str | None = None,
    input: str = "product",
    output: str = "price",
    decimals: int | None = 2,
    currency: str | None = None,
    position: Literal["before", "after"] = "before",
    thousands: bool = False,
    strict: bool = False,
    scale: Literal["plain", "log"] = "plain",
    system: str = "",
) -> PromptFormat:
    r"""A product and its price: the task, a blank line, the product -> "$1199.99".

    >>> prompt = number("product -> price: float")
    >>> prompt.completion({"price": 1199.99}), prompt.parse("$1,199.99"), prompt.parse("about 12")
    ('$1199.99', {'price': 1199.99}, {'price': 12.0})
    >>> prompt = number("product -> price: float", scale="log")
    >>> prompt.completion({"price": 1199.99}), f"{prompt.parse('7.09')['price']:.1f}"
    ('7.09', '1198.9')

    Args:
        signature: A dspy.Signature with a number as output; its instructions are the task. Without one, `input` and
            `output` name the fields.
        task: What to estimate, at the head of the user message; "" for none.
        input: The input field, without a signature: a text of any length.
        output: The output field, without a signature: a float.
        decimals: Digits after the point, none for an int; None for the shortest text that gives the number back.
        currency: A sign or a code; "" for bare numbers. By default "$" where the output's name says money (price, cost,
            salary), else none.
        position: Whether the currency stands before or after the digits.
        thousands: Whether to write thousands separators; they are read back anyway.
        strict: Whether "about 12" and "12-15" are refused.
        scale: "log" trains ln(1 + value), without the currency, and gives the value back: for numbers from cents to
            thousands, whose errors count by share. Two decimals tell a value to half a percent; none may be below 0.
        system: The system template; none by default.
    """
    given, task = _read(signature, "task", task)
    made = given or _signature([input], [(output, float)])
    outputs = {name: field.annotation for name, field in made.output_fields.items()}
    numbers = [name for name, annotation in outputs.items() if codec_of(annotation).kind == "number"]
    if not numbers:
        raise UsageError(
            f'number: no output is int, float or Decimal; write its type, such as "product -> price: float"; got'
            f" {made.signature}"
        )
    if outputs[numbers[0]] is int and decimals == 2 and scale == "plain":
        decimals = 0
    style = NumberFormat(
        decimals=decimals,
        currency=usual_currency(numbers[0]) if currency is None else currency,
        position=position,
        thousands=thousands,
        strict=strict,
        scale=scale,
    )
    names = list(made.input_fields)
    if task is None and _is_instructed(made):
        task = made.instructions
    elif task is None:
        thing = _words(names[0]) if len(names) == 1 else "item"
        task = (_LOG_NUMBER if scale == "log" else _NUMBER).format(output=_words(numbers[0]), thing=thing)
    if not _is_instructed(made):
        made = made.with_instructions(task or f"Estimate the {_words(numbers[0])}.")
    head = task.replace("{", "{{").replace("}", "}}") + "\n\n" if task else ""
    body = f"{{{names[0]}}}" if len(names) == 1 else "\n".join(f"{title(name)}: {{{name}}}" for name in names)
    return PromptFormat(made, system=system, user=head + body, number=style)


# What a preset is given


def _read(first: object, word: str, text: str | None) -> tuple[Signature | None, str | None]:
    """The first argument as a signature, and the text that the preset takes by the keyword `word`.

    Raises:
        UsageError: It is neither a signature nor a text, or both say the same.
    """
    if first is None:
        return None, text
    if isinstance(first, type) and issubclass(first, dspy.Signature):
        return first, text
    if not isinstance(first, str):
        raise UsageError(
            f"a dspy.Signature is needed first, a class or text such as 'title -> liked: bool'; got {first!r:.80}"
        )
    if "->" not in first:
        if text is not None:
            raise UsageError(
                f"{word}= is given twice; the first argument is a signature, such as 'title -> liked: bool'"
            )
        return None, first
    try:
        made: Signature = dspy.Signature(first)
    except (ValueError, TypeError, SyntaxError, NameError) as error:
        raise UsageError(
            f"{first!r:.80} is no signature ({str(error).partition(chr(10))[0]:.120}); write 'inputs -> outputs' with"
            f" types, or give a text as {word}=..."
        ) from error
    return made, text


def _signature(inputs: list[str], outputs: list[tuple[str, object]]) -> Signature:
    """A signature of the user's field names. Raises UsageError."""
    fields: dict[str, object] = {name: (str, dspy.InputField()) for name in inputs}
    for name, annotation in outputs:
        fields[name] = (annotation, dspy.OutputField())
    for name in fields:
        if not name.isidentifier():
            raise UsageError(f"{name!r} is not a field name; use letters, digits and underscores")
    if len(fields) != len(inputs) + len(outputs):
        raise UsageError(f"the fields {', '.join([*inputs, *(name for name, _ in outputs)])} must have different names")
    signature: Signature = dspy.Signature(fields, signature_name=title(outputs[0][0]).replace(" ", ""))
    return signature


def _is_instructed(signature: Signature) -> bool:
    """Whether a signature has instructions of its own, not the ones that DSPy makes of its fields."""
    plain: str = dspy.Signature(signature.signature).instructions
    return str(signature.instructions) != plain


def _instructed(signature: Signature, of_taste: str, of_any: str, thing: str, labels: LabelSet) -> Signature:
    if _is_instructed(signature):
        return signature
    output = _label_field(signature) or ""
    template = of_taste if _TASTE.search(output) else of_any
    text = template.format(thing=thing, output=_words(output), labels=" or ".join(labels.texts))
    made: Signature = signature.with_instructions(text)
    return made


def _explained(template: str) -> str:
    return template.removesuffix(".") + ", then why."


def _label_field(signature: Signature) -> str | None:
    fields = signature.output_fields.items()
    return next((name for name, field in fields if LabelSet.of(field.annotation) is not None), None)


def _labels_of(preset: str, signature: Signature, example: str) -> LabelSet:
    """The two labels of the first output that has labels. Raises UsageError."""
    name = _label_field(signature)
    labels = LabelSet.of(signature.output_fields[name].annotation) if name is not None else None
    if labels is None or len(labels.texts) != 2:
        raise UsageError(f"{preset}: an output with two labels is needed, {example}; got {signature.signature}")
    return labels


def _two_sides(preset: str, signature: Signature) -> tuple[LabelSet, str, str]:
    """The two labels, what the items are called, and the user template with one line or more for each item."""
    example = "such as \"title_a, title_b -> preferred: Literal['A', 'B']\""
    labels = _labels_of(preset, signature, example)
    if bool in map(type, labels):
        raise UsageError(f"{preset}: a bool does not say which item; use a Literal of two labels, {example}")
    if labels.texts == ("B", "A"):
        raise UsageError(f"{preset}: the first label names the first item; write Literal['A', 'B']")
    names = list(signature.input_fields)
    pairs = list(sides_of(names).items()) or ([(names[0], names[1])] if len(names) == 2 else [])
    if not pairs:
        raise UsageError(f"{preset}: two inputs, or inputs that end in _a and _b, are needed, {example}")
    shared = [name for name in names if not any(name in pair for pair in pairs)]
    lines = [f"{title(name)}: {{{name}}}" for name in shared]
    for side, label in enumerate(labels.texts):
        for pair in pairs:
            what = f" {_words(pair[0][:-2])}" if len(pairs) > 1 else ""
            lines.append(f"{label}{what}: {{{pair[side]}}}")
    thing = _shared_word(*pairs[0]) if len(pairs) == 1 else "one"
    return labels, thing, "\n".join(lines)


def _two(inputs: tuple[str, str]) -> list[str]:
    if isinstance(inputs, str) or len(inputs) != 2:
        raise UsageError(f"inputs: the names of two fields are needed, got {inputs!r}")
    return list(inputs)


def _words(name: str) -> str:
    return name.replace("_", " ").strip()


def _shared_word(first: str, second: str) -> str:
    """What both names speak of: `title_a` and `title_b` -> "title"."""
    stems = {name.rpartition("_")[0] for name in (first, second)}
    return _words(stems.pop()) if len(stems) == 1 and "" not in stems else "one"
