"""A transformation on eight devices beside itself on one."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding


def as_one(tx, shapes, specs, tolerance, read):
    """Four updates on a 4 x 2 mesh are those of one device, on both kinds of axes.

    Everything that `read(state)` gives, trees like the gradients, has to lie like its leaf.

    Yields:
      The kind of axes, the mesh, the first state on it and the last one.
    """
    rng = np.random.default_rng(0)
    grads = [{k: rng.normal(size=s).astype("f4") for k, s in shapes.items()} for _ in range(4)]
    update = jax.jit(tx.update)

    def run(put):
        first, out = tx.init(put(grads[0])), []
        state = first
        for g in grads:
            u, state = update(put(g), state)
            out.append((u, *read(state)))
        return out, first, state

    alone, *_ = run(lambda tree: tree)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
        home = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
        together, first, last = run(lambda tree, home=home: jax.device_put(tree, home))
        for step, (one, many) in enumerate(zip(alone, together, strict=True)):
            for k in shapes:
                for x in many:
                    assert x[k].sharding.is_equivalent_to(home[k], x[k].ndim), (kind, step, k)
                error = np.abs(np.asarray(many[0][k]) - np.asarray(one[0][k])).max()
                assert error < tolerance, (kind, step, k, error)
        yield kind, mesh, first, last
