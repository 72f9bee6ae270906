"""`replace`: put a tuned predictor in the place of a `dspy.Predict` of an optimized program, and back; `DecisionLM`.

In: a program, the name of one of its modules as DSPy writes it ("generate", "inner.generate", "steps[1]",
"named['third']"), what to put there. Out: what was there. The program is changed in place.
Not covered: programs whose `forward` reads what only dspy.Predict has, such as `demos`.

Importing this module lets three questions of DSPy know tuned predictors; the hooks call DSPy's own code wherever none
is concerned, and its other questions need no help:

- `program.get_lm()`, which BestOfN, Refine and SIMBA ask for the language model to sample from: a tuned part is not
  part of the question, as it cannot be given another model. DSPy would count its model as one more.
- `dspy.streamify(program, stream_listeners=[StreamListener("note")])`: a field that a tuned predictor gives streams
  as the model writes it. DSPy looks for fields among its own `Predict`s alone, and for the marks of its own adapters.
  Listening to one of several outputs of a tuned predictor, whose answer is one text, is a UsageError.
- SIMBA and Refine write what a program gave as JSON, and give a candidate or its advice up where a key is no text: the
  probabilities of a prediction are by label, so by True and False.

`DecisionLM` is a tuned predictor as the `lm` of a plain `dspy.Predict` whose outputs are decisions, which DSPy calls a
decision-request client: `dspy.Predict` hands it the inputs and asks for probabilities, and DSPy's own types (`Noul`,
`Choice`, or a plain bool or Literal), its thresholds and its weights do the rest. What is sent is the trained prompt;
instructions and demos of the program are not. Not covered: `Score` outputs, several outputs, and streaming, which DSPy
has not got here. DSPy calls the hook experimental.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dspy
from dspy.clients.base_lm import LM_CLASS_STATE_KEY
from dspy.streaming.messages import StreamResponse
from dspy.utils import magicattr

from dspy_finetune.errors import LogprobsError, UsageError
from dspy_finetune.predictors.base import FinetunedPredictor, predictor_of
from dspy_finetune.values import is_yes_no, match_label

_BARE_KEY = re.compile(r"\[([^\]\d'\"][^\]]*)\]")


def replace(program: dspy.Module, name: str, tuned: Any) -> Any:
    """Swap one module of a program for another of the same fields, wherever in the program it stands.

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
    found = {path: (one, key) for path, one, key in _places(program, there, "", set())}
    here = next((path for path, (one, key) in found.items() if one is holder and key == last), None)
    if here is None:  # behind an object that DSPy does not look into
        raise _unknown(program, name, names)
    groups: dict[str, int] = vars(program).get(_GROUPS, {})
    places = {path: place for path, place in found.items() if groups.get(path) == groups.get(here)}
    if any(isinstance(one, tuple) for one, _ in places.values()):
        raise UsageError(f'"{name}" stands in a tuple, which cannot be changed; use a list in the program')
    for one, key in places.values():
        if isinstance(one, dspy.Module):
            setattr(one, key, tuned)
        else:
            one[key] = tuned
    groups = {path: number for path, number in groups.items() if path not in places}
    if any(path not in places for path, *_ in _places(program, tuned, "", set())):
        groups |= dict.fromkeys(places, max(groups.values(), default=0) + 1)
    vars(program)[_GROUPS] = groups
    if not groups:
        del vars(program)[_GROUPS]
    return there


_GROUPS = "_replaced_apart"
"""The attribute of a program that tells places of one module apart which held different ones before: place to number.

It is there only while there are such places. DSPy copies it with the program, and finds no module in it.
"""


def _places(holder: Any, module: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any, Any]]:
    """Where a module stands in a program, (path, holder, name or key): DSPy names one at several places once."""
    if id(holder) in seen or holder is module:
        return
    seen.add(id(holder))
    held: Iterable[tuple[Any, Any]] = ()
    if isinstance(holder, (dspy.Module, dict)):
        held = list((vars(holder) if isinstance(holder, dspy.Module) else holder).items())
    elif isinstance(holder, (list, tuple)):
        held = list(enumerate(holder))
    for key, one in held:
        place = f"{path}.{key}" if isinstance(holder, dspy.Module) else f"{path}[{key!r}]"
        if one is module:
            yield place, holder, key
        else:
            yield from _places(one, module, place, seen)


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


# `dspy.streaming.streamify` is the function; the module of that name is hidden behind it.
_streamify: Any = importlib.import_module("dspy.streaming.streamify")
_dspy_get_lm = dspy.Module.get_lm
_dspy_find = _streamify.find_predictor_for_stream_listeners
_WRITERS = tuple(importlib.import_module(f"dspy.{name}") for name in ("teleprompt.simba_utils", "predict.refine"))
_dspy_masks: dict[str, Any] = {module.__name__: module.__dict__["recursive_mask"] for module in _WRITERS}


@functools.wraps(_dspy_get_lm)
def _get_lm(program: dspy.Module) -> Any:
    parts = [part for _, part in program.named_parameters() if isinstance(part, dspy.Module)]
    tuned = [part for part in parts if isinstance(part, FinetunedPredictor)]
    if not tuned:
        return _dspy_get_lm(program)
    others = [part.lm for part in parts if not isinstance(part, FinetunedPredictor)]
    if len(set(others)) > 1:
        return _dspy_get_lm(program)  # which says that there are several
    if others:
        return others[0]
    return None if dspy.settings.lm is not None else tuned[0].lm


@functools.wraps(_dspy_find)
def _find(program: dspy.Module, stream_listeners: list[Any]) -> Any:
    own = {field for _, part in program.named_predictors() for field in part.signature.output_fields}
    tuned = [(name, part) for name, part in program.named_parameters() if isinstance(part, FinetunedPredictor)]
    for listener in stream_listeners:
        field = listener.signature_field_name
        found = [(listener.predict_name, listener.predict)] if listener.predict else []
        if not found and field not in own:
            found = [(name, part) for name, part in tuned if field in part.prompt.output_fields]
        if not found or not isinstance(found[0][1], FinetunedPredictor):
            continue
        if len(found) > 1:
            raise UsageError(
                f'the field "{field}" is that of {", ".join(name for name, _ in found)}: say which one, by '
                "StreamListener(..., predict=...)"
            )
        _listen(listener, *found[0])
    return _dspy_find(program, stream_listeners)


def _listen(listener: Any, name: str | None, predictor: FinetunedPredictor) -> None:
    """Make a listener hand on the tuned predictor's tokens as they come: its answer has no marks around the field."""
    field = listener.signature_field_name
    if predictor.prompt.output_fields != (field,):
        raise UsageError(
            f'the field "{field}" cannot be streamed: a tuned predictor streams its whole answer, which holds '
            f"{', '.join(predictor.prompt.output_fields)}; leave the listener out, and the prediction comes at the end"
        )
    listener.predict, listener.predict_name = predictor, name
    held: list[str] = []  # one token, so that the last one can be named so

    def respond(text: str, *, is_last: bool) -> StreamResponse:
        return StreamResponse(listener.predict_name, field, text, is_last_chunk=is_last)

    def receive(chunk: Any) -> StreamResponse | None:
        token = chunk.choices[0].delta.content if chunk.choices else None
        if not token:
            return None
        listener.stream_start = True
        held.append(token)
        return respond(held.pop(0), is_last=False) if len(held) > 1 else None

    def finalize() -> StreamResponse | None:
        return respond(held.pop(), is_last=True) if held else None

    listener.receive, listener.finalize = receive, finalize


def _with_text_keys(mask: Any) -> Any:
    @functools.wraps(mask)
    def masked(value: Any) -> Any:
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            value = {str(key): one for key, one in value.items()}
        return mask(value)

    return masked


def install() -> None:
    """Put the answers in DSPy's place; once is enough."""
    dspy.Module.get_lm = _get_lm
    _streamify.find_predictor_for_stream_listeners = _find
    for module in _WRITERS:
        vars(module)["recursive_mask"] = _with_text_keys(_dspy_masks[module.__name__])  # it calls itself by this name


logger = logging.getLogger(__name__)


class DecisionLM(dspy.BaseLM):
    """A tuned predictor where DSPy takes a language model that answers with probabilities.

    Each output needs a description, as DSPy asks for one: `dspy.OutputField(desc=...)`. The probabilities are the
    predictor's, calibrated if it is; the threshold is DSPy's (`predict.fields`), not the predictor's.

    Use it as `predict.lm = DecisionLM(predictor)`. A program with it is saved, prompt and all, and loaded with
    `program.load(path, allow_unsafe_lm_state=True)`, as DSPy asks for every class of its own.

    Args:
        predictor: A tuned predictor with labels, on a host that gives log-probabilities.

    Raises:
        UsageError: The predictor has no labels.
    """

    supports_decision_requests = True

    def __init__(self, predictor: FinetunedPredictor) -> None:
        if not isinstance(predictor, FinetunedPredictor) or predictor.prompt.labels is None:
            raise UsageError("DecisionLM: a tuned predictor whose first output has labels (bool, Literal, Enum)")
        super().__init__(model=predictor.model)
        self.predictor = predictor
        self._has_warned = False

    def __call__(self, state: Mapping[str, Any], questions: Mapping[str, Any]) -> dict[str, Any]:
        """The probabilities of the asked output, in DSPy's shape.

        Raises:
            AnswerError: The answer cannot be read.
            LogprobsError: The host gave no log-probabilities: nothing is invented in their place.
            UsageError: The program asks for other fields than the predictor has.
        """
        return self._answers(self.predictor(**self._inputs(state, questions)), questions)

    async def acall(self, state: Mapping[str, Any], questions: Mapping[str, Any]) -> dict[str, Any]:
        """As a call."""
        return self._answers(await self.predictor.acall(**self._inputs(state, questions)), questions)

    def _inputs(self, state: Mapping[str, Any], questions: Mapping[str, Any]) -> dict[str, Any]:
        prompt, inputs = self.predictor.prompt, dict(state["inputs"])
        kinds = {name: question["type"] for name, question in questions.items()}
        if set(kinds) != {prompt.label_field} or set(inputs) != set(prompt.input_fields) or "score" in kinds.values():
            asked = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise UsageError(
                f"the program gives {', '.join(inputs)} and asks for {asked}; "
                f"the predictor takes {', '.join(prompt.input_fields)} and decides {prompt.label_field}"
            )
        if state.get("demos") and not self._has_warned:
            self._has_warned = True
            logger.warning("%d demos are not sent: %s was trained without demos", len(state["demos"]), self.model)
        return inputs

    def _answers(self, prediction: dspy.Prediction, questions: Mapping[str, Any]) -> dict[str, Any]:
        shares = prediction.probabilities
        if shares is None:
            raise LogprobsError(f"{self.model} gives no log-probabilities, and a decision needs a probability")
        ((name, question),) = questions.items()
        if question["type"] == "noul":
            if not is_yes_no(shares):
                raise UsageError(f"{name}: the program asks yes or no, the labels are {', '.join(map(str, shares))}")
            return {name: {"noul": shares[True]}}
        options = {}
        for option in question["criteria"]:
            label = match_label(option, list(shares))
            if label is None:
                raise UsageError(f"{name}: {option!r} is none of the labels {', '.join(map(str, shares))}")
            options[option] = shares[label]
        return {name: {"probabilities": options, "confidence": max(options.values())}}

    def dump_state(self) -> dict[str, Any]:
        """The predictor's state; never a key."""
        return {
            LM_CLASS_STATE_KEY: f"{type(self).__module__}.{type(self).__qualname__}",
            "predictor": self.predictor.dump_state(),
        }

    @classmethod
    def load_state(cls, state: Mapping[str, Any], *, allow_custom_lm_class: bool = False) -> DecisionLM:
        """The inverse of `dump_state`; the key comes from the environment."""
        return cls(predictor_of(state["predictor"]))
