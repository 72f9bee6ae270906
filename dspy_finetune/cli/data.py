"""`dspy-finetune advise`, `split` and `init`: labelled rows, before anything is trained.

`advise` says whether they are worth a fine-tuned model. `split` makes train, validation and test files with no item on
two sides. `init` writes a folder with `finetune.py`, a script that runs as it stands, and `pyproject.toml`, whose table
`[tool.dspy-finetune]` gives the commands their defaults; nothing is asked that the file tells.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspy_finetune._files import atomic_writer, write_json
from dspy_finetune.cli.app import print_json, remark, say, warn
from dspy_finetune.cli.options import CellDelimiter, Decimal, inputs_of
from dspy_finetune.errors import UsageError

if TYPE_CHECKING:
    from dspy_finetune.data.fields import Columns

_SCRIPT = '''"""Fine-tune a small model on {name} and learn whether it was worth it. Run: python finetune.py"""

{imports}import dspy

import dspy_finetune as ft


class Task(dspy.Signature):
    """{instructions}"""

{fields}


def main() -> None:
    # Each value is read as its field's type; an error names the line of a row that cannot be read.
    examples = ft.load_examples({path!r}, signature=Task{cells})
    # Rows with equal inputs stay on the same side. The local host validates on training rows that it holds out; for
    # other hosts split by (0.8, 0.1, 0.1), export the second part too, and give it to ft.plan(..., validation=...).
    train, _, test = ft.split(examples, (0.8, 0, 0.2){stratify})

    # The same prompt is used to train, to count tokens and to ask the tuned model.
    prompt = {prompt}
    training_file = ft.export_sft(train, prompt, "train.jsonl")

    # The local host trains a small open model on this machine. To train on OpenAI, write ft.Host.openai() here.
    host = ft.Host.local()
    plan = ft.plan(training_file, host=host)
    print(plan)
    tuned = {predictor}(prompt, plan.start(max_usd=5).wait(), host=host)

    # The tuned model and baselines that are fitted on the training rows, all asked about the same test rows.
    report = ft.compare({{"tuned": tuned}}, test, [{metric}], train=train)
    print(report.table(), report.verdict, sep="\\n")
    report.to_html("report.html")
    tuned.save("predictor.json")  # ft.load_predictor("predictor.json") loads it


if __name__ == "__main__":
    main()
'''

_SETTINGS = """# Defaults for dspy-finetune's commands in this folder: one table per command, options without dashes.
# The command line overrides environment variables (DSPY_FINETUNE_PLAN_HOST), which override this file.

[tool.dspy-finetune.plan]
host = "local"

[tool.dspy-finetune.train]
host = "local"
"""

_PRESETS = {
    "binary": ("ft.prompts.binary(Task)", "ft.OpenAIPredictor", "accuracy"),
    "labels": ("ft.PromptFormat(Task)", "ft.OpenAIPredictor", "accuracy"),
    "pairs": ("ft.prompts.pairwise(Task)", "ft.PairwisePredictor", "accuracy"),
    "number": ("ft.prompts.number(Task)", "ft.OpenAIPredictor", "mean_absolute_error"),
    "text": ("ft.prompts.answer(Task)", "ft.OpenAIPredictor", "token_f1"),
}
_INSTRUCTIONS = {
    "binary": "Does this hold: {label}?",
    "labels": "Choose the {label}.",
    "pairs": "Which of the two: {label}?",
    "number": "Estimate the {label}.",
    "text": "Give the {label}.",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("advise")(advise_command)
    app.command("split")(split)
    app.command("init")(init)


def advise_command(
    data: Annotated[str, typer.Argument(help="Labelled rows: json, jsonl, csv, tsv, parquet, or - for stdin.")],
    label: Annotated[
        str | None, typer.Option(help="The label's column, where it cannot be told from the rows.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="An input column; may be repeated.")] = None,
    signature: Annotated[
        str | None, typer.Option(help='The task as a DSPy signature, such as "headline -> liked: bool".')
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(help="The sentence encoder of one baseline; auto: minilm-l6 if installed; none: leave it out."),
    ] = "auto",
    delimiter: CellDelimiter = None,
    decimal: Decimal = ".",
    seed: Annotated[int, typer.Option(help="Random seed of the folds and of the sample.")] = 0,
    json_to: Annotated[Path | None, typer.Option("--json-to", help="Write the figures as JSON to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say whether fine-tuning on these rows is worth trying, which way, and why; nothing is trained or asked.

    Example: dspy-finetune advise titles.csv --label liked
    """
    from dspy_finetune.data import load_examples  # here: --help must not wait for dspy
    from dspy_finetune.data.fields import guess_columns
    from dspy_finetune.evaluation import advise

    if decimal == "," and label is None and signature is None:
        label = guess_columns(load_examples(data, delimiter=delimiter), inputs=text or None).label
    rows = load_examples(
        data,
        inputs=text or None,
        # Only whoever says that there are decimal commas has said that the label is a number.
        types={label: float | None} if label is not None and decimal == "," else None,
        signature=signature,
        delimiter=delimiter,
        decimal=decimal,
    )
    found = advise(rows, signature, label=label, encoder=None if encoder == "none" else encoder, seed=seed)
    if json_to is not None:
        write_json(json_to, found.to_dict())
    if as_json:
        print_json(found.to_dict())
    else:
        say(str(found))


def split(
    data: Annotated[str, typer.Argument(help="Labelled rows: json, jsonl, csv, tsv, parquet, or - for stdin.")],
    to: Annotated[Path, typer.Option("--out", help="The folder for train.jsonl, validation.jsonl and test.jsonl.")],
    fractions: Annotated[
        str, typer.Option(help="Shares of train, validation and test; they sum to 1.")
    ] = "0.8,0.1,0.1",
    group_by: Annotated[
        list[str] | None, typer.Option("--group-by", help="Rows with equal values stay together; repeat for pairs.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="The label's column: rows in which it is empty are left out, and told.")
    ] = None,
    number: Annotated[
        str | None, typer.Option(help="The same, of a label that holds numbers, which are read and written as such.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="The same, of a label that says which of two columns is preferred, by its name or its text; "
            "ties are left out, and told."
        ),
    ] = None,
    stratify_by: Annotated[
        str | None, typer.Option("--stratify-by", help="Spread this column's values evenly over the three files.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="An input column: rows with equal inputs stay together, and empty cells (null) are written as empty "
            "texts; may be repeated."
        ),
    ] = None,
    delimiter: CellDelimiter = None,
    decimal: Decimal = ".",
    seed: Annotated[int, typer.Option(help="Random seed: another seed gives another split.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print paths and row counts as JSON.")] = False,
) -> None:
    """Split a labelled file into train, validation and test files; duplicates never part.

    Example: dspy-finetune split titles.csv --stratify-by liked --out data/
    """
    from dspy_finetune.data import load_examples  # here: --help must not wait for dspy
    from dspy_finetune.data import split as split_examples

    try:
        shares = tuple(float(part) for part in fractions.split(","))
    except ValueError as error:
        raise UsageError(f"--fractions {fractions}: write three numbers, such as 0.8,0.1,0.1") from error
    by = None if not group_by else group_by[0] if len(group_by) == 1 else tuple(group_by)
    if sum(name is not None for name in (label, number, pairs)) > 1:
        raise UsageError("give one of --label, --number and --pairs: each names the label's column")
    kinds: dict[str, Any] = {} if number is None else {number: float | None}
    rows: Sequence[Any] = load_examples(data, types=kinds, delimiter=delimiter, decimal=decimal)
    answer = label or number or pairs
    if answer is not None:
        rows = labelled(rows, answer, data)
    if text:
        filled = [{name: "" for name in text if row.get(name) is None} for row in rows]
        rows = [row.copy(**empty).with_inputs(*text) for row, empty in zip(rows, filled, strict=True)]
    if pairs is not None:
        rows = with_a_preference(rows, pairs, text, data)
    parts = split_examples(rows, shares, group_by=by, stratify_by=stratify_by, rare="train", seed=seed)
    written = {}
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        if not part:  # a fraction of 0 asks for no such file
            continue
        path = to / f"{name}.jsonl"
        with atomic_writer(path) as file:
            file.writelines(json.dumps(dict(row), ensure_ascii=False, default=str).encode() + b"\n" for row in part)
        written[name] = {"path": str(path), "rows": len(part)}
    if as_json:
        print_json(written)
        return
    for name, facts in written.items():
        print(f"{facts['path']}: {facts['rows']:,} rows ({name})")
    remark(parts.summary())


def with_a_preference(rows: Sequence[Any], label: str, sides: Sequence[str] | None, data: str) -> list[Any]:
    """The pairs in which one side is preferred, by name; how many the others are is told. The sides are the inputs."""
    from dspy_finetune.data.fields import guess_columns  # here: --help must not wait for dspy
    from dspy_finetune.data.items import decided_pairs

    columns = guess_columns(rows, label=label, inputs=sides)
    if columns.task != "pairs":
        raise UsageError(f"--pairs {label}: no two columns of {data} are sides that it names ({columns.why})")
    kept = [row.with_inputs(*columns.inputs) for row in decided_pairs(rows, columns)]
    if not kept:
        raise UsageError(f"--pairs {label}: no row of {data} prefers a side")
    if len(kept) < len(rows):
        warn([f"{len(rows) - len(kept)} of {len(rows)} rows prefer neither side and are left out"])
    return kept


def labelled(rows: Sequence[Any], label: str, data: str) -> list[Any]:
    """The rows that have a value of the label; the others are named. Raises UsageError where no row has one."""
    from dspy_finetune.data.fields import columns_hint  # here: --help must not wait for dspy

    kept: list[tuple[int, Any]] = []
    empty: list[tuple[int, Any]] = []
    for number, row in enumerate(rows, start=1):
        value = row.get(label)
        is_empty = value is None or (isinstance(value, str) and not value.strip())
        (empty if is_empty else kept).append((number, row))
    if not kept:
        raise UsageError(f"no row of {data} has a value of {label!r}; {columns_hint(label, rows[0].keys())}")
    if empty:
        shown = ", ".join(str(number) for number, _ in empty[:10])
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        warn([f"{len(empty)} of {len(rows)} rows have no {label!r} and are left out: row {shown}{more} of {data}"])
    return [row for _, row in kept]


def init(
    data: Annotated[Path, typer.Argument(help="Your labelled rows: json, jsonl, csv, tsv or parquet.")],
    to: Annotated[Path, typer.Option("--out", help="The folder of the project.")] = Path("finetune-project"),
    label: Annotated[
        str | None, typer.Option(help="The label's column, where it cannot be told from the rows.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="An input column; may be repeated.")] = None,
    delimiter: CellDelimiter = None,
    decimal: Decimal = ".",
    as_json: Annotated[bool, typer.Option("--json", help="Print the files and what was guessed as JSON.")] = False,
) -> None:
    """Write a commented project for your own file: a script that trains and compares, and settings.

    Example: dspy-finetune init titles.csv
    """
    from dspy_finetune.data import load_examples  # here: --help must not wait for dspy
    from dspy_finetune.data.fields import check_decimal, guess_columns, number_options

    files = {to / "finetune.py": "", to / "pyproject.toml": _SETTINGS}
    for path in files:
        if path.exists():
            raise UsageError(f"{path} is there already; choose another folder with --out, or delete it")
    examples = load_examples(data, delimiter=delimiter)
    columns = guess_columns(examples, label=label, inputs=text or None, decimal=decimal)
    columns.check_fields(data)
    numbers = {}
    if columns.task == "number":
        cells = [example.get(columns.label) for example in examples]
        check_decimal(cells, columns.label, decimal)
        numbers = number_options(cells, columns.label, decimal)
    files[to / "finetune.py"] = script(columns, data.resolve(), delimiter, decimal, numbers)
    for path, content in files.items():
        with atomic_writer(path) as file:
            file.write(content.encode())
        if not as_json:
            print(path)
    if as_json:
        print_json({"files": [str(path) for path in files], "columns": dataclasses.asdict(columns)})
        return
    remark(f"{data}: {columns.why}; {inputs_of(columns, examples[0].keys())}. Now: cd {to} && python finetune.py")


def _thing(column: str) -> str:
    """What a column is called in a sentence of a docstring."""
    return column.replace("_", " ").strip().rstrip("?").replace("\\", "\\\\").replace('"', '\\"')


def script(
    columns: Columns,
    data: Path,
    delimiter: str | None = None,
    decimal: str = ".",
    numbers: Mapping[str, Any] | None = None,
) -> str:
    """The script for a task, as Python source."""
    from dspy_finetune.data.fields import field_name  # here: --help must not wait for dspy

    # The preset asks for A or B, and compares fields that end in _a and _b; other names are a choice of two labels.
    is_choice = columns.task == "pairs" and not columns.is_a_or_b
    prompt, predictor, metric = _PRESETS["labels" if is_choice else columns.task]
    prompt = prompt.replace(
        "(Task)", "".join(["(Task", *(f", {name}={value!r}" for name, value in (numbers or {}).items()), ")"])
    )
    label = field_name(columns.label)
    fields = [f"    {field_name(name)}: str = dspy.InputField()" for name in columns.inputs]
    fields.append(f"    {label}: {columns.annotation} = dspy.OutputField()")
    stratify = f", stratify_by={label!r}, rare='train'" if columns.task in ("binary", "labels") else ""
    return _SCRIPT.format(
        name=data.name,
        path=str(data),
        cells=("" if delimiter is None else f", delimiter={delimiter!r}")
        + ("" if decimal == "." else f", decimal={decimal!r}"),
        instructions=_INSTRUCTIONS[columns.task].format(label=_thing(columns.label)),
        fields="\n".join(fields),
        imports="from typing import Literal\n\n" if "Literal" in columns.annotation else "",
        prompt=prompt,
        predictor=predictor,
        metric=f"ft.metrics.{metric}({label!r})",
        stratify=stratify,
    )
