"""What the memcached drill tries: the clients, the request they serve, and the faults.

The raw variants are pymemcache's ``PooledClient``, because requests run in threads and its
``Client`` must not be shared by threads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pymemcache.client.base import Client as RawClient
from pymemcache.client.base import PooledClient
from pymemcache.exceptions import MemcacheError

from timedblock import faults
from timedblock.drill.errors import DrillError
from timedblock.drill.load import Outcome
from timedblock.drill.verdict import FAULT_FREE
from timedblock.faults import Fault

Address = tuple[str, int]

#: Different keys in use; every one is stored before the load starts and stays stored.
KEYS = 64
#: Seconds that a drill's own calls (storing and deleting its keys) may take each.
_OWN_TIMEOUT = 2.0


class Cache(Protocol):
    """What the load needs of a client."""

    def get(self, key: str) -> bytes | None: ...


class Client(NamedTuple):
    """A client, and the error by which it may say that there is no answer."""

    cache: Cache
    honest: type[Exception]


def _raw_default(server: Address) -> Client:
    return Client(PooledClient(server), Exception)


def _raw_timeout(server: Address) -> Client:
    return Client(PooledClient(server, connect_timeout=1, timeout=1), Exception)


def _timedblock(server: Address) -> Client:
    # Here, so that the raw clients' processes are without it.
    from timedblock import Unavailable, memcache

    return Client(memcache.Client(server), Unavailable)


@dataclass(frozen=True)
class Variant:
    """A way to call memcached. ``limit`` in seconds: what its calls are held to."""

    name: str
    limit: float
    connect: Callable[[Address], Client]


#: raw-default has no limit of its own; it is held to the second that its users would expect.
#: timedblock's is the default ceiling of a call, with nothing tuned.
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("raw-default", 1.0, _raw_default),
        Variant("raw-timeout", 1.0, _raw_timeout),
        Variant("timedblock", 1.0, _timedblock),
    )
}
OURS = "timedblock"
REFERENCE = "raw-timeout"
#: The longest limit of a variant.
LONGEST_LIMIT = max(variant.limit for variant in VARIANTS.values())


#: The faults of a full drill, in the order of the report.
FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        faults.Refuse(),
        faults.Blackhole(),
        faults.Hang(),
        faults.Silent(),
        faults.Reset(),
        faults.DnsFail(),
        faults.DnsHang(),
        faults.Latency(0.05, jitter=0.02),
        faults.Drip(),
        faults.Cut(),
        faults.Corrupt(),
        faults.ErrorRate(0.5),
    )
}
#: Made in the load's own process, where names are resolved, not on the wire.
DNS_FAULTS = frozenset({"dns-fail", "dns-hang"})
#: Where a client can know that the store is gone, and the application should not notice: judged
#: against the fault-free run. In the others it is judged against raw-timeout in the same fault.
GONE = frozenset({"refuse", "blackhole", "hang", "silent", "reset"}) | DNS_FAULTS
#: In these, clients mostly wait: their loads need little of the processor.
QUIET = frozenset({"blackhole", "hang", "silent", "drip", "dns-hang"})


@dataclass(frozen=True)
class Keys:
    """The keys of one drill. A value carries its key and a checksum, so that a value of another
    key, a truncated or a corrupted one is recognised."""

    prefix: str

    def name(self, index: int) -> str:
        return f"{self.prefix}:{index % KEYS}"

    def value(self, key: str) -> bytes:
        return f"{key} {hashlib.sha256(key.encode()).hexdigest()}".encode()

    def items(self) -> dict[str, bytes]:
        return {self.name(index): self.value(self.name(index)) for index in range(KEYS)}


def make_request(client: Client, keys: Keys) -> Callable[[int], Outcome]:
    """A request of the application: read the cache; on any error go on without it."""
    expected = keys.items()

    def request(index: int) -> Outcome:
        key = keys.name(index)
        try:
            value = client.cache.get(key)
        except client.honest as error:
            return Outcome("error", type(error).__name__)
        except Exception as error:
            return Outcome("dishonest", type(error).__name__)
        # All keys are stored for as long as the load runs: a miss would be wrong, too.
        return Outcome("ok" if value == expected[key] else "wrong")

    return request


def _direct(server: Address) -> closing[RawClient]:
    """The drill's own connection, past the relay."""
    return closing(RawClient(server, connect_timeout=_OWN_TIMEOUT, timeout=_OWN_TIMEOUT))


@contextmanager
def stored(server: Address, keys: Keys) -> Iterator[None]:
    """Stores the drill's keys on ``server`` and deletes them afterwards.

    DrillError if the server can't be used, or lost some of them while the drill ran: a miss would
    then not be a wrong answer."""
    with _usable(server), _direct(server) as client:
        failed = [
            key for key, value in keys.items().items() if not client.set(key, value, noreply=False)
        ]
    if failed:
        raise DrillError(f"{_text(server)} did not store {len(failed)} of {KEYS} keys")
    try:
        yield
    finally:
        with _usable(server), _direct(server) as client:
            found = client.get_many(list(keys.items()))
            client.delete_many(list(keys.items()), noreply=False)
    if found != keys.items():
        raise DrillError(f"{_text(server)} lost keys while the drill ran")


@contextmanager
def _usable(server: Address) -> Iterator[None]:
    try:
        yield
    except (OSError, MemcacheError) as error:
        reason = str(error) or type(error).__name__
        raise DrillError(f"no memcached at {_text(server)}: {reason}") from error


def _text(server: Address) -> str:
    return f"{server[0]}:{server[1]}"


def planned(names: Collection[str]) -> list[str]:
    """The faults of a run: the fault-free run first, then ``names`` in the report's order."""
    return [FAULT_FREE, *(name for name in FAULTS if name in names)]


def waves(names: Sequence[str], largest: int) -> list[list[str]]:
    """Parallel waves of at most ``largest`` faults, each with its share of the busy ones."""
    dealt = sorted(names, key=lambda name: name in QUIET)
    count = math.ceil(len(dealt) / largest)
    return [dealt[number::count] for number in range(count)]
