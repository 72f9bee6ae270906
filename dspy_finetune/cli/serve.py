"""`dspy-finetune serve`: run the local host, which trains and serves small open models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def serve(
        root: Annotated[Path | None, typer.Option(help="Folder for files, jobs and models.")] = None,
        host: Annotated[
            str, typer.Option(help="Address to listen on; one that others can reach needs --api-key.")
        ] = "127.0.0.1",
        allow_host: Annotated[
            list[str] | None,
            typer.Option(help="A further name that requests may come by, such as a proxy's. May be repeated."),
        ] = None,
        port: Annotated[int, typer.Option(help="Port; 0 finds a free one.", min=0, max=65535)] = 0,
        model: Annotated[
            list[str] | None,
            typer.Option(help="Base model: smollm2-135m-instruct, a Hugging Face id, or a folder. May be repeated."),
        ] = None,
        api_key: Annotated[
            str | None,
            typer.Option(help="Accept this key alone; without it any key.", envvar="DSPY_FINETUNE_LOCAL_API_KEY"),
        ] = None,
        die_with: Annotated[int | None, typer.Option(help="Stop when the process of this number is gone.")] = None,
        device: Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU where there is one.")] = None,
        threads: Annotated[int | None, typer.Option(help="Threads for computing.", min=1)] = None,
        dtype: Annotated[str, typer.Option(help="Serving in float32 (exact) or bfloat16.")] = "float32",
        max_models: Annotated[int, typer.Option(help="Models kept in memory.", min=1)] = 4,
    ) -> None:
        """Run the local host: OpenAI's API, with real training and serving of a small open model.

        Prints one JSON line with its url and runs until Ctrl-C.

        Example: dspy-finetune serve --port 8377
        """
        # Serving needs the extra "local"; the other commands must not.
        from dspy_finetune.errors import UsageError
        from dspy_finetune.local.models import PACKAGED_MODEL
        from dspy_finetune.local.server import ServeOptions, default_root
        from dspy_finetune.local.server import serve as run

        if dtype not in ("float32", "bfloat16"):
            raise UsageError(f"--dtype {dtype} is not one of float32, bfloat16")
        run(
            ServeOptions(
                root=root or default_root(),
                host=host,
                allowed_hosts=tuple(allow_host or ()),
                port=port,
                models=tuple(model or [PACKAGED_MODEL]),
                api_key=api_key,
                die_with=die_with,
                device=device,
                n_threads=threads,
                dtype=dtype,
                max_models=max_models,
            )
        )
