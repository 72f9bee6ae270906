"""Programs that DSPy saved as JSON, from 2.5 to 3.4, loaded to be compared.

In: a file that `program.save("program.json")` wrote, and the program's shape: a module like the one that was saved, or
just the signature, for a program of one predictor. Out: a `dspy.Module`. Files hold prompts and demonstrations, never
code, and nothing in them is run. What older files lack or have otherwise:

- 2.5 wrote no `metadata` before 2.5.43, calls the predictor of a ChainOfThought "self", and repeats its signature under
  `extended_signature`, at which DSPy from 2.6 on stops;
- 2.6 wrote the language model's API key into the file: it is left out here; take it out of the file too;
- all pair the saved fields with the signature's by place, whatever their number: here the number must fit;
- a retriever and a tuned predictor (`ft.replace`) have states of their own, which their parts take back.

Tried on files of 2.5.6, 2.5.43, 2.6.27, 3.0.4, 3.2.0, 3.3.0 and 3.4.1, written by these versions for a Predict, a
ChainOfThought and a module that holds a Predict. Not covered: pickles and folders, which run code when they are loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import dspy

from dspy_finetune._files import read_json
from dspy_finetune.errors import AnswerError, DataError, FileError, FinetuneError, UsageError
from dspy_finetune.evaluation.collect import Answer, inputs_text
from dspy_finetune.evaluation.scoring import Comparison
from dspy_finetune.predictors import FinetunedPredictor, replace
from dspy_finetune.predictors.base import predictor_of

logger = logging.getLogger(__name__)

_SECRETS = ("api_key", "headers", "extra_headers")


def load_optimized(
    program: dspy.Module | type[dspy.Signature] | str,
    path: str | os.PathLike[str],
    *,
    lm: dspy.BaseLM | None = None,
) -> dspy.Module:
    """A program that DSPy saved, ready to be compared.

    Args:
        program: A module of the saved program's shape, which is copied; or a signature, for a Predict, a ChainOfThought
            or a module that holds a single one of them.
        path: The JSON file.
        lm: The model to ask; None takes the one named in the file, or else DSPy's configured one. Keys come from the
            environment.

    Raises:
        FileError: The file cannot be read.
        DataError: It is not a saved program, one of another shape, or older than DSPy 2.5; says which predictors it
            holds.
    """
    states = _states(_read(path), path)
    if isinstance(program, dspy.Module):
        loaded = program.deepcopy()
        _fill(loaded, _renamed(states, loaded, path), path)
    else:
        loaded = _from_signature(program, states, path)
    if lm is not None:
        loaded.set_lm(lm)
    return loaded


def is_dspy_program(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like a program that DSPy saved, rather than one of this library's predictors or none."""
    try:
        state = _read(path)
    except (FileError, DataError):
        return False  # whoever reads it next says what is wrong
    return any(
        isinstance(part, dict) and "demos" in part and bool({"signature", _BEFORE_2_5} & set(part))
        for part in (state, *state.values())
    )


_BEFORE_2_5 = "signature_instructions"
"""DSPy up to 2.4 saved a predictor's instructions under this name, and no fields."""


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    state = read_json(path, "a program that DSPy saved", 'save it with program.save("program.json")')
    state.pop("metadata", None)
    return state


def _states(state: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """By name, the states of a program's parts, as the DSPy that is installed takes them; a bare Predict's is empty."""
    found = {"": dict(state)} if "demos" in state else dict(state)
    for name, one in found.items():
        where = name or "the file"
        if isinstance(one, dict) and _BEFORE_2_5 in one:
            raise DataError(
                f"{os.fspath(path)} was saved before DSPy 2.5, without the fields of {where}: load it with the version "
                "that saved it and copy its instructions and demonstrations, or optimize and save the program anew"
            )
        is_predict = isinstance(one, dict) and _is_predict(one)
        signature = one.get("signature") if isinstance(one, dict) else None
        has_fields = isinstance(signature, dict) and isinstance(signature.get("fields"), list)
        if not isinstance(one, dict) or is_predict != ("signature" in one) or is_predict != has_fields:
            raise DataError(f"{os.fspath(path)} is not a program that DSPy saved: {where} holds no demos and signature")
        if not is_predict:
            continue  # a tuned predictor, a retriever: whatever part of that name the program has takes it
        one.pop("extended_signature", None)
        saved_lm = one.setdefault("lm", None)
        if isinstance(saved_lm, dict):
            held = [key for key in _SECRETS if saved_lm.pop(key, None)]
            if held:
                logger.warning("%s holds %s: take it out of the file", os.fspath(path), " and ".join(held))
    if not any(map(_is_predictor, found.values())):
        raise DataError(f"{os.fspath(path)} is not a program that DSPy saved: it holds no predictor")
    return found


def _is_predict(state: Mapping[str, Any]) -> bool:
    return "demos" in state


def _is_tuned(state: Mapping[str, Any]) -> bool:
    """Whether it is the state of one of this library's predictors, which `ft.replace` put into the program."""
    return {"predictor", "prompt", "model"} <= set(state)


def _is_predictor(state: Mapping[str, Any]) -> bool:
    return _is_predict(state) or _is_tuned(state)


def _renamed(
    states: dict[str, dict[str, Any]], program: dspy.Module, path: str | os.PathLike[str]
) -> dict[str, dict[str, Any]]:
    """The states under the program's own names: one predictor is that one, whatever it was called."""
    parts = dict(program.named_parameters())
    wanted = [name for name, part in parts.items() if isinstance(part, (dspy.Predict, FinetunedPredictor))]
    saved = [name for name, one in states.items() if _is_predictor(one)]
    others = {name: one for name, one in states.items() if name in parts and not _is_predictor(one)}
    if len(wanted) == 1 and len(saved) == 1:
        return {**others, wanted[0]: states[saved[0]]}
    # 2.5 calls the predictor of a ChainOfThought that a program holds by the holder's name alone; a tuned predictor
    # stands where the whole ChainOfThought stood.
    known = {
        name: next((key for key in (name, name.removesuffix(".predict")) if key in saved), None) for name in wanted
    }
    missing = [name for name, key in known.items() if key is None]
    if missing or len(wanted) != len(saved):
        raise DataError(
            f"{os.fspath(path)} holds the predictors {', '.join(saved)}; the program has {', '.join(wanted)}: "
            "give the module that was saved"
        )
    return {**others, **{name: states[key] for name, key in known.items() if key is not None}}


def _from_signature(
    signature: type[dspy.Signature] | str, states: dict[str, dict[str, Any]], path: str | os.PathLike[str]
) -> dspy.Module:
    if len(states) != 1:
        raise DataError(
            f"{os.fspath(path)} holds several parts, of which one may be a retriever: {', '.join(states)}; give the "
            "module that was saved instead of its signature"
            if sum(map(_is_predictor, states.values())) == 1
            else f"{os.fspath(path)} holds several predictors: {', '.join(states)}; give the module that was saved "
            "instead of its signature"
        )
    (state,) = states.values()
    if _is_tuned(state):
        return predictor_of(state)
    plain = dspy.Predict(signature)
    n_more = len(state["signature"]["fields"]) - len(plain.signature.fields)
    made = dspy.ChainOfThought(signature) if n_more == 1 else plain
    _fill(made, _renamed(states, made, path), path)
    return made


def _fill(program: dspy.Module, states: Mapping[str, dict[str, Any]], path: str | os.PathLike[str]) -> None:
    for name, part in program.named_parameters():
        state = states.get(name)
        if state is None:
            continue  # the file says nothing of it: it stays as the program has it
        if _is_predict(state):
            _check_fields(part, state, path)
        if _is_tuned(state) and not isinstance(part, FinetunedPredictor):
            replace(program, name.removesuffix(".predict"), predictor_of(state))
            continue
        try:
            part.load_state(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, FinetuneError):
                raise
            raise DataError(f"{os.fspath(path)}: DSPy cannot read it ({type(error).__name__}: {error})") from error


def _check_fields(part: Any, state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    if not isinstance(part, dspy.Predict):
        raise DataError(
            f"{os.fspath(path)}: a dspy.Predict was saved where the program has a {type(part).__name__}; give the "
            "program as it was saved"
        )
    saved, own = len(state["signature"]["fields"]), list(part.signature.fields)
    if saved != len(own):
        raise DataError(
            f"{os.fspath(path)}: a predictor of {saved} fields was saved; the program's has {len(own)}: "
            f"{', '.join(own)}"
        )


# Answers that were given before, as a program: what a model said while it still answered.


class StoredAnswers:
    """One program's answers from a comparison; called with an item's inputs it gives the answer of then."""

    def __init__(self, comparison: Comparison, program: str | None = None) -> None:
        name = program if program is not None else comparison.candidate
        if name not in comparison.answers:
            raise UsageError(f'no answers of "{name}" are stored; there are those of: {", ".join(comparison.answers)}')
        self.program = name
        # What failed was no answer of the model's.
        self._answers = {
            inputs_text(item.inputs): answer
            for item, answer in zip(comparison.items, comparison.answers[name], strict=True)
            if answer.outcome != "failed"
        }

    def __len__(self) -> int:
        return len(self._answers)

    def knows(self, inputs: Mapping[str, Any]) -> bool:
        """Whether there is an answer to these inputs."""
        return inputs_text(inputs) in self._answers

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """The answer of then.

        Raises:
            AnswerError: It could not be read then.
            DataError: The model was not asked about this item.
        """
        answer: Answer | None = self._answers.get(inputs_text(inputs))
        if answer is None:
            raise DataError(f"{self.program} was not asked about this item when its answers were stored")
        prediction = answer.prediction()
        if prediction is None:
            raise AnswerError(answer.error or "the stored answer cannot be read", text="")
        return prediction


def stored_answers(path: str | os.PathLike[str], program: str | None = None) -> StoredAnswers:
    """Read one program's answers from a report's JSON.

    Args:
        path: What `report.to_json(path)` or `compare --json-to` wrote.
        program: Its name there; the candidate's without one.

    Raises:
        FileError: The file cannot be read.
        DataError: It is not a report.
        UsageError: It has no such program.
    """
    remedy = "write one with report.to_json(path)"
    values = read_json(path, "a report", remedy)
    if "comparison" not in values:
        raise DataError(f'{os.fspath(path)} is not a report: it has no "comparison"; {remedy}')
    try:
        return StoredAnswers(Comparison.from_dict(values["comparison"]), program)
    except (DataError, UsageError) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error
