"""The command line: one file per command, one place where errors become lines and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Results go to stdout, talk and progress to stderr.
"""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> None:
    """Run `dspy-finetune`; exits the process with the command's code."""
    try:
        # typer and rich belong to the extra "cli": without them the command says so in one line.
        import typer
        from rich.console import Console  # noqa: F401
    except ModuleNotFoundError as error:
        print(
            f'the command line needs "{error.name}", which is not installed: pip install "dspy-finetune[cli]"',
            file=sys.stderr,
        )
        sys.exit(1)
    import click

    from dspy_finetune.cli.app import build_app, describe_error

    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("DSPY_FINETUNE_DEBUG") == "1"
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = typer.main.get_command(build_app())(arguments, standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.exceptions.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.ClickException as error:
        error.show(file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone: not an error of ours, and nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # the last gate before the user: any error becomes one line, unless --debug asks for all
        if debug:
            raise
        line, code = describe_error(error)
        print(line, file=sys.stderr)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
