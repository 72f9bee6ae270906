"""The pricer: what does this product cost? Training and validation file, job, events, inference, error, and more data.

Packaged products and the local host: `python examples/pricer.py --size small` takes about a minute on two cores. Your
own file: `--data items.jsonl --text-field description`. OpenAI: `--host openai`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import dspy_finetune as ft

DATA = Path(ft.__file__).with_name("quickstart_products.jsonl")
OPENAI_MODEL = "gpt-4.1-mini-2025-04-14"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of it; smaller data is used whole."""

    n_train: int
    """Products to train on."""
    n_validation: int
    """Products whose loss is watched."""
    n_test: int
    """Products that every program is asked about."""
    curve: tuple[int, ...]
    """Training sizes of the table."""
    n_epochs: int
    """Times through the products."""


SIZES = {
    "small": Size(n_train=16, n_validation=5, n_test=8, curve=(10, 16), n_epochs=1),
    "full": Size(n_train=200, n_validation=50, n_test=100, curve=(25, 50, 100, 200), n_epochs=1),
}


def main(
    folder: Path,
    host: ft.Host,
    *,
    size: str = "full",
    data: Path = DATA,
    text_field: str = "product",
    base_model: str | None = None,
    max_characters: int = 600,
) -> ft.ComparisonReport:
    """Do the job in `folder`."""
    how = SIZES[size]
    base_model = base_model or host.base_model
    rename = {text_field: "product"} if text_field != "product" else {}
    loaded = ft.load_examples(data, inputs=["product"], rename=rename, types={"price": float})
    # Long descriptions are cut, as the pricer does: what a thing is stands at their head.
    items = [row.copy(product=row["product"][:max_characters]).with_inputs("product") for row in loaded]
    train, validation, test = ft.split(items, (0.7, 0.1, 0.2))
    train, validation, test = train[: how.n_train], validation[: how.n_validation], test[: how.n_test]
    print(f"{len(train):,} training items, {len(validation):,} validation items, {len(test):,} test items")

    prompt = ft.prompts.number()
    print(prompt.training_messages(train[0]))
    train_file = ft.export_sft(train, prompt, folder / "fine_tune_train.jsonl")
    validation_file = ft.export_sft(validation, prompt, folder / "fine_tune_validation.jsonl")

    plan = ft.plan(
        train_file,
        validation=validation_file,
        base_model=base_model,
        host=host,
        seed=42,
        suffix="pricer",
        hyperparameters={"n_epochs": how.n_epochs, "batch_size": 4},
    )
    print(plan)
    job = plan.start(max_usd=5)
    model = job.wait()
    print(*(event.message for event in job.events()[-10:]), sep="\n")
    print(ft.list_jobs(host=host, limit=1)[0].facts.fine_tuned_model)

    tuned = ft.OpenAIPredictor(prompt, model, host=host)
    tuned.save(folder / "pricer.json")
    print(f"{test[0]['product']!r} costs {test[0].price}, the model says {tuned(product=test[0]['product']).price}")

    report = ft.compare(
        {
            "tuned": tuned,
            "untuned": ft.OpenAIPredictor(prompt, base_model, host=host),
        },
        test,
        [ft.metrics.mean_absolute_error("price"), ft.metrics.within("price", absolute=40, relative=0.2)],
        train=train,  # adds TF-IDF with ridge regression, and the median
        title="What does it cost?",
    ).annotated(
        cards={"Data": {"file": data.name, "training items": str(len(train))}},
        training={"pricer": job},
    )
    report.to_html(folder / "report.html")  # with predicted against true prices: green, orange, red
    print(report.table(), report.verdict, sep="\n")

    curve = ft.learning_curve(
        train,
        sizes=[n for n in how.curve if n <= len(train)],
        models=base_model,
        epochs=[how.n_epochs],
        host=host,
        test=test,
        prompt=prompt,
        metric=ft.metrics.mean_absolute_error("price"),
        max_usd=5,
        jobs=ft.evaluation.CurveJobs(
            hyperparameters={"batch_size": 4}, suffix="pricer", seeds=(42,), folder=folder / "curve"
        ),
    )
    curve.to_html(folder / "curve.html")
    print(curve)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("pricer"))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--text-field", default="product")
    parser.add_argument("--host", choices=["local", "openai"], default="local")
    parser.add_argument("--base-model", help="default: the host's small one")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    main(
        given.folder,
        ft.Host.openai() if given.host == "openai" else ft.Host.local(root=given.folder / "host"),
        size=given.size,
        data=given.data,
        text_field=given.text_field,
        base_model=given.base_model or (OPENAI_MODEL if given.host == "openai" else None),
    )
