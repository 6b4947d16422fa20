"""What the drill has to know of a store, and where its stores are.

A store is one neighbour of this module (``timedblock.drill.memcache``) with one `Store` in it,
``STORE``. Nothing else in the drill knows of memcached.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple, Protocol

from timedblock.drill.load import Session
from timedblock.faults import Fault

Address = tuple[str, int]

#: The variants' names, in the order of every table and chart.
RAW_DEFAULT, RAW_TIMEOUT = "raw-default", "raw-timeout"
FIXED, LEARNT = "timedblock-fixed", "timedblock"
VARIANTS = (RAW_DEFAULT, RAW_TIMEOUT, FIXED, LEARNT)
#: The token of the value that every key has before a load writes to it.
INITIAL = "0"
#: Those that are judged; the others are what we compare with.
OURS = (FIXED, LEARNT)

_MODULES = {"memcache": "timedblock.drill.memcache"}
STORES = tuple(_MODULES)


@dataclass(frozen=True)
class Variant:
    """A way to call a store. ``limit`` in seconds: what its calls are held to.

    ``session`` makes the requests of one load: on the server at an address, with the keys of a
    prefix, a share of them (0 to 1) writes."""

    name: str
    limit: float
    session: Callable[[Address, str, float], Session]


class Serving(NamedTuple):
    """A server that the drill started: where it is, its process, and the command that starts it
    again at its address."""

    address: Address
    pid: int
    command: tuple[str, ...]


class Data(Protocol):
    """The drill's own hand on the server, past the faults."""

    def write(self, prefix: str) -> None:
        """Store every key of a load, each with its initial value. DrillError if it can't be."""
        ...

    def read(self, prefix: str) -> dict[str, str | None]:
        """The token of every key; None for one that is lost. DrillError if it can't be read."""
        ...

    def delete(self, prefix: str) -> None:
        """Delete every key of a load; DrillError if it can't be."""
        ...


@dataclass(frozen=True)
class Store:
    """One store.

    ``operation`` is the block whose limit the samples show. ``faults`` are those of a full drill,
    in the order of the report, ``quick`` the few of a quick one. In the faults of ``gone`` a client
    can know that the store is gone, and the application should not notice: they are judged against
    the fault-free run, the others against raw-timeout in the same fault. In the ``quiet`` ones
    clients mostly wait: their loads need little of the processor.
    """

    name: str
    operation: str
    variants: Mapping[str, Variant]
    faults: Mapping[str, Fault]
    quick: tuple[str, ...]
    gone: Collection[str]
    quiet: Collection[str]
    serve: Callable[[str], AbstractContextManager[Serving]]
    data: Callable[[Address], Data]

    @property
    def longest_limit(self) -> float:
        """The longest limit of a variant, in seconds."""
        return max(variant.limit for variant in self.variants.values())


def find(name: str) -> Store:
    """The store of this name. KeyError if there is none."""
    store: Store = import_module(_MODULES[name]).STORE
    return store
