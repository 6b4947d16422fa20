"""The back-stop: ends what hangs on a socket, whatever code it hangs in (L3).

One daemon thread, started when first needed, severs a socket at its instant with
``socket.socket.shutdown`` (never SSLSocket's method, which would make the next recv return raw
ciphertext). A severed recv returns ``b''``, not an error, so the guard is marked *before* the
shutdown and whoever reads checks the mark: a cut answer must not look like a short one.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import socket
import threading
import time

from .. import fork
from .workers import NoThread


class Guard:
    """One socket watched until `at`; `severed` is set before the socket is."""

    __slots__ = ("_order", "at", "done", "severed", "sock")

    def __init__(self, sock: socket.socket, at: float) -> None:
        self.sock: socket.socket | None = sock
        self.at = at
        self.severed = False
        self.done = False


class Watchdog:
    """Lock: `_wake` guards the heap. Real time only: a hanging socket knows no other."""

    def __init__(self) -> None:
        self._start_fresh()
        fork.register(self)

    def _start_fresh(self) -> None:
        self._wake = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, Guard]] = []
        self._count = itertools.count()
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """The thread stayed in the parent, and its sockets are not ours to sever."""
        self._start_fresh()

    def watch(self, sock: socket.socket, seconds: float) -> Guard:
        """Sever `sock` in `seconds`, unless `release` comes first; NoThread: nobody could."""
        guard = Guard(sock, time.monotonic() + seconds)
        with self._wake:
            if self._thread is None:
                self._start()
            first = not self._heap or guard.at < self._heap[0][0]
            heapq.heappush(self._heap, (guard.at, next(self._count), guard))
            if first:
                self._wake.notify()
        return guard

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="timedblock-watchdog", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise NoThread(f"no thread can be started for the watchdog: {error}") from error
        self._thread = thread

    def release(self, guard: Guard) -> bool:
        """Stop watching; False when the socket was severed meanwhile."""
        guard.done = True
        guard.sock = None
        return not guard.severed

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._heap:
                    self._wake.wait()
                at, _, guard = self._heap[0]
                left = at - time.monotonic()
                if left > 0 and not guard.done:
                    self._wake.wait(left)
                    continue
                heapq.heappop(self._heap)
            self._sever(guard)
            del guard

    @staticmethod
    def _sever(guard: Guard) -> None:
        sock = guard.sock
        if sock is None:
            return
        # Mark, then look; `release` does it the other way round. So whichever comes first, a
        # socket that was released in time is never severed, and a severed one never reused.
        guard.severed = True
        if guard.done:
            return
        with contextlib.suppress(OSError, AttributeError, TypeError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


WATCHDOG = Watchdog()
