"""Reading compiled programs: what every step runs, and what it copies."""

import math
import re

import jax
import optax

from fgo_jax import analysis
from fgo_jax.analysis.collectives import computations


def reached(bodies, start):
    """Computations that run whenever `start` does: not the branches of a conditional."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in bodies[name]:
            if " conditional(" not in line:
                todo += [word for word in re.findall(r"%([\w.\-]+)", line) if word in bodies]
    return seen


def copied_always(tx, loss_of, params, batch):
    """Bytes of arrays that every step copies, apart from scalars; the state is donated."""

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    carry = params, jax.eval_shape(tx.init, params)
    compiled = jax.jit(step, donate_argnums=0).lower(carry, batch).compile()
    bodies, entry = computations(compiled.as_text())
    copies = [
        shape
        for name in reached(bodies, entry)
        for line in bodies[name]
        for shape in re.findall(r"= f32\[([\d,]+)\]\S* copy\(", line)
    ]
    return 4 * sum(math.prod(map(int, shape.split(","))) for shape in copies)


def collectives(text):
    """(kind, numbers sent) of every collective: of each step, and inside conditionals."""
    found = {True: [], False: []}
    for one in analysis.collectives(text):
        found[one.depth == 0].append((one.kind, one.numbers))
    return found[True], found[False]


def distinct_fusions(text):
    """The different fused computations, which XLA compiles once each."""
    bodies, _ = computations(text)

    def without_names(lines):
        numbers = {}
        body = "\n".join(re.sub(r", metadata=\{[^}]*\}", "", line) for line in lines)
        return re.sub(
            r"%[\w.\-]+", lambda name: numbers.setdefault(name[0], str(len(numbers))), body
        )

    called = set(re.findall(r" fusion\(.*calls=%([\w.\-]+)", text))
    return {without_names(bodies[name]) for name in called}
