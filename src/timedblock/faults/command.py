"""``timedblock faults``: the command line of the injectors that stand alone."""

from __future__ import annotations

import click


@click.group()
def faults() -> None:
    """Make faults on purpose: on the wire, in a network of its own, to a process."""
