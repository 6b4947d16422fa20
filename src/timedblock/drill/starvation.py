"""Time that the machine took away: the processor was somebody else's while a call waited for it.

A drill must not blame a client, or a store, for what a busy machine did. Two witnesses: in each
load's process a heartbeat that comes late though the process itself was idle; and for the drill's
relay and server the kernel's own count of the time that they were ready to run and didn't.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: Seconds between two looks, and from which on a delay is written down.
EVERY = 0.02
_WORTH = 0.003


class Starved(NamedTuple):
    """``seconds`` of since .. until, in which a process was kept from running."""

    since: float
    until: float
    seconds: float


class _Witness:
    """A daemon thread that looks each 20 ms, between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self.found: list[Starved] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> list[Starved]:
        self._over.set()
        self._thread.join()
        return self.found

    def __enter__(self) -> _Witness:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _work(self) -> None:
        raise NotImplementedError


class Heartbeat(_Witness):
    """Of this process: lateness of a sleep in which the process did next to nothing."""

    def _work(self) -> None:
        while not self._over.is_set():
            before, busy = time.monotonic(), time.process_time()
            time.sleep(EVERY)
            now = time.monotonic()
            late = now - before - EVERY - (time.process_time() - busy)
            if late > _WORTH:
                self.found.append(Starved(before, now, late))


class Watch(_Witness):
    """Of other processes, by the kernel's count (Linux; elsewhere it sees nothing)."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = list(pids())
        super().__init__()

    def _work(self) -> None:
        seen, before = self._delays(), time.monotonic()
        while not self._over.wait(EVERY):
            delays, now = self._delays(), time.monotonic()
            late = max((delays[one] - seen.get(one, delays[one]) for one in delays), default=0.0)
            if late > _WORTH:
                self.found.append(Starved(before, now, min(late, now - before)))
            seen, before = delays, now

    def _delays(self) -> dict[str, float]:
        """Seconds for which each thread has waited for a processor, in all."""
        found: dict[str, float] = {}
        for pid in self._pids:
            with suppress(OSError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    text = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text()
                    found[thread] = int(text.split()[1]) / 1e9
        return found


def children() -> list[int]:
    """The processes that this one has started, and theirs (Linux; elsewhere none)."""
    return _below(os.getpid())


def _below(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            for child in map(int, text.split()):
                found += [child, *_below(child)]
    return found


class Starvation:
    """All that was taken, to be asked about any stretch of time."""

    def __init__(self, spans: Iterable[Starved]) -> None:
        self._spans = sorted(spans)
        self._begins = [span.since for span in self._spans]
        self._longest = max((span.until - span.since for span in self._spans), default=0.0)
        #: Seconds, in all.
        self.total = sum(span.seconds for span in self._spans)

    def seconds(self, since: float, until: float) -> float:
        """Seconds of since .. until for which somebody was kept from running, at most all of it."""
        first = bisect.bisect_left(self._begins, since - self._longest)
        last = bisect.bisect_left(self._begins, until)
        taken = 0.0
        for span in self._spans[first:last]:
            common = min(until, span.until) - max(since, span.since)
            if common > 0:
                # A delay of one look lies anywhere in it.
                taken += min(span.seconds, common)
        return min(taken, until - since)
