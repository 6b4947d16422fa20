"""Toxics of new connections: refuse, blackhole, flap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..door import Door
from .base import Toxic

if TYPE_CHECKING:
    from ..connection import Connection, Flow
    from ..loop import Timer


class Refuse(Toxic):
    """Nobody listens, and open connections are reset."""

    door = Door.CLOSED

    def begin(self) -> None:
        for connection in list(self.link.connections):
            connection.abort()


class Blackhole(Toxic):
    """Connects aren't answered, bytes vanish."""

    door = Door.WALLED

    def __init__(self) -> None:
        super().__init__()
        self._lossy: set[Connection] = set()

    def received(self, flow: Flow, data: bytes) -> None:
        self._lossy.add(flow.connection)

    def ended(self, flow: Flow) -> None:
        self._lossy.add(flow.connection)

    def forget(self, connection: Connection) -> None:
        super().forget(connection)
        self._lossy.discard(connection)

    def end(self) -> None:
        # A stream with a hole in it can't go on: its bytes would be taken for something else.
        for connection in list(self._lossy):
            connection.abort()


class Flap(Refuse):
    """Refuses for ``down`` seconds, works for ``up`` seconds, and so on."""

    def __init__(self, down: float, up: float) -> None:
        super().__init__()
        self._down = down
        self._up = up
        self._timer: Timer | None = None

    def begin(self) -> None:
        super().begin()
        self.door = Door.CLOSED
        self._timer = self.link.loop.after(self._down, self._come_up)

    def _come_up(self) -> None:
        self.door = Door.OPEN
        self._timer = self.link.loop.after(self._up, self._go_down)
        self.link.refresh()

    def _go_down(self) -> None:
        self.begin()
        self.link.refresh()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
