"""README's one table on real data, made from benchmarks/results/real_data.md: methods by data sets.

`python -m tests.readme_table --write` writes it anew; tests/test_readme.py compares. A method or a data set that the
results do not hold has no line or no column. Sections on one set with as many rows make one column; of a method that
stands in two of them, the line of more splits counts, and of as many the last one.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "real_data.md"
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- real data -->\n)(.*?)(<!-- end -->)", re.S)
SETS = {"hn": "Hacker News titles", "upworthy": "Upworthy pairs", "pric": "prices"}
"""How a section's name begins: what README calls the set."""
METHODS = {
    "majority": "majority",
    "median": "median",
    "TF-IDF": "TF-IDF + linear model",
    "encoder": "sentence encoder + linear model",
    "few-shot": "DSPy few-shot",
    "optimized": "DSPy optimized",
    "SetFit": "SetFit",
    "LoRA": "tuned: LoRA",
    "head": "**tuned: the default**",
}
"""What a method's name in the results holds (the first that fits): what README calls it. In README's order."""


DIRECT = "fitted in one process"


def _size(section: str) -> tuple[str, ...]:
    """(set, training rows, test rows), as the section's title has them."""
    title = section.splitlines()[0]
    return (title.split(",")[0], *re.findall(r"(\d[\d,]*) t", title))


Column = tuple[str, bool]
"""README's name of a set, and whether DSPy's prompts were asked, too."""


def measured() -> dict[Column, dict[str, list[str]]]:
    """By column and README's name of the method: the value and the seconds, as the results have them."""
    found: dict[Column, dict[str, list[str]]] = {}
    n_splits: dict[tuple[Column, str], int] = {}
    sections = RESULTS.read_text(encoding="utf-8").split("\n### ")[1:]
    by_jobs = {_size(section) for section in sections if DIRECT not in section.splitlines()[0]}
    trained = {size[:2] for size in by_jobs}
    for section in sections:
        title = section.splitlines()[0]
        name = next((shown for start, shown in SETS.items() if title.startswith(start)), None)
        # Fits in one process stand in where no job was measured on as many rows, or in the column of those jobs.
        is_second = DIRECT in title and _size(section) not in by_jobs and _size(section)[:2] in trained
        if name is None or is_second:
            continue
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
        header, rows = lines[0], lines[2:]
        n_train, n_test = re.findall(r"(\d[\d,]*) t", title)
        shown = f"{name}, {header[2].replace('MAE', 'error')} ({n_train} + {n_test})"
        column = shown, any("DSPy" in row[0] for row in rows)
        cells = found.setdefault(column, {})
        for row in rows:
            method = next((shown for part, shown in METHODS.items() if part in row[0]), None)
            if method is not None and int(row[1]) >= n_splits.get((column, method), 0):
                n_splits[column, method] = int(row[1])
                cells[method] = [row[2], row[header.index("seconds")]]
    order = list(SETS.values())

    def place(column: Column) -> tuple[int, int]:
        return order.index(column[0].split(",")[0]), int(column[0].rpartition("(")[2].split()[0].replace(",", ""))

    return {column: found[column] for column in sorted(found, key=place)}


def text() -> str:
    """The table; what DSPy's prompts were asked, too, in a second one: fewer rows, as each answer takes a second."""
    sets = measured().items()
    tables = [_table({name: rows for (name, is_second), rows in sets if is_second == one}) for one in (False, True)]
    return "\n".join(table for table in tables if table)


def _table(sets: dict[str, dict[str, list[str]]]) -> str:
    if not sets:
        return ""
    lines = [f"| method | {' | '.join(sets)} |", f"| --- |{' --- |' * len(sets)}"]
    for method in METHODS.values():
        if any(method in rows for rows in sets.values()):
            cells = [rows.get(method, ["", ""]) for rows in sets.values()]
            lines.append(f"| {method} | {' | '.join(_cell(*cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: str, seconds: str) -> str:
    return f"{value}; {seconds} s" if seconds else value


def main() -> None:
    """Show the table, or write it into README."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--write", action="store_true")
    if asked.parse_args().write:
        README.write_text(BLOCK.sub(rf"\g<1>{text()}\g<3>", README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(text())


if __name__ == "__main__":
    main()
