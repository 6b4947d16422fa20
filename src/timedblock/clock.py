"""Where time comes from (L0).

Everything that looks at the time or waits gets a `Clock` handed in; nothing else in the library
imports `time`. `timedblock.testing.FakeClock` and the simulator are the other implementations.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Lock(Protocol):
    """What `Clock.wait` needs of a lock: `threading.Lock` has it."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...


class Handle(Protocol):
    """What `Clock.timer` returns."""

    def cancel(self) -> object: ...


class Clock(Protocol):
    """A monotonic clock and the two ways to wait on it. All values are seconds."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """The function that reads the clock; kept by blocks, so that a read is one call."""

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""

    def wait(self, lock: Lock, seconds: float) -> bool:
        """Acquire `lock` within `seconds`; False when the time passed first."""

    def timer(
        self, loop: asyncio.AbstractEventLoop, at: float, callback: Callable[[], object]
    ) -> Handle:
        """Call `callback` in `loop` at the instant `at`, unless the handle is cancelled."""


class SystemClock:
    """The machine's monotonic clock."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)

    def wait(self, lock: Lock, seconds: float) -> bool:
        """Acquire `lock` within `seconds`; a lock that is free is acquired even at zero."""
        if seconds <= 0:
            return lock.acquire(False)
        # threading.TIMEOUT_MAX is centuries; a longer wait is refused by acquire()
        return lock.acquire(True, min(seconds, 1e6))

    def timer(
        self, loop: asyncio.AbstractEventLoop, at: float, callback: Callable[[], object]
    ) -> Handle:
        """See `Clock.timer`."""
        return loop.call_later(max(0.0, at - self.monotonic()), callback)


SYSTEM: Clock = SystemClock()

# A plain stack and no ContextVar: a fake clock must be seen by the threads that a test starts.
_stack: list[Clock] = [SYSTEM]


def current() -> Clock:
    """The clock for blocks, deadlines and policies made now."""
    return _stack[-1]


def push(clock: Clock) -> None:
    """Make `clock` the current one (what `FakeClock.__enter__` does)."""
    _stack.append(clock)


def pop(clock: Clock) -> None:
    """Take `clock` away again; the ones below it stay."""
    if clock in _stack[1:]:
        del _stack[len(_stack) - 1 - _stack[::-1].index(clock)]
