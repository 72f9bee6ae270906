"""Optional packages: asked for through one gate, and fits to some hundred rows by one thread."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
import sklearn.isotonic
import sklearn.linear_model
import threadpoolctl

import dspy_finetune as ft
from dspy_finetune import tasks
from dspy_finetune.local import heads

PACKAGE = Path(__file__).parents[1] / "dspy_finetune"
ESTIMATORS = ("sklearn.linear_model", "sklearn.isotonic")
GENERATOR = np.random.default_rng(0)
SAID = GENERATOR.random(60).tolist()
WAS = [share > 0.5 for share in SAID]
ROWS = [
    dspy.Example(text=f"{word} {n}", kind=word, size=n % 7 + 0.5).with_inputs("text")
    for n, word in enumerate("ab" * 20)
]
calibrate, ensemble, ranking = (
    importlib.import_module(f"dspy_finetune.predictors.{name}") for name in ("calibrate", "ensemble", "ranking")
)


def head() -> None:
    answers = ["yes", "no"] * 12
    blocks: Any = {"whole": {"base": GENERATOR.normal(size=(24, 5)).astype(np.float32)}}
    heads.fit(tasks.task_of_answers(answers), answers, blocks, [[str(n)] for n in range(24)])


FITS = {
    "platt": lambda: calibrate.fit_platt(SAID, WAS, is_symmetric=False),
    "isotonic": lambda: calibrate.fit_isotonic(SAID, WAS),
    "stack": lambda: ensemble.fit([[one, 1 - one] for one in SAID], list(map(int, WAS)), 2),
    "stack of numbers": lambda: ensemble.fit_numbers([[one, 1 - one] for one in SAID], SAID),
    "rank": lambda: ranking.fit(3, [(0, 1, 0.7), (1, 2, 0.6), (2, 0, 0.2)], has_position=True),
    "labels": lambda: ft.baselines.tfidf_logistic(ROWS, label="kind"),
    "numbers": lambda: ft.baselines.tfidf_ridge(ROWS, label="size"),
    "head": head,
}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """With how many threads each estimator was fitted, where the libraries would take two."""
    found: list[int] = []

    def counted(plain: Any) -> Any:
        def fit(self: Any, *args: Any, **options: Any) -> Any:
            found.append(max(one["num_threads"] for one in threadpoolctl.threadpool_info()))
            return plain(self, *args, **options)

        return fit

    linear, isotonic = sklearn.linear_model, sklearn.isotonic
    for kind in (linear.LogisticRegression, linear.Ridge, linear.LinearRegression, isotonic.IsotonicRegression):
        monkeypatch.setattr(kind, "fit", counted(kind.fit))
    with threadpoolctl.threadpool_limits(2):
        yield found


@pytest.mark.parametrize("name", FITS)
def test_what_is_fitted_to_some_hundred_rows_takes_one_thread(name: str, threads: list[int]) -> None:
    """With the libraries' own threads such fits took up to thirty times as long beside other work."""
    FITS[name]()
    assert set(threads) == {1}
    assert max(one["num_threads"] for one in threadpoolctl.threadpool_info()) == 2


def test_functions_that_ask_for_estimators_limit_their_threads() -> None:
    """So that the next one does, too."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            asks = any(f'require("{name}"' in ast.unparse(node).replace("'", '"') for name in ESTIMATORS)
            if asks and isinstance(node, ast.FunctionDef):
                decorators = [ast.unparse(one) for one in node.decorator_list]
                assert any(one.startswith("fitting(") for one in decorators), f"{path.name}: {node.name}"


def test_scores_of_a_ranking_are_drawn_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of inverses of a small matrix: 57 seconds of the processor's time with the libraries' own threads."""
    found: list[int] = []
    plain = np.linalg.cholesky

    def counted(values: Any) -> Any:
        found.append(max(one["num_threads"] for one in threadpoolctl.threadpool_info()))
        return plain(values)

    comparisons = [(0, 1, 0.7), (1, 2, 0.6), (2, 0, 0.2)]
    fitted = ranking.fit(3, comparisons, has_position=False)
    monkeypatch.setattr(np.linalg, "cholesky", counted)
    with threadpoolctl.threadpool_limits(2):
        ranking.posterior(comparisons, fitted, 0)
    assert set(found) == {1}
