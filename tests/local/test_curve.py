"""A learning curve on the local host's own server: real HTTP, jobs and answers, on the toy model."""

from pathlib import Path

import dspy

from dspy_finetune import prompts
from dspy_finetune.evaluation import CurveJobs, StatisticsOptions, learning_curve, metrics
from dspy_finetune.hosts import Host
from tests.local.toy_server import ToyServer


def test_a_curve_on_the_local_host_costs_nothing_and_is_found_again(
    server: ToyServer, toy_model: Path, tmp_path: Path
) -> None:
    rows = [dspy.Example(title=f"Title {n}", is_favorite=n % 2 == 0).with_inputs("title") for n in range(24)]
    unseen = [dspy.Example(title=f"Unseen {n}", is_favorite=n % 2 == 0).with_inputs("title") for n in range(6)]
    host = Host.local(server.url)

    def curve() -> list[tuple[int, bool, float | None, int, str | None]]:
        found = learning_curve(
            rows,
            sizes=[12, 24],
            models=toy_model.name,
            epochs=[1],
            host=host,
            test=unseen,
            prompt=prompts.binary(),
            metric=metrics.accuracy("is_favorite"),
            max_usd=0.0,
            jobs=CurveJobs(folder=tmp_path),
            statistics=StatisticsOptions(n_resamples=120),
        )
        return [(run.n_rows, run.is_new, run.paid_usd, run.n_failed, run.error) for run in found.runs]

    try:
        assert curve() == [(n, True, 0.0, 0, None) for n in (12, 24)]
        assert curve() == [(n, False, 0.0, 0, None) for n in (12, 24)]
    finally:
        host.close()
