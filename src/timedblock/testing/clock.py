"""A clock that is advanced by hand."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from .. import clock as _clock
from ..deadline import check_seconds

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType

#: Real seconds between two looks at a lock that is waited for in fake time.
_LOOK = 0.001


class FakeClock:
    """``with FakeClock() as clock:`` is the clock of every block, deadline and policy made inside.

    Time stands still until `advance`. A `sleep` (a retry's pause) advances it by itself, so that
    one thread can drive every policy without sleeping.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = check_seconds("FakeClock(start)", start, zero=True)
        self._timers: list[_Timer] = []
        self._lock = threading.RLock()
        self.monotonic = self.now

    def now(self) -> float:
        """The present instant, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; timers that come due fire in their loops."""
        check_seconds("advance(seconds)", seconds, zero=True)
        with self._lock:
            self._now += seconds
            due = [timer for timer in self._timers if timer.at <= self._now]
            self._timers = [timer for timer in self._timers if timer.at > self._now]
        for timer in due:
            timer.fire()

    def sleep(self, seconds: float) -> None:
        """Advance by `seconds` at once."""
        self.advance(max(0.0, seconds))

    def wait(self, lock: _clock.Lock, seconds: float) -> bool:
        """Acquire `lock` before `seconds` of fake time have passed (another thread advances)."""
        until = self._now + seconds
        while not lock.acquire(False):
            if self._now >= until:
                return False
            time.sleep(_LOOK)
        return True

    def timer(
        self, loop: asyncio.AbstractEventLoop, at: float, callback: Callable[[], object]
    ) -> _Timer:
        """Call `callback` in `loop` when the clock has been advanced to `at`."""
        timer = _Timer(self, loop, at, callback)
        with self._lock:
            if at > self._now:
                self._timers.append(timer)
                return timer
        timer.fire()
        return timer

    def _forget(self, timer: _Timer) -> None:
        with self._lock:
            if timer in self._timers:
                self._timers.remove(timer)

    def __enter__(self) -> FakeClock:
        _clock.push(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _clock.pop(self)


class _Timer:
    def __init__(self, clock: FakeClock, loop: Any, at: float, callback: Any) -> None:
        self._clock = clock
        self._loop = loop
        self._callback = callback
        self._cancelled = False
        self.at = at

    def fire(self) -> None:
        self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        if not self._cancelled:
            self._callback()

    def cancel(self) -> None:
        self._cancelled = True
        self._clock._forget(self)
