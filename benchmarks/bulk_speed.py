"""Throughput of predictors and of `bulk.predict` against the plain `openai` client, side by side in one run.

Run: python benchmarks/bulk_speed.py [--rounds 5] [--calls 1500] [--callers 32 256]. One loopback server in a process of
its own answers everything (support/loopback.py). In each round each way makes the same number of calls (bulk four times
as many), one way after the other, so that a busy machine slows all of them; a ratio is taken within its round, and the
median of the rounds is shown. Prints a JSON line for each way: calls per second, milliseconds of processor time a call,
p50 and p99 in milliseconds, and the ratios to the plain client of the same kind (sync, async). Bulk is held against the
sync client, the faster one. The promises: predictors 1.3 with a p99 no worse, bulk 3.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai

import dspy_finetune as ft

Measured = tuple[float, float, list[float]]
"""Calls per second, processor seconds a call, seconds of each call."""


class Ways:
    """The ways to ask, each `(number of calls, callers) -> Measured`."""

    def __init__(self, url: str) -> None:
        host = ft.Host.compatible(url, "key", name="loopback")
        self.url = url
        self.predictor = ft.OpenAIPredictor(ft.prompts.binary("Likes bees."), "m", host=host, cache=False)
        self.request: dict[str, Any] = {
            "model": "m", "max_completion_tokens": 5, "temperature": 0.0, "logprobs": True, "top_logprobs": 20,
        }  # fmt: skip

    def openai_sync(self, n_calls: int, n_callers: int) -> Measured:
        """The plain client, in threads."""
        with openai.OpenAI(base_url=self.url, api_key="key", max_retries=0, timeout=600.0) as client:
            return threads(n_calls, n_callers, lambda number: self._read(client, number))

    def predictor_sync(self, n_calls: int, n_callers: int) -> Measured:
        """A predictor, in threads."""
        return threads(n_calls, n_callers, lambda number: self.predictor(title=f"title {number}"))

    def openai_async(self, n_calls: int, n_callers: int) -> Measured:
        """The plain asynchronous client."""

        async def main() -> Measured:
            async with openai.AsyncOpenAI(base_url=self.url, api_key="key", max_retries=0, timeout=600.0) as client:
                return await tasks(n_calls, n_callers, lambda number: self._read(client, number))

        return asyncio.run(main())

    def predictor_async(self, n_calls: int, n_callers: int) -> Measured:
        """A predictor's acall."""
        return asyncio.run(tasks(n_calls, n_callers, lambda number: self.predictor.acall(title=f"title {number}")))

    def bulk(self, n_calls: int, n_callers: int) -> Measured:
        """`bulk.predict`, with its checkpoint and output."""
        n_calls *= 4
        with tempfile.TemporaryDirectory() as folder:
            start, used = time.perf_counter(), time.process_time()
            rows = ({"title": f"title {number}"} for number in range(n_calls))
            ft.bulk.predict(self.predictor, rows, Path(folder) / "out.jsonl", concurrency=n_callers)
            return n_calls / (time.perf_counter() - start), (time.process_time() - used) / n_calls, []

    def _read(self, client: Any, number: int) -> Any:
        messages: Any = self.predictor.render(title=f"title {number}")
        return client.chat.completions.create(messages=messages, **self.request)


@contextlib.contextmanager
def server(*options: str) -> Iterator[str]:
    """The address of a loopback server that ends with the block."""
    command = [sys.executable, str(Path(__file__).parent / "support" / "loopback.py"), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


def threads(n_calls: int, n_callers: int, call: Callable[[int], Any]) -> Measured:
    """Calls from so many threads."""
    taken: list[float] = []

    def one(number: int) -> None:
        start = time.perf_counter()
        call(number)
        taken.append(time.perf_counter() - start)

    with ThreadPoolExecutor(n_callers) as pool:
        start, used = time.perf_counter(), time.process_time()
        list(pool.map(one, range(n_calls)))
        return n_calls / (time.perf_counter() - start), (time.process_time() - used) / n_calls, taken


async def tasks(n_calls: int, n_callers: int, call: Callable[[int], Any]) -> Measured:
    """Calls from so many tasks."""
    taken: list[float] = []
    numbers = iter(range(n_calls))

    async def caller() -> None:
        for number in numbers:
            start = time.perf_counter()
            await call(number)
            taken.append(time.perf_counter() - start)

    start, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(n_callers)))
    return n_calls / (time.perf_counter() - start), (time.process_time() - used) / n_calls, taken


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1500)
    parser.add_argument("--callers", type=int, nargs="+", default=[32, 256])
    options = parser.parse_args()
    names = ("openai_sync", "predictor_sync", "openai_async", "predictor_async", "bulk")
    against = {"predictor_sync": "openai_sync", "predictor_async": "openai_async", "bulk": "openai_sync"}
    with server() as url:
        ways = Ways(url)
        for n_callers in options.callers:
            for name in names:  # connections, imports and caches are there before the first round
                getattr(ways, name)(n_callers, n_callers)
            rounds: list[dict[str, Measured]] = []
            for _ in range(options.rounds):
                rounds.append({name: getattr(ways, name)(options.calls, n_callers) for name in names})
            for name in names:
                mine = [one[name] for one in rounds]
                line: dict[str, Any] = {
                    "way": name,
                    "callers": n_callers,
                    "calls_per_second": round(statistics.median(rate for rate, _, _ in mine)),
                    "cpu_ms": round(1000 * statistics.median(used for _, used, _ in mine), 3),
                }
                if mine[0][2]:
                    line |= {f"p{share}_ms": round(1000 * quantile(mine, share), 1) for share in (50, 99)}
                if other := against.get(name):
                    line["throughput_ratio"] = ratio(rounds, name, other, lambda one: one[0])
                    line["cpu_ratio"] = ratio(rounds, other, name, lambda one: one[1])
                    if mine[0][2]:
                        line["p99_ratio"] = ratio(rounds, name, other, lambda one: quantile([one], 99))
                print(json.dumps({**line, "load": round(os.getloadavg()[0], 1)}), flush=True)


def quantile(measured: list[Measured], share: int) -> float:
    """A percentile of all calls."""
    return statistics.quantiles([seconds for _, _, taken in measured for seconds in taken], n=100)[share - 1]


def ratio(rounds: list[dict[str, Measured]], one: str, other: str, figure: Callable[[Measured], float]) -> float:
    """The median over the rounds of one way's figure by another's."""
    return round(statistics.median(figure(each[one]) / figure(each[other]) for each in rounds), 2)


if __name__ == "__main__":
    main()
