"""What every toxic is: it stands in the way of a link's bytes and decides what becomes of them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from ..door import Door

if TYPE_CHECKING:
    from ..connection import Connection, Flow
    from ..link import ServedLink
    from ..loop import Timer

UP, DOWN = True, False
#: Both ways.
BOTH: bool | None = None


class Toxic:
    """This one lets everything pass.

    Bytes that it lets go are handed on with `give`, the end of the stream with `finish`. Whatever
    is random comes from its own seeded generator.

    Args:
        stream: the flows that it acts on: `UP` (to the server), `DOWN` or `BOTH`.
    """

    #: What becomes of new connections meanwhile.
    door: Door = Door.OPEN
    #: The flows of one that doesn't say.
    usual_stream: ClassVar[bool | None] = BOTH

    link: ServedLink

    def __init__(self, draw: random.Random | None = None) -> None:
        self.draw = draw or random.Random(0)
        self.stream: bool | None = self.usual_stream
        self.toxicity = 1.0
        self._struck: dict[Connection, bool] = {}

    def on(self, stream: bool | None, toxicity: float = 1.0) -> Toxic:
        """Act on this stream of that share of the connections."""
        self.stream, self.toxicity = stream, toxicity
        return self

    def touches(self, flow: Flow) -> bool:
        """Whether it acts on the flow: on its stream, on the drawn share of connections."""
        if self.stream is not BOTH and self.stream is not flow.up:
            return False
        if self.toxicity >= 1.0:
            return True
        if flow.connection not in self._struck:
            self._struck[flow.connection] = self.draw.random() < self.toxicity
        return self._struck[flow.connection]

    # -- what happens to it ------------------------------------------------------------------

    def begin(self) -> None:
        """It is put in force."""

    def joined(self, flow: Flow) -> None:
        """It begins to act on this flow: a new one, or one that was there when it began."""

    def reads(self, flow: Flow) -> bool:
        """Whether bytes are taken from the flow's source at all."""
        return True

    def received(self, flow: Flow, data: bytes) -> None:
        """Bytes have come."""
        self.give(flow, data)

    def ended(self, flow: Flow) -> None:
        """The flow's source has sent its last byte."""
        self.finish(flow)

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""
        self._struck.pop(connection, None)

    def release(self) -> None:
        """Let go of what is held back."""

    def stop(self) -> None:
        """No timer of it may run any more."""

    def end(self) -> None:
        """It is taken away."""
        self.release()
        self.stop()

    def take_over(self, before: Toxic) -> None:
        """It comes in place of another of its kind with other settings."""

    # -- what it does ------------------------------------------------------------------------

    def give(self, flow: Flow, data: bytes) -> None:
        """Hand bytes on: to the next toxic, or to the target."""
        after = flow.next[self]
        if after is None:
            flow.send(data)
        else:
            after.received(flow, data)

    def finish(self, flow: Flow) -> None:
        """Hand the end of the stream on."""
        after = flow.next[self]
        if after is None:
            flow.finish()
        else:
            after.ended(flow)

    def guarded(self, flow: Flow, work: Callable[[Flow], None]) -> None:
        """Send from a timer, where nobody else takes care of a client that is gone."""
        if flow.connection.closed:
            return
        try:
            work(flow)
        except OSError:
            flow.connection.abort()
        flow.connection.update()


class Held:
    """What one flow has to wait for.

    Attributes:
        chunks: the bytes; the empty chunk is the end of the stream.
        dues: the instant of each chunk, where each has its own.
        due: the last of them.
    """

    __slots__ = ("chunks", "due", "dues", "timer")

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.dues: deque[float] = deque()
        self.due = 0.0
        self.timer: Timer | None = None

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Holding(Toxic):
    """Keeps bytes, in order, and lets them go later."""

    def __init__(self, draw: random.Random | None = None) -> None:
        super().__init__(draw)
        self._held: dict[Flow, Held] = {}

    def keep(self, flow: Flow, data: bytes) -> Held:
        """Behind what is kept already."""
        held = self._held.get(flow)
        if held is None:
            held = self._held[flow] = Held()
        held.chunks.append(data)
        flow.kept += len(data)
        return held

    def received(self, flow: Flow, data: bytes) -> None:
        self.keep(flow, data)

    def ended(self, flow: Flow) -> None:
        self.received(flow, b"")

    def let_go(self, flow: Flow, data: bytes) -> None:
        """Hand on what was kept."""
        flow.kept -= len(data)
        if data:
            self.give(flow, data)
        else:
            self.finish(flow)

    def later(self, flow: Flow, held: Held, seconds: float, work: Callable[[Flow], None]) -> None:
        """Do this to the flow in so many seconds."""
        held.timer = self.link.loop.after(seconds, lambda: self.guarded(flow, work))

    def release(self) -> None:
        for flow in list(self._held):
            self.guarded(flow, self._let_all_go)

    def _let_all_go(self, flow: Flow) -> None:
        held = self._held.pop(flow)
        held.cancel()
        for data in held.chunks:
            self.let_go(flow, data)

    def stop(self) -> None:
        cancel_all(self._held.values())

    def forget(self, connection: Connection) -> None:
        super().forget(connection)
        for flow in (connection.up, connection.down):
            held = self._held.pop(flow, None)
            if held is not None:
                held.cancel()


def cancel_all(held: Iterable[Held]) -> None:
    """No timer of these runs any more."""
    for one in held:
        one.cancel()
