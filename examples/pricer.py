"""The pricer: what does this product cost? Training and validation file, job, events, inference, error, and more data.

Packaged products and the local host: `python examples/pricer.py --size small` takes about two minutes on two cores.
Your own file: `--data items.jsonl --text-field description`. OpenAI: `--host openai`.
"""

import argparse
from pathlib import Path

import dspy_finetune as ft

DATA = Path(ft.__file__).with_name("quickstart_products.jsonl")
SIZES = {"small": (60, 10, 8), "full": (200, 50, 100)}
"""Name to how many products train, validate and test; smaller data is used whole."""


def main(
    folder: Path, host: ft.Host, *, size: str = "full", data: Path = DATA, text_field: str = "product"
) -> ft.ComparisonReport:
    """Do the job in `folder`."""
    n_train, n_validation, n_test = SIZES[size]
    loaded = ft.load_examples(data, signature="product -> price: float", rename={text_field: "product"})
    # Long descriptions are cut: what a thing is stands at their head.
    items = [row.copy(product=row["product"][:600]) for row in loaded]
    train, validation, test = ft.split(items, (0.7, 0.1, 0.2))
    train, validation, test = train[:n_train], validation[:n_validation], test[:n_test]
    print(f"{len(train):,} training items, {len(validation):,} validation items, {len(test):,} test items")

    prompt = ft.prompts.number()
    print(prompt.training_messages(train[0]))
    plan = ft.plan(
        ft.export_sft(train, prompt, folder / "fine_tune_train.jsonl"),
        validation=ft.export_sft(validation, prompt, folder / "fine_tune_validation.jsonl"),
        host=host,
        seed=42,
        suffix="pricer",
        hyperparameters={"n_epochs": 1},
    )
    print(plan)
    job = plan.start(max_usd=5)
    tuned = ft.OpenAIPredictor(prompt, job.wait(), host=host)
    tuned.save(folder / "pricer.json")
    print(*(event.message for event in job.events()[-10:]), sep="\n")
    print(f"{test[0]['product']!r} costs {test[0].price}, the model says {tuned(product=test[0]['product']).price}")

    untuned = ft.OpenAIPredictor(prompt, host.base_model, host=host)
    error, within = ft.metrics.mean_absolute_error("price"), ft.metrics.within("price", absolute=40, relative=0.2)
    # `train` adds TF-IDF with ridge regression, and the median.
    report = ft.compare({"tuned": tuned, "untuned": untuned}, test, [error, within], train=train)
    report = report.annotated(title="What does it cost?", training={"pricer": job})
    report.to_html(folder / "report.html")  # with predicted against true prices: green, orange, red
    print(report.table(), report.verdict, sep="\n")

    jobs = ft.evaluation.CurveJobs(folder=folder / "curve")
    curve = ft.learning_curve(
        train, host=host, test=test, prompt=prompt, metric=error, epochs=[1], max_usd=5, jobs=jobs
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
    given = parser.parse_args()
    host = ft.Host.openai() if given.host == "openai" else ft.Host.local(root=given.folder / "host")
    main(given.folder, host, size=given.size, data=given.data, text_field=given.text_field)
