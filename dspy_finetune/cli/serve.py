"""`dspy-finetune serve`: run the local host, which trains and serves small open models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dspy_finetune.cli.app import remark

DTYPES = ("auto", "float32", "bfloat16", "float16")


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
        dtype: Annotated[
            str, typer.Option(help="Serving in float32 (exact), bfloat16 or float16; auto: float32 on a CPU.")
        ] = "auto",
        training_dtype: Annotated[
            str, typer.Option(help="Training in float32, bfloat16 or float16; auto: what the device multiplies fast.")
        ] = "auto",
        memory_gb: Annotated[
            float | None, typer.Option(help="Memory that a job may take; default: what is free.", min=0.1)
        ] = None,
        processes: Annotated[int, typer.Option(help="Processes that train together: one for each GPU.", min=1)] = 1,
        launch_config: Annotated[
            Path | None, typer.Option(help="A file of `accelerate config` that says how jobs are started.")
        ] = None,
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

        for option, given in (("--dtype", dtype), ("--training-dtype", training_dtype)):
            if given not in DTYPES:
                raise UsageError(f"{option} {given} is not one of {', '.join(DTYPES)}")
        if launch_config is not None and not launch_config.is_file():
            raise UsageError(f"--launch-config {launch_config}: no such file; `accelerate config` writes one")
        if sys.stderr.isatty():
            remark(
                "starting the local host, which may take some seconds; Ctrl-C stops it, and keeps its jobs and models"
            )
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
                training_dtype=training_dtype,
                memory_gb=memory_gb,
                n_processes=processes,
                launch_config=launch_config,
                max_models=max_models,
            )
        )
