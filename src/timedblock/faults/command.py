"""``timedblock faults``: the command line of the injectors that stand alone."""

from __future__ import annotations

import click

from timedblock.faults.inject_command import inject, list_faults
from timedblock.faults.proxy.command import proxy


@click.group()
def faults() -> None:
    """Make faults on purpose: on the wire, in a network of its own, to a process."""


faults.add_command(list_faults)
faults.add_command(inject)
faults.add_command(proxy)
