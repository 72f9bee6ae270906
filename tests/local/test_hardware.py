"""What the machine has: a container's limits count, and so does what others keep busy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dspy_finetune.local.hardware import Threads, allowed_cpus, free_memory, set_attention

MB = 2**20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu.max": "odd"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_containers_quota_limits_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert allowed_cpus(tmp_path) == (set(range(8)), expected)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, 8000),
        ({"memory.max": "max", "memory.current": "1", "memory.stat": "anon 1"}, 8000),
        # A limit of 1,000 MB, 700 used, of which 200 are files that can be read again.
        (
            {
                "a/b/memory.max": f"{1000 * MB}",
                "a/b/memory.current": f"{700 * MB}",
                "a/b/memory.stat": f"anon 5\ninactive_file {200 * MB}",
            },
            500,
        ),
        # The limit of a group above counts, too.
        ({"a/memory.max": f"{300 * MB}", "a/memory.current": f"{100 * MB}", "a/memory.stat": "anon 1"}, 200),
        ({"a/memory.max": f"{300 * MB}", "a/memory.current": f"{400 * MB}", "a/memory.stat": "anon 1"}, 0),
        (
            {
                "memory/a/b/memory.limit_in_bytes": f"{900 * MB}",
                "memory/a/b/memory.usage_in_bytes": f"{400 * MB}",
                "memory/a/b/memory.stat": f"total_inactive_file {100 * MB}",
            },
            600,
        ),
    ],
)
def test_free_memory_is_the_least_of_the_machines_and_its_groups(
    tmp_path: Path, groups: dict[str, str], expected: int
) -> None:
    proc = write(tmp_path / "proc", {"meminfo": f"MemTotal: 9 kB\nMemAvailable: {8000 * 1024} kB"})
    write(proc, {"self/cgroup": "0::/a/b\n3:cpu,memory:/a/b" if any("limit" in one for one in groups) else "0::/a/b"})
    found = free_memory(proc, write(tmp_path / "groups", groups))
    assert found == expected * MB


def test_without_proc_memory_is_unknown(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) is None


@pytest.mark.parametrize(("others", "expected"), [(0.0, 4), (0.3, 4), (1.0, 3), (2.0, 2), (9.0, 1)])
def test_a_busy_neighbour_takes_its_processor_from_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: float, expected: int
) -> None:
    """Four processors of eight are ours; of their busy seconds those of other programs count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    per_second, seconds = os.sysconf("SC_CLK_TCK"), 10.0
    now = iter([100.0, 100.0 + seconds])

    def told(busy: float) -> dict[str, str]:
        ours = [f"cpu{i} {round(busy * per_second / 4)} 0 0 777 0 0 0 0 0 0" for i in range(4)]
        return {"stat": "\n".join(["cpu 5 5 5 5", *ours, "cpu7 99999 0 0 0 0 0 0 0 0 0", "intr 1"])}

    threads = Threads(proc=write(tmp_path, told(0)), groups=tmp_path, clock=lambda: next(now))
    before = os.times()
    own = before.user + before.system + before.children_user + before.children_system
    monkeypatch.setattr(os, "times", lambda: type(before)((own + 8.0, 0.0, 0.0, 0.0, 0.0)))  # 0.8 processors are ours
    write(tmp_path, told(8.0 + others * seconds))
    assert threads.now() == expected


def test_attention_on_a_gpu_does_without_the_kernels_that_plan_for_each_shape() -> None:
    was = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for device, expected in (("cpu", True), ("cuda", False)):
            torch.backends.cuda.enable_cudnn_sdp(True)
            set_attention(device)
            assert torch.backends.cuda.cudnn_sdp_enabled() is expected
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
