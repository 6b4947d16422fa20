"""What every client of one host:port shares in a process (L3): breaker, budget, data."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Protocol

from . import clock as _clock
from . import fork
from .block import announce_breaker
from .operation import Operation, Room
from .policy.breaker import Breaker, Circuit
from .policy.budget import Budget
from .weak import WeakMembers

if TYPE_CHECKING:
    from .clock import Clock
    from .latency import Histogram

#: After a failed connect, the next ones to that endpoint start so many seconds apart.
CONNECT_PAUSE = 0.1


class Counted(Protocol):
    """A pool, as far as its endpoint knows it."""

    def count(self) -> dict[str, int]:
        """Connections by what they do."""


class Endpoint:
    """One host:port (or a cluster where the driver hides its nodes).

    Lock: `_lock` guards the table of operations and the connect limiter.
    """

    def __init__(self, name: str, breaker: Breaker | None, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.breaker = breaker
        self.circuit: Circuit | None = self._make_circuit(breaker) if breaker else None
        self.budget = Budget(lambda now, seconds: sum(self._recent(now, seconds)))
        self.connects = 0
        #: pools of the clients of this endpoint, for stats()
        self.pools: WeakMembers[Counted] = WeakMembers()
        self._operations: dict[str, Operation] = {}
        self._room = Room()
        self._lock = threading.Lock()
        self._connect_failed = False
        self._next_connect = 0.0
        fork.register(self)

    def _make_circuit(self, breaker: Breaker) -> Circuit:
        ref = weakref.ref(self)  # a circuit kept by somebody doesn't keep its endpoint

        def answered(now: float, seconds: float) -> int:
            endpoint = ref()
            return 0 if endpoint is None else endpoint._recent(now, seconds)[0]

        def changed(old: str, new: str, reason: str, now: float) -> None:
            endpoint = ref()
            if endpoint is not None and endpoint.circuit is not None:
                for operation in list(endpoint._operations.values()):
                    operation.breaker_changed(new, endpoint.circuit.outage, now)
            announce_breaker(self_name, self_name, old, new, reason, now)

        self_name = self.name
        return Circuit(breaker, answered_within=answered, on_change=changed)

    def set_breaker(self, breaker: Breaker) -> None:
        """Go on with `breaker`'s settings, whatever the state."""
        if self.circuit is None:
            self.circuit = self._make_circuit(breaker)
        elif self.circuit.config != breaker:
            self.circuit.reconfigure(breaker)

    def operation(self, name: str) -> Operation:
        """The shared data of one operation here."""
        operation = self._operations.get(name)
        if operation is None:
            with self._lock:
                made = Operation(self.clock.monotonic(), self._room)
                operation = self._operations.setdefault(name, made)
        return operation

    def kin(self, name: str, ceiling: float) -> list[Histogram]:
        """The data of the operations that are like `name`: same store, same ceiling.

        Connecting is like nothing else.
        """
        store, _, what = name.rpartition(".")
        return [
            histogram
            for other, operation in list(self._operations.items())
            if what != "connect"
            and other.rpartition(".")[0] == store
            and other.rpartition(".")[2] != "connect"
            and any(block.ceiling == ceiling for block in list(operation.blocks))
            for histogram in operation.histograms()
        ]

    def _recent(self, now: float, seconds: float) -> tuple[int, int]:
        both = [operation.recent(now, seconds) for operation in list(self._operations.values())]
        return sum(answered for answered, _ in both), sum(other for _, other in both)

    def connections(self) -> dict[str, int]:
        """Connections of all clients by what they do."""
        total: dict[str, int] = {}
        for pool in list(self.pools):
            for what, count in pool.count().items():
                total[what] = total.get(what, 0) + count
        return total

    # -- the connect limiter ------------------------------------------------------------------

    def connect_pause(self, now: float) -> float:
        """Seconds until a new connection may be tried; 0 takes the permit."""
        with self._lock:
            if not self._connect_failed:
                return 0.0
            if now < self._next_connect:
                return self._next_connect - now
            self._next_connect = now + CONNECT_PAUSE
            return 0.0

    def connected(self) -> None:
        """A connection was made."""
        with self._lock:
            self.connects += 1
            self._connect_failed = False

    def connect_failed(self, now: float) -> None:
        """A connection could not be made."""
        with self._lock:
            if not self._connect_failed:
                self._connect_failed = True
                self._next_connect = now + CONNECT_PAUSE

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = "no breaker" if self.circuit is None else self.circuit.state
        return f"<Endpoint {self.name}: {state}>"


class _Table:
    """Lock: `lock` guards the table of endpoints below."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        fork.register(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self.lock = threading.Lock()


_table = _Table()
_endpoints: weakref.WeakValueDictionary[tuple[str, int], Endpoint] = weakref.WeakValueDictionary()


def endpoint(name: str, breaker: Breaker | None) -> Endpoint:
    """The endpoint of that name, made when it is new.

    Raises:
        ValueError: another client of it has different breaker settings.
    """
    clock = _clock.current()
    with _table.lock:
        found = _endpoints.get((name, id(clock)))
        if found is None:
            found = _endpoints[name, id(clock)] = Endpoint(name, breaker, clock)
        elif breaker is not None and found.breaker is None:
            found.breaker = breaker
            found.set_breaker(breaker)
        elif breaker is not None and found.breaker != breaker:
            raise ValueError(
                f"{name} already has {found.breaker}; a client with {breaker} "
                "needs a name= of its own"
            )
        return found


def endpoints() -> list[Endpoint]:
    """The endpoints that are in use."""
    with _table.lock:
        return list(_endpoints.values())
