"""Reading compiled programs: what every step runs, and what it copies."""

import math
import re

import jax
import optax


def computations(text):
    """Name to body of each computation of an HLO module; the entry's name."""
    bodies, entry, name = {}, None, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            name = head.group(2)
            bodies[name] = []
            entry = name if head.group(1) else entry
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


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

    compiled = jax.jit(step, donate_argnums=0).lower((params, tx.init(params)), batch).compile()
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
    bodies, entry = computations(text)
    always = reached(bodies, entry)
    found = {True: [], False: []}
    for name, lines in bodies.items():
        for line in lines:
            sent = re.search(r"= (.*?) ([a-z]+-[a-z]+)(?:-start)?\(", line)
            if sent and sent[2] in COLLECTIVES:
                shapes = re.findall(r"\w+\[([\d,]*)\]", sent[1])
                sizes = [math.prod(map(int, filter(None, s.split(",")))) for s in shapes]
                found[name in always].append((sent[2], max(sizes)))
    return found[True], found[False]


COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
