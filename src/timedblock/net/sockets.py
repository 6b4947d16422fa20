"""Sockets that know when to stop (L3).

`DeadlineSocket` is for drivers that take a socket from us: each operation re-arms its timeout with
what is left of the deadline in force, or the socket's ceiling where none is; never None.
`connect` races the addresses of a name (RFC 8305).
"""

from __future__ import annotations

import contextlib
import errno
import math
import select
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any

from ..deadline import get, sooner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer, WriteableBuffer

    from ..clock import Clock
    from .resolve import Address

#: Seconds for which bytes that are here are still read after the deadline was found passed.
GRACE = 0.05
#: RFC 8305's Connection Attempt Delay, in seconds.
ATTEMPT_DELAY = 0.25


class _Armed(socket.socket):
    """What plain and TLS deadline sockets share: how long the next operation may take."""

    clock: Clock
    ceiling: float = 1.0
    #: instant until which the call in progress may use the socket, or None: the context's deadline
    until: float | None = None
    #: set before the socket is shut down under a call: every later use raises
    severed: bool = False
    #: (the deadline that was found passed, until when bytes that are here are still read)
    _grace: tuple[float, float] = (-math.inf, 0.0)

    def _left(self) -> float:
        if self.severed:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was severed at its limit")
        now = self.clock.monotonic()
        until = self.until
        if until is None:
            until = min(sooner(get(), self.clock), now + self.ceiling)
        return until - now

    def _arm(self) -> None:
        left = self._left()
        if left <= 0:
            self._allow_grace(left)
        # Zero time when the deadline has passed: bytes that are here are the answer.
        self.settimeout(max(0.0, left))

    def _allow_grace(self, left: float) -> None:
        """A peer that always has some bytes would otherwise keep its caller for ever."""
        now = self.clock.monotonic()
        until, end = self._grace
        if abs(now + left - until) > 0.001:
            self._grace = (now + left, now + GRACE)
        elif now > end:
            raise TimeoutError(errno.ETIMEDOUT, "the deadline has passed")

    def _check(self, data: bytes | int) -> None:
        if not data:
            self._left()


class _Expired:
    """Turns the "would block" of a passed deadline into TimeoutError."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, exc_type: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)):
            raise TimeoutError(errno.ETIMEDOUT, "the deadline has passed") from None


_expired = _Expired()


class DeadlineSocket(_Armed):
    """A plain socket under a deadline."""

    def connect(self, address: Any) -> None:
        """See socket.connect; TimeoutError at the deadline."""
        self._arm()
        with _expired:
            super().connect(address)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """See socket.recv; TimeoutError at the deadline."""
        self._arm()
        with _expired:
            data = super().recv(size, flags)
        self._check(data)
        return data

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """See socket.recv_into; TimeoutError at the deadline."""
        self._arm()
        with _expired:
            size = super().recv_into(buffer, nbytes, flags)
        self._check(size)
        return size

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        """See socket.send; TimeoutError at the deadline."""
        self._arm()
        with _expired:
            return super().send(data, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        """See socket.sendall; its timeout covers the whole of it (CPython >= 3.5)."""
        self._arm()
        with _expired:
            super().sendall(data, flags)


class DeadlineTLSSocket(ssl.SSLSocket, _Armed):
    """A TLS socket under a deadline; `timedblock.net.tls.wrap` makes them."""

    def do_handshake(self, block: bool = False) -> None:
        """See SSLSocket.do_handshake; TimeoutError at the deadline."""
        self._arm()
        with _expired:
            super().do_handshake(block)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """See SSLSocket.recv; TimeoutError at the deadline."""
        self._arm()
        with _expired:
            data = super().recv(buflen, flags)
        self._check(data)
        return data

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """See SSLSocket.recv_into; TimeoutError at the deadline."""
        self._arm()
        with _expired:
            size = super().recv_into(buffer, nbytes, flags)
        self._check(size)
        return size

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        """See SSLSocket.send; TimeoutError at the deadline."""
        self._arm()
        with _expired:
            return super().send(data, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        """Send everything; each record is armed anew, as SSLSocket loops over `send`."""
        super().sendall(data, flags)


def connect(
    addresses: Sequence[Address], *, clock: Clock, seconds: float, no_delay: bool = False
) -> DeadlineSocket:
    """A connected socket to the first address that answers; the others are closed.

    Attempts start `ATTEMPT_DELAY` apart (sooner where the time is short, at once after a failure).

    Raises:
        TimeoutError: none answered within `seconds`.
        OSError: every address failed; the last one's error.
    """
    return _Race(addresses, clock, seconds, no_delay).run()


class _Race:
    def __init__(
        self, addresses: Sequence[Address], clock: Clock, seconds: float, no_delay: bool
    ) -> None:
        self._todo = list(addresses)
        self._clock = clock
        self._until = clock.monotonic() + seconds
        self._delay = min(ATTEMPT_DELAY, seconds / (len(addresses) + 1))
        self._no_delay = no_delay
        self._open: dict[int, DeadlineSocket] = {}
        self._error: OSError | None = None

    def run(self) -> DeadlineSocket:
        try:
            return self._run()
        finally:
            for sock in self._open.values():
                sock.close()

    def _run(self) -> DeadlineSocket:
        next_at = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            if self._todo and (now >= next_at or not self._open):
                won = self._start(*self._todo.pop(0))
                if won is not None:
                    return won
                next_at = now + self._delay
                continue
            if not self._open:
                raise self._error or OSError(errno.EHOSTUNREACH, "no address to connect to")
            if now >= self._until:
                raise TimeoutError(errno.ETIMEDOUT, "no address answered in time")
            won = self._wait(min(self._until, next_at if self._todo else self._until) - now)
            if won is not None:
                return won

    def _start(self, family: int, address: tuple[Any, ...]) -> DeadlineSocket | None:
        try:
            sock = DeadlineSocket(family, socket.SOCK_STREAM)
        except OSError as error:
            self._error = error
            return None
        self._open[sock.fileno()] = sock
        sock.clock = self._clock
        sock.setblocking(False)
        if self._no_delay and family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = socket.socket.connect_ex(sock, address)
        if code == 0:
            return self._open.pop(sock.fileno())
        if code not in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            self._failed(sock, code)
        return None

    def _failed(self, sock: DeadlineSocket, code: int) -> None:
        self._error = OSError(code, errno.errorcode.get(code, "connect failed"))
        self._open.pop(sock.fileno(), None)
        sock.close()

    def _wait(self, seconds: float) -> DeadlineSocket | None:
        poll = select.poll()
        for fd in self._open:
            poll.register(fd, select.POLLOUT)
        for fd, _ in poll.poll(max(0, int(seconds * 1000) + 1)):
            sock = self._open[fd]
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                return self._open.pop(fd)
            self._failed(sock, code)
        return None


#: Whether socket.socket was gevent's when this module was imported: then every wait yields.
COOPERATIVE = socket.socket.__module__.startswith("gevent")


def check_not_patched_late() -> None:
    """RuntimeError when gevent patched `socket` after timedblock had been imported.

    Our sockets would then block every greenlet of the thread.
    """
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and not COOPERATIVE and gevent.is_module_patched("socket"):
        raise RuntimeError(
            "gevent patched the socket module after timedblock was imported: call "
            "gevent.monkey.patch_all() before the first import of timedblock"
        )


def close_quietly(sock: Any) -> None:
    """Close without waiting and without raising; no TLS farewell is sent."""
    with contextlib.suppress(Exception):
        sock.close()
