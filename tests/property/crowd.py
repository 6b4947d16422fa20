"""Threads that repeat some work while interrupts strike them anywhere."""

from __future__ import annotations

import ctypes
import gc
import random
import threading
import time
from collections.abc import Callable

THREADS = 8


class Interrupted(BaseException):
    """Like gevent's Timeout: nobody catches it by accident."""


KINDS: list[type[BaseException]] = [KeyboardInterrupt, SystemExit, Interrupted]


def _throw(thread: threading.Thread, kind: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(kind)
    )


class Crowd:
    """Threads that repeat `work(rng)` while they are interrupted."""

    def __init__(self, work: Callable[[random.Random], None], seed: int) -> None:
        self.work = work
        self.end = threading.Event()
        self.ready = threading.Barrier(THREADS + 1)
        self.wrong: list[str] = []
        self.interrupts = 0
        self.done = 0
        self.rng = random.Random(seed)
        self.threads = [
            threading.Thread(target=self._run, args=(seed + number,), daemon=True)
            for number in range(THREADS)
        ]

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        self.ready.wait(10)
        self._shielded(rng, 4)

    def _shielded(self, rng: random.Random, depth: int) -> None:
        """Work on until told to end, whatever is thrown and wherever it hits.

        A thread must not end before the shooting does: its identifier would go to one of the
        library's workers, and the next shot with it.
        """
        while not self.end.is_set():
            try:
                if depth:
                    self._shielded(rng, depth - 1)
                else:
                    self._work(rng)
            except (KeyboardInterrupt, SystemExit, Interrupted):
                continue

    def _work(self, rng: random.Random) -> None:
        try:
            while not self.end.is_set():
                self.work(rng)
                self.done += 1
        except Exception as error:
            self.wrong.append(repr(error))
            self.end.set()

    def run(
        self, seconds: float, interrupts: int, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """For `seconds`, and on a starved machine until so many `interrupts` were thrown."""
        for thread in self.threads:
            thread.start()
        self.ready.wait(10)
        began = time.monotonic()
        end = began + seconds
        while (now := time.monotonic()) < end or (
            self.interrupts < interrupts and now < began + 10 * seconds
        ):
            meanwhile()
            alive = [thread for thread in self.threads if thread.is_alive()]
            if not alive:  # something is wrong, and told
                break
            _throw(self.rng.choice(alive), self.rng.choice(KINDS))
            self.interrupts += 1
            threading.Event().wait(self.rng.random() * 0.004)
        self.end.set()
        for thread in self.threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self.threads)


def until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        gc.collect()
        threading.Event().wait(0.01)
    return true()
