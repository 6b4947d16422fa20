"""What timedblock's monitoring endpoint tells while a load runs, looked at each 0.1 s."""

from __future__ import annotations

import math
import threading
import time

from timedblock.drill.history import Sample

#: Seconds between two samples.
EVERY = 0.1


class Sampler:
    """A daemon thread that samples the block ``operation`` of this process, from ``start``
    (monotonic) on. ``samples`` is written by it alone; read it after ``stop``."""

    def __init__(self, fault: str, variant: str, operation: str, start: float) -> None:
        self._load = fault, variant
        self._operation = operation
        self._start = start
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.samples: list[Sample] = []
        self._thread.start()

    def stop(self) -> list[Sample]:
        """The samples; the last of them is of now."""
        self._over.set()
        self._thread.join()
        return self.samples

    def _work(self) -> None:
        due = self._start
        while not self._over.wait(max(0.0, due - time.monotonic())):
            self._take()
            # Those that a busy machine made us miss are not made up for.
            due = max(due + EVERY, time.monotonic())

    def _take(self) -> None:
        from timedblock.monitor import report

        at = time.monotonic() - self._start
        told = report()  # what the monitoring endpoint answers to GET /health at this moment
        block = told["blocks"].get(self._operation)
        if block is None:
            return
        limit = math.inf if block["limit"] is None else block["limit"]
        known = block["limit_source"], block["breaker"], block["in_flight"]
        self.samples.append(Sample(*self._load, at, limit, *known, told["status"]))
