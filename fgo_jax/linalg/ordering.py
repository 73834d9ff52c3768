"""A data dependency that tells XLA in which order to read and to write."""

from __future__ import annotations

import jax


def ordered_after(flag: jax.Array, counter: jax.Array) -> jax.Array:
    """The flag itself, but XLA can only know it once the counter is computed.

    The counter is never negative, so the result is always `flag`. Make a counter that a
    reader of some state returns, and let the writer of that state wait for the flag: XLA then
    orders the read before the write and updates the state in place. Without the dependency it
    keeps the state for the reader and copies it at every step.

    On a network of 3,072 parameters a compiled step of :func:`fgo_jax.target_acquisition`
    copies 292 bytes with the dependency and 549,448 without
    (``tests/controller/test_ordering.py``).

    Args:
      flag: [], bool.
      counter: [], int32, >= 0; made by what must run first.
    """
    return flag & (counter >= 0)
