"""`dspy-finetune verify`: whether a server answers as the tuned model does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dspy_finetune.cli.app import out, print_json
from dspy_finetune.cli.options import host_named, load_env
from dspy_finetune.cli.plan import AsJson, EnvPath, RootPath
from dspy_finetune.verification import verify as hold_against


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(
    model: Annotated[str, typer.Argument(help="The tuned model's id.")],
    at: Annotated[str, typer.Option(help="The server: an address, or NAME=ADDRESS (key in NAME_API_KEY).")],
    served_as: Annotated[str | None, typer.Option("--as", help="What the model is called there.")] = None,
    host: Annotated[str, typer.Option("--host", help="Where the model was trained.")] = "local",
    root: RootPath = None,
    data: Annotated[
        Path | None, typer.Option(help="Rows to ask; the job's validation file, else its training file, without it.")
    ] = None,
    n_prompts: Annotated[int, typer.Option("--prompts", min=1, help="Maximum number.")] = 50,
    tolerance: Annotated[float, typer.Option(min=0, help="Nats that rounded weights may put between the two.")] = 0.05,
    env_file: EnvPath = None,
    as_json: AsJson = False,
) -> None:
    """Ask a server and the model's own host the same prompts; exit 1 where something else answers."""
    load_env(env_file)
    own, other = host_named(host, root=root), host_named(at)
    try:
        found = hold_against(
            model, other, served_as=served_as, host=own, data=data, n_prompts=n_prompts, tolerance=tolerance
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
