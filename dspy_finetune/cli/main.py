"""The command line: one place where errors become lines and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; `compare` adds 3 and 4. Results go to stdout, talk and
progress to stderr. A character that a stream's encoding lacks (Windows writes cp1252 to a file, which has no emoji) is
written as its escape, so that `--json` stays the same JSON.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from dspy_finetune._progress import Heartbeat

INTERRUPTED = 130
COMPLETE = "_DSPY_FINETUNE_COMPLETE"
"""Set by a shell that asks how a line goes on."""
_DRAWN = {**dict(zip("▁▂▃▄▅▆▇█", ".:-=+*#@", strict=True)), "━": "=", "─": "-", "✓": "+"}
"""What progress is drawn with, and what stands for it where the encoding lacks it."""


def main(argv: list[str] | None = None, *, has_defaults: bool = True) -> None:
    """Run `dspy-finetune`; exits the process with the command's code.

    Args:
        argv: The words after `dspy-finetune`; those of this process without.
        has_defaults: The user's own defaults hold, of the environment and of the working folder's pyproject.toml.
    """
    # DSPy looks a price list up on the network at its first call, and waits five seconds where there is none; the one
    # in its package serves the command line.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell (>&-): nobody wants to see it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process
    _take_any_text(sys.stdout, "dspy-finetune-escaped", _escaped)
    _take_any_text(
        sys.stderr, "dspy-finetune-drawn", lambda text: "".join(_DRAWN.get(one) or _escaped(one) for one in text)
    )
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("DSPY_FINETUNE_DEBUG") == "1"
    was_quiet = os.environ.get("DSPY_FINETUNE_QUIET", "")
    if "--quiet" in arguments:
        os.environ["DSPY_FINETUNE_QUIET"] = "1"
    arguments = [argument for argument in arguments if argument not in ("--debug", "--quiet")]
    try:
        # A process of its own: who calls this function with arguments has streams of his own to look after.
        # A server is silent because nobody asks it anything: its log would fill with lines.
        # A shell that asks for completions has its own line on the screen, which nothing may be drawn into.
        is_beating = argv is None and arguments[:1] != ["serve"] and COMPLETE not in os.environ
        with Heartbeat(f"dspy-finetune {' '.join(arguments[:1])}") if is_beating else contextlib.nullcontext():
            code = _run(arguments, debug=debug, has_defaults=has_defaults)
        code = _flushed(code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone: not an error of ours, and nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    finally:
        os.environ["DSPY_FINETUNE_QUIET"] = was_quiet
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    sys.exit(code)


def _flushed(code: int) -> int:
    """The exit code once all is written; 1 on a full disk, with a line."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer cannot be written at the interpreter's end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        return 1
    return code


def _take_any_text(stream: TextIO, name: str, replacement: Callable[[str], str]) -> None:
    """Let a stream write what its encoding cannot, by a replacement of ASCII."""

    def replace(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return replacement(error.object[error.start : error.end]), error.end

    codecs.register_error(name, replace)
    if hasattr(stream, "reconfigure"):  # a stream that was put in the place of the real one may lack it
        stream.reconfigure(errors=name)


def _escaped(text: str) -> str:
    """JSON's escapes: the characters stand in strings where the text is JSON.

    >>> print(_escaped("\N{HONEYBEE}"))
    \\ud83d\\udc1d
    """
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _run(arguments: list[str], *, debug: bool, has_defaults: bool) -> int:
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
            default_map=user_defaults(command, Path("pyproject.toml")) if has_defaults else {},
        )
    except typer.Abort:
        return INTERRUPTED
    except typer.Exit as stop:
        return stop.exit_code
    except SystemExit as error:
        # The commands never do this: it is how typer ends what a shell asks to complete a line, and where the reader of
        # a pipe has gone.
        if COMPLETE in os.environ:
            return int(error.code or 0)
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
    from dspy_finetune.cli.app import notes_of  # here: it needs typer, whose absence is told in one line

    text = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        return text
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "dspy-finetune"
    text = " ".join(text.replace("Value error, ", "").split()).rstrip(".")
    return f"error: {text}{notes_of(error)} (see: {command} --help)"


if __name__ == "__main__":
    main()
