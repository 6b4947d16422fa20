"""Where fault injection takes hold of connections (L3).

Wrappers look at `injector` where they connect, and tell `born` of each new connection; nothing of
this is on the way of a call. `timedblock.faults.inprocess` sets `injector` while it has faults.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from .resolve import Address
    from .wire import Wire

#: The environment variable that switches faults on for a process.
VARIABLE = "TIMEDBLOCK_FAULTS"


class Site(NamedTuple):
    """Whose connection it is: the wrapper, the client's own name, and the endpoint."""

    wrapper: str
    name: str
    where: str


class Injector(Protocol):
    """What wrappers ask while there are faults."""

    def connecting(self, site: Site, seconds: float) -> None:
        """Before a connect that may take `seconds`; raises what it would."""

    def shaking_hands(self, site: Site, seconds: float) -> None:
        """Before a TLS handshake that may take `seconds`; raises what it would."""

    def lookup(self, site: Site) -> Callable[[str, int], list[Address]] | None:
        """What resolves a name in place of the resolver, or None."""

    def connected(self, site: Site, wire: Wire) -> None:
        """A new connection: the faults in force act on it."""


#: None while no fault is asked for.
injector: Injector | None = None
#: Every connection there is, so that a fault reaches those that are open when it begins.
wires: weakref.WeakKeyDictionary[Wire, Site] = weakref.WeakKeyDictionary()

_asked = False


def born(wire: Wire, site: Site) -> None:
    """Tell of a new connection, before it is used."""
    # In this order: a fault that begins in between finds it here, or is found here.
    wires[wire] = site
    now = injector
    if now is not None:
        now.connected(site, wire)


def from_environment() -> None:
    """Make the faults that TIMEDBLOCK_FAULTS asks for, once; each wrapper calls it at its import.

    ValueError names what is wrong with the variable.
    """
    global _asked
    if _asked or not os.environ.get(VARIABLE):
        return
    from ..faults import inprocess

    inprocess.from_environment()
    _asked = True
