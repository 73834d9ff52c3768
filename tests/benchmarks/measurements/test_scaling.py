"""What a step sends, on eight simulated devices; steps on paper; the memory ladder."""

import json
import math
import os
import re

import pytest

from benchmarks.measurements import memory, on_paper, scaling
from tests import fresh_process


@pytest.mark.slow
def test_the_command_says_what_a_data_parallel_step_sends(tmp_path):
    asked = ["-m", "benchmarks", "scaling", "--layouts", "data parallel", "--size", "32", "1"]
    asked += ["--optimizers", "optax.adamw", "--steps", "2", "--output", str(tmp_path)]
    # The command asks for the devices itself.
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    done = fresh_process.run(*asked, flags=flags)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    # The gradients are summed, and nothing else is sent: 2 (k - 1) / k of their bytes.
    assert row["collectives"][0].keys() == {"all-reduce"}
    assert row["sent"][0] == pytest.approx(2 * 7 / 8, rel=0.01)
    assert row["devices"] == 8
    assert row["seconds"] > 0


def measured(**sent):
    names = ("optax.adamw", "optax.contrib.muon", "kronecker_fisher")
    return [
        {"layout": layout, "optimizer": name, "devices": 8, "processes": 1, "sent": list(found)}
        for layout in scaling.LAYOUTS
        for name, found in zip(names, sent.values(), strict=True)
    ]


def test_the_parts_of_a_step_on_paper_are_what_was_sent_and_computed():
    found = on_paper.on_paper(measured(adamw=(2.0, 0, 0), muon=(5.0, 0, 0), ours=(2.0, 1.0, 0)))
    rows = {(r["gpt"], r["chip"], r["layout"], r["optimizer"]): r for r in found["rows"]}
    assert len(rows) == 2 * 2 * 3 * 3
    for row in rows.values():
        assert row["step"] == pytest.approx(sum(list(row.values())[4:-1]))
    names = "optax.adamw", "optax.contrib.muon", "kronecker_fisher"
    adamw, muon, ours = (rows["1B", "TPU v5p", "fully sharded", name] for name in names)
    assert adamw["products"] == adamw["QR"] == adamw["more collectives"] == 0
    # A branch is a refresh, one step in ten.
    assert ours["more collectives"] == pytest.approx(0.1 / 3 * muon["more collectives"])
    alone = rows["1B", "TPU v5p", "data parallel", "kronecker_fisher"]
    assert alone["products"] == pytest.approx(256 * ours["products"])
    split = rows["1B", "TPU v5p", "state split", "kronecker_fisher"]
    assert split["products"] == ours["products"]
    assert alone["QR"] == ours["QR"]


def test_the_products_of_one_square_block_are_counted_by_hand():
    products, decompositions = on_paper.operations("kronecker_fisher", [(512, 512)])
    cube = 512**3
    # Two grams and four rotations of 2 n^3; a refresh: two products with a basis, two permutations,
    # four rotations.
    assert products == pytest.approx((6 * 2 + 8 * 2 / 10) * cube)
    assert decompositions == pytest.approx(2 * 8 / 3 * cube / 10)
    # A long side is cut into the fewest equal blocks.
    assert on_paper.operations("kronecker_fisher", [(1536, 512)])[0] < 3 * 1.5 * products
    assert on_paper.operations("optax.adamw", [(512, 512)]) == (0.0, 0.0)


def test_the_state_of_adam_takes_eight_bytes_and_names_no_factor():
    row = memory.measure("optax.adamw", steps=0)
    assert row["parameters"] == pytest.approx(124e6, rel=0.01)
    assert row["state"] == pytest.approx(8.0, abs=1e-3)
    assert row["factors"] == 0
    assert math.isfinite(row["beside"])
