"""The main job: from labelled titles to three tuned models inside DSPy and a verdict on each.

In: labelled titles, a rubric, a folder, a host. Out: a `Result`: what was written, and two reports. Each of the seven
steps is a call or two of the public library; `README.md` shows the same in fifteen lines.

>>> len(load_titles()) > 600
True
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import dspy

from dspy_finetune._files import atomic_writer, read_text, write_json
from dspy_finetune.data import find_leakage, load_examples, make_pairs, split
from dspy_finetune.errors import DataError, FinetuneError, LeakageError, UsageError
from dspy_finetune.evaluation import (
    BaselineOptions,
    CompareProgress,
    ComparisonReport,
    RunOptions,
    StatisticsOptions,
    baselines,
    compare,
    metrics,
)
from dspy_finetune.evaluation.baselines import predictor_for
from dspy_finetune.export import export_dpo, export_sft
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.protocol import INTENT_KEY
from dspy_finetune.jobs import FinetunedModel, Job, JobProgress, Plan, list_jobs, plan
from dspy_finetune.predictors import FinetunedPredictor, OpenAIPredictor
from dspy_finetune.prompts import binary, explained_pairwise, pairwise
from dspy_finetune.report import write_html
from dspy_finetune.report.plots import loss_curves

__all__ = [
    "EXAMPLE_OPTIONS",
    "RUBRIC",
    "SIZES",
    "ExampleKind",
    "Material",
    "Result",
    "Size",
    "Step",
    "load_rubric",
    "load_titles",
    "prepare",
    "read_titles",
    "run",
    "size_of",
    "summary",
    "write_example",
]

# The packaged titles: what one reader likes to read, written for this package.
#
# In: `quickstart_titles.jsonl` and `quickstart_rubric.txt`, which lie beside this module. Out: `dspy.Example`s with
# `id`, `title` (the input), `is_favorite` and, for most rows, `reason`. The reader is invented, the titles are not
# headlines of any publication, and all of it was written for this package under its licence (MIT). Labels follow the
# rubric, with no noise added. The wording is as varied as the subjects on either side, so that counting words helps
# little: here a model that reads leads TF-IDF by more than it would on most real feeds. Not covered: splitting and
# pairing, which belong to `dspy_finetune.data`.


def load_rubric() -> str:
    """Return the reader's taste in a few sentences.

    Example:
        >>> load_rubric().startswith("The reader likes")
        True
    """
    return files("dspy_finetune").joinpath("quickstart_rubric.txt").read_text(encoding="utf-8").strip()


def load_titles() -> list[dspy.Example]:
    """Return every packaged title as a `dspy.Example` whose input is `title`.

    Example:
        >>> example = load_titles()[0]
        >>> sorted(example.inputs().keys())
        ['title']
    """
    text = files("dspy_finetune").joinpath("quickstart_titles.jsonl").read_text(encoding="utf-8")
    return [dspy.Example(**json.loads(line)).with_inputs("title") for line in text.splitlines()]


EXAMPLE_ROWS = 300
"""Titles of the first file for `dspy-finetune run`: docs/quickstart.md shows what comes of it."""

ExampleKind = Literal["titles", "pairs", "prices", "questions"]
EXAMPLE_OPTIONS: dict[ExampleKind, str] = {
    "titles": "--label liked",
    "pairs": "--pairs preferred",
    "prices": "--number price",
    "questions": "--label answer",
}
"""What `dspy-finetune run` has to be told about each of the example files."""


def _example_rows(kind: ExampleKind) -> list[dict[str, Any]]:
    if kind == "titles":
        return [
            {"headline": row.title, "liked": "yes" if row.is_favorite else "no"} for row in load_titles()[:EXAMPLE_ROWS]
        ]
    if kind == "pairs":
        # As many of either kind, so that each title stands in one pair. The reason is that of the preferred title.
        told = [
            [row for row in load_titles() if "reason" in row and row.is_favorite is liked] for liked in (True, False)
        ]
        as_many = [row for two in zip(*told, strict=False) for row in two]
        return [
            {
                "title_a": pair.title_a,
                "title_b": pair.title_b,
                "preferred": pair.preferred,
                "explanation": pair[f"reason_{pair.preferred.lower()}"],
            }
            for pair in make_pairs(as_many, n_per_positive=1, carry="reason")
        ]
    name, fields = ("products", ("product", "price")) if kind == "prices" else ("questions", ("question", "answer"))
    text = files("dspy_finetune").joinpath(f"quickstart_{name}.jsonl").read_text(encoding="utf-8")
    return [{field: row[field] for field in fields} for row in map(json.loads, text.splitlines())]


def write_example(path: str | os.PathLike[str], kind: ExampleKind = "titles") -> int:
    """Write packaged rows as a CSV file, to try a command or a page with; returns how many.

    All of them are written for this package: the titles and pairs of one reader's taste, products whose prices are
    made up, and questions with their answers.

    Args:
        path: A new file, or one that this function wrote before.
        kind: "titles" has the columns `headline` and `liked`; "pairs" `title_a`, `title_b`, `preferred` and
            `explanation`; "prices" `product` and `price`; "questions" `question` and `answer`.

    Raises:
        UsageError: There is another file already, or no such kind.
        FileError: It cannot be written.
    """
    if kind not in EXAMPLE_OPTIONS:
        raise UsageError(f"no example rows of the kind {kind!r}; take one of {', '.join(EXAMPLE_OPTIONS)}")
    rows = _example_rows(kind)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    content = text.getvalue().encode()
    if Path(path).exists():
        if Path(path).is_file() and Path(path).read_bytes() == content:
            return len(rows)
        raise UsageError(f"{os.fspath(path)} is there already; name a new file, or delete it")
    with atomic_writer(path) as file:
        file.write(content)
    return len(rows)


def read_titles(
    path: str | os.PathLike[str] | None, *, text: str, label: str, rubric: str | os.PathLike[str] | None
) -> tuple[list[dspy.Example], str]:
    """Return the titles of a file of the user's own with their rubric, or the packaged ones where there is no file.

    The fields come out as `title` and `is_favorite`, whatever the file calls them; a field that has one of these names
    and was not chosen is left out.

    Raises:
        UsageError: A rubric without a file, or one that is not UTF-8.
        FileError: A file cannot be read.
        RowsError: Rows are wrong; all are named.
    """
    if path is None:
        if rubric is not None:
            raise UsageError("--rubric belongs to data of your own: give --data too")
        return load_titles(), load_rubric()
    examples = [
        dspy.Example(**{**row.toDict(), "title": row[text], "is_favorite": row[label]}).with_inputs("title")
        for row in load_examples(path, inputs=[text], types={label: bool})
    ]
    if rubric is None:
        return examples, ""
    return examples, read_text(rubric)


RUBRIC = load_rubric()
"""The taste rubric, as `load_rubric()` returns it."""


# What the tuned models are compared with: DSPy's few-shot program on the untuned model, and titles scored one by one.
#
# In: the untuned model, training examples. Out: programs that take the same inputs as the tuned predictors.

N_TRIED = 6
"""Training examples that the optimizer may try for demonstrations: each took three seconds of processor time."""
MAX_ANSWER_TOKENS = 32
"""DSPy's layout of one short field takes 21; a small model that has lost the thread is cut off here."""
STOP = "[[ ## completed"
"""The line that ends DSPy's layout: nothing that is read comes after it, and it is half of a short answer's tokens."""


def few_shot(
    signature: type[dspy.Signature],
    instructions: str,
    train: Sequence[dspy.Example],
    *,
    lm: dspy.LM,
    on_try: Callable[[int], object] = lambda n_tried: None,
) -> dspy.Module:
    """DSPy's own way with the same data: instructions and demonstrations in the prompt of the untuned model.

    `BootstrapFewShot` keeps up to 2 of the model's own right answers as demonstrations and adds labelled examples up
    to 4 in all. With 8 the prompt had 1,070 tokens, and this baseline took more time than all the training.

    Args:
        signature: What is predicted.
        instructions: What the tuned model reads as its instructions.
        train: Labelled examples; the first 6 are tried.
        lm: The untuned model.
        on_try: Is told how many examples have been tried.
    """
    field = next(iter(signature.output_fields))
    is_right = metrics.accuracy(field)
    n_tried = 0

    def counted(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        nonlocal n_tried
        n_tried += 1
        on_try(n_tried)
        return is_right(example, prediction, trace)

    student = dspy.Predict(signature.with_instructions(instructions))
    # It gives up at max_errors: one more than there are, so that a model which fails at each goes on untaught.
    optimizer = dspy.BootstrapFewShot(
        metric=counted, max_bootstrapped_demos=2, max_labeled_demos=4, max_rounds=1, max_errors=N_TRIED + 1
    )
    # The optimizer draws a bar of its own on stderr and prints what it did: neither belongs to this job's own bars.
    silence = io.StringIO()
    with (
        dspy.context(lm=lm, disable_history=True),
        contextlib.redirect_stderr(silence),
        contextlib.redirect_stdout(silence),
    ):
        compiled = optimizer.compile(student, trainset=list(train[:N_TRIED]))
    compiled.set_lm(lm)  # compiling starts from a fresh copy, which has no model
    return compiled


@contextlib.contextmanager
def quiet_dspy() -> Iterator[None]:
    """Without DSPy's remarks on single answers: a small untuned model earns hundreds, and they are counted apart."""
    loggers = [logging.getLogger(name) for name in ("dspy.clients.lm", "dspy.teleprompt.bootstrap", "dspy.adapters")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class ByScore:
    """Which of two titles scores higher with a binary predictor: a pairwise program without pairwise training."""

    def __init__(self, predictor: OpenAIPredictor, *, inputs: tuple[str, str] = ("title_a", "title_b")) -> None:
        self.predictor = predictor
        self.inputs = inputs

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        """Ask about both titles; the odds of the two are weighed against each other, as Bradley and Terry have it."""
        (name,) = self.predictor.prompt.input_fields
        first, second = (self.predictor(**{name: inputs[field]}).probability for field in self.inputs)
        odds_first, odds_second = (share / max(1.0 - share, 1e-9) for share in (first, second))
        of_a = odds_first / max(odds_first + odds_second, 1e-12)
        return dspy.Prediction(
            preferred="A" if of_a >= 0.5 else "B",
            probability=max(of_a, 1.0 - of_a),
            probabilities={"A": of_a, "B": 1.0 - of_a},
        )


# How much of the main job is done: `full` for figures to believe, `small` to see that it runs.
#
# In: a name. Out: a `Size`, with every count that the steps use.


@dataclass(frozen=True, kw_only=True)
class Size:
    """The counts of one size; training sets are cut to them, smaller data is used whole."""

    name: str
    """full or small."""
    n_titles: int
    """Titles to train the binary model on."""
    n_pairs: int
    """Pairs to train the pairwise model on."""
    n_explained: int
    """Explained pairs to train the DPO model on."""
    n_test_titles: int
    """Titles that all programs are asked about."""
    n_test_pairs: int
    """Pairs that all programs are asked about."""
    binary_epochs: int
    """Times through the titles."""
    pairwise_epochs: int
    """Times through the pairs."""


SIZES = {
    "full": Size(
        name="full",
        n_titles=440,
        n_pairs=320,
        n_explained=48,
        n_test_titles=100,
        n_test_pairs=50,
        binary_epochs=2,
        pairwise_epochs=1,
    ),
    "small": Size(
        name="small",
        n_titles=260,
        n_pairs=80,
        n_explained=16,
        n_test_titles=40,
        n_test_pairs=20,
        binary_epochs=2,
        pairwise_epochs=1,
    ),
}
"""What `dspy-finetune quickstart --size` accepts."""


def size_of(name: str) -> Size:
    """The size of that name. Raises UsageError."""
    if name not in SIZES:
        raise UsageError(f'unknown size "{name}"; choose one of {", ".join(SIZES)}')
    return SIZES[name]


# Telling how far the main job is: one value for whoever shows it.
#
# In: a callback. Out: a `Step` for each sign of progress. Not covered: showing it (the command line does).

N_STEPS = 7


@dataclass(frozen=True, kw_only=True)
class Step:
    """One sign of progress."""

    number: int
    """From 1 to N_STEPS."""
    title: str
    """What is being done; a change of title begins a new bar."""
    n_done: int = 0
    """How far."""
    n_total: int | None = None
    """Of how many; None while that is unknown."""
    note: str = ""
    """The last figure, such as a loss."""
    command: str = ""
    """The command that does this step again by hand, with the files that lie in the folder."""


OnStep = Callable[[Step], None]
"""Takes each sign of progress."""


FRACTIONS = (0.6, 0.1, 0.3)
"""Train, validation, test: a large test side, as a verdict is only as narrow as its test set."""

MIN_ROWS = 10
"""What hosts ask of a training file."""

N_THREADS = 16
"""Questions at once: the local host answers them in one batch, and a batch of 16 takes little longer than one of 8."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """The data of the main job, split before it was paired."""

    train: list[dspy.Example]
    """Titles to learn from."""
    validation: list[dspy.Example]
    """Titles whose loss is watched."""
    test: list[dspy.Example]
    """Titles that all programs are asked about."""
    train_pairs: list[dspy.Example]
    """Pairs of training titles."""
    explained: list[dspy.Example]
    """Pairs of training titles with the reason for the preferred one; without it where too few titles have one."""
    test_pairs: list[dspy.Example]
    """Pairs of test titles."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the main job leaves behind."""

    folder: Path
    """Where everything lies."""
    titles: ComparisonReport
    """All programs on the test titles."""
    pairs: ComparisonReport
    """All programs on the test pairs."""
    models: dict[str, FinetunedModel]
    """binary, pairwise, dpo."""
    predictors: dict[str, Path]
    """The saved predictors."""
    report: Path
    """The HTML page."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step."""
    recipes: dict[str, str] = field(default_factory=dict)
    """By model what the host found in its rows, what it trained therefore, and with which figures; empty for a host
    that says nothing of it."""


def prepare(examples: Sequence[dspy.Example], size: Size, seed: int) -> Material:
    """Split by title, then pair inside each side, so that no title stands on two sides.

    Raises:
        LeakageError: A title stands in training and in test all the same.
        DataError: The titles cannot be split or paired.
    """
    # The same title in other spelling is the same item: grouped, it falls on one side.
    parts = split(examples, FRACTIONS, stratify_by="is_favorite", seed=seed)
    train, test = parts.train[: size.n_titles], parts.test[: size.n_test_titles]
    leak = find_leakage(train, test, by="title")
    if leak:
        raise LeakageError(leak.summary())
    with_reason = [example for example in train if example.get("reason")]
    train_pairs = make_pairs(train, n_per_positive=5, seed=seed)[: size.n_pairs]
    explained = []
    if len({example["is_favorite"] for example in with_reason}) == 2:
        explained = [
            pair.copy(explanation=pair["reason_a" if pair["preferred"] == "A" else "reason_b"])
            for pair in make_pairs(with_reason, n_per_positive=1, carry=("reason",), seed=seed)[: size.n_explained]
        ]
    if len(explained) < MIN_ROWS:
        explained = train_pairs[: size.n_explained]
    return Material(
        train=train,
        validation=parts.validation,
        test=test,
        train_pairs=train_pairs,
        explained=explained,
        test_pairs=make_pairs(test, n_per_positive=2, seed=seed)[: size.n_test_pairs],
    )


def run(
    examples: Sequence[dspy.Example],
    rubric: str,
    folder: Path,
    *,
    size: Size,
    base_model: str,
    host: Host,
    seed: int = 0,
    on_step: OnStep = lambda step: None,
) -> Result:
    """Do the main job.

    Args:
        examples: Titles with `title` (the input), `is_favorite` and, for some, a `reason`.
        rubric: The reader's taste, which goes into every system prompt.
        folder: Where files, predictors and the report are written.
        size: How much of it.
        base_model: What is tuned.
        host: Where.
        seed: Of the split, the pairs and the training.
        on_step: Is told how far it is.

    Raises:
        FinetuneError: Whatever went wrong, in one line. A job that is running when this ends early is cancelled.
    """
    clock = _Clock()
    on_step(Step(number=1, title="Splitting the titles and pairing them"))
    material = prepare(examples, size, seed)
    title = "Writing the training files"
    on_step(Step(number=2, title=title))
    taste = rubric or None
    by_hand = _ByHand(folder, material, rubric, base_model, host, seed)
    # Titles of the user's own seldom come with reasons: then the preference alone is trained and asked for.
    has_reasons = "explanation" in material.explained[0]
    prompts = {
        "binary": binary(taste),
        "pairwise": pairwise(taste),
        "dpo": explained_pairwise(taste) if has_reasons else pairwise(taste),
    }
    datasets = {
        "binary": export_sft(material.train, prompts["binary"], folder / "binary.jsonl", seed=seed),
        "pairwise": export_sft(material.train_pairs, prompts["pairwise"], folder / "pairwise.jsonl", seed=seed),
        "dpo": export_dpo(material.explained, prompts["dpo"], folder / "dpo.jsonl", seed=seed),
    }
    held_out = export_sft(material.validation, prompts["binary"], folder / "binary.validation.jsonl", seed=seed)
    for dataset in datasets.values():
        # A validation file may be short; the host would refuse these, minutes later.
        wrong = [issue for issue in dataset.report.issues if issue.severity == "error"]
        if wrong:
            raise DataError(f"{dataset.path}: {wrong[0].message}; {wrong[0].remedy}")
    on_step(Step(number=2, title=title, command=by_hand.export("sft", "train", "binary", "binary")))
    on_step(Step(number=2, title=title, command=by_hand.export("sft", "pairs", "pairwise", "pairwise")))
    preset = "explained_pairwise" if has_reasons else "pairwise"
    on_step(Step(number=2, title=title, command=by_hand.export("dpo", "explained", preset, "dpo")))
    clock.lap("data")

    on_step(Step(number=3, title="Starting the host"))
    host.client().models.list()
    clock.lap("host")
    models: dict[str, FinetunedModel] = {}
    curves: dict[str, Sequence[tuple[float, float]]] = {}
    recipes: dict[str, str] = {}

    def tune(name: str, title: str, start: str | FinetunedModel, **options: Any) -> None:
        on_step(Step(number=4, title=title, command=by_hand.train(name, start, options)))
        made = plan(datasets[name], base_model=start, host=host, suffix=f"taste-{name}", seed=seed, **options)
        job, models[name] = _follow(made, lambda look: on_step(_training_step(title, look)))
        # None for a linear head, which is solved, not trained in steps.
        curves.update(loss_curves({f"{name} ({models[name].method})": job}))
        told = [event.message for event in job.events() if event.message.startswith(("Rows: ", "Chosen "))]
        if told:
            recipes[name] = ". ".join(told)
            on_step(Step(number=4, title=title, note=recipes[name]))
        clock.lap(f"train {name}")

    tune(
        "binary",
        "Tuning the binary model",
        base_model,
        validation=held_out,
        hyperparameters={"n_epochs": size.binary_epochs},
    )
    # A host that tunes weights starts the pairs from the binary model, which knows the taste already: from the untuned
    # one 300 pairs had to be shown twice. Where it fits linear heads, both read the same base.
    tune(
        "pairwise",
        "Tuning the pairwise model",
        models["binary"],
        hyperparameters={"n_epochs": size.pairwise_epochs},
    )
    start: str | FinetunedModel = models["pairwise"]
    if host.kind.has_recipes:
        # A head decides which title is preferred, and leaves the weights as they were: they learn to say why.
        start = base_model
        if has_reasons:
            datasets["reasons"] = export_sft(material.explained, prompts["dpo"], folder / "reasons.jsonl", seed=seed)
            once = {"recipe": "lora", "n_epochs": 1}
            tune("reasons", "Tuning the weights on the reasons", base_model, hyperparameters=once)
            start = models["reasons"]
    tune("dpo", "Tuning further on preferences", start, hyperparameters={"n_epochs": 1})

    on_step(Step(number=5, title="Saving the predictors"))
    # No cache: seconds and tokens are part of the verdict. An explanation of one sentence takes about 20 tokens.
    predictors = {
        name: predictor_for(
            prompt, models[name], host=host, cache=False, max_tokens=MAX_ANSWER_TOKENS if name == "dpo" else None
        )
        for name, prompt in prompts.items()
    }
    saved = {name: folder / f"{name}.predictor.json" for name in predictors}
    for name, predictor in predictors.items():
        predictor.save(saved[name])
    with quiet_dspy():
        # The encoder serves on the local host alone.
        encoder = baselines.ENCODER if host.kind.has_recipes and baselines.has_encoder() else None
        commands = {
            "titles": by_hand.compare({"tuned": saved["binary"]}, "train", "test", encoder),
            "pairs": by_hand.compare(
                {"pairwise": saved["pairwise"], "dpo": saved["dpo"]}, "pairs", "test_pairs", encoder
            ),
        }
        titles, pairs = _compare(
            material, prompts, predictors, base_model, host, seed, on_step, clock, by_hand=commands, encoder=encoder
        )

    on_step(Step(number=7, title="Writing the report"))
    page = folder / "report.html"
    write_html(page, [titles, pairs], training=curves)
    clock.lap("report")
    result = Result(
        folder=folder,
        titles=titles,
        pairs=pairs,
        models=models,
        predictors=saved,
        report=page,
        seconds=clock.laps,
        recipes=recipes,
    )
    write_json(folder / "results.json", summary(result))
    return result


def summary(result: Result) -> dict[str, Any]:
    """All figures of a run, JSON-safe."""
    return {
        "titles": result.titles.to_dict(),
        "pairs": result.pairs.to_dict(),
        "models": {name: model.to_dict() for name, model in result.models.items()},
        "predictors": {name: str(path) for name, path in result.predictors.items()},
        "report": str(result.report),
        "seconds": result.seconds,
        "recipes": result.recipes,
    }


def _follow(made: Plan, tell: Callable[[JobProgress], None]) -> tuple[Job, FinetunedModel]:
    try:
        job = made.start(new=True)
        return job, job.wait(on_progress=tell, poll_seconds=1.0)
    except KeyboardInterrupt:
        # Left alone a job would go on when the host is started next, for a report that nobody writes; also one whose
        # creation was under way. The host may have been interrupted as well.
        with contextlib.suppress(FinetuneError):
            for begun in list_jobs(host=made.host, metadata={INTENT_KEY: made.intent}):
                if not begun.facts.is_final:
                    begun.cancel()
        raise


def _training_step(title: str, look: JobProgress) -> Step:
    note = f"loss {look.losses[-1][1]:.2f}" if look.losses else look.status.replace("_", " ")
    return Step(number=4, title=title, n_done=look.step or 0, n_total=look.total_steps, note=note)


def _compare(
    material: Material,
    prompts: Mapping[str, Any],
    predictors: Mapping[str, FinetunedPredictor],
    base_model: str,
    host: Host,
    seed: int,
    on_step: OnStep,
    clock: _Clock,
    *,
    by_hand: Mapping[str, str],
    encoder: str | None,
) -> tuple[ComparisonReport, ComparisonReport]:
    lm = host.lm(base_model, cache=False, max_tokens=MAX_ANSWER_TOKENS, temperature=0.0, stop=[STOP])
    few_shots = {}
    for name, train in (("binary", material.train), ("pairwise", material.train_pairs)):

        def tried(n_tried: int, what: str = name) -> None:
            title = f"Optimizing DSPy's few-shot program: {what}"
            on_step(Step(number=6, title=title, n_done=n_tried, n_total=N_TRIED))

        tried(0)
        few_shots[name] = few_shot(prompts[name].signature, _system(prompts[name]), train, lm=lm, on_try=tried)
    clock.lap("few-shot optimization")
    tuned = predictors["binary"]
    assert isinstance(tuned, OpenAIPredictor)
    reports = []
    for name, title, programs, train, items, field_name in (
        (
            "titles",
            "Is it a favorite?",
            {
                "tuned": tuned,
                "untuned, same prompt": baselines.untuned(prompts["binary"], base_model, host=host, cache=False),
                "DSPy few-shot, untuned": few_shots["binary"],
            },
            material.train,
            material.test,
            "is_favorite",
        ),
        (
            "pairs",
            "Which of two is preferred?",
            {
                "tuned, pairwise": predictors["pairwise"],
                "tuned, DPO": predictors["dpo"],
                "tuned, binary scores": ByScore(tuned),
                "untuned, same prompt": baselines.untuned(prompts["pairwise"], base_model, host=host, cache=False),
                "DSPy few-shot, untuned": few_shots["pairwise"],
            },
            material.train_pairs,
            material.test_pairs,
            "preferred",
        ),
    ):

        def tell(look: CompareProgress, what: str = name) -> None:
            title = f"Asking about {what}: {look.program}"
            on_step(Step(number=6, title=title, n_done=look.n_asked, n_total=look.n_items))

        on_step(Step(number=6, title=f"Asking about {name}", command=by_hand[name]))
        chosen: list[Any] = [metrics.accuracy(field_name)]
        if name == "titles":
            chosen.append(metrics.roc_auc(field_name))
        reports.append(
            compare(
                programs,
                items,
                chosen,
                title=title,
                train=train,
                baselines=BaselineOptions(encoder=encoder, encoder_host=host),
                num_threads=N_THREADS,
                statistics=StatisticsOptions(seed=seed),
                running=RunOptions(on_progress=tell),
            ).annotated(cards=_cards(material))
        )
        clock.lap(f"compare on {name}")
    return reports[0], reports[1]


class _ByHand:
    """The job's steps as commands, and the files that they read: the rows of each side and the rubric."""

    def __init__(self, folder: Path, material: Material, rubric: str, base_model: str, host: Host, seed: int) -> None:
        self._folder, self._base_model, self._host, self._seed = folder, base_model, host, seed
        sides = {"train": material.train, "test": material.test, "pairs": material.train_pairs}
        sides |= {"explained": material.explained, "test_pairs": material.test_pairs}
        for name, rows in sides.items():
            with atomic_writer(self._rows(name)) as file:
                file.writelines(json.dumps(dict(row.items()), ensure_ascii=False).encode() + b"\n" for row in rows)
        self._rubric: tuple[str, ...] = ()
        if rubric:
            with atomic_writer(folder / "rubric.txt") as file:
                file.write(rubric.encode())
            self._rubric = ("--rubric", f"@{folder / 'rubric.txt'}")

    def _rows(self, name: str) -> Path:
        return self._folder / "data" / f"{name}.jsonl"

    def export(self, method: str, rows: str, preset: str, name: str) -> str:
        """Rows to a training file."""
        to = ("--seed", str(self._seed), "--out", str(self._folder / f"{name}.jsonl"))
        return _command("export", method, str(self._rows(rows)), "--preset", preset, *self._rubric, *to)

    def train(self, name: str, start: str | FinetunedModel, options: Mapping[str, Any]) -> str:
        """A training file to a tuned model and its predictor."""
        given = options["hyperparameters"]
        flags = {name: f"--{name.removeprefix('n_').replace('_', '-')}" for name in given}
        told = tuple(part for name, value in given.items() for part in (flags[name], str(value)))
        held_out = options.get("validation")
        if held_out is not None:
            told = ("--validation", str(held_out.path), *told)
        where = ("--host", self._host.kind.name, *(("--root", str(self._host.root)) if self._host.root else ()))
        return _command(
            *("train", str(self._folder / f"{name}.jsonl"), "--model", start if isinstance(start, str) else start.id),
            *told,
            *(*where, "--suffix", f"taste-{name}", "--seed", str(self._seed)),
            *("--save", str(self._folder / f"{name}.predictor.json")),
        )

    def compare(self, programs: Mapping[str, Path], train: str, test: str, encoder: str | None) -> str:
        """Predictors against each other and the baselines."""
        told = [part for name, path in programs.items() for part in ("--program", f"{name}={path}")]
        seen = ("--train", str(self._rows(train)), *(("--encoder", encoder) if encoder else ()))
        return _command("compare", str(self._rows(test)), *told, *seen, "--base-model", self._base_model)


def _command(*words: str) -> str:
    return f"dspy-finetune {shlex.join(words)}"


def _cards(material: Material) -> dict[str, dict[str, str]]:
    """What was trained on, for the report."""
    return {
        "Data": {
            "training titles": str(len(material.train)),
            "training pairs": str(len(material.train_pairs)),
            "explained pairs": str(len(material.explained)),
            "test titles": str(len(material.test)),
            "test pairs": str(len(material.test_pairs)),
            "on two sides": "no title, pairs were made after the split",
        },
    }


def _system(prompt: Any) -> str:
    """What the tuned model reads as its instructions, for the program that competes with it."""
    first = prompt.messages(dict.fromkeys(prompt.input_fields, ""))[0]
    return str(first["content"]) if first["role"] == "system" else ""


class _Clock:
    """Wall time between laps, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 1)
        self._last = now
