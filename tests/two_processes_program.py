"""Run by test_two_processes.py: one of two processes that train one model on their own data.

Arguments: the coordinator's port, the number of the process, a folder for checkpoints, the step at
which to begin, and the step at which the second process dies.
"""

import os
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import quick
from tests.many_devices_program import batches, optimizer, start, step

SEED, STEPS = 3, 90  # the last phase has begun by then
PART, BAD = 10, 27  # steps from checkpoint to checkpoint; the step that holds a NaN


def spoilt(data):
    """The second half of one batch, the second process's, holds a NaN."""
    x = np.array(data["x"])
    x[BAD, -1, 0] = np.nan
    return {"x": x, "y": np.array(data["y"])}


def whole(first=0, carry=None, put=jnp.asarray, put_data=jnp.asarray, seen=lambda *_: None):
    """The carry and the telemetry of all steps, in parts that end with a checkpoint."""
    if carry is None:
        params = start(SEED)
        carry = jax.tree.map(put, (params, jax.jit(optimizer().init)(params)))
    data, part = spoilt(batches(SEED)), jax.jit(lambda carry, data: jax.lax.scan(step, carry, data))
    rows = []
    for begin in range(first, STEPS, PART):
        carry, row = part(carry, jax.tree.map(lambda x, b=begin: put_data(x[b : b + PART]), data))
        rows.append(jax.tree.map(np.asarray, row))
        seen(begin + PART, carry)
    return carry, jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def summary(telemetry, carry):
    """What two runs are compared by."""
    size = sum(float(np.abs(np.asarray(x)).sum()) for x in jax.tree.leaves(carry[0]))
    skipped = int(telemetry["skipped_steps"][-1])
    return f"phases {''.join(map(str, telemetry['phase']))} skipped {skipped} size {size:.2f}"


def main(port, number, folder, first, dies_at):
    optimizer()  # without arrays, which would have to come later
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=number)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "data"))

    def put(x):
        return jax.make_array_from_callback(x.shape, everywhere, lambda i: np.asarray(x)[i])

    def put_data(x):  # every process gives its own part
        return jax.make_array_from_callback(x.shape, split, lambda i: x[i])

    def seen(done, carry):
        if number == 0:
            numbers = jax.tree.map(np.asarray, carry)
            (Path(folder) / f"{done}.pickle").write_bytes(pickle.dumps(numbers))
        if number == 1 and done == dies_at:
            os._exit(7)

    carry = None
    if first:
        stored = (Path(folder) / f"{first}.pickle").read_bytes()
        carry = jax.tree.map(put, pickle.loads(stored))
    carry, telemetry = whole(first, carry, put, put_data, seen)
    print(summary(telemetry, carry))


if __name__ == "__main__":
    quick.build()
    main(*map(int, sys.argv[1:3]), sys.argv[3], *map(int, sys.argv[4:]))
