"""Linear algebra that probes, preconditioners and analysis share."""
