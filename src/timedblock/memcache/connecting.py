"""A client's connections to one memcached: how they are made, and under which limits (L4)."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pymemcache.client import base

from ..block import TimedBlock
from ..deadline import check_seconds
from ..endpoint import endpoint
from ..net import seam, sockets, tls
from ..net.pool import Pool
from ..net.resolve import RESOLVER
from ..net.wire import Wire
from ..policy import UNSET, Fixed, Policy
from ..policy.clients import effective, for_connecting, with_ceiling
from .addresses import checked, show
from .errors import KINDS
from .policies import ADMINISTRATIVE, ADMINISTRATIVE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext
    from types import ModuleType

    from pymemcache.client.base import KeepaliveOpts, ServerSpec

#: Connections of a client where `max_pool_size` doesn't say. Enough for the threads of a service
#: when the server is ten times slower than usual: 8 would cap 50 ms answers at 160 a second.
POOL_SIZE = 32
# Kept by name: tests put other classes into pymemcache's module.
Raw = base.Client


class _Blocks(dict[str, TimedBlock]):
    """The client's timed blocks by operation, made at first use."""

    def __init__(self, make: Callable[[str], TimedBlock]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, operation: str) -> TimedBlock:
        return self.setdefault(operation, self._make(operation))


class Connecting(Raw):
    """pymemcache's `Client` with its arguments and ours, timed blocks, and a pool of connections.

    For the arguments see `timedblock.memcache.Client`.
    """

    def __init__(
        self,
        server: ServerSpec,
        serde: Any = None,
        serializer: Any = None,
        deserializer: Any = None,
        connect_timeout: float | None = None,
        timeout: float | None = None,
        no_delay: bool = False,
        ignore_exc: bool = False,
        socket_module: ModuleType = socket,
        socket_keepalive: KeepaliveOpts | None = None,
        key_prefix: bytes = b"",
        default_noreply: bool = False,
        allow_unicode_keys: bool = False,
        encoding: str = "ascii",
        tls_context: SSLContext | None = None,
        *,
        name: str = "memcache",
        policy: Policy | None = None,
        on_unavailable: Any = UNSET,
        max_pool_size: int | None = None,
        pool_idle_timeout: float = 0.0,
    ) -> None:
        self._pending = threading.local()
        super().__init__(
            checked(server),
            serde,
            serializer,
            deserializer,
            connect_timeout,
            timeout,
            no_delay,
            ignore_exc,
            socket_module,
            socket_keepalive,
            key_prefix,
            default_noreply,
            allow_unicode_keys,
            encoding,
            tls_context,
        )
        self.name = name
        self._policy = effective(policy, timeout, on_unavailable)
        self._set_up(max_pool_size, pool_idle_timeout)

    def _set_up(self, max_pool_size: int | None, pool_idle_timeout: float) -> None:
        size = POOL_SIZE if max_pool_size is None else max_pool_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"max_pool_size must be a whole number from 1, not {size!r}")
        if self.connect_timeout is not None:
            check_seconds("connect_timeout", self.connect_timeout)
        check_seconds("pool_idle_timeout", pool_idle_timeout, zero=True)
        sockets.check_not_patched_late()
        self.endpoint = endpoint(self._endpoint_name(), self._policy.breaker)
        self._clock = self.endpoint.clock
        self._site = seam.Site("memcache", self.name, show(self.server))
        self._blocks = _Blocks(self._make_block)
        self._connect_block = self._blocks["connect"]
        self._get_block = self._blocks["get"]
        self._pool = Pool(
            f"{self.name}-connect",
            size,
            self._open,
            self.endpoint,
            idle_timeout=pool_idle_timeout,
            in_place=self.socket_module is not socket,
        )
        self._idle = self._pool.idle
        prefix = self.key_prefix.decode("latin-1")
        self._plain_keys = (
            type(self).check_key is Raw.check_key
            and prefix.isascii()
            and (not prefix or prefix.isprintable())
            and " " not in prefix
        )
        self._good: Any = None
        self._own_parser = type(self)._extract_value is not Raw._extract_value

    def _endpoint_name(self) -> str:
        where = show(self.server)
        return where if self.name == "memcache" else f"{self.name}@{where}"

    def _make_block(self, operation: str) -> TimedBlock:
        policy = self._policy
        if operation in ADMINISTRATIVE:
            limit = ADMINISTRATIVE_LIMIT if self.timeout is None else self.timeout
            policy = replace(policy, timeout=Fixed(limit))
        elif operation == "connect":
            policy = for_connecting(with_ceiling(policy, self.connect_timeout))
        name = f"{self.name}.{operation}"
        return TimedBlock(name, policy, endpoint=self.endpoint, errors=KINDS)

    # -- connecting -------------------------------------------------------------------------

    @property
    def sock(self) -> Any:
        """The socket of the newest idle connection, or None (pymemcache's attribute).

        In a subclass's `_extract_value`: the socket of the call in progress.
        """
        current = getattr(self._pending, "sock", None)
        if current is not None:
            return current
        idle = getattr(self, "_idle", None)
        return idle[-1].sock if idle else None

    @sock.setter
    def sock(self, sock: Any) -> None:
        if sock is None:
            return
        wire = Wire(sock, self._clock)
        seam.born(wire, self._site)
        if getattr(self._pending, "open", False):
            self._pending.wire = wire
        else:
            self._pool.adopt(wire)

    def _connect(self) -> None:
        """Make one more connection (pymemcache's hook); callers never need it."""
        self.sock = self._connected_socket()

    def _open(self, seconds: float | None = None) -> Wire:
        """A fresh connection within `seconds`, or the connect ceiling (the pool's workers)."""
        block = self._connect_block
        began = self._clock.monotonic()
        self._pending.seconds = block.ceiling if seconds is None else seconds
        self._pending.open = True
        try:
            self._connect()
            wire: Wire = self._pending.wire
        except BaseException:
            block.histogram.miss()
            raise
        finally:
            self._pending.open = False
            self._pending.wire = None
        ended = self._clock.monotonic()
        block.histogram.record(ended - began)
        if ended >= block.histogram.due:
            block.refresh(ended)
        return wire

    def _connected_socket(self) -> Any:
        ceiling = self._connect_block.ceiling
        until = self._clock.monotonic() + getattr(self._pending, "seconds", ceiling)
        if self.socket_module is not socket:
            return self._foreign_socket(until)
        addresses = self._addresses(until)
        injector = seam.injector
        if injector is not None:
            injector.connecting(self._site, until - self._clock.monotonic())
        sock = sockets.connect(
            addresses,
            clock=self._clock,
            seconds=until - self._clock.monotonic(),
            no_delay=self.no_delay,
        )
        try:
            self._good = sock.getpeername()
            sock.ceiling, sock.until = ceiling, until
            self._keep_alive(sock)
            if self.tls_context is not None:
                sock = self._shake_hands(sock, until)
            sock.until = None
        except BaseException:
            sockets.close_quietly(sock)
            raise
        return sock

    def _addresses(self, until: float) -> list[Any]:
        if not isinstance(self.server, tuple):
            return [(socket.AF_UNIX, self.server)]
        host, port = self.server
        injector = seam.injector
        ask = None if injector is None else injector.lookup(self._site)
        left = until - self._clock.monotonic()
        found = RESOLVER.resolve(host, port, self._clock, left, ask)
        # the one that answered last time goes first
        return sorted(found, key=lambda address: address[1] != self._good)

    def _shake_hands(self, sock: sockets.DeadlineSocket, until: float) -> Any:
        assert self.tls_context is not None
        injector = seam.injector
        if injector is not None:
            injector.shaking_hands(self._site, until - self._clock.monotonic())
        host = self.server[0] if isinstance(self.server, tuple) else None
        wrapped = tls.wrap(self.tls_context, sock, host)
        try:
            wrapped.do_handshake()
        except BaseException:
            sockets.close_quietly(wrapped)
            raise
        return wrapped

    def _keep_alive(self, sock: socket.socket) -> None:
        options = self.socket_keepalive
        if options is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, options.idle)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, options.intvl)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, options.cnt)

    def _foreign_socket(self, until: float) -> Any:
        """pymemcache's own connect on the user's socket module."""
        injector = seam.injector
        if injector is not None:
            self._meet_faults(injector, until)
        shell = Raw(
            self.server,
            connect_timeout=self.connect_timeout,
            timeout=self.timeout,
            no_delay=self.no_delay,
            socket_module=self.socket_module,
            socket_keepalive=self.socket_keepalive,
            tls_context=self.tls_context,
        )
        if getattr(self._pending, "open", False):
            shell.connect_timeout = max(0.001, until - self._clock.monotonic())
        shell._connect()
        return shell.sock

    def _meet_faults(self, injector: seam.Injector, until: float) -> None:
        """What the user's socket module would meet on the way, before it sets out."""
        self._addresses(until)
        injector.connecting(self._site, until - self._clock.monotonic())
        if self.tls_context is not None:
            injector.shaking_hands(self._site, until - self._clock.monotonic())

    def close(self) -> None:
        """Close the idle connections; the next use connects again."""
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.clear()

    disconnect_all = close
