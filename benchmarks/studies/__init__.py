"""Studies of the protocol: which trigger, which part, which transform."""
