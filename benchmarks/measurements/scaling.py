"""What travels between devices in a training step of a GPT, by optimizer and layout.

The compiled step's text says it, so simulated devices do. Real ones also time the steps.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

import fgo_jax as fgo
from benchmarks.tasks.supervised import supervised
from benchmarks.tasks.transformers import TokenTransformer
from benchmarks.terminal import figures

RATE, VOCABULARY, CONTEXT, EXAMPLES = 1e-3, 256, 32, 16
# The axes of the mesh that split rows and columns of parameters; a state may be split alone.
LAYOUTS = {
    "data parallel": (None, None), "state split": (None, None), "fully sharded": ("data", None),
    "tensor parallel": (None, "model"), "two axes": ("data", "model"),
}  # fmt: skip
SIMULATED = 8  # devices of a CPU; fully sharded also 4, 2 and 1 of them
# By the length of a block: whole blocks on every device, but for the last row.
OPTIMIZERS: dict[str, Callable[[int], Any]] = {
    "optax.adamw": lambda block: optax.adamw(RATE),
    "optax.contrib.muon": lambda block: optax.contrib.muon(RATE),
    "fismo": lambda block: fgo.fismo(RATE),
    "kronecker_fisher": lambda block: fgo.kronecker_fisher(RATE, block_size=block),
    "target_acquisition": lambda block: fgo.target_acquisition(
        RATE, transform=fgo.scale_by_kronecker_fisher(block_size=block), average_weights=0.1
    ),
    "kronecker_fisher (blocks longer than shards)": lambda block: fgo.kronecker_fisher(RATE),
}


def measure(layout: str, name: str, count: int, dim: int, depth: int, steps: int) -> dict[str, Any]:
    """A row: the collectives of a step on so many devices, and its seconds."""
    shape = {"tensor parallel": (1, count), "two axes": (2, count // 2)}.get(layout, (count, 1))
    kinds, devices = (AxisType.Auto,) * 2, jax.devices()[:count]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=kinds, devices=devices)
    data, model = LAYOUTS[layout]
    tx = optax.with_extra_args_support(OPTIMIZERS[name](dim // max(8, count)))
    network = TokenTransformer(VOCABULARY, dim, depth, heads=max(dim // 64, 1), mlp=4 * dim)
    task = supervised(dict, network, "text", (1, CONTEXT), jnp.int32)

    def on(*spec: Any) -> NamedSharding:
        return NamedSharding(mesh, P(*spec))

    def home(path: Any, leaf: Any, data: str | None = data) -> NamedSharding:
        names = {getattr(key, "key", None) for key in path}
        if leaf.ndim == 2:  # `out` and `down` are split by rows where others are by columns
            return on(model, data) if names & {"out", "down"} else on(data, model)
        return on((model if names & {"qkv", "up", "head"} else None) if model else data)

    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(task["loss"])(params, batch)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    def draw() -> Any:
        text = jax.random.randint(jax.random.key(1), (EXAMPLES, CONTEXT), 0, VOCABULARY)
        return {"text": text, "label": text}

    key = jax.random.key(0)
    homes = jax.tree_util.tree_map_with_path(home, jax.eval_shape(task["init"], key))
    params = jax.jit(task["init"], out_shardings=homes)(key)
    batch = jax.jit(draw, out_shardings=on(None if layout == "tensor parallel" else "data"))()
    split = "data" if layout == "state split" else data
    of_state = jax.tree_util.tree_map_with_path(partial(home, data=split), params)
    kept = fgo.state_shardings(tx, params, of_state)
    state = jax.jit(tx.init, out_shardings=kept)(params)
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(homes, kept))
    compiled = jitted.lower(params, state, batch).compile()
    size = int(optax.tree.size(params))
    row = {
        "layout": layout, "optimizer": name, "devices": count, "processes": jax.process_count(),
        "dim": dim, "depth": depth, "parameters": size, **_sent(compiled.as_text() or "", size),
    }  # fmt: skip
    began = 0.0
    for number in range(2 * steps):  # the first half warms up
        began = time.perf_counter() if number == steps else began
        params, state = jax.block_until_ready(compiled(params, state, batch))
    return row | ({"seconds": (time.perf_counter() - began) / steps} if steps else {})


def _sent(text: str, size: int) -> dict[str, Any]:
    """Counts and bytes by kind, and in multiples of the float32 parameters, by depth."""
    found = fgo.analysis.collectives(text, dearest=True)
    by_depth = [[one for one in found if one.depth == depth] for depth in range(3)]

    def kinds(mine: Any) -> dict[str, Any]:
        same = {one.kind: [other.sent for other in mine if other.kind == one.kind] for one in mine}
        return {kind: {"count": len(sent), "bytes": sum(sent)} for kind, sent in same.items()}

    sent = [sum(one.sent for one in mine) / (4 * size) for mine in by_depth]
    return {"sent": sent, "collectives": [kinds(mine) for mine in by_depth]}


def rows(layouts: Sequence[str], names: Sequence[str], *size: int) -> list[dict[str, Any]]:
    """On all devices of all processes; simulated ones also in smaller numbers."""
    count = jax.device_count()
    fewer = jax.default_backend() == "cpu" and jax.process_count() == 1
    cases = [(layout, count) for layout in layouts]
    cases += [("fully sharded", n) for n in (4, 2, 1) if fewer and "fully sharded" in layouts]
    return [measure(layout, name, n, *size) for layout, n in cases for name in names]


def two_processes(names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of simulated devices that belong to two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]},2"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "benchmarks", "scaling", "--layouts", "fully sharded",
            "--optimizers", ",".join(names), "--output", folder, "--hosts",
        ]  # fmt: skip
        started = [subprocess.Popen([*command, f"{place},{n}"]) for n in range(2)]
        if any([process.wait() for process in started]):
            raise RuntimeError("a process failed")
        return json.loads((Path(folder) / "scaling.json").read_text())["rows"]


def _at(depth: int) -> Callable[[dict[str, Any]], str]:
    def words(row: dict[str, Any]) -> str:
        counts = ", ".join(f"{f['count']} {kind}" for kind, f in row["collectives"][depth].items())
        return f"{row['sent'][depth]:.3f} P: {counts}" if counts else "nothing"

    return words


_COLUMNS = {
    "layout": "{layout}", "optimizer": "{optimizer}", "devices": "{devices}",
    "processes": "{processes}", "every step": _at(0), "in a branch": _at(1),
    "in a branch of that": _at(2),
}  # fmt: skip


def print_tables(results: dict[str, Any], console: Console) -> None:
    size = results["rows"][0]["parameters"]
    title = f"sent by each device, in a step of a GPT of P = {size} float32 parameters"
    console.print(figures(title, results["rows"], _COLUMNS, left=2))
    if "on_paper" in results:
        paper = results["on_paper"]["rows"]
        columns = {name: f"{{{name}:.4f}}" for name in list(paper[0])[4:]}
        words = {name: f"{{{name}}}" for name in list(paper[0])[:4]}
        console.print(figures("seconds of a step, on paper", paper, words | columns, left=4))
        console.print_json(data=results["on_paper"]["rests_on"])
