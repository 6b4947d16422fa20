"""An open-loop load: requests are due at a fixed rate, whatever became of the ones before.

Request ``i`` is due at ``start + i / rate``. A pool of threads takes the requests in order; one
that finds no thread in time is late, and its lateness counts (no coordinated omission). A request
that no thread ever took counts as not finished.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

#: Seconds that a request has in all before it no longer counts as goodput.
GOOD_WITHIN = 0.25
#: Seconds that a call may be past its limit before it counts: the scheduling of a busy machine.
TOLERANCE = 0.25
#: Request threads of one load; a usual size for one process of a threaded web server.
THREADS = 32


@dataclass(frozen=True)
class Schedule:
    """When what happens, in seconds from the load's start.

    ``steady`` teaches the limits; then the fault is on for ``window + grace``. Requests due in the
    window are counted; ``grace`` lets the last of them end while the fault is still on, so that
    what is still in flight when it is lifted really hung. ``recovery`` follows.
    """

    rate: float
    steady: float
    window: float
    grace: float
    recovery: float

    @property
    def fault_at(self) -> float:
        return self.steady

    @property
    def window_end(self) -> float:
        return self.steady + self.window

    @property
    def clear_at(self) -> float:
        return self.window_end + self.grace

    @property
    def end(self) -> float:
        return self.clear_at + self.recovery

    def due(self, number: int) -> float:
        return number / self.rate

    def requests(self, since: float, until: float) -> range:
        """The requests due in [since, until)."""
        return range(math.ceil(since * self.rate), math.ceil(until * self.rate))

    def window_requests(self) -> range:
        return self.requests(self.fault_at, self.window_end)

    def tail_requests(self) -> range:
        """The last two thirds of the window: what is judged once the client knows of the fault."""
        return self.requests(self.fault_at + self.window / 3, self.window_end)


class Outcome(NamedTuple):
    """What a request saw, and the error's type.

    ``ok``: the right answer; ``wrong``: another one; ``error``: the client said that it has none;
    ``dishonest``: it failed with an error that doesn't say so."""

    kind: str
    error: str | None = None


class Call(NamedTuple):
    """One call to the client; times in seconds from the load's start.

    ``hung``: still in flight when it was looked at, at ``ended``.
    """

    number: int
    began: float
    ended: float
    kind: str
    error: str | None = None

    @property
    def duration(self) -> float:
        return self.ended - self.began


class OpenLoad:
    """Drives ``request(i)``, which must not raise, by the schedule.

    Its threads are daemons: a call that hangs cannot keep the process from reporting and leaving.
    ``_next`` and ``_done`` are shared by the threads: ``next``, ``append`` and the dict's
    operations are single steps for other threads.
    """

    def __init__(
        self,
        request: Callable[[int], Outcome],
        schedule: Schedule,
        start: float,
        threads: int = THREADS,
    ) -> None:
        self._request = request
        self._schedule = schedule
        self._start = start
        self._next = iter(schedule.requests(0, schedule.end))
        self._take = threading.Lock()
        self._done: list[Call] = []
        self._in_flight: dict[int, float] = {}
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def run(self) -> list[Call]:
        """The finished calls, and those that hung. Blocks to the schedule's end; if calls hung,
        only to the moment when the fault is lifted."""
        for thread in self._threads:
            thread.start()
        self._sleep_until(self._schedule.clear_at)
        hung = self._hung()
        if not hung:
            self._sleep_until(self._schedule.end)
            self._join(self._schedule.end + self._schedule.grace)
            hung = self._hung()
        # A hung call may have ended just now; it hung all the same, and is listed once.
        known = {call.number for call in hung}
        return [call for call in self._done if call.number not in known] + hung

    def _work(self) -> None:
        while True:
            with self._take:
                number = next(self._next, None)
            if number is None:
                return
            self._sleep_until(self._schedule.due(number))
            began = self._now()
            self._in_flight[number] = began
            outcome = self._request(number)
            self._done.append(Call(number, began, self._now(), *outcome))
            del self._in_flight[number]

    def _hung(self) -> list[Call]:
        """What has been in flight for longer than any limit of the drill allows."""
        now = self._now()
        return [
            Call(number, began, now, "hung")
            for number, began in self._in_flight.copy().items()
            if now - began > self._schedule.grace
        ]

    def _join(self, until: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, until - self._now()))

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _sleep_until(self, moment: float) -> None:
        left = moment - self._now()
        if left > 0:
            time.sleep(left)
