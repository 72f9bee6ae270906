"""The command line: one file per command, one place where errors become lines and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; `compare` adds 3 and 4. Results go to stdout, talk and
progress to stderr.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

INTERRUPTED = 130


def main(argv: list[str] | None = None) -> None:
    """Run `dspy-finetune`; exits the process with the command's code."""
    # DSPy looks a price list up on the network at its first call, and waits five seconds where there is none; the one
    # in its package serves the command line.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("DSPY_FINETUNE_DEBUG") == "1"
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = _run(arguments, debug=debug)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone: not an error of ours, and nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    sys.exit(code)


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        # typer and rich belong to the extra "cli": without them the command says so in one line.
        import rich.progress  # noqa: F401
        import typer

        from dspy_finetune.cli.app import build_app, describe_error, user_defaults
    except ModuleNotFoundError as error:
        print(
            f'error: the command line needs the package "{error.name}", which is not installed:'
            ' pip install "dspy-finetune[cli]"',
            file=sys.stderr,
        )
        return 1
    # typer carries a copy of click of its own since 0.26 and used the package before: the base class is asked of typer.
    wrong_usage: type[Exception] = next(
        kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
    )
    try:
        command = typer.main.get_command(build_app())
        code = command(
            arguments,
            prog_name="dspy-finetune",
            standalone_mode=False,
            default_map=user_defaults(command, Path("pyproject.toml")),
        )
    except typer.Abort:
        return INTERRUPTED
    except typer.Exit as stop:
        return stop.exit_code
    except SystemExit as error:
        # The commands never do this: it is how typer ends where the reader of a pipe has gone.
        raise BrokenPipeError from error
    except wrong_usage as error:
        print(_usage_line(error), file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    except Exception as error:  # the last gate before the user: any error becomes one line, unless --debug asks for all
        if debug:
            raise
        line, code = describe_error(error)
        print(line, file=sys.stderr)
    return code if isinstance(code, int) else 0


def _usage_line(error: Exception) -> str:
    """The problem and where to look it up; the whole help where nothing was asked for."""
    text = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        return text
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "dspy-finetune"
    text = " ".join(text.replace("Value error, ", "").split()).rstrip(".")
    return f"error: {text} (see: {command} --help)"


if __name__ == "__main__":
    main()
