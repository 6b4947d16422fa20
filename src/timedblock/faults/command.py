"""``timedblock faults``: the command line of the injectors that stand alone."""

from __future__ import annotations

import click

from timedblock.faults.proxy.command import proxy


@click.group()
def faults() -> None:
    """Make faults on purpose: on the wire, in a network of its own, to a process."""


faults.add_command(proxy)
