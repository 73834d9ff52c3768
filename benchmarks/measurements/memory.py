"""The memory ladder: what optimizers keep for each parameter of GPT-2, and how long they take."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

import fgo_jax as fgo
from benchmarks.measurements.on_paper import kernels
from benchmarks.terminal import figures


def phases(average: float | None = None, probe: Any = None, **options: Any) -> Any:
    parts: Any = {"transform": fgo.scale_by_kronecker_fisher(**options), "probe": probe}
    return fgo.target_acquisition(1e-3, average_weights=average, **parts)


_HALF: Any = {"momentum_dtype": jnp.bfloat16}
LADDER: dict[str, Callable[[], Any]] = {
    "optax.adamw": lambda: optax.adamw(1e-3), "averaged": lambda: phases(0.1), "default": phases,
    "corrected=False": lambda: phases(corrected=False),
    "both momenta in bfloat16": lambda: phases(**_HALF),
    "and factors and bases": lambda: phases(factor_dtype=jnp.bfloat16, **_HALF),
    "and an average": lambda: phases(0.1, factor_dtype=jnp.bfloat16, **_HALF),
}  # fmt: skip


def measure(name: str, steps: int = 2) -> dict[str, Any]:
    """Bytes per parameter, and processor seconds for the last of some updates: no refresh."""
    tx = optax.with_extra_args_support(LADDER[name]())
    shapes = enumerate([*kernels(768, 12, 50257), (1024, 768)])  # and the positions
    params: Any = {f"w{i}": jax.ShapeDtypeStruct((m, n), jnp.float32) for i, (m, n) in shapes}

    def update(carry: Any, grads: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    state: Any = jax.eval_shape(tx.init, params)
    compiled = jax.jit(update, donate_argnums=0).lower((params, state), params).compile()
    seconds = float("nan")
    if steps:
        grads, weights = (optax.tree.random_like(jax.random.key(i), params) for i in range(2))
        carry = (weights, tx.init(weights))
        for _ in range(steps):
            began = time.process_time()
            carry = jax.block_until_ready(compiled(carry, grads))
            seconds = time.process_time() - began
    used: Any = compiled.memory_analysis()
    size = sum(leaf.size for leaf in params.values())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    factors = [x for path, x in leaves if {".factors", ".bases"} & set(map(str, path))]
    kept = sum(x.size * x.dtype.itemsize for x in factors)
    return {
        "optimizer": name, "parameters": size, "factors": kept / size,
        "state": used.argument_size_in_bytes / size - 8, "beside": used.temp_size_in_bytes / size,
        "seconds": seconds,
    }  # fmt: skip


_COLUMNS = {
    "optimizer": "{optimizer}", "state": "{state:.1f}", "factors and bases": "{factors:.1f}",
    "beside them, in an update": "{beside:.1f}", "seconds of one": "{seconds:.1f}",
}  # fmt: skip


def print_table(results: Any, console: Console) -> None:
    console.print(figures("bytes per parameter of GPT-2 (124M)", results["rows"], _COLUMNS))
