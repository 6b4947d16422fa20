"""Toxics that end a connection: reset, cut, error-rate, fail-first; Toxiproxy's reset_peer."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar

from .base import BOTH, DOWN, UP, Toxic

if TYPE_CHECKING:
    from ..connection import Connection, Flow
    from ..loop import Timer


class _After(Toxic):
    """Strikes a connection once ``after`` bytes were let through on it."""

    usual_stream: ClassVar[bool | None] = DOWN

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after
        self._passed: dict[Connection, int] = {}
        self._ending: set[Connection] = set()

    def strike(self, connection: Connection) -> None:
        """End it."""
        raise NotImplementedError

    def reads(self, flow: Flow) -> bool:
        return flow.connection not in self._ending

    def received(self, flow: Flow, data: bytes) -> None:
        connection = flow.connection
        before = self._passed.get(connection, 0)
        self._passed[connection] = before + len(data)
        allowed = data[: max(0, self._after - before)]
        if allowed:
            self.give(flow, allowed)
        if before + len(data) >= self._after:
            self._ending.add(connection)
            flow.when_sent(lambda: self.strike(connection))

    def forget(self, connection: Connection) -> None:
        super().forget(connection)
        self._passed.pop(connection, None)
        self._ending.discard(connection)

    def take_over(self, before: Toxic) -> None:
        if isinstance(before, _After):
            self._passed |= before._passed


class Cut(_After):
    """In the orderly way."""

    def strike(self, connection: Connection) -> None:
        connection.cut()


class Reset(_After):
    """With RST; with ``after`` 0 at the first bytes of a request."""

    usual_stream = BOTH

    def received(self, flow: Flow, data: bytes) -> None:
        if not flow.up:
            super().received(flow, data)
        elif self._after:
            self.give(flow, data)
        else:
            flow.connection.abort()

    def strike(self, connection: Connection) -> None:
        connection.abort()


class ResetPeer(Toxic):
    """With RST, ``seconds`` after the first bytes, or the end, of the stream; they are dropped."""

    usual_stream = DOWN

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._timers: dict[Connection, Timer] = {}

    def received(self, flow: Flow, data: bytes) -> None:
        connection = flow.connection
        if self._seconds <= 0:
            connection.abort()
        elif connection not in self._timers:
            self._timers[connection] = self.link.loop.after(self._seconds, connection.abort)

    def ended(self, flow: Flow) -> None:
        self.received(flow, b"")

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def end(self) -> None:
        """What lost bytes can't go on."""
        self.stop()
        for connection in list(self._timers):
            connection.abort()

    def forget(self, connection: Connection) -> None:
        super().forget(connection)
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def take_over(self, before: Toxic) -> None:
        if isinstance(before, ResetPeer):
            for connection in before._timers:
                self._timers[connection] = before.link.loop.after(self._seconds, connection.abort)


class ErrorRate(Toxic):
    """A share ``rate`` of requests is reset."""

    usual_stream = UP

    def __init__(self, rate: float, draw: random.Random) -> None:
        super().__init__(draw)
        self._rate = rate

    def received(self, flow: Flow, data: bytes) -> None:
        if flow.begins and self.draw.random() < self._rate:
            flow.connection.abort()
        else:
            self.give(flow, data)


class FailFirst(Toxic):
    """The first ``count`` requests are reset."""

    usual_stream = UP

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count

    def received(self, flow: Flow, data: bytes) -> None:
        if flow.begins and self._left:
            self._left -= 1
            flow.connection.abort()
        else:
            self.give(flow, data)
