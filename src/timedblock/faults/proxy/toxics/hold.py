"""Toxics that let nothing pass: hang, silent; and Toxiproxy's timeout and slow_close."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..door import Door
from .base import DOWN, Holding, Toxic

if TYPE_CHECKING:
    from ..connection import Connection, Flow
    from ..loop import Timer


class Hang(Holding):
    """Nothing is read, so the kernel keeps every byte, in order, until the end."""

    def reads(self, flow: Flow) -> bool:
        return False


class Silent(Hang):
    """And new connections stay where the kernel puts them."""

    door = Door.UNATTENDED


class Timeout(Toxic):
    """Bytes are dropped; the connection is closed once none came for ``seconds`` (0: never), or
    when this is taken away."""

    usual_stream = DOWN

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._timers: dict[Flow, Timer | None] = {}

    def joined(self, flow: Flow) -> None:
        self._timers[flow] = None
        self._restart(flow)

    def received(self, flow: Flow, data: bytes) -> None:
        self._restart(flow)

    def _restart(self, flow: Flow) -> None:
        timer = self._timers.get(flow)
        if timer is not None:
            timer.cancel()
        if self._seconds > 0:
            self._timers[flow] = self.link.loop.after(self._seconds, flow.connection.cut)

    def stop(self) -> None:
        for timer in self._timers.values():
            if timer is not None:
                timer.cancel()

    def end(self) -> None:
        self.stop()
        for flow in list(self._timers):
            flow.connection.cut()

    def forget(self, connection: Connection) -> None:
        super().forget(connection)
        for flow in (connection.up, connection.down):
            timer = self._timers.pop(flow, None)
            if timer is not None:
                timer.cancel()


class SlowClose(Holding):
    """The end of the stream comes ``seconds`` later."""

    usual_stream = DOWN

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def received(self, flow: Flow, data: bytes) -> None:
        self.give(flow, data)

    def ended(self, flow: Flow) -> None:
        self.later(flow, self.keep(flow, b""), self._seconds, self._let_all_go)
