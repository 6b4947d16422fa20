"""What waits: one thread for every link, its sockets and its instants."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

READ, WRITE = select.POLLIN, select.POLLOUT
_EPOLL = hasattr(select, "epoll")

Answer = TypeVar("Answer")


class Timer:
    """A call that is due at an instant, unless it is cancelled."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Waits for sockets and for instants, in the thread that calls `run`.

    Everything else here belongs to that thread, but for `ask` and `stop`.
    """

    def __init__(self) -> None:
        self._poller: Any = select.epoll() if _EPOLL else select.poll()
        self._calls: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._asked: deque[Callable[[], None]] = deque()
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(self._wake, 0, READ, self._serve_asked)
        self.running = True

    def watch(self, fd: int, before: int, now: int, call: Callable[[int], None]) -> None:
        """Wait for ``now`` events of a descriptor that ``before`` events were awaited of."""
        if before == now:
            return
        if not before:
            self._calls[fd] = call
            self._poller.register(fd, now)
        elif not now:
            self._poller.unregister(fd)
            del self._calls[fd]
        else:
            self._poller.modify(fd, now)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Make the call in so many seconds, never earlier."""
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Until `stop`."""
        calls = self._calls
        while self.running:
            # Looked up before any is called: one of them may close a socket, and another open one
            # that gets its number; the event of the first must not reach the second.
            for call, mask in [(calls[fd], mask) for fd, mask in self._ready()]:
                call(mask)
            if self._timers:
                self._run_due()

    def _ready(self) -> list[tuple[int, int]]:
        seconds = self._due_in()
        timeout = seconds if _EPOLL or seconds is None else seconds * 1000
        ready: list[tuple[int, int]] = self._poller.poll(timeout)
        return ready

    def _due_in(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _run_due(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            call = heapq.heappop(self._timers)[2].call
            if call is not None:
                call()

    # -- from other threads, and from signal handlers ----------------------------------------

    def ask(self, work: Callable[[], Answer]) -> Answer:
        """Do the work in the loop's thread; what it gives or raises."""
        done = threading.Event()
        given: list[Answer] = []
        raised: list[BaseException] = []

        def job() -> None:
            try:
                given.append(work())
            except BaseException as error:
                raised.append(error)
            done.set()

        self._asked.append(job)
        self._ring()
        done.wait()
        if raised:
            raise raised[0]
        return given[0]

    def stop(self) -> None:
        """`run` returns soon."""
        self.running = False
        self._ring()

    def close(self) -> None:
        """Give the loop's own descriptors back."""
        os.close(self._wake)
        os.close(self._waker)
        if _EPOLL:
            self._poller.close()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will wake all the same
            os.write(self._waker, b"!")

    def _serve_asked(self, mask: int) -> None:
        os.read(self._wake, 4096)
        while self._asked:
            self._asked.popleft()()
