"""What the fixtures of the pytest plugin give: proxies, faults, health and limits, and their types
for annotations."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from ..faults import Fault, inject, parse, vocabulary
from ..faults.proxy import Link, Relay
from .health import Health
from .leaks import no_leaks
from .memcached import EmbeddedMemcached
from .within import TooLate, Within

__all__ = [
    "EmbeddedMemcached",
    "Faults",
    "Health",
    "Injected",
    "Proxies",
    "Proxy",
    "TooLate",
    "Within",
    "no_leaks",
]

Address = tuple[str, int]
Upstream = Address | str

_FLUSH_SECONDS = 1.0


def as_fault(fault: str | Fault) -> Fault:
    """A fault by its name and values (``"latency:0.2"``, ``"hang@5s"``), or as it is."""
    if isinstance(fault, str):
        return parse(fault)
    if not isinstance(fault, Fault):
        raise TypeError(f"fault must be a name such as 'hang' or a Fault, not {fault!r}")
    return fault


class Proxy:
    """A relay before one address: what connects to `address` reaches the address behind it, through
    the fault that is in force. Made by the fixture ``timedblock_proxy``."""

    def __init__(self, link: Link, upstream: Upstream) -> None:
        self._link = link
        #: the address behind it
        self.upstream = upstream
        self._faulty = False

    @property
    def address(self) -> Address:
        """(host, port) to connect to."""
        return self._link.address

    @property
    def url(self) -> str:
        """``host:port``."""
        host, port = self.address
        return f"{host}:{port}"

    def inject(self, fault: str | Fault) -> None:
        """Put a fault in force in place of the one before; returns once it bites.

        ValueError for an unknown fault, or one that can't be made on the wire."""
        chosen = as_fault(fault)
        self._faulty = True
        self._link.inject(chosen)

    @contextlib.contextmanager
    def fault(self, fault: str | Fault) -> Iterator[Proxy]:
        """``with proxy.fault("blackhole"):`` has it in force for the block."""
        self.inject(fault)
        try:
            yield self
        finally:
            self.clear()

    def clear(self) -> None:
        """End the fault; returns once bytes pass again. Harmless when there is none."""
        if self._faulty:
            self._link.clear()
            self._faulty = False

    def describe(self) -> dict[str, Any]:
        """``fault``, ``connections`` (open now) and ``accepted`` (ever)."""
        return self._link.describe()


class Proxies:
    """Makes proxies, all in one process of their own, which starts with the first."""

    def __init__(self) -> None:
        self._relay: Relay | None = None
        self._made: list[Proxy] = []

    def __call__(self, upstream: Upstream) -> Proxy:
        """A proxy before (host, port), or before the path of a UNIX socket."""
        if self._relay is None:
            self._relay = Relay().start()
        proxy = Proxy(self._relay.listen(upstream=upstream), upstream)
        self._made.append(proxy)
        return proxy

    def clear(self) -> None:
        """End every fault."""
        for proxy in self._made:
            proxy.clear()

    def close(self) -> None:
        """End the process."""
        relay, self._relay, self._made = self._relay, None, []
        if relay is not None:
            relay.stop()


class Injected:
    """A fault in force: until `end`, or the end of a ``with`` block of it, or of the test."""

    def __init__(self, scope: contextlib.ExitStack) -> None:
        self._scope = scope

    def end(self) -> None:
        """End the fault; harmless when it has ended."""
        self._scope.close()

    def __enter__(self) -> Injected:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()


class Faults:
    """``timedblock_faults(where, fault)``: see `__call__`. What is in force ends with the test."""

    def __init__(self) -> None:
        self._injected: list[Injected] = []

    def __call__(self, where: str | Proxy, fault: str | Fault) -> Injected:
        """Put a fault in force from now on.

        Args:
            where: a proxy; or, for this process's own sockets, a wrapper, a client's ``name=``, or
                one endpoint of either: ``"memcache"``, ``"memcache@127.0.0.1:11211"``.
            fault: ``"hang"``, ``"latency:0.2"``, or a `timedblock.faults.Fault`.
        """
        chosen = as_fault(fault)
        scope = contextlib.ExitStack()
        if isinstance(where, Proxy):
            scope.enter_context(where.fault(chosen))
        else:
            scope.enter_context(inject(where, chosen))
        injected = Injected(scope)
        self._injected.append(injected)
        return injected

    def clear(self) -> None:
        """End every fault that was made here, the newest first."""
        while self._injected:
            self._injected.pop().end()


def names_for(*, proxy: bool) -> tuple[str, ...]:
    """The faults that a proxy, or this process's own sockets, can make, by name."""
    return vocabulary.faults_of("proxy" if proxy else "inprocess")


def make_fresh(store: EmbeddedMemcached) -> None:
    """Empty a store, and start it again if the test has ended or stopped it."""
    try:
        _flush(store)
    except OSError:
        store.kill()
        store.start()


def _flush(store: EmbeddedMemcached) -> None:
    address = store.address
    assert isinstance(address, tuple)
    with socket.create_connection(address, _FLUSH_SECONDS) as sock:
        sock.sendall(b"flush_all\r\n")
        if sock.recv(64) != b"OK\r\n":
            raise ConnectionError("the store did not take flush_all")
