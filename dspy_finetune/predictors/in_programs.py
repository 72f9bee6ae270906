"""What DSPy asks of a whole program, answered for one that holds tuned parts: its one LM, and its streamed fields.

In: importing this module. Out: two questions of DSPy know tuned predictors.

- `program.get_lm()`, which BestOfN, Refine and SIMBA ask for the language model to sample from: a tuned part is not
  part of the question, as it cannot be given another model. DSPy would count its model as one more.
- `dspy.streamify(program, stream_listeners=[StreamListener("note")])`: a field that a tuned predictor gives streams as
  the model writes it. DSPy looks for fields among its own `Predict`s alone, and for the marks of its own adapters.

Not covered: listening to one of several outputs of a tuned predictor, whose answer is one text (UsageError); DSPy's
other questions need no help. Both hooks call DSPy's own code wherever no tuned predictor is concerned.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import dspy
from dspy.streaming.messages import StreamResponse

from dspy_finetune.errors import UsageError
from dspy_finetune.predictors.base import FinetunedPredictor

# `dspy.streaming.streamify` is the function; the module of that name is hidden behind it.
_streamify: Any = importlib.import_module("dspy.streaming.streamify")
_dspy_get_lm = dspy.Module.get_lm
_dspy_find = _streamify.find_predictor_for_stream_listeners


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


def install() -> None:
    """Put both answers in DSPy's place; once is enough."""
    dspy.Module.get_lm = _get_lm
    _streamify.find_predictor_for_stream_listeners = _find
