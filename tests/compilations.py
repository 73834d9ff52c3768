"""What is compiled inside a block."""

import contextlib

import jax


@contextlib.contextmanager
def seen():
    """Yields a list that grows by one at every compilation."""
    found = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
