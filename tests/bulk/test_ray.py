"""A Ray Dataset over several processes: one of them is killed half-way, and nothing is lost or doubled."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.loopback import Loopback

REPOSITORY = Path(__file__).parents[2]
N_ROWS = 400

DRIVER = """
import json, sys
import ray
import dspy_finetune as ft

url, output, n_rows = sys.argv[1:]
ray.init(num_cpus=3, include_dashboard=False, object_store_memory=100_000_000, _node_ip_address="127.0.0.1")
rows = [{"id": number, "title": f"row {number}"} for number in range(int(n_rows))]
predictor = ft.OpenAIPredictor(
    ft.prompts.binary("Bees."), "m", host=ft.Host.compatible(url, name="loopback", api_key="given")
)
data = ray.data.from_items(rows, override_num_blocks=8)
answered = ft.bulk.ray.predict(data, predictor, n_actors=2, batch_size=20, concurrency=4)
with open(output, "w") as stream:
    json.dump(answered.take_all(), stream, default=lambda value: value.tolist())
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not part of the extra all: make test-ray")
def test_a_killed_actor_loses_and_doubles_nothing(loopback: Loopback, tmp_path: Path) -> None:
    loopback.delay_seconds = lambda question: 0.03
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "LOOPBACK_API_KEY": "of-the-environment",
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }  # fmt: skip
    with open(tmp_path / "driver.log", "wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, loopback.url, str(tmp_path / "out.json"), str(N_ROWS)],
            cwd=tmp_path, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 600
        killed: set[int] = set()
        while driver.poll() is None:
            assert time.monotonic() < deadline, (tmp_path / "driver.log").read_text()[-3000:]
            if not killed and len(loopback.answered) >= N_ROWS // 4:
                actors = [one for one in psutil.Process(driver.pid).children(recursive=True) if is_actor(one)]
                for one in actors[:1]:
                    one.kill()
                    killed.add(one.pid)
            time.sleep(0.02)
    finally:
        if driver.poll() is None:
            for one in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
                one.kill()
    assert driver.returncode == 0, (tmp_path / "driver.log").read_text()[-3000:]
    assert killed
    rows = json.loads((tmp_path / "out.json").read_text())
    assert sorted(row["id"] for row in rows) == list(range(N_ROWS))
    assert {row["status"] for row in rows} == {"answered"}
    assert all(row["is_favorite"] == (len(f"Title: row {row['id']}") % 2 == 0) for row in rows)
    assert rows[0]["probabilities"].keys() == {"true", "false"}
    # A key that was given in code stays in its process; the workers used the environment's.
    assert loopback.keys == {"Bearer of-the-environment"}


def is_actor(process: psutil.Process) -> bool:
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False
