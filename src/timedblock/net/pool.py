"""Connections of one client to one endpoint: lazy, bounded, last in first out (L3).

The way in is lock-free: `idle.pop()`. Everything else is here: waiting one's turn within the
caller's deadline, making connections on workers (a connect goes on to its own ceiling when its
caller has left, and serves the next call), and finding dead ones before they are used.

Slots are counted from connections that are alive, by weak reference: a connection lost to a
KeyboardInterrupt between two bytecodes gives its slot back when it is collected.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from .. import fork
from .workers import Full, NoThread, Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..call import Call
    from ..endpoint import Endpoint
    from .workers import Job

#: Connects that one pool has in flight at the most.
CONNECTING = 8
#: A connection that was idle so long (seconds) is asked whether the peer hung up.
STALE = 1.0


class Connection(Protocol):
    """What the pool needs of a connection."""

    used: float
    calls: int

    def close(self) -> None:
        """Close at once, without waiting or raising."""

    def is_dead(self) -> bool:
        """Whether the peer hung up, or sent what nobody asked for; without waiting."""


C = TypeVar("C", bound=Connection)


class ConnectTimeout(Exception):
    """No connection within the connect limit."""


class PoolFull(Exception):
    """All connections are in use, and none came back in time."""


class Turn(Generic[C]):
    """A caller's place in line: `step` until it returns a connection, then (always) `leave`.

    `lock` is released when it is worth to step again; `ring`, where one is given, is called too,
    on whichever thread that happens. A driver that waits for several pools at once needs it.
    """

    __slots__ = (
        "_began",
        "_call",
        "_connect_began",
        "_connect_limit",
        "_full",
        "_pool",
        "_ring",
        "_until",
        "error",
        "got",
        "joined",
        "lock",
        "wait",
    )

    def __init__(
        self,
        pool: Pool[C],
        call: Call,
        connect_limit: Callable[[], float],
        ring: Callable[[], object] | None = None,
    ) -> None:
        self._pool = pool
        self._call = call
        self._connect_limit = connect_limit
        self._ring = ring
        self._began = self._connect_began = pool.now()
        self._until = float("inf")
        self._full = self.joined = False
        self.got: C | None = None
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.lock.acquire()
        #: seconds to wait for the lock (or the ring) before the next step
        self.wait = 0.0

    def wake(self) -> None:
        """Something changed."""
        if self.lock.locked():
            # two wakers may race to release; the second one's error says that it is done
            with contextlib.suppress(RuntimeError):
                self.lock.release()
        if self._ring is not None:
            self._ring()

    def step(self) -> C | None:
        """The connection, or None: wait for `wait` seconds at the most, and step again.

        Raises:
            PoolFull, ConnectTimeout: see there.
            BaseException: what the connect raised.
        """
        pool = self._pool
        pool.join(self)
        pool.serve()
        got = self._outcome()
        if got is not None:
            return got
        if pool.now() >= self._until:
            if self._full:
                raise PoolFull(f"all {pool.size} connections are in use")
            raise ConnectTimeout(f"no connection in {self._until - self._began:.3f} s")
        left = min(self._call.call_at, self._connect_began + self._connect_limit()) - pool.now()
        pause = pool.grow(left)
        now = pool.now()
        self._full = pool.full
        if self._full:
            # Waiting for one's turn longer than an attempt may take helps nobody.
            self._until = min(self._call.call_at, self._began + self._call.limit)
            self._connect_began = now
        else:
            self._until = min(self._call.call_at, self._connect_began + self._connect_limit())
        # looked at again after an attempt's time: others may have learnt that nobody is there
        left = max(0.0, min(self._until - now, max(self._call.limit, 0.01)))
        self.wait = min(left, pause) if pause else left
        return None

    def _outcome(self) -> C | None:
        if self.got is not None:
            got, self.got = self.got, None
            return got
        if self.error is not None:
            raise self.error
        return None

    def leave(self) -> None:
        """Give the place up; a connection that was handed over meanwhile goes back."""
        self._pool.leave(self)


class Pool(Generic[C]):
    """At most `size` connections, made by ``connect(None)`` on workers, each to its own ceiling.

    Attributes:
        idle: free connections; the newest is popped first.
        waiting: callers in line, first come first served.

    Lock: `_lock` guards the line and the count of connects in flight; never held while waiting.
    """

    def __init__(
        self,
        name: str,
        size: int,
        connect: Callable[[float | None], C],
        endpoint: Endpoint,
        *,
        idle_timeout: float = 0.0,
        in_place: bool = False,
    ) -> None:
        """`in_place`: connections are bound to who makes them (a user's own socket module)."""
        self.size = size
        self._idle_timeout = idle_timeout or float("inf")
        self.endpoint = endpoint
        self._connect = connect
        self._in_place = in_place
        self._clock = endpoint.clock
        self.now = endpoint.clock.monotonic
        self._workers = Workers(name, min(size, CONNECTING))
        self.idle: list[C] = []
        self._start_fresh()
        endpoint.pools.add(self)
        fork.register(self)

    def _start_fresh(self) -> None:
        self.pid = os.getpid()
        self.idle.clear()  # the same list: the client's way in has hold of it
        self.waiting: deque[Turn[C]] = deque()
        self._live: dict[int, weakref.ref[C]] = {}
        self._lock = threading.Lock()
        # a token for each connect in flight: taking one back twice takes it back once
        self._connecting: set[object] = set()
        self._generation = object()

    def after_fork(self) -> None:
        """The child closes its copies of the descriptors (the parent's stay open)."""
        old = [ref() for ref in self._live.values()]
        self._start_fresh()
        for conn in old:
            if conn is not None:
                conn.close()

    # -- taking -----------------------------------------------------------------------------

    def take(self, call: Call, connect_limit: Callable[[], float]) -> C:
        """A connection within the call's limit, waiting one's turn; raises what `Turn.step` does.

        Args:
            call: whose limits the wait obeys.
            connect_limit: seconds that a connect may take now.
        """
        conn = self.pop()
        if conn is not None:
            if not self.waiting:
                return conn
            self.give(conn)  # those in line come first
        turn = self.turn(call, connect_limit)
        try:
            while True:
                conn = turn.step()
                if conn is not None:
                    return conn
                if turn.wait > 0:
                    self._clock.wait(turn.lock, turn.wait)
        finally:
            turn.leave()

    def turn(
        self,
        call: Call,
        connect_limit: Callable[[], float],
        ring: Callable[[], object] | None = None,
    ) -> Turn[C]:
        """A place in line, for a driver that does its own waiting; see `Turn`."""
        return Turn(self, call, connect_limit, ring)

    def join(self, turn: Turn[C]) -> None:
        """Put `turn` at the end of the line, once."""
        if not turn.joined:
            turn.joined = True
            with self._lock:
                self.waiting.append(turn)

    def leave(self, turn: Turn[C]) -> None:
        """See `Turn.leave`."""
        with self._lock, contextlib.suppress(ValueError):
            self.waiting.remove(turn)
        if turn.got is not None:  # handed over while it was leaving
            got, turn.got = turn.got, None
            self.give(got)

    @property
    def full(self) -> bool:
        """Whether a connection has to come back before another caller gets one."""
        return len(self._live) >= self.size and not self._connecting

    def pop(self) -> C | None:
        """An idle connection that is fit for use, or None; without waiting."""
        while True:
            try:
                conn = self.idle.pop()
            except IndexError:
                return None
            fresh = self.check(conn)
            if fresh is not None:
                return fresh

    def check(self, conn: C) -> C | None:
        """`conn` when it is alive; else None, and it and the older idle ones are closed."""
        if self.pid != os.getpid():
            self.after_fork()
            return None
        idle = self._clock.monotonic() - conn.used
        if idle <= STALE or (idle <= self._idle_timeout and not conn.is_dead()):
            return conn
        self.discard(conn)
        return None

    # -- giving back ------------------------------------------------------------------------

    def give(self, conn: C) -> None:
        """Put a healthy connection back (the hot path does the same in place)."""
        self.idle.append(conn)
        if self.waiting:
            self.serve()

    def adopt(self, conn: C) -> None:
        """Take in a connection that somebody else made."""
        key = id(conn)
        with self._lock:
            self._live[key] = weakref.ref(conn, lambda _: self._lost(key))
        self.give(conn)

    def serve(self) -> None:
        """Hand idle connections to those who wait."""
        with self._lock:
            while self.waiting and self.idle:
                try:
                    conn = self.idle.pop()
                except IndexError:
                    return
                waiter = self.waiting.popleft()
                waiter.got = conn
                waiter.wake()

    def discard(self, conn: C, *, dead: bool = True, close: bool = True) -> None:
        """Forget a connection; when it died, the idle ones that are older go with it.

        `close` False: somebody else listens on it, and closes it.
        """
        if close:
            conn.close()
        used = conn.used
        with self._lock:
            self._live.pop(id(conn), None)
            older = [other for other in self.idle if other.used <= used] if dead else []
            for other in older:
                try:
                    self.idle.remove(other)
                except ValueError:
                    continue  # somebody took it
                other.close()
                self._live.pop(id(other), None)
            first = self.waiting[0] if self.waiting else None
        if first is not None:
            first.wake()

    def clear(self) -> None:
        """Close the idle connections; those in use stay with their calls, and come back."""
        with self._lock:
            self._generation = object()
            idle, self.idle[:] = self.idle[:], []
            for conn in idle:
                self._live.pop(id(conn), None)
        for conn in idle:
            conn.close()

    # -- making -----------------------------------------------------------------------------

    def grow(self, seconds: float) -> float:
        """Start a connect for those who wait, when there is room; seconds until it may be tried.

        In place, it takes at most `seconds`.
        """
        token = object()
        try:
            with self._lock:
                wanted = len(self.waiting) - len(self._connecting)
                most = min(self.size - len(self._live), self._workers.size)
                if wanted <= 0 or len(self._connecting) >= most:
                    return 0.0
                pause = self.endpoint.connect_pause(self._clock.monotonic())
                if pause:
                    return pause
                self._connecting.add(token)
                generation = self._generation
            if self._in_place:
                self._connect_here(seconds, token, generation)
            else:
                self._workers.submit(
                    lambda: self._connect(None), lambda job: self._made(job, token, generation)
                )
        except BaseException as error:
            self._connecting.discard(token)
            if isinstance(error, Full) and not isinstance(error, NoThread):
                return 0.05
            raise
        return 0.0

    def _connect_here(self, seconds: float, token: object, generation: object) -> None:
        try:
            conn = self._connect(seconds)
        except Exception as error:
            self._not_made(error, token)
        else:
            self._take_in(conn, token, generation)

    def _made(self, job: Job[C], token: object, generation: object) -> None:
        """A connect ended (on its worker)."""
        if job.error is not None:
            self._not_made(job.error, token)
        else:
            self._take_in(job.outcome(), token, generation)

    def _take_in(self, conn: C, token: object, generation: object) -> None:
        conn.used = self._clock.monotonic()
        key = id(conn)
        self.endpoint.connected()
        with self._lock:
            self._connecting.discard(token)
            # its token may have been taken back by an interrupt, and its place by another
            room = len(self._live) < self.size
            if room and (self._generation is generation or self.waiting):
                self._live[key] = weakref.ref(conn, lambda _: self._lost(key))
                nobody = not self.waiting
            else:
                conn.close()
                return
        circuit = self.endpoint.circuit
        if nobody and circuit is not None and circuit.shut:
            circuit.connected(conn.used)
        self.give(conn)

    def _lost(self, key: int) -> None:
        # Runs wherever the last reference died, perhaps under our own lock: only atomic steps.
        if self._live.pop(key, None) is not None:
            for waiter in tuple(self.waiting)[:1]:
                waiter.wake()

    def _not_made(self, error: BaseException, token: object) -> None:
        self.endpoint.connect_failed(self._clock.monotonic())
        with self._lock:
            self._connecting.discard(token)
            # who can still be served by connections in use goes on waiting, but for the first
            count = 1 if self._live else len(self.waiting)
            failed = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        for waiter in failed:
            waiter.error = error
            waiter.wake()

    # -- reading ----------------------------------------------------------------------------

    def count(self) -> dict[str, int]:
        """How many there are: size, open, idle, connecting; and callers waiting."""
        return {
            "size": self.size,
            "open": len(self._live),
            "idle": len(self.idle),
            "connecting": len(self._connecting),
            "waiting": len(self.waiting),
        }

    def __repr__(self) -> str:
        count = self.count()
        return f"<Pool: {count['open'] - count['idle']} active, {count['idle']} idle>"
