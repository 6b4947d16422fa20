"""Faults at our own sockets, for tests and drills of the process that they are made in (L3).

`inject` puts a `Tap` in place of ``send``, ``recv`` and ``recv_now`` of each live `Wire` of its
target, and of each new one; connects, TLS handshakes and names ask `_INJECTOR` through
``net.seam``. While there is no fault nothing of this exists, and a call pays nothing for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from .. import fork
from ..clock import SYSTEM
from ..net import seam
from . import vocabulary
from .plan import (
    Blackhole,
    DnsFail,
    DnsHang,
    Fault,
    Hang,
    Latency,
    Silent,
    parse_env,
)
from .taps import Injection, Tap, reset_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from ..net.resolve import Address
    from ..net.seam import Site
    from ..net.wire import Wire

_log = logging.getLogger("timedblock")
#: Faults of names; every other one acts on connections.
_NAMES = (DnsFail, DnsHang)


def inject(target: str, fault: Fault) -> AbstractContextManager[Injection]:
    """Put `fault` in force for the time of a ``with`` block, in this whole process.

    It acts on connections that are open and on new ones, ends after ``fault.duration`` seconds if
    that comes first, and is rolled back however the block ends. A call that already waits in the
    kernel when the fault begins is reached by `Refuse` only. Where several faults reach one
    connection the newest acts; names have a newest fault of their own.

    Args:
        target: a wrapper (``"memcache"``) or a client's own ``name=``, and optionally one
            endpoint: ``"memcache@127.0.0.1:11211"``.
        fault: what to do, such as ``faults.Hang()``.

    Returns:
        A context manager. What it gives (``as injection``) says in ``.met`` whether the target was
        there at all: a misspelt one never is, and is logged as a warning at the end of the block.

    Raises:
        TypeError, ValueError: for a bad target or fault, at once.
    """
    vocabulary.check("inprocess", fault)
    _check_target(target)
    return _scope(target, fault)


@contextlib.contextmanager
def _scope(target: str, fault: Fault) -> Iterator[Injection]:
    injection = Injection(target, fault)
    try:
        _INJECTOR.begin(injection)
        yield injection
    finally:
        _INJECTOR.finish(injection)
        if not injection.met:
            _log.warning("the fault %r met no connection of %r", fault.name, target)


def _check_target(target: str) -> None:
    if not isinstance(target, str):
        raise TypeError(f"target must be a name such as 'memcache', not {target!r}")
    name, at, where = target.partition("@")
    if not name.strip() or (at and not where.strip()):
        raise ValueError(f"target must be NAME or NAME@ENDPOINT, not {target!r}")


def from_environment() -> None:
    """Make the faults of TIMEDBLOCK_FAULTS, from now on; ValueError names the bad part."""
    try:
        pairs = parse_env(os.environ.get(seam.VARIABLE, ""))
        for target, fault in pairs:
            vocabulary.check("inprocess", fault)
            _check_target(target)
    except ValueError as error:
        raise ValueError(f"{seam.VARIABLE}: {error}") from None
    for target, fault in pairs:
        _INJECTOR.begin(Injection(target, fault))
    if pairs:
        told = ", ".join(
            f"{target}: {fault.name} for {fault.duration:g} s" for target, fault in pairs
        )
        _log.warning("FAULTS ARE ON in this process, asked for by %s: %s", seam.VARIABLE, told)


class InProcessLink:
    """The way of our own sockets in this process to a store. Thread-safe."""

    prefix: tuple[str, ...] = ()

    def __init__(self, target: str, address: tuple[str, int]) -> None:
        #: Where the store is.
        self.address = address
        self._target = target
        self._injection: Injection | None = None
        self._lock = threading.Lock()

    def inject(self, fault: Fault) -> None:
        """See `injector.Link.inject`."""
        vocabulary.check("inprocess", fault)
        with self._lock:
            self._clear()
            self._injection = Injection(self._target, fault)
            _INJECTOR.begin(self._injection)

    def clear(self) -> None:
        """See `injector.Link.clear`."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        injection, self._injection = self._injection, None
        if injection is not None:
            _INJECTOR.finish(injection)


class InProcess:
    """`inject` in the form that every injector has: see `timedblock.faults.injector`.

    Its links reach our own sockets in this process, and nobody else's.

    Args:
        address: where the store is, (host, port).
        target: as `inject` takes it; by default the wrapper's connections to `address`.

    Raises:
        TypeError, ValueError: for a bad target.
    """

    name = "inprocess"

    def __init__(self, address: tuple[str, int], *, target: str | None = None) -> None:
        host, port = address
        self._address = (host, port)
        self._target = f"memcache@{host}:{port}" if target is None else target
        _check_target(self._target)
        self._links: list[InProcessLink] = []

    def __enter__(self) -> InProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for link in self._links:
            link.clear()

    def listen(self) -> InProcessLink:
        """A link. Where several have a fault at one target, the newest acts."""
        link = InProcessLink(self._target, self._address)
        self._links.append(link)
        return link


class _Injector:
    """Every fault in force in this process.

    Lock: `_lock` guards the list of injections and the table of taps; a tap's lock is only taken
    inside it or alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._injections: list[Injection] = []
        self._taps: weakref.WeakKeyDictionary[Wire, Tap] = weakref.WeakKeyDictionary()
        fork.register(self)

    def after_fork(self) -> None:
        """The faults go on in the child; the locks may have been held by another thread."""
        self._lock = threading.Lock()
        for injection in self._injections:
            injection.make_fresh()
        for wire in _called(self._taps):
            self._taps[wire].make_fresh()

    def begin(self, injection: Injection) -> None:
        """Put a fault in force."""
        with self._lock:
            self._injections.append(injection)
            seam.injector = self
            for wire in _called(seam.wires):
                self._tap(wire, seam.wires[wire], injection)

    def finish(self, injection: Injection) -> None:
        """Take a fault away; harmless when it isn't there."""
        injection.stop()
        with self._lock:
            self._drop([injection])
            taps = [tap for wire in _called(self._taps) if (tap := self._taps.get(wire))]
        for tap in taps:  # sends what was held back: not under our lock
            tap.finish(injection)

    def _drop(self, gone: list[Injection]) -> None:
        self._injections = [one for one in self._injections if one not in gone]
        if not self._injections:
            seam.injector = None

    def _tap(self, wire: Wire, site: Site, injection: Injection) -> None:
        if not injection.reaches(site) or isinstance(injection.fault, _NAMES):
            return
        tap = self._taps.get(wire)
        if tap is None:
            tap = self._taps[wire] = Tap(wire)
        tap.add(injection)

    def _newest(self, site: Site, *, names: bool) -> Injection | None:
        with self._lock:
            self._drop([one for one in self._injections if one.over])
            for one in reversed(self._injections):
                if isinstance(one.fault, _NAMES) is names and one.reaches(site):
                    return one
        return None

    # -- what `seam.Injector` asks for ------------------------------------------------------

    def connecting(self, site: Site, seconds: float) -> None:
        """Before a connect: refused, or not answered."""
        until = SYSTEM.monotonic() + seconds
        while True:
            one = self._newest(site, names=False)
            if one is not None and one.refuses:
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            if one is None or not isinstance(one.fault, Blackhole):
                return
            if not one.wait(until):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def shaking_hands(self, site: Site, seconds: float) -> None:
        """Before a TLS handshake: nothing comes, or it comes later, or a reset does."""
        until = SYSTEM.monotonic() + seconds
        while True:
            one = self._newest(site, names=False)
            if one is not None and one.refuses:
                raise reset_error()
            if one is None or not isinstance(one.fault, (Hang, Silent, Blackhole, Latency)):
                return
            fault = one.fault
            late = fault.seconds if isinstance(fault, Latency) else math.inf
            due = SYSTEM.monotonic() + late
            if not one.wait(min(due, until)):
                if due > until:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                return

    def lookup(self, site: Site) -> Callable[[str, int], list[Address]] | None:
        """What resolves names in place of the resolver, or None."""
        one = self._newest(site, names=True)
        if one is None:
            return None
        return one.fail_to_resolve if isinstance(one.fault, DnsFail) else one.resolve_late

    def connected(self, site: Site, wire: Wire) -> None:
        """A new connection: the faults in force act on it."""
        with self._lock:
            for injection in self._injections:
                if not injection.over:
                    self._tap(wire, site, injection)


def _called(table: weakref.WeakKeyDictionary[Wire, Any]) -> list[Wire]:
    """The keys of a table that other threads change meanwhile: `keyrefs` is one step."""
    return [wire for ref in table.keyrefs() if (wire := ref()) is not None]


_INJECTOR = _Injector()
