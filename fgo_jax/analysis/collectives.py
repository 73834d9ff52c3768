"""What the devices of a mesh send to each other, read from a compiled program's text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
_SENDS = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%[\w.\-]+)")


class Collective(NamedTuple):
    """One operation of a program in which several devices take part.

    Attributes:
      kind: XLA's name, such as ``"all-gather"``.
      numbers: entries of its largest array.
      sent: bytes that leave each device, around a ring.
      depth: conditionals around it; 0 runs at every step.

    Example:
      >>> import fgo_jax as fgo
      >>> fgo.analysis.Collective("all-reduce", 1, 7.0, 0).depth
      0

    Source: XLA's operation semantics.
    """

    kind: str
    numbers: int
    sent: float
    depth: int


def collectives(text: str, *, dearest: bool = False) -> list[Collective]:
    """All collectives of a compiled program.

    Of k devices in a ring, an all-reduce of n bytes sends 2 n (k - 1)/k from each; a gather, a
    scatter or an all-to-all half of that, with n the bytes of the whole; a permutation n.

    Args:
      text: ``jax.jit(step).lower(...).compile().as_text()``.
      dearest: whether to count, of each conditional, only the branch that sends most.

    Returns:
      One :class:`Collective` for each, in the order of the text. One inside a loop counts once.

    Raises:
      Nothing.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> update = jax.jit(fgo.scale_by_kronecker_fisher().update)
      >>> params = {"w": jnp.ones((4, 4))}
      >>> state = fgo.scale_by_kronecker_fisher().init(params)
      >>> fgo.analysis.collectives(update.lower(params, state).compile().as_text())
      []

    Source: XLA's text form of its programs.
    """
    bodies, entry = computations(text)

    def inside(name: str, depth: int) -> list[Collective]:
        found = []
        for line in bodies[name]:
            if sends := _SENDS.search(line):
                found.append(_collective(line, sends[1], sends[2], sends[3], depth))
            called = re.findall(r"%([\w.\-]+)", " ".join(_CALLS.findall(line)))
            branches = [inside(one, depth + (" conditional(" in line)) for one in called]
            if dearest and " conditional(" in line:
                branches = [max(branches, key=lambda branch: sum(one.sent for one in branch))]
            found += [one for branch in branches for one in branch]
        return found

    return inside(entry, 0)


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name to body of each computation of an HLO module; the entry's name."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            name = head.group(2)
            bodies[name] = []
            entry = name if head.group(1) else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _collective(line: str, result: str, kind: str, started: str | None, depth: int) -> Collective:
    arrays = re.findall(r"([a-z]+)(\d*)\w*\[([\d,]*)\]", result)
    sizes = [math.prod(map(int, filter(None, shape.split(",")))) for *_, shape in arrays]
    widths = [int(bits) // 8 if bits else 1 for _, bits, _ in arrays]
    whole = sum(size * width for size, width in zip(sizes, widths, strict=True))
    group = _group(line)
    if started and kind != "all-reduce":  # its result holds the operands too
        parts = {"all-gather": group, "reduce-scatter": 1}
        whole *= parts[kind] / (group + 1) if kind in parts else 0.5
    share = (group - 1) / group
    trips = {"all-reduce": 2 * share, "reduce-scatter": group - 1, "collective-permute": 1}
    return Collective(kind, max(sizes), whole * trips.get(kind, share), depth)


def _group(line: str) -> int:
    """How many devices take part; 2 for a permutation."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if named := re.search(r"replica_groups=\w+\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", named[1]))
        axes = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return 2
