"""Connections of cut calls, listened to until their answers come after all (L3).

A cut call's connection is never used again, but the instant at which its answer comes tells how
long the call would have taken, and that the endpoint is alive. So it is parked until its first
late byte or the operation's ceiling, and closed then. One daemon thread for the process, started
when first needed, ends when nothing is parked any more.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

from .. import fork

if TYPE_CHECKING:
    from ..call import Late
    from ..clock import Clock
    from .wire import Wire

#: Connections that are parked at the most; past it a cut call stays "at least so long".
MOST = 64


class _Parked(NamedTuple):
    wire: Wire
    late: Late
    clock: Clock


class Lot:
    """Where connections are parked. Lock: `_lock` guards the table and the thread's life."""

    def __init__(self) -> None:
        self._start_fresh()
        fork.register(self)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._parked: dict[int, _Parked] = {}
        self._running = False
        self._bell: socket.socket | None = None

    def after_fork(self) -> None:
        """The parent listens on; the child closes its copies."""
        parked = list(self._parked.values())
        self._start_fresh()
        for one in parked:
            one.wire.close()

    def park(self, wire: Wire, late: Late | None, clock: Clock) -> None:
        """Listen on `wire` for `late`'s answer; closes it at once where that isn't to be."""
        if late is None or late.until <= clock.monotonic():
            wire.close()
            return
        with self._lock:
            room = len(self._parked) < MOST and self._ring()
            if room:
                self._parked[wire.sock.fileno()] = _Parked(wire, late, clock)
        if not room:
            wire.close()

    def _ring(self) -> bool:
        """Make the thread look again; False where the system has none, or no descriptor, left."""
        if self._running and self._bell is not None:
            with contextlib.suppress(OSError):
                self._bell.send(b"!")
            return True
        try:
            ours, bell = socket.socketpair()
        except OSError:
            return False
        ours.setblocking(False)
        bell.setblocking(False)
        try:
            threading.Thread(
                target=self._work, args=(ours,), name="timedblock-parking", daemon=True
            ).start()
        except BaseException as error:
            ours.close()
            bell.close()
            if isinstance(error, RuntimeError):
                return False
            raise
        self._bell, self._running = bell, True
        return True

    def _work(self, bell: socket.socket) -> None:
        while True:
            with self._lock:
                if not self._parked:
                    self._running = False
                    ours, self._bell = self._bell, None
                    break
                parked = dict(self._parked)
            self._listen(bell, parked)
        bell.close()
        if ours is not None:
            ours.close()

    def _listen(self, bell: socket.socket, parked: dict[int, _Parked]) -> None:
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        for fd in parked:
            poll.register(fd, select.POLLIN)
        left = min(one.late.until - one.clock.monotonic() for one in parked.values())
        ready = [fd for fd, _ in poll.poll(max(0, int(left * 1000) + 1))]
        for fd in ready:
            if fd == bell.fileno():
                with contextlib.suppress(OSError):
                    bell.recv(4096)
            else:
                self._answered(fd, parked[fd])
        for fd, one in parked.items():
            if fd not in ready and one.clock.monotonic() >= one.late.until:
                self._leave(fd)
                one.late.silent(one.late.until)

    def _answered(self, fd: int, one: _Parked) -> None:
        at = one.clock.monotonic()
        try:
            # past TLS: any byte of the peer's is a sign of life
            data = socket.socket.recv(one.wire.sock, 1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except OSError:
            data = b""
        self._leave(fd)
        if data:
            one.late.answered(at)

    def _leave(self, fd: int) -> None:
        with self._lock:
            one = self._parked.pop(fd, None)
        if one is not None:
            one.wire.close()

    def count(self) -> int:
        """Connections that are parked now."""
        return len(self._parked)


LOT = Lot()
