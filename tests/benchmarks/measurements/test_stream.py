"""Rows of training pairs against rows at fixed parameters, at a tiny scale."""

import jax
import numpy as np
from rich.console import Console

from benchmarks.measurements import stream
from benchmarks.tasks import get_task


def test_pairs_and_fixed_rows_agree_where_the_parameters_hardly_move():
    results = stream.measure(get_task("quadratic_bowl"), rates=[1e-9], steps=[64], rows=64)
    (case,) = results["cases"]
    pairs, fixed = case["pairs"], case["fixed"]
    error = np.hypot(pairs["relative_error"], fixed["relative_error"])
    gap = np.log(pairs["intrinsic_dimension"] / fixed["intrinsic_dimension"])
    # 64 rows of either kind; three of the errors that they report themselves.
    assert abs(gap) < 3 * error
    assert abs(pairs["trace"] - fixed["trace"]) < 3 * np.hypot(
        pairs["trace_error"], fixed["trace_error"]
    )


def test_pairs_hold_the_movement_of_the_mean_gradient():
    # From far away at a high rate the gradient itself changes from step to step.
    results = stream.measure(get_task("quadratic_bowl"), rates=[0.5], steps=[16], rows=8)
    (case,) = results["cases"]
    assert case["pairs"]["trace"] > 2 * case["fixed"]["trace"]
    console = Console(record=True, width=100)
    stream.print_table(results, console)
    assert "0.5" in console.export_text()
    assert jax.tree.all(jax.tree.map(np.isfinite, case))
