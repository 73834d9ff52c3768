"""Many small programs of JAX's built in less time; the programs are the same."""

import contextlib
import functools
import gc


def build() -> None:
    """To be called once in a process, when the environment's settings stand."""
    # Programs are kept until the end, and by default Python would look through them all again and
    # again: a tenth of the time.
    gc.set_threshold(50_000, 20, 50)
    # JAX loads a dozen dialects of MLIR into a context of its own for every program. One context
    # for all of them saves another tenth, and half of the memory.
    try:
        from jax._src.interpreters import mlir

        mlir.make_ir_context = _shared(mlir.make_ir_context, mlir.ir)
    except (ImportError, AttributeError):  # a JAX that keeps it elsewhere: tests take longer
        pass


def _shared(make, ir):
    shared = functools.cache(make)

    def context():
        # A program that is built while another one is would be written into that one's module.
        return shared() if ir.Context.current is None else make()

    return context


@contextlib.contextmanager
def optimized():
    """What is compiled inside runs for much longer than its compilation takes."""
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)
