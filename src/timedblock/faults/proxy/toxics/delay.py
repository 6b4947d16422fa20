"""Toxics that let bytes pass later: latency, drip and Toxiproxy's slicer, bandwidth."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from .base import DOWN, Held, Holding

if TYPE_CHECKING:
    from ..connection import Flow

#: A slow stream comes in steps of so many seconds.
_STEP = 0.1


class Latency(Holding):
    """Each chunk waits ``seconds`` ± ``jitter``, and never overtakes the one before it."""

    usual_stream = DOWN

    def __init__(self, seconds: float, jitter: float, draw: random.Random) -> None:
        super().__init__(draw)
        self._seconds = seconds
        self._jitter = jitter

    def received(self, flow: Flow, data: bytes) -> None:
        delay = self._seconds
        if self._jitter:
            delay += self.draw.uniform(-self._jitter, self._jitter)
        if delay <= 0 and flow not in self._held:
            if data:
                self.give(flow, data)
            else:
                self.finish(flow)
            return
        held = self.keep(flow, data)
        held.due = max(time.monotonic() + delay, held.due)
        held.dues.append(held.due)
        if held.timer is None:
            self._wait(flow, held)

    def _wait(self, flow: Flow, held: Held) -> None:
        self.later(flow, held, max(0.0, held.dues[0] - time.monotonic()), self._give_due)

    def _give_due(self, flow: Flow) -> None:
        held = self._held[flow]
        now = time.monotonic()
        while held.dues and held.dues[0] <= now:
            held.dues.popleft()
            self.let_go(flow, held.chunks.popleft())
            if flow.connection.closed:
                return
        if held.dues:
            self._wait(flow, held)
        else:
            del self._held[flow]


class Sliced(Holding):
    """Bytes come in slices of ``size`` ± ``variation``, each ``every`` seconds after the one
    before it."""

    usual_stream = DOWN

    def __init__(self, size: int, variation: int, every: float, draw: random.Random) -> None:
        super().__init__(draw)
        self._size = size
        self._variation = variation
        self._every = every

    def reads(self, flow: Flow) -> bool:
        return flow not in self._held

    def received(self, flow: Flow, data: bytes) -> None:
        held = self.keep(flow, data)
        if held.timer is None:
            self._slice(flow)

    def _slice(self, flow: Flow) -> None:
        """The next slice now, and the one after it in its time."""
        held = self._held[flow]
        if not held.chunks:
            del self._held[flow]
            return
        data = held.chunks.popleft()
        size = max(1, self._size + self._shift())
        if len(data) > size:
            held.chunks.appendleft(data[size:])
        self.let_go(flow, data[:size])
        if not flow.connection.closed:
            self.later(flow, held, self._every, self._slice)

    def _shift(self) -> int:
        return self.draw.randint(-self._variation, self._variation) if self._variation else 0


class Bandwidth(Holding):
    """No more than ``rate`` bytes a second; 0: none at all."""

    usual_stream = DOWN

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate = rate

    def reads(self, flow: Flow) -> bool:
        return flow not in self._held

    def received(self, flow: Flow, data: bytes) -> None:
        held = self.keep(flow, data)
        if held.timer is None:
            self._next(flow, held)

    def _next(self, flow: Flow, held: Held) -> None:
        """Wait as long as the next step takes."""
        if self._rate > 0:
            # Counted from when the step before was due, so that a late timer costs nothing; what
            # wasn't used is lost.
            began = max(held.due, time.monotonic() - _STEP)
            held.due = began + len(self._step(held)) / self._rate
            self.later(flow, held, max(0.0, held.due - time.monotonic()), self._give_step)

    def _step(self, held: Held) -> bytes:
        return held.chunks[0][: max(1, int(self._rate * _STEP))]

    def _give_step(self, flow: Flow) -> None:
        held = self._held[flow]
        step = self._step(held)
        data = held.chunks.popleft()
        if len(step) < len(data):
            held.chunks.appendleft(data[len(step) :])
        self.let_go(flow, step)
        if flow.connection.closed:
            return
        if held.chunks:
            self._next(flow, held)
        else:
            del self._held[flow]
