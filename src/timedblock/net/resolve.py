"""Names to addresses, without ever waiting longer than the caller (L3).

`getaddrinfo` can't be interrupted, so it runs on a worker: one resolution in flight per name, and
the last good addresses serve while the resolver hangs or fails.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import fork
from .workers import Full, Job, Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..clock import Clock

    #: host, port, and who is asked
    _Question = tuple[str, int, Callable[[str, int], list["Address"]]]

Address = tuple[socket.AddressFamily, tuple[Any, ...]]

#: Seconds for which an answer is used again without asking.
FRESH = 1.0
#: Seconds for which the last good answer serves while the resolver hangs or fails.
STALE = 300.0
#: Share of the time left that a known name may cost before its last good addresses are used.
_PATIENCE = 0.25
_MOST_NAMES = 1024


class _Known(NamedTuple):
    at: float
    addresses: list[Address]


class Resolver:
    """Resolves for one process. Lock: `_lock` guards the two tables."""

    def __init__(self, size: int = 16) -> None:
        self._workers = Workers("resolve", size)
        self._start_fresh()
        fork.register(self)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int], _Known] = {}
        self._asked: dict[_Question, Job[list[Address]]] = {}

    def after_fork(self) -> None:
        """The resolutions in flight stayed in the parent."""
        known = self._known
        self._start_fresh()
        self._known = known

    def resolve(
        self,
        host: str,
        port: int,
        clock: Clock,
        seconds: float,
        ask: Callable[[str, int], list[Address]] | None = None,
    ) -> list[Address]:
        """The addresses of a name, within `seconds`; `ask` is a faulty resolver, for tests.

        Raises:
            OSError: the resolver's own error (socket.gaierror).
            TimeoutError: no answer in time, and none known from before.
            Full: all workers hang in the resolver.
        """
        numeric = literal(host, port)
        if numeric is not None:
            return [numeric]
        key = (host, port)
        known = self._known.get(key)
        age = clock.monotonic() - known.at if known else STALE
        if known and age < FRESH:
            return known.addresses
        usable = known is not None and age < STALE
        try:
            job = self._ask((host, port, ask or lookup), clock)
        except Full:
            if known is not None and usable:
                return known.addresses
            raise
        if job.wait(clock, seconds * _PATIENCE if usable else seconds):
            try:
                return job.outcome()
            except OSError:
                if not usable:
                    raise
        if known is not None and usable:
            return known.addresses
        raise TimeoutError("the name was not resolved in time")

    def _ask(self, question: _Question, clock: Clock) -> Job[list[Address]]:
        host, port, ask = question
        with self._lock:
            job = self._asked.get(question)
            if job is None or job.finished:
                job = self._workers.submit(
                    lambda: ask(host, port), lambda done: self._answered(question, done, clock)
                )
                self._asked[question] = job
            return job

    def _answered(self, question: _Question, job: Job[list[Address]], clock: Clock) -> None:
        with self._lock:
            if self._asked.get(question) is job:
                del self._asked[question]
            if job.error is None:
                while len(self._known) >= _MOST_NAMES:
                    del self._known[next(iter(self._known))]
                self._known[question[:2]] = _Known(clock.monotonic(), job.outcome())

    def forget(self) -> None:
        """Drop everything known (tests, and a changed network)."""
        with self._lock:
            self._known.clear()


def literal(host: str, port: int) -> Address | None:
    """The address where `host` is one already, or None."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError, UnicodeError):
            continue
        return family, (host, port) if family == socket.AF_INET else (host, port, 0, 0)
    return None


def lookup(host: str, port: int) -> list[Address]:
    """Ask the system's resolver; waits as long as it does."""
    # read from the module at each call, so that drills and tests can make it hang
    found = socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
    addresses: list[Address] = []
    for family, _, _, _, address in found:
        if (family, address) not in addresses:
            addresses.append((family, address))
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
    return addresses


RESOLVER = Resolver()
