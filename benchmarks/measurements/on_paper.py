"""Seconds of a training step on 256 accelerators, on paper, for GPTs of one and seven billion.

It rests on `chips.json`, and on what the compiled programs of `scaling` were seen to send.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESTS_ON = json.loads((Path(__file__).parent / "chips.json").read_text())


def kernels(width: int, layers: int, vocabulary: int) -> list[tuple[int, int]]:
    """The matrices of a GPT with tied embeddings; (768, 12, 50257) is GPT-2."""
    sides = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    return sides * layers + [(vocabulary, width)]


def _block(length: int) -> int:
    """The length of the fewest equal blocks of at most so many rows."""
    return next(d for d in range(min(length, RESTS_ON["block"]), 0, -1) if length % d == 0)


def operations(name: str, shapes: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Of an optimizer's matrix products in a step, and of its QR decompositions per step."""
    products, decompositions, every = 0.0, 0.0, RESTS_ON["refresh_every"]
    for m, n in shapes:
        short, (a, b) = min(m, n), map(_block, (m, n))
        cubes = m * n * (a * a / b + b * b / a)  # of the sides of all blocks
        if name == "optax.contrib.muon":
            products += RESTS_ON["orthogonal_steps"] * (4 * m * n * short + 2 * short**3)
        elif name != "optax.adamw":
            # Two grams, the gradient rotated, the update rotated back; in a refresh an orthogonal
            # iteration, the second moment permuted, the first turned, and a QR with its Q.
            products += 6 * m * n * (a + b) + (2 * cubes + 6 * m * n * (a + b)) / every
            decompositions += 8 / 3 * cubes / every
    return products, decompositions


def on_paper(measured: Sequence[Any]) -> dict[str, Any]:
    """Seconds by part, and all that they rest on. A refresh is in the innermost branch."""
    every, devices, shares = (RESTS_ON[key] for key in ("refresh_every", "devices", "shares"))
    sent, rows = {}, []
    for row in measured:
        if (row["devices"], row["processes"]) == (8, 1) and row["optimizer"] in RESTS_ON["passed"]:
            seldom = (row["sent"][2] or row["sent"][1]) * (1 - 1 / every)
            sent[row["layout"], row["optimizer"]] = sum(row["sent"]) - seldom
    for size, chip in itertools.product(RESTS_ON["gpts"], RESTS_ON["chips"]):
        (width, layers), can = RESTS_ON["gpts"][size], RESTS_ON["chips"][chip]
        shapes = kernels(width, layers, RESTS_ON["vocabulary"])
        count = sum(m * n for m, n in shapes)
        model = 6.0 * RESTS_ON["tokens"] * (count + layers * RESTS_ON["context"] * width) / devices
        for layout, name in (key for key in sent if key[0] not in ("tensor parallel", "two axes")):
            # With a replicated state every device makes the whole step, and shares refreshes.
            owners = 1 if layout == "data parallel" else devices
            products, decompositions = operations(name, shapes)
            own = sent[layout, "optax.adamw"]
            speed = can["default" if name == "optax.contrib.muon" else "float32"]
            parts = {
                "model": model / can["bfloat16"] / shares["model"],
                "its collectives": 4.0 * count * own / can["ring"],
                "passes": count * RESTS_ON["passed"][name] / owners / can["memory"],
                "products": products / owners / shares["products"] / speed,
                "QR": decompositions / devices / can["float32"] / shares["decompositions"],
                "more collectives": 4.0 * count * (sent[layout, name] - own) / can["ring"],
            }
            named = {"gpt": size, "chip": chip, "layout": layout, "optimizer": name}
            rows.append(named | parts | {"step": sum(parts.values())})
    return {"rests_on": RESTS_ON, "rows": rows}
