"""What the machine has for a job: memory that is free, processors that are idle, number formats that are fast.

In: /proc and the control groups. Out: bytes, threads, and the name of a number format.
A container's limits count as much as the machine's own. No torch, but for the question which formats are fast.
Not covered: systems without /proc (macOS), where memory and load are unknown and nothing is refused or reduced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
THREADS_SECONDS = 20.0
"""How often a process asks `Threads` anew."""


def free_memory(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Bytes that a new process can take before the machine, or its control group, runs out; None where unknown."""
    found = [room for room in (_available(proc), *_group_rooms(proc, groups)) if room is not None]
    return max(0, min(found)) if found else None


def _available(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _group_rooms(proc: Path, groups: Path) -> Iterator[int | None]:
    """The room in each control group above this process, versions 2 and 1."""
    for folder, limit, usage, cached in (
        *((one, "memory.max", "memory.current", "inactive_file") for one in _above(proc, groups, "")),
        *(
            (one, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            for one in _above(proc, groups / "memory", "memory")
        ),
    ):
        try:
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # no such file, or the word "max"
        # Files that were read lately are counted as used, and given up when memory is needed.
        yield most - used + int(stat.get(cached, 0))


def _above(proc: Path, root: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and of all above it, as far as they can be seen from here."""
    try:
        lines = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        lines = []
    path = next((one[2] for one in lines if len(one) == 3 and controller in one[1].split(",")), "/")
    folder = root / path.lstrip("/")
    return [folder, *(one for one in folder.parents if one.is_relative_to(root))]


def allowed_cpus(groups: Path = GROUPS) -> tuple[set[int], int]:
    """(the processors this process may run on, how many of them at the same time).

    OpenMP knows the affinity but no quota: a container with two of 64 processors would start 64 threads, which then
    wait for one another.
    """
    cpus = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    n_cpus = len(cpus)
    for limit, period in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (groups / limit).read_text().split()
            quota, per = int(words[0]), int(words[1] if period is None else (groups / period).read_text())
        except (OSError, ValueError, IndexError):
            continue  # no such file, or the word "max"
        if quota > 0 < per:
            n_cpus = min(n_cpus, max(1, round(quota / per)))
    return cpus, n_cpus


class Threads:
    """How many threads a job may use now: those that may run, less what others keep busy.

    An OpenMP thread that shares its processor with a busy neighbour holds up all the others at the end of each
    operation; one thread fewer is faster for both.
    """

    def __init__(
        self, *, proc: Path = PROC, groups: Path = GROUPS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.proc, self.clock = proc, clock
        self.cpus, self.most = allowed_cpus(groups)
        self._seen = self._look()

    def now(self) -> int:
        """The number for the next while, from what was busy since the last call; between 1 and `most`."""
        before, self._seen = self._seen, self._look()
        if before is None or self._seen is None or self._seen[0] <= before[0]:
            return self.most
        seconds = self._seen[0] - before[0]
        others = (self._seen[1] - before[1] - (self._seen[2] - before[2])) / seconds
        return max(1, min(self.most, len(self.cpus) - round(max(0.0, others))))

    def _look(self) -> tuple[float, float, float] | None:
        """(time, seconds that our processors were busy, seconds of them that were ours)."""
        try:
            lines = [line.split() for line in (self.proc / "stat").read_text().splitlines()]
            per_second = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            return None
        ours = [line for line in lines if line[0].startswith("cpu") and line[0][3:].isdigit()]
        # user, nice, system, idle, iowait, irq, softirq, steal: all but the two in which nothing runs.
        busy = sum(
            sum(map(int, line[1:4])) + sum(map(int, line[6:9])) for line in ours if int(line[0][3:]) in self.cpus
        )
        own = os.times()
        return self.clock(), busy / per_second, own.user + own.system + own.children_user + own.children_system


def fast_dtype(device: str) -> str:
    """The number format in which this device multiplies fastest without loss that training would notice."""
    import torch  # seconds of import; what asks for memory and threads alone does without

    if device == "cpu":
        # Private by name, the only questions torch has for it; where they go, float32 is right and slower.
        asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return "bfloat16" if any(getattr(torch.cpu, name, lambda: False)() for name in asked) else "float32"
    # Before Ampere (compute capability 8) bfloat16 is emulated.
    return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"


def set_attention(device: str) -> None:
    """Choose kernels for attention whose shapes are never the same twice.

    cuDNN plans anew for each shape: with it attention's calls took twelve times as long on an H200 as in batches of
    like shape (benchmarks/results/gpu.md). The other kernels need no plan.
    """
    import torch  # seconds of import, as above

    if device != "cpu":
        torch.backends.cuda.enable_cudnn_sdp(False)
