"""One connection under the limits of one call after the other (L3).

Plain sockets stay in blocking mode with ``SO_RCVTIMEO`` and ``SO_SNDTIMEO``: that saves the poll()
that CPython makes before each recv of a socket with a timeout. They are set again only when what
is left differs enough. TLS ignores these options, and a user's own sockets may, so those
get ``settimeout``.
"""

from __future__ import annotations

import functools
import socket
import ssl
import struct
import sys
import weakref
from typing import TYPE_CHECKING, Any

from .sockets import COOPERATIVE, GRACE, DeadlineSocket, DeadlineTLSSocket, close_quietly
from .watchdog import WATCHDOG

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..clock import Clock

#: A socket armed up to SLACK seconds too short isn't armed again (it is when it wakes early);
#: one armed longer than GRAIN too long is.
GRAIN = 0.0005
#: What a user's own socket may take past its timeout (seconds) before it is severed.
_PATIENCE = 0.05
SLACK = 0.005
#: Waits up to this (seconds) end within a few milliseconds of their time.
EXACT = 0.2
#: Bytes asked for at once.
CHUNK = 65536
#: what a recv raises when its time is over, by the socket's kind
EXPIRED = (
    BlockingIOError,
    TimeoutError,
    InterruptedError,  # a user's own sockets may; CPython's retry by themselves
    ssl.SSLWantReadError,
    ssl.SSLWantWriteError,
)


class Cut(TimeoutError):
    """The limit passed.

    Attributes:
        overslept: seconds by which we noticed too late.
        mute: the whole request had left, and no byte of its reply had come.
    """

    def __init__(self, overslept: float) -> None:
        super().__init__("no answer within the limit")
        self.overslept = overslept
        self.mute = False


class EndOfStream(ConnectionResetError):
    """The peer closed the connection."""

    def __init__(self) -> None:
        super().__init__("the peer closed the connection")


class Wire:
    """A connected socket.

    Attributes:
        send, recv: the socket's own functions; fault injection puts others in their place.
        armed: seconds that a single operation may take now.
        born: when it was made; used: when the last call on it began; calls: how many there were.
        unread: replies may still come that nobody waits for (``noreply``).
        finished: not for another call.
    """

    __slots__ = (
        "__weakref__",
        "_blocking",
        "_clock",
        "_grace",
        "armed",
        "born",
        "calls",
        "finished",
        "recv",
        "send",
        "severed",
        "sock",
        "tapped",
        "unread",
        "used",
    )

    def __init__(self, sock: Any, clock: Clock) -> None:
        self.sock = sock
        self._clock = clock
        # the options below are known to work so on Linux; elsewhere settimeout always does
        plain = type(sock) is DeadlineSocket
        self._blocking = plain and sys.platform == "linux" and not COOPERATIVE
        self._grace = (0.0, 0.0)
        self.armed = -1.0
        self.used = self.born = clock.monotonic()
        self.calls = 0
        self.unread = self.finished = self.severed = False
        self.recv: Callable[[int], bytes]
        #: in place of `recv_now` while a fault is in force (no bound method of our own: a cycle
        #: would keep a forgotten connection until the garbage collector runs)
        self.tapped: Callable[[], bytes] | None = None
        self.send: Callable[[bytes], int]
        if plain:
            sock.setblocking(True)
            # past our subclass's Python methods, straight to C
            self.recv = functools.partial(socket.socket.recv, sock)
            self.send = functools.partial(socket.socket.send, sock)
        elif isinstance(sock, ssl.SSLSocket):
            self.recv = functools.partial(ssl.SSLSocket.recv, sock)
            self.send = functools.partial(ssl.SSLSocket.send, sock)
        else:
            self.recv = self._watched(sock.recv)
            self.send = self._watched(_sender(sock))

    def _watched(self, operation: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`operation` of a user's own socket: should its timeout not hold, the watchdog does."""
        if not isinstance(self.sock, socket.socket):
            return operation

        wire = weakref.proxy(self)

        def watched(argument: Any) -> Any:
            guard = WATCHDOG.watch(wire.sock, max(0.0, wire.armed) + _PATIENCE)
            try:
                return operation(argument)
            finally:
                if not WATCHDOG.release(guard):
                    wire.severed = True
                    raise TimeoutError("severed at the limit")

        return watched

    @property
    def can_park(self) -> bool:
        """Whether its descriptor tells of a late answer: a socket of ours, no fault in force."""
        ours = isinstance(self.sock, (DeadlineSocket, DeadlineTLSSocket))
        return ours and not COOPERATIVE and self.tapped is None

    @property
    def whole_sends(self) -> bool:
        """Whether a send that raised sent nothing; TLS and a user's sendall may send a part."""
        return self._blocking

    def arm(self, seconds: float) -> None:
        """Let each following operation take `seconds`, or a little less: then wait again."""
        seconds = max(seconds, 0.001)
        if self._blocking:
            # the kernel's timer for these options may fire late by an eighth of a long wait
            short = seconds if seconds <= EXACT else seconds * 0.87
            whole = int(short)
            value = struct.pack("@ll", whole, int((short - whole) * 1e6))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        else:
            self.sock.settimeout(seconds)
        self.armed = seconds

    def send_rest(self, data: bytes | memoryview, until: float) -> None:
        """Send all of `data` before the instant `until`; raises Cut or OSError."""
        rest = memoryview(data)
        while rest:
            self._arm_until(until)
            try:
                sent = self.send(rest[: 1 << 20])  # type: ignore[arg-type]
            except EXPIRED:
                self._expired(until)
                continue
            rest = rest[sent:]

    def read(self, until: float) -> bytes:
        """What comes next, before the instant `until`; raises Cut, EndOfStream or OSError."""
        while True:
            left = until - self._clock.monotonic()
            if left <= 0:
                return self.read_now(until)
            if not -SLACK <= self.armed - left <= GRAIN:
                self.arm(left)
            try:
                data = self.recv(CHUNK)
            except EXPIRED:
                self.armed = -1.0  # woken early: armed a little short
                continue
            if not data:
                raise EndOfStream
            return data

    def read_now(self, until: float) -> bytes:
        """The limit has passed: bytes that are here all the same are the answer; else Cut."""
        overslept = self._clock.monotonic() - until
        if self.severed or not self._may_read(until, overslept):
            raise Cut(overslept)  # what a severed socket reads is no end of stream
        try:
            data = self.recv_now()
        except EXPIRED:
            raise Cut(overslept) from None
        if not data:
            raise EndOfStream
        return data

    def _may_read(self, until: float, overslept: float) -> bool:
        """A peer that always has some bytes would otherwise keep its caller for ever."""
        if self._grace[0] != until:
            self._grace = (until, overslept + GRACE)
        return overslept <= self._grace[1]

    def recv_now(self) -> bytes:
        """A recv that doesn't wait; raises one of EXPIRED when nothing is here."""
        tapped = self.tapped
        return self._recv_now() if tapped is None else tapped()

    def _recv_now(self) -> bytes:
        if self._blocking:
            return socket.socket.recv(self.sock, CHUNK, socket.MSG_DONTWAIT)
        self.armed = -1.0
        self.sock.settimeout(0.0)
        return self.recv(CHUNK)

    def _arm_until(self, until: float) -> None:
        left = until - self._clock.monotonic()
        if left <= 0:
            raise Cut(-left)
        if not -SLACK <= self.armed - left <= GRAIN:
            self.arm(left)

    def _expired(self, until: float) -> None:
        now = self._clock.monotonic()
        if now >= until - 0.001:
            raise Cut(now - until) from None
        self.armed = -1.0

    def settle(self) -> None:
        """Be ready for `recv` and `send` again after somebody used the socket itself."""
        self.armed = -1.0
        if self._blocking:
            self.sock.until = None
            self.sock.setblocking(True)

    def is_dead(self) -> bool:
        """Whether the peer hung up, or sent what nobody asked for; without waiting."""
        try:
            if self._blocking:
                socket.socket.recv(self.sock, 1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            else:
                self.recv_now()
        except EXPIRED:
            return False
        except Exception:  # whatever it is, the connection isn't for use
            return True
        return True

    def close(self) -> None:
        """Close at once, without waiting or raising."""
        close_quietly(getattr(self, "sock", None))

    def __del__(self) -> None:
        # a client that is gone leaves nothing, and nobody is warned of it
        self.close()

    def __repr__(self) -> str:
        return (
            f"<Wire {'plain' if self._blocking else type(self.sock).__name__}, {self.calls} calls>"
        )


def _sender(sock: Any) -> Callable[[bytes], int]:
    """A user's socket may have only sendall (pymemcache asks for no more)."""

    def send(data: bytes) -> int:
        sock.sendall(data if isinstance(data, bytes) else bytes(data))
        return len(data)

    return send
