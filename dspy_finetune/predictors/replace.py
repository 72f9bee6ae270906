"""`replace`: put a tuned predictor in the place of a `dspy.Predict` of an optimized program, and back.

In: a program, the name of one of its modules as DSPy writes it ("generate", "inner.generate", "steps[1]",
"named['third']"), what to put there. Out: what was there. The program is changed in place.
Not covered: programs whose `forward` reads what only dspy.Predict has, such as `demos`.
"""

from __future__ import annotations

import re
from typing import Any

import dspy
from dspy.utils import magicattr

from dspy_finetune.errors import UsageError

_BARE_KEY = re.compile(r"\[([^\]\d'\"][^\]]*)\]")


def replace(program: dspy.Module, name: str, tuned: Any) -> Any:
    """Swap one module of a program for another of the same fields.

    >>> import dspy
    >>> from dspy_finetune import Ensemble
    >>> class Program(dspy.Module):
    ...     def __init__(self):
    ...         self.judge = dspy.Predict("title -> liked: bool")
    >>> program = Program()
    >>> before = replace(program, "judge", Ensemble([dspy.Predict("title -> liked: bool")]))
    >>> type(before).__name__, type(replace(program, "judge", before)).__name__
    ('Predict', 'Ensemble')

    Args:
        program: The program that holds it, at any depth.
        name: As in `program.named_predictors()`.
        tuned: A tuned predictor, or what an earlier `replace` returned. Its inputs must be those of the module that it
            replaces, and it must give all of its outputs. What says nothing of its fields (an ensemble) is not checked.

    Returns:
        What was there; `replace(program, name, it)` undoes the swap.

    Raises:
        UsageError: There is no such module (the names that there are are listed), or the fields do not match.
    """
    names = module_names(program)
    path = _BARE_KEY.sub(r"['\1']", name.removeprefix("self."))
    try:
        holder, last, is_item = magicattr.lookup(program, path)
        there = holder[last] if is_item else getattr(holder, last)
    except (AttributeError, LookupError, SyntaxError, TypeError, ValueError, NotImplementedError) as error:
        raise _unknown(program, name, names) from error
    if not isinstance(there, dspy.Module):
        raise _unknown(program, name, names)
    _check_fields(name, there, tuned)
    if isinstance(holder, tuple):
        raise UsageError(f'"{name}" stands in a tuple, which cannot be changed; use a list in the program')
    magicattr.set(program, path, tuned)
    return there


def module_names(program: dspy.Module) -> list[str]:
    """The names of the modules inside a program that have fields and so can be replaced.

    >>> import dspy
    >>> module_names(dspy.ChainOfThought("question -> answer"))
    ['predict']
    """
    found = []
    for name, module in program.named_sub_modules():
        if module is not program and (fields_of(module) is not None):
            found.append(re.sub(r"\[([^\]\d][^\]]*)\]", r"['\1']", name.removeprefix("self.")))
    return found


def fields_of(module: Any) -> tuple[frozenset[str], frozenset[str]] | None:
    """The names of a module's input and output fields; None where it does not tell.

    Of a `dspy.ChainOfThought`, those of its signature: the reasoning is its own affair.
    """
    if isinstance(module, dspy.ChainOfThought):
        inner = fields_of(module.predict)
        return None if inner is None else (inner[0], inner[1] - {"reasoning"})
    if isinstance(module, (dspy.BestOfN, dspy.Refine)):
        return fields_of(module.module)
    prompt: Any = getattr(module, "prompt", None)
    signature = prompt.signature if hasattr(prompt, "signature") else getattr(module, "signature", None)
    if signature is None or not hasattr(signature, "input_fields"):
        return None
    return frozenset(signature.input_fields), frozenset(signature.output_fields)


def _check_fields(name: str, there: Any, tuned: Any) -> None:
    if not callable(tuned):
        raise UsageError(f"a predictor to put in the place of {name} must be callable, found {type(tuned).__name__}")
    old, new = fields_of(there), fields_of(tuned)
    if old is None or new is None:
        return
    if old[0] != new[0] or not old[1] <= new[1]:
        shown = [f"{', '.join(sorted(inputs))} -> {', '.join(sorted(outputs))}" for inputs, outputs in (old, new)]
        raise UsageError(
            f'the fields do not match: "{name}" has {shown[0]}, the replacement has {shown[1]}; '
            "it must have the same inputs and give all of the outputs"
        )


def _unknown(program: Any, name: str, names: list[str]) -> UsageError:
    return UsageError(
        f'{type(program).__name__} has no module "{name}" to replace; it has: {", ".join(names) or "none"}'
    )
