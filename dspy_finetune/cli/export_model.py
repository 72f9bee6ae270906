"""`dspy-finetune export-model` and `verify`: a tuned model as files for another server, and whether that server answers
as the model does.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

import dspy_finetune as ft
from dspy_finetune._files import read_json
from dspy_finetune.catalog import parse_model_id
from dspy_finetune.cli.app import out, print_json, talk, warn
from dspy_finetune.cli.options import AsJson, EnvPath, RootPath, host_named, load_env, one_of
from dspy_finetune.errors import DataError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.hosts.host import host_option


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export-model")(export_model)
    app.command("verify")(verify)


def export_model(
    model: Annotated[
        str,
        typer.Argument(help="The tuned model's id, or a saved predictor's file; a base model's name for its weights."),
    ],
    folder: Annotated[Path, typer.Option("--out", help="A new folder.")],
    format: Annotated[
        str,
        typer.Option(
            help="peft, merged, gguf, ollama, hub; head for a linear head.",
            autocompletion=one_of("peft", "merged", "gguf", "ollama", "hub", "head"),
        ),
    ] = "merged",
    precision: Annotated[
        str | None,
        typer.Option(help="f32, f16, bf16; q8_0 for gguf. f16 without it; bf16 for merged where f16 is too narrow."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            help="Where the model is: local, or local=ADDRESS; a predictor's own without it.",
            autocompletion=one_of("local"),
        ),
    ] = None,
    root: RootPath = None,
    repo: Annotated[str | None, typer.Option(help="With --format hub: OWNER/NAME; the token is in HF_TOKEN.")] = None,
    weights: Annotated[str, typer.Option(help="With --format hub: peft, merged, gguf or head.")] = "merged",
    public: Annotated[bool, typer.Option("--public", help="With --format hub: everybody sees the repository.")] = False,
    predictor: Annotated[
        Path | None, typer.Option(help="A saved predictor: prompt and calibration for the card.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="A report as JSON: its figures for the card.")] = None,
    data_license: Annotated[str | None, typer.Option(help="Licence of the training data, for the card.")] = None,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for vLLM, transformers, llama.cpp or Ollama, or push it to the Hugging Face hub.

    Example: dspy-finetune export-model predictor.json --out model/ --format gguf
    """
    load_env(env_file)
    options: dict[str, Any] = {"format": format, "weights": weights}
    if format not in get_args(ft.jobs.model_export.ModelFormat):
        raise UsageError(f"--format {format}: expected one of {', '.join(get_args(ft.jobs.model_export.ModelFormat))}")
    if weights not in get_args(ft.jobs.model_export.Weights):
        raise UsageError(f"--weights {weights}: expected one of {', '.join(get_args(ft.jobs.model_export.Weights))}")
    name, where = _model_and_host(model, host, root)
    if name != model:
        predictor = predictor or Path(model)
    known = ft.FinetunedModel(
        id=name, base=parse_model_id(name).base, host_name=where.name, host_description=where.to_dict()
    )
    try:
        made = known.export(
            folder,
            host=where,
            precision=precision,
            repo=repo,
            private=not public,
            predictor=predictor,
            report=report,
            data_license=data_license,
            on_progress=lambda text: talk().print(text, highlight=False),
            **options,
        )
    finally:
        where.close()
    if as_json:
        print_json(made.to_dict())
        return
    console = out()
    console.print(f"{made.url or made.folder}: {', '.join(made.files)}", highlight=False, soft_wrap=True)
    console.print("\nserve it:", highlight=False)
    for line in made.serve:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if made.verify:
        console.print("\nsee that it answers as the model does:", highlight=False)
        line = made.verify
        if name != model:
            line = line.replace(shlex.quote(name), shlex.quote(model), 1)  # the predictor's file names its host, too
        elif host is not None or root is not None:
            line += f" {host_option(where)}"
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    elif "head.json" in made.files:
        console.print("\nas a DSPy module, without a host:", highlight=False)
        line = f"ft.load_predictor({str(made.folder)!r})"
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    warn(made.warnings)


def verify(
    model: Annotated[str, typer.Argument(help="The tuned model's id, or a saved predictor's file.")],
    at: Annotated[str, typer.Option(help="The server: an address, or NAME=ADDRESS (key in NAME_API_KEY).")],
    served_as: Annotated[str | None, typer.Option("--as", help="What the model is called there.")] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            help="Where the model was trained; a predictor's own host, or local, without.",
            autocompletion=one_of("local"),
        ),
    ] = None,
    root: RootPath = None,
    data: Annotated[
        Path | None, typer.Option(help="Rows to ask; the job's validation file, else its training file, without it.")
    ] = None,
    n_prompts: Annotated[int, typer.Option("--prompts", min=1, help="Maximum number.")] = 50,
    tolerance: Annotated[float, typer.Option(min=0, help="Nats that rounded weights may put between the two.")] = 0.1,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Ask a server and the model's own host the same prompts; exit 1 where something else answers.

    Example: dspy-finetune verify predictor.json --at http://127.0.0.1:8000/v1
    """
    load_env(env_file)
    other = host_named(at, option="--at")
    name, own = _model_and_host(model, host, root)
    try:
        found = ft.verification.verify(
            name, other, served_as=served_as, host=own, data=data, n_prompts=n_prompts, tolerance=tolerance
        )
    finally:
        own.close()
        other.close()
    if as_json:
        print_json(found.to_dict())
    else:
        out().print(str(found), highlight=False, markup=False, soft_wrap=True)
    if not found.ok:
        raise typer.Exit(1)


def _model_and_host(model: str, host: str | None, root: Path | None) -> tuple[str, Host]:
    """The model's id and its host; of a saved predictor's file what stands there, unless an option says otherwise."""
    if not model.endswith(".json"):
        return model, host_named(host or "local", root=root)
    state = read_json(model, "a saved predictor", "save one with predictor.save(path)")
    if not isinstance(state.get("model"), str):
        raise DataError(f"{model}: this is no saved predictor: it names no model; give the model's id")
    if host is None and root is None and isinstance(state.get("host"), dict):
        return state["model"], Host.from_dict(state["host"])
    return state["model"], host_named(host or "local", root=root)
