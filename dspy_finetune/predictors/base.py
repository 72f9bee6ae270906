"""What every predictor is: a `dspy.Module` that is also a `Parameter`, over one tuned model and its training prompt.

In: a PromptFormat or a signature, a model id, and a host, or the folder of an exported head. Out: `dspy.Prediction`s.
The messages sent are those of the training file, byte for byte; nothing that DSPy does to a program (optimizers,
`set_lm`, copying, saving, loading) changes model or prompt. An answer that is none (refused, filtered, cut off) is an
error that says so.
Not covered: what an answer means; each subclass reads its own.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import dspy
from dspy.predict.parameter import Parameter
from dspy.utils.saving import get_dependency_versions

from dspy_finetune._files import read_json, sha256_file, write_json
from dspy_finetune._optional import require
from dspy_finetune.errors import (
    AnswerError,
    DataError,
    HostError,
    LogprobsError,
    NoAnswerError,
    PromptMismatchError,
    UsageError,
)
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.host import check_host
from dspy_finetune.hosts.lm import N_ANSWERS, Answer, HostLM, engines_for, read_response
from dspy_finetune.jobs import FinetunedModel
from dspy_finetune.predictors.calibrate import Calibration
from dspy_finetune.predictors.probabilities import label_shares
from dspy_finetune.prompts import PromptFormat
from dspy_finetune.prompts.format import AnyPrompt, as_prompt

logger = logging.getLogger(__name__)

STATE_VERSION = 5
"""The newest saved file that is read. A reader of an older one would ignore what came later, and answer otherwise.

1: nothing fitted. 2: a calibration. 3: residuals of a number. 4: a comparison by item scores; a number decoded from its
distribution. 5: a head's folder in the place of a host.
"""

TOP_LOGPROBS = 20
"""How many tokens are asked for at each position unless told otherwise: the most that OpenAI's API gives."""

_COMMON_CAP = 5
"""The most alternatives that hosts with a lower limit give."""

_KINDS: dict[str, type[FinetunedPredictor]] = {}


class FinetunedPredictor(dspy.Module, Parameter):
    """A tuned model as a DSPy module. Use one of its subclasses.

    Args:
        prompt: The format that the model was trained with; or a `dspy.Signature`, class or string, for the format that
            `PromptFormat(signature)` makes of it.
        model: The tuned model's id, or the `FinetunedModel` of a finished job: its job, base, data and hyperparameters
            are then kept as `provenance`, and saved.
        host: Where the model is served; by default the host of the `FinetunedModel`, else OpenAI.
        lm: A ready language model to ask instead (an ensemble of hosts, a test double); it is used as it is.
        logprobs: True: log-probabilities must come, or LogprobsError. None: use them if they come; if not, say so once
            and give None. False: do not ask.
        top_logprobs: How many tokens to ask for at each position, 1 to 20. A host that refuses the number is asked
            once more with as many as it gives, and so from then on.
        max_tokens: The longest answer; by default the prompt's own hint.
        stop: Texts that end the answer, besides the prompt's own.
        **lm_options: For `host.lm`, such as `cache=False`, `num_retries=5`, `timeout=30`.

    Raises:
        PromptMismatchError: The `FinetunedModel` was trained on another prompt.
    """

    kind: ClassVar[str] = ""
    default_max_tokens: ClassVar[int] = 256

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _KINDS[cls.__name__] = cls

    def __init__(
        self,
        prompt: AnyPrompt,
        model: str | FinetunedModel,
        *,
        host: Host | None = None,
        lm: dspy.BaseLM | None = None,
        logprobs: bool | None = None,
        top_logprobs: int = TOP_LOGPROBS,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **lm_options: Any,
    ) -> None:
        super().__init__()
        prompt = as_prompt(prompt)
        if isinstance(top_logprobs, bool) or not isinstance(top_logprobs, int) or not 1 <= top_logprobs <= TOP_LOGPROBS:
            raise UsageError(f"top_logprobs must be a whole number from 1 to {TOP_LOGPROBS}, found {top_logprobs!r}")
        if not isinstance(model, (str, FinetunedModel)) or not str(model):
            raise UsageError(f"model must be a tuned model's id or a FinetunedModel, found {model!r}")
        if isinstance(model, FinetunedModel):
            if model.prompt_digest and model.prompt_digest != prompt.digest:
                raise PromptMismatchError(
                    f"model {model.id} was trained on the prompt {model.prompt_digest[:12]}, not {prompt.digest[:12]}: "
                    "use the prompt of its training file, which stands in the manifest beside the file"
                )
            host = host or model.host
        check_host(host)
        self.prompt = prompt
        self.model = str(model)
        self.provenance: dict[str, Any] | None = model.to_dict() if isinstance(model, FinetunedModel) else None
        self.host = host if host is not None or lm is not None else Host.openai()
        self.logprobs = logprobs
        self.top_logprobs = top_logprobs
        self.max_tokens = max_tokens
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.lm_options = lm_options
        self.calibration: Calibration | None = None
        self.folder: str | None = None
        """An exported head's, which answers in the host's place; see `load_predictor`."""
        self._given_lm = lm
        self._lm: dspy.BaseLM | None = None
        self._told_no_logprobs = False

    # -- the language model -------------------------------------------------------------------------------------

    @property
    def lm(self) -> dspy.BaseLM:
        """The language model that is asked. `program.set_lm(...)` leaves it alone: the tuned model is the predictor."""
        if self._given_lm is not None:
            return self._given_lm
        if self._lm is None and self.folder is not None:
            self._lm = head_lm(Path(self.folder), self.model, self.lm_options)
        if self._lm is None:
            assert self.host is not None
            self.check_root()
            self._lm = self.host.lm(self.model, **engines_for(self.host, self.lm_options))
        return self._lm

    @lm.setter
    def lm(self, value: object) -> None:
        logger.debug("set_lm leaves %s on its tuned model %s", type(self).__name__, self.model)

    def check_root(self) -> None:
        """Raise HostError where the model's local host would be started in a new, empty folder."""
        root = self.host.to_dict().get("root") if self.host is not None else None  # of an embedded host alone
        if root is not None and self.model.startswith("ft:") and not Path(root).is_dir():
            raise HostError(
                f"the local host's folder {root}, in which {self.model} was trained, is not there; where it was moved,"
                " say load_predictor(FILE, host=ft.Host.local(root=FOLDER)), or move the predictor's file beside it"
            )

    def render(self, **inputs: Any) -> list[dict[str, Any]]:
        """The messages that are sent for these inputs."""
        return self.prompt.messages(inputs)

    def _request(self, messages: list[dict[str, Any]], temperature: float = 0.0, n: int = 1) -> Any:
        # A Request inherits nothing from the LM's own settings: everything that matters is said here.
        # Imported late: they are not needed to build or save a predictor.
        from dspy.lm15 import Config, Message, Request, request_from_openai_chat

        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system") or None
        turns: list[Any] = []
        for message in messages:
            if message["role"] == "system":
                continue
            if isinstance(message["content"], list):  # texts and images
                turns += request_from_openai_chat({"model": self.lm.model, "messages": [message]}).messages
                continue
            make = Message.user if message["role"] == "user" else Message.assistant
            turns.append(make(message["content"]))
        return Request(
            model=self.lm.model,
            system=system,
            messages=tuple(turns),
            config=Config(
                max_tokens=self.max_tokens or self.prompt.max_tokens or self.default_max_tokens,
                temperature=temperature,
                stop=(*(self.prompt.stop or ()), *self.stop),
                response_format=self._response_format(),
                logprobs=self.top_logprobs if self._asks_logprobs() else None,
                extensions=None if n == 1 else {N_ANSWERS: n},
            ),
        )

    def _asks_logprobs(self) -> bool:
        return self.logprobs is not False and self.prompt.labels is not None

    def _response_format(self) -> dict[str, Any] | None:
        wire = self.prompt.response_format
        if wire is None or (self.host is not None and not self.host.kind.has_structured_output):
            return None
        # A Request has OpenAI's fields one level higher; on the wire they are OpenAI's again.
        return {"type": wire["type"], **wire["json_schema"]}

    def _ask(self, inputs: dict[str, Any], *, temperature: float = 0.0, rollout: int | None = None) -> Answer:
        return read_response(self._send(inputs, temperature=temperature, rollout=rollout))

    async def _aask(self, inputs: dict[str, Any], *, temperature: float = 0.0, rollout: int | None = None) -> Answer:
        return read_response(await self._asend(inputs, temperature=temperature, rollout=rollout))

    def _send(self, inputs: dict[str, Any], *, temperature: float = 0.0, rollout: int | None = None, n: int = 1) -> Any:
        """The response with `n` answers, in DSPy's form."""
        messages, options = self.prompt.messages(inputs), _rollout(rollout)
        with self._asking():
            try:
                return self.lm(self._request(messages, temperature, n), **options)
            except Exception as error:  # whatever it is, it is raised unless it is about one option
                if not self._lower_top_logprobs(error):
                    raise
            return self.lm(self._request(messages, temperature, n), **options)

    async def _asend(
        self, inputs: dict[str, Any], *, temperature: float = 0.0, rollout: int | None = None, n: int = 1
    ) -> Any:
        messages, options = self.prompt.messages(inputs), _rollout(rollout)
        with self._asking():
            try:
                return await self.lm.acall(self._request(messages, temperature, n), **options)
            except Exception as error:  # as above
                if not self._lower_top_logprobs(error):
                    raise
            return await self.lm.acall(self._request(messages, temperature, n), **options)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        token = _asking.set(True)
        try:
            if dspy.settings.send_stream is None:
                yield
            else:
                with dspy.context(caller_predict=self):  # whose tokens they are, for a listener
                    yield
        finally:
            _asking.reset(token)

    def _lower_top_logprobs(self, error: BaseException) -> bool:
        """Whether a refusal is about the number of alternatives, and a lower one is asked for from now on."""
        lower = lower_top_logprobs(str(error), self.top_logprobs)
        if lower is None:
            return False
        logger.warning(
            "%s refuses top_logprobs=%d; asking for %d from now on (top_logprobs=%d says so beforehand)",
            self.model, self.top_logprobs, lower, lower,
        )  # fmt: skip
        self.top_logprobs = lower
        return True

    # -- reading an answer --------------------------------------------------------------------------------------

    def _values(self, answer: Answer) -> dict[str, Any]:
        """The outputs that the answer gives.

        Raises:
            NoAnswerError: It is no answer, or (where it is not a label that can be read) not the whole of one.
            AnswerError: It cannot be read.
        """
        if answer.problem is not None and answer.problem != "length":
            raise self._no_answer(answer)
        try:
            values = self.prompt.parse(answer.text)
        except AnswerError as error:
            if answer.problem is None:
                raise
            raise self._no_answer(answer) from error
        # A label is cut off on purpose after its few tokens; half a number or half a text is no answer.
        if answer.problem is not None and self.prompt.labels is None:
            raise self._no_answer(answer)
        return values

    def _no_answer(self, answer: Answer) -> NoAnswerError:
        said = {
            "refusal": f"the model refused: {answer.detail:.200}",
            "content_filter": f"the host's content filter stopped the answer ({answer.detail})",
            "length": f"the answer was cut off by its length ({answer.detail}); raise max_tokens=",
            "reasoning_only": f"the model reasoned and gave no answer ({answer.detail}); a higher max_tokens= may help",
            "tool_calls": f"the model called a tool and gave no answer ({answer.detail})",
        }
        reason = answer.problem or "no_choices"
        return NoAnswerError(f"{self.model}: {said.get(reason, answer.detail)}", text=answer.text, reason=reason)

    def _shares(self, answer: Answer) -> tuple[dict[Any, float | None] | None, float | None]:
        """(the probability of each label, the coverage), as `label_shares` has them, calibrated where that was fitted.

        (None, None) where the host sends no log-probabilities.
        """
        labels = self.prompt.labels
        if labels is None or self.logprobs is False:
            return None, None
        if not self._has_logprobs(answer):
            return None, None
        assert answer.positions is not None
        shares, coverage = label_shares(answer.positions, labels.texts)
        if shares is None:
            return None, coverage
        found: dict[Any, float | None] = {labels.decode(text): share for text, share in shares.items()}
        return found, min(coverage, 1.0)

    def _has_logprobs(self, answer: Answer) -> bool:
        """Whether log-probabilities came; raises LogprobsError where they must, says once where they did not."""
        if answer.positions:
            return True
        if self.logprobs:
            raise LogprobsError(
                f"{self.model} sent no log-probabilities; choose a host that has them, or pass logprobs=False"
            )
        if not self._told_no_logprobs:
            self._told_no_logprobs = True
            logger.warning("%s sends no log-probabilities: probability is None", self.model)
        return False

    def _calibrated(self, probabilities: dict[Any, float]) -> dict[Any, float]:
        """The probabilities of the labels, corrected if the predictor was calibrated (see `calibrate`)."""
        labels = self.prompt.labels
        if self.calibration is None or labels is None:
            return probabilities
        order = [labels.decode(text) for text in self.calibration.labels]
        return dict(zip(order, self.calibration.apply([probabilities[label] for label in order]), strict=True))

    def __call__(self, *args: Any, **inputs: Any) -> dspy.Prediction:
        """Ask about one item; its inputs are given by name. Raises UsageError where one is not."""
        self._check_named(args)
        return super().__call__(**inputs)

    async def acall(self, *args: Any, **inputs: Any) -> dspy.Prediction:
        """The same, without blocking the event loop."""
        self._check_named(args)
        return await super().acall(**inputs)

    def _check_named(self, args: Sequence[Any]) -> None:
        if args:
            named = ", ".join(f"{name}=..." for name in self.prompt.input_fields)
            raise UsageError(f"give the inputs by name, as to a dspy.Predict: predictor({named})")

    # -- what DSPy does to parameters ---------------------------------------------------------------------------

    def reset(self) -> None:
        """Nothing to reset: an optimizer that starts afresh keeps the tuned model."""

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Everything that the predictor is, as JSON values; never a key."""
        return {
            "predictor": type(self).__name__,
            "version": self._state_version() if self.folder is None else 5,
            "model": self.model,
            "host": self.host.to_dict() if self.host is not None else None,
            **({} if self.folder is None else {"folder": self.folder}),
            "prompt": self.prompt.to_dict(),
            "prompt_digest": self.prompt.digest,
            "logprobs": self.logprobs,
            **({} if self.top_logprobs == TOP_LOGPROBS else {"top_logprobs": self.top_logprobs}),
            "max_tokens": self.max_tokens,
            "stop": list(self.stop),
            **({} if self.calibration is None else {"calibration": self.calibration.to_dict()}),
            **({} if self.provenance is None else {"provenance": self.provenance}),
            **self._own_state(),
        }

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _state_version(self) -> int:
        return 1 if self.calibration is None else 2

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> FinetunedPredictor:
        """Take over a saved state.

        Raises:
            PromptMismatchError: The state belongs to another prompt; the message shows the difference.
            DataError: The state is of another kind of predictor, or of a newer version.
        """
        _check_state(state, type(self).__name__)
        if state["prompt_digest"] != self.prompt.digest:
            other = PromptFormat.from_dict(state["prompt"])
            raise PromptMismatchError(
                "the saved predictor was trained on another prompt than this one:\n" + self.prompt.diff(other)
            )
        self.model = state["model"]
        self.folder = state.get("folder")
        if self.folder is not None:
            self.host = None
        elif state["host"]:
            self.host = Host.from_dict(state["host"])
        self.logprobs = state["logprobs"]
        self.top_logprobs = state.get("top_logprobs", TOP_LOGPROBS)
        self.max_tokens = state["max_tokens"]
        self.stop = tuple(state.get("stop", ()))
        self._lm = None
        self.provenance = state.get("provenance")
        calibration = state.get("calibration")
        self.calibration = None if calibration is None else Calibration.from_dict(calibration)
        for name in self._own_state():
            if name in state:  # a file of an older release lacks what came later, and keeps its default
                setattr(self, name, state[name])
        return self

    def save(self, path: str | os.PathLike[str], save_program: bool = False, modules_to_serialize: Any = None) -> None:
        """Save to one JSON file (or, with `save_program`, a folder, as `dspy.Module.save` does).

        Raises:
            FileError: The file cannot be written.
        """
        if save_program or Path(path).suffix != ".json":
            super().save(path, save_program=save_program, modules_to_serialize=modules_to_serialize)
            return
        # The versions stand where DSPy's own files have them, so that `predictor.load(path)` finds them.
        write_json(path, {**self.dump_state(), "metadata": {"dependency_versions": get_dependency_versions()}})

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_lm"] = None  # it holds the key; the host makes a new one
        if isinstance(self._given_lm, dspy.LM):
            keyless = copy.copy(self._given_lm)
            keyless.kwargs = {name: value for name, value in keyless.kwargs.items() if name != "api_key"}
            state["_given_lm"] = keyless
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> FinetunedPredictor:
        # A copy shares the language model: it is not part of what an optimizer may change, and may hold a connection.
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        shared = ("_given_lm", "_lm", "host", "prompt")
        for name, value in self.__dict__.items():
            twin.__dict__[name] = value if name in shared else copy.deepcopy(value, memo)
        return twin

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r}, prompt={self.prompt.digest[:12]})"


def _rollout(rollout: int | None) -> dict[str, int]:
    # DSPy's cache gives equal requests one answer; the rollout tells the samples of one question apart.
    return {} if rollout is None else {"rollout_id": rollout}


def lower_top_logprobs(refusal: str, asked: int) -> int | None:
    """The number of alternatives that a host's refusal asks for; None where it is about something else.

    >>> lower_top_logprobs("Invalid value for 'top_logprobs': must be at most 8, got 20.", 20)
    8
    """
    if "logprobs" not in refusal.lower():
        return None
    named = [int(number) for number in re.findall(r"(?<![\w.])\d{1,2}(?![\w.]*\w)", refusal)]
    lower = [number for number in named if 0 < number < asked]
    return max(lower, default=_COMMON_CAP if asked > _COMMON_CAP else None)


def load_predictor(path: str | os.PathLike[str], *, host: Host | None = None) -> FinetunedPredictor:
    """Load a saved predictor of any kind from its file, or an exported head from its folder.

    A head's folder (`export-model --format head`) answers in this process, without a host: with the same labels and
    probabilities as through it.

    Args:
        path: What `predictor.save(path)` wrote, or an exported model's folder.
        host: Another host than the recorded one; of a folder, the host to ask in the place of its files.

    Raises:
        FileError: The file cannot be read.
        DataError: It is not a saved predictor, or damaged; or the folder holds weights that need a server.
        PromptMismatchError: Its prompt was changed in the file.
    """
    remedy = "save one with predictor.save(path)"
    if Path(path).is_dir():
        return _from_folder(Path(path).expanduser().absolute(), host)
    state = read_json(path, "a saved predictor", remedy)
    if str(state.get("predictor")) not in _KINDS:
        raise DataError(f"{os.fspath(path)} is not a saved predictor; {remedy}")
    return predictor_of(state, host=host or _moved_host(state.get("host"), Path(path)))


def _moved_host(saved: object, path: Path) -> Host | None:
    """The local host of a predictor's file that was moved together with the host's folder; None where it was not.

    `dspy-finetune run` keeps both in one folder, which may be renamed or copied to another machine.
    """
    root = saved.get("root") if isinstance(saved, Mapping) else None
    if not isinstance(root, str) or Path(root).is_dir():
        return None
    beside = path.expanduser().absolute().parent / Path(root).name
    return Host.local(root=beside) if (beside / "models").is_dir() else None


def _from_folder(folder: Path, host: Host | None) -> FinetunedPredictor:
    state = saved_state(folder)
    if "predictor" not in state:  # a head with its prompt alone
        plain = _KINDS["OpenAIPredictor"](PromptFormat.from_dict(state["prompt"]), state["model"])
        state = plain.dump_state()
    if host is not None:
        return predictor_of(state, host=host)
    if not is_head(folder):
        raise DataError(
            f"{folder} holds a whole model or an adapter, which need a server: serve it as its README.md says, then"
            " load_predictor(folder, host=ft.Host.compatible(ADDRESS))"
        )
    return predictor_of({**state, "host": None, "folder": str(folder)})


def predictor_of(state: Mapping[str, Any], *, host: Host | None = None) -> FinetunedPredictor:
    """The predictor that `dump_state` described.

    Raises:
        DataError: It is of an unknown kind, of a newer version, or damaged.
        PromptMismatchError: Its prompt is not the one that its digest is of.
    """
    kind = str(state.get("predictor"))
    if kind not in _KINDS:
        raise DataError(f"a saved predictor of an unknown kind: {kind}")
    _check_state(state, kind)
    place = host or (Host.from_dict(state["host"]) if state.get("host") else None)
    prompt = PromptFormat.from_dict(state["prompt"])
    if prompt.digest != state["prompt_digest"]:
        raise PromptMismatchError(
            f"the saved predictor's prompt was changed in its file: it is {prompt.digest[:12]} now, and the model was "
            f"trained on {state['prompt_digest'][:12]}; bring the old text back, or make a predictor of the new prompt"
        )
    predictor = _KINDS[kind](prompt, state["model"], host=place)
    folder = state.get("folder") if host is None else None
    predictor.load_state({**state, "host": place.to_dict() if place is not None else None, "folder": folder})
    if host is not None:
        predictor.host = host
    return predictor


def _check_state(state: Mapping[str, Any], kind: str) -> None:
    if state.get("predictor") != kind:
        raise DataError(f"the saved state is of a {state.get('predictor')}, not of a {kind}")
    if state.get("version", 0) > STATE_VERSION:
        raise DataError(
            f"the saved predictor has version {state['version']}; this library reads up to {STATE_VERSION}: upgrade it"
        )
    forms: dict[str, tuple[type, ...]] = {
        "model": (str,),
        "host": (Mapping, type(None)),
        "prompt": (Mapping,),
        "prompt_digest": (str,),
    }
    absent = object()
    wrong = [name for name, form in forms.items() if not isinstance(state.get(name, absent), form)]
    wrong += [name for name in ("logprobs", "max_tokens") if name not in state]
    if wrong:
        raise DataError(f"the saved predictor is damaged, in {', '.join(wrong)}; save it again, or build it anew")


# A label answer is cut off on purpose after its few tokens. DSPy logs a warning for each cut-off answer; a million of
# them would bury what matters, so that one line is dropped while a predictor asks.
_asking: contextvars.ContextVar[bool] = contextvars.ContextVar("dspy_finetune_asking", default=False)


class _DropTruncationWarning(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (_asking.get() and "truncated" in record.getMessage())


logging.getLogger("dspy.clients.lm").addFilter(_DropTruncationWarning())


# Settings of a module that DSPy saves: weights, thresholds, fitted coefficients. DSPy saves a program's parameters
# and nothing else; what a plain module keeps in its own attributes is lost without a word. A `SavedSettings` held by a
# module is saved and loaded with it, nested or not.

_RENAMED = {"how": "voting"}
"""Names of values in files of 0.1."""


class SavedSettings(Parameter):
    """JSON values under names; they stand in the program's file beside its predictors.

    >>> settings = SavedSettings("Cascade", min_confidence=0.8)
    >>> settings.dump_state()
    {'of': 'Cascade', 'min_confidence': 0.8}
    """

    def __init__(self, of: str, **values: Any) -> None:
        self.of = of
        self.values = values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[name] = value

    def reset(self) -> None:
        """Nothing to reset: an optimizer that starts afresh keeps what was fitted."""

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The values, and whose they are."""
        return {"of": self.of, **self.values}

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Take over saved values; names that the file lacks keep theirs.

        Raises:
            DataError: The values are of another kind of module.
        """
        if state.get("of") != self.of:
            raise DataError(f"the saved settings are of {state.get('of')!r}, not of {self.of!r}")
        state = {_RENAMED.get(name, name): "stack" if value == "stacking" else value for name, value in state.items()}
        self.values = {name: state.get(name, value) for name, value in self.values.items()}


# An exported head: the folder that `export-model --format head` wrote, asked in this process, without a host.
#
# Out: what `load_predictor(FOLDER)` needs: the saved predictor's facts, and a `dspy.LM` whose engine answers by the
# head, with the host's own log-probabilities. Not covered: how the head computes (local/offline.py, the one module of
# the local host that predictors know; it is imported with the first question, as it imports torch).

_HEAD_FILES = ("head.json", "head.safetensors", "base.json")
_OWN_SETTINGS = ("cache", "num_retries", "callbacks", "rollout_id")


def is_head(folder: Path) -> bool:
    """Whether a folder holds an exported head, whole."""
    return all((folder / name).is_file() for name in _HEAD_FILES)


def saved_state(folder: Path) -> dict[str, Any]:
    """What was saved with an exported model: `predictor.json`, or of a head with a known prompt the plain predictor.

    Raises:
        DataError: The folder holds no exported model, or one whose prompt is unknown.
    """
    if (folder / "predictor.json").is_file():
        return read_json(folder / "predictor.json", "a saved predictor", "export the model again")
    if not is_head(folder):
        raise DataError(
            f"{folder} holds no saved predictor: expected predictor.json, or an exported head"
            f" ({', '.join(_HEAD_FILES)}); a program that DSPy saved as a folder is loaded by dspy.load"
        )
    if not (folder / "prompt.json").is_file():
        raise DataError(
            f"{folder} does not say which prompt its head was trained with: export it again with"
            " predictor=... (--predictor FILE)"
        )
    base = read_json(folder / "base.json", "an exported head", "export the model again")
    return {"prompt": read_json(folder / "prompt.json", "a prompt", "export again"), "model": str(base.get("model"))}


def head_lm(folder: Path, model: str, options: Mapping[str, Any]) -> HostLM:
    """The language model; DSPy's cache knows it by the weights' own bytes.

    Raises:
        DataError: The folder holds no head any more.
    """
    if not is_head(folder):
        raise DataError(f"{folder} holds no exported head any more; load the predictor from where it is now")
    kept = {name: value for name, value in options.items() if name in _OWN_SETTINGS}
    return HostLM(
        f"openai/{model.removeprefix('openai/')}",
        host=_Place(":".join(sha256_file(file) for file in sorted(folder.rglob("*.safetensors")))),
        engine=HeadEngine(folder),
        async_engine=AsyncHeadEngine(folder),
        **kept,
    )


class _Place:
    """What a `HostLM` asks of its host, where there is none."""

    kind = SimpleNamespace(name="folder")
    name = "folder"

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def connection(self) -> tuple[str | None, str]:
        """No address: the engine needs none."""
        return None, ""

    def is_connected(self) -> bool:
        """Always."""
        return True

    def cache_namespace(self) -> str:
        """The head's own bytes."""
        return f"head:{self._digest}"

    def scrub(self, exception: BaseException) -> None:
        """There is no key."""

    def to_dict(self) -> dict[str, str]:
        """Not a host that could be made again."""
        return {}


class HeadEngine:
    """Answers DSPy's requests by the head in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def complete(self, request: Any) -> Any:
        """One answer, as DSPy reads one."""
        return _response(_offline().complete(self.folder, _body(request)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class AsyncHeadEngine(HeadEngine):
    """The same for asynchronous calls."""

    async def complete(self, request: Any) -> Any:
        """One answer, as DSPy reads one."""
        return _response(await _offline().acomplete(self.folder, _body(request)))


def _offline() -> Any:
    return require("dspy_finetune.local.offline", "local", "a head without its host")


def _body(request: Any) -> dict[str, Any]:
    config = request.config
    said = [{"role": one.role, "content": "".join(part.text for part in one.parts)} for one in request.messages]
    return {
        "model": request.model.removeprefix("openai/"),
        "messages": [*([{"role": "system", "content": request.system}] if request.system else []), *said],
        "temperature": config.temperature,
        "max_completion_tokens": config.max_tokens,
        "stop": list(config.stop) or None,
        "response_format": _wire_format(config.response_format),
        **({} if config.logprobs is None else {"logprobs": True, "top_logprobs": config.logprobs}),
    }


def _wire_format(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    # A Request has OpenAI's fields one level higher.
    if given is None or "schema" not in given:
        return None if given is None else dict(given)
    return {"type": given["type"], "json_schema": {name: one for name, one in given.items() if name != "type"}}


def _response(body: Mapping[str, Any]) -> Any:
    from dspy.lm15 import response_from_openai_chat  # imported late, as above

    return response_from_openai_chat(body)
