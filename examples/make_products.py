"""Make the packaged products: made-up products with made-up prices, the same every time.

`python examples/make_products.py`. A price is that of the kind of thing, times what its material and its size do
to it, times chance of about 12 %: so most of it can be learned from the text, and some of it cannot.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

KINDS = {
    "camping chair": (32, "folds flat, with a cup holder"),
    "desk lamp": (38, "with a dimmer and a long arm"),
    "garden hose": (27, "with brass ends that do not drip"),
    "electric kettle": (42, "boils in three minutes and switches itself off"),
    "bicycle pump": (24, "fits both kinds of valve"),
    "wall clock": (29, "with a movement that does not tick"),
    "office chair": (165, "with a headrest and five castors"),
    "book shelf": (88, "to be screwed to the wall, screws included"),
    "hand mixer": (46, "with two whisks and a dough hook"),
    "water filter": (54, "with one spare cartridge"),
    "tool box": (49, "with a tray for screws"),
    "standing desk": (340, "raised and lowered by a motor"),
    "soup pot": (58, "with a lid of glass"),
    "door bell": (35, "without wires, with forty melodies"),
    "cordless drill": (120, "with two batteries and a charger"),
    "air purifier": (180, "for bedrooms, quiet at night"),
    "picnic blanket": (22, "with a lower side that keeps water out"),
    "car battery charger": (68, "that ends by itself when the battery is full"),
}
MATERIALS = {"plastic": 0.7, "aluminium": 1.1, "stainless steel": 1.35, "oak": 1.6, "recycled fabric": 0.95}
SIZES = {"small": 0.65, "medium": 1.0, "large": 1.5, "extra large": 2.1}
COLOURS = ("black", "white", "green", "dark red", "sand", "light blue")
N_PRODUCTS = 360


def main(path: Path) -> None:
    """Write the file."""
    chance = random.Random(11)
    seen: set[str] = set()
    lines: list[str] = []
    while len(lines) < N_PRODUCTS:
        kind, material, size = (chance.choice(list(one)) for one in (KINDS, MATERIALS, SIZES))
        colour = chance.choice(COLOURS)
        base, remark = KINDS[kind]
        text = f"{size.capitalize()} {kind} of {material}, {colour}\n{kind.capitalize()} {remark}."
        if text in seen:
            continue
        seen.add(text)
        price = base * MATERIALS[material] * SIZES[size] * math.exp(chance.gauss(0, 0.12))
        row = {"id": f"product-{len(lines)}", "product": text, "price": round(price) - 0.01}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).parents[1] / "dspy_finetune" / "quickstart_products.jsonl")
