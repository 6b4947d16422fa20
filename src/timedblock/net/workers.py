"""Daemon threads for what can't be interrupted, bounded per purpose (L3).

`getaddrinfo`, a driver's connect or close, and an application's own code under thread isolation
run here. Never concurrent.futures: its exit waits for a hung worker. A slot is taken until the work
really ends, so that a hung resolver fills its own workers and nobody else's.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..clock import Clock

T = TypeVar("T")
_LINGER = 5.0


class Full(Exception):
    """Every worker of this purpose is busy."""


class Job(Generic[T]):
    """Work on a worker; `wait` for it, then read `outcome`."""

    __slots__ = ("_context", "_done", "_fn", "_on_done", "_result", "error", "finished")

    def __init__(self, fn: Callable[[], T], on_done: Callable[[Job[T]], object] | None) -> None:
        self._fn = fn
        self._on_done = on_done
        self._context = contextvars.copy_context()
        self._done = threading.Lock()
        self._done.acquire()
        self._result: Any = None
        self.error: BaseException | None = None
        self.finished = False

    def wait(self, clock: Clock, seconds: float) -> bool:
        """Wait up to `seconds`; whether the work has ended."""
        if self.finished:
            return True
        if clock.wait(self._done, seconds):
            self._done.release()
        return self.finished

    def outcome(self) -> T:
        """What the finished work returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[no-any-return]

    def run(self) -> None:
        """Do the work, in the context of whoever handed it in."""
        try:
            self._result = self._context.run(self._fn)
        except BaseException as error:  # a worker outlives whatever the work raises
            self.error = error
        self.finished = True
        if self._on_done is not None:
            self._on_done(self)
        # the closure may hold a connection; a waiter that left must not keep it alive
        del self._fn, self._context, self._on_done
        self._done.release()


class Workers:
    """At most `size` daemon threads; each lingers a few seconds for the next work.

    Lock: `_lock` guards the two counts; it is never held while work runs.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._start_fresh()
        fork.register(self)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job[Any]] = queue.SimpleQueue()
        self._threads = 0
        self.busy = 0

    def after_fork(self) -> None:
        """The threads stayed in the parent."""
        self._start_fresh()

    def submit(
        self, fn: Callable[[], T], on_done: Callable[[Job[T]], object] | None = None
    ) -> Job[T]:
        """Run `fn()` on a worker, then `on_done(job)` there; raises Full."""
        job = Job(fn, on_done)
        with self._lock:
            if self.busy >= self.size:
                raise Full(f"all {self.size} workers of {self.name} are busy")
            self.busy += 1
            grow = self._threads < self.busy
            self._threads += grow
        self._jobs.put(job)
        if grow:
            self._start_thread()
        return job

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=self._work, args=(self._jobs,), name=f"timedblock-{self.name}", daemon=True
        )
        try:
            thread.start()
        except BaseException:
            with self._lock:
                self._threads -= 1
            raise

    def _work(self, jobs: queue.SimpleQueue[Job[Any]]) -> None:
        while True:
            try:
                job = jobs.get(timeout=_LINGER)
            except queue.Empty:
                with self._lock:
                    if self._threads > self.busy:
                        self._threads -= 1
                        return
                continue
            try:
                job.run()
            finally:
                with self._lock:
                    self.busy -= 1
                del job
