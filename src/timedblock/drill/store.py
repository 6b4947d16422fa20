"""What the drill has to know of a store, and where its stores are.

A store is one neighbour of this module (``timedblock.drill.memcache``) with one `Store` in it,
``STORE``. Nothing else in the drill knows of memcached or RabbitMQ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

from timedblock.drill.checker import Violation
from timedblock.drill.errors import DrillError
from timedblock.drill.history import Call, Delivery
from timedblock.drill.load import Session
from timedblock.faults import Fault
from timedblock.faults.vocabulary import INJECTORS

if TYPE_CHECKING:
    from timedblock.faults.injector import Injector

Address = tuple[str, int]

#: The variants' names, in the order of every table and chart. ``raw-fresh`` is no client but a
#: witness: it opens a raw connection for each call, and so tells from when on there was a way.
RAW_DEFAULT, RAW_TIMEOUT, RAW_FRESH = "raw-default", "raw-timeout", "raw-fresh"
FIXED, LEARNT = "timedblock-fixed", "timedblock"
VARIANTS = (RAW_DEFAULT, RAW_TIMEOUT, RAW_FRESH, FIXED, LEARNT)
#: Those that are judged; the others are what we compare with.
OURS = (FIXED, LEARNT)

_MODULES = {
    "memcache": "timedblock.drill.memcache",
    "rabbitmq": "timedblock.drill.rabbitmq",
    "rabbitmq-cluster": "timedblock.drill.rabbitmq.cluster",
}
STORES = tuple(_MODULES)


@dataclass(frozen=True)
class Variant:
    """A way to call a store. ``limit`` in seconds: what its calls are held to.

    ``session`` makes the requests of one load: on the server at an address (a cluster has
    several), with what the load has there by the name of a prefix, a share of them (0 to 1)
    writes. ``consumes``: it is given messages meanwhile."""

    name: str
    limit: float
    session: Callable[[Sequence[Address], str, float], Session]
    consumes: bool = False


class Serving(NamedTuple):
    """A server that the drill started: where it is, its process, and the command that starts it
    again at its address. A cluster has ``others``, and an injector of the faults between them."""

    address: Address
    pid: int
    command: tuple[str, ...]
    others: tuple[Address, ...] = ()
    injector: Injector | None = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All of them."""
        return (self.address, *self.others)


class Data(Protocol):
    """The drill's own hand on the server, past the faults. DrillError if it can't reach it."""

    def check(self) -> None:
        """Whether there is such a server."""
        ...

    def prepare(self, prefix: str) -> None:
        """Make what a load needs there: its keys with a first value, its queue."""
        ...

    def violations(
        self,
        prefix: str,
        calls: Sequence[Call],
        deliveries: Sequence[Delivery],
        *,
        restarted: bool,
    ) -> list[Violation]:
        """What of a load's calls can't be right, by the messages that it was given and by what is
        there after it; ``restarted``: its process was killed meanwhile. Called once, before
        `delete`.

        DrillError if the server itself can't be right: then nothing can be said of the clients."""
        ...

    def delete(self, prefix: str) -> None:
        """Delete whatever a load has there."""
        ...


@dataclass(frozen=True)
class Store:
    """One store.

    ``operation`` is the block whose limit the samples show. ``rate`` (requests a second) and
    ``writes`` (a share of them) are a load's, unless a user says otherwise. ``faults`` are those of
    a full drill, in the order of the report, ``quick`` the few of a quick one. In the faults of
    ``gone`` a client can know that the store is gone, and the application should not notice: they
    are judged against the fault-free run, the others against raw-timeout in the same fault. In the
    ``quiet`` ones clients mostly wait: their loads need little of the processor. ``starts`` is how
    many seconds the server needs to start, ``loads_a_core`` how many loads run side by side on one
    core, so that it stays below about 60 %. ``injectors`` are those that can fault it.
    """

    name: str
    operation: str
    rate: float
    writes: float
    variants: Mapping[str, Variant]
    faults: Mapping[str, Fault]
    quick: tuple[str, ...]
    gone: Collection[str]
    quiet: Collection[str]
    serve: Callable[[str], AbstractContextManager[Serving]]
    data: Callable[[Sequence[Address]], Data]
    starts: float = 0.0
    loads_a_core: int = 6
    injectors: tuple[str, ...] = INJECTORS

    @property
    def longest_limit(self) -> float:
        """The longest limit of a variant, in seconds."""
        return max(variant.limit for variant in self.variants.values())


def find(name: str) -> Store:
    """The store of this name. KeyError if there is none; DrillError where its driver isn't
    installed."""
    try:
        store: Store = import_module(_MODULES[name]).STORE
    except ModuleNotFoundError as error:
        extra = name.partition("-")[0]
        raise DrillError(f"no {error.name}: pip install 'timedblock[{extra}]'") from error
    return store
