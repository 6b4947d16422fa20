"""The figures of the learnt limits, proven in simulation: `nox -s prove`."""
