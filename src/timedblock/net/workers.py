"""Daemon threads for what can't be interrupted, bounded per purpose (L3).

`getaddrinfo`, a driver's connect or close, and an application's own code under thread isolation
run here. Never concurrent.futures: its exit waits for a hung worker. A slot is taken until the work
really ends, so that a hung resolver fills its own workers and nobody else's.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..clock import Clock

logger = logging.getLogger("timedblock")

T = TypeVar("T")
_LINGER = 5.0


class Full(Exception):
    """Every worker of this purpose is busy."""


class NoThread(Full):
    """The system has no thread left for this purpose, and there is none yet."""


class Job(Generic[T]):
    """Work on a worker; `wait` for it, then read `outcome`."""

    __slots__ = ("_context", "_done", "_fn", "_on_done", "_result", "error", "finished", "started")

    def __init__(self, fn: Callable[[], T], on_done: Callable[[Job[T]], object] | None) -> None:
        self._fn = fn
        self._on_done = on_done
        self._context = contextvars.copy_context()
        self._done = threading.Lock()
        self._done.acquire()
        self._result: Any = None
        self.error: BaseException | None = None
        self.started = self.finished = False

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
        try:
            if self._on_done is not None:
                self._on_done(self)
        except BaseException as error:
            logger.warning("what follows a worker's job raised %s", type(error).__name__)
        # the closure may hold a connection; a waiter that left must not keep it alive
        del self._fn, self._context, self._on_done
        self._done.release()


class Workers:
    """At most `size` daemon threads; each lingers a few seconds for the next work.

    A slot is the job's own entry in a set, so that giving it back twice gives it back once,
    wherever an interrupt comes. Lock: `_lock` guards the two sets; never held while work runs.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._start_fresh()
        fork.register(self)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job[Any]] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._taken: set[Job[Any]] = set()

    def after_fork(self) -> None:
        """The threads stayed in the parent."""
        self._start_fresh()

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return len(self._taken)

    def submit(
        self, fn: Callable[[], T], on_done: Callable[[Job[T]], object] | None = None
    ) -> Job[T]:
        """Run `fn()` on a worker, then `on_done(job)` there.

        Raises:
            Full: all are busy.
            NoThread: none is there, and none could be started.
            BaseException: an interrupt came. The job isn't run, unless a worker had begun it.
        """
        job = Job(fn, on_done)
        try:
            with self._lock:
                if len(self._taken) >= self.size:
                    raise Full(f"all {self.size} workers of {self.name} are busy")
                self._taken.add(job)
                grow = len(self._threads) < len(self._taken)
            if grow:
                self._start_thread()
            self._jobs.put(job)
        except BaseException:
            with self._lock:
                if not job.started:
                    self._taken.discard(job)
            raise
        return job

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=self._work, args=(self._jobs,), name=f"timedblock-{self.name}", daemon=True
        )
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException as error:
            with self._lock:
                self._threads.discard(thread)
                others = bool(self._threads)
            if not isinstance(error, RuntimeError):
                raise
            # out of threads, or the interpreter is about to end; a worker that is there will do
            if not others:
                raise NoThread(f"no thread can be started for {self.name}: {error}") from error

    def _work(self, jobs: queue.SimpleQueue[Job[Any]]) -> None:
        me = threading.current_thread()
        with self._lock:
            self._threads.add(me)  # an interrupt in start() may have taken it for dead
        while True:
            try:
                job = jobs.get(timeout=_LINGER)
            except queue.Empty:
                with self._lock:
                    if len(self._threads) > len(self._taken):
                        self._threads.discard(me)
                        return
                continue
            if self._begin(job):
                try:
                    job.run()
                finally:
                    with self._lock:
                        self._taken.discard(job)
            del job

    def _begin(self, job: Job[Any]) -> bool:
        """Whether the job still is to be run: an interrupt may have withdrawn it."""
        with self._lock:
            job.started = job in self._taken
            return job.started
