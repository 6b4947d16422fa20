"""The loads: requests that are made by threads of one process, and recorded, each of them.

Open loop: request ``i`` is due at ``start + i / rate``, whatever became of the ones before. A pool
of threads takes the requests in order; one that finds no thread in time is late, and its lateness
counts (no coordinated omission). A request that no thread ever took counts as not finished.

Closed loop: each thread makes its next request as soon as the one before has ended (and a pause,
if there is one), so a slow store gets fewer of them.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from timedblock.drill.history import HUNG, Call

#: Seconds that a request has in all before it no longer counts as goodput.
GOOD_WITHIN = 0.25
#: Seconds that a call may be past its limit before it counts: the scheduling of a busy machine.
TOLERANCE = 0.25
#: Request threads of one load; a usual size for one process of a threaded web server.
THREADS = 32
_clock = time.monotonic


@dataclass(frozen=True)
class Schedule:
    """When what happens, in seconds from the load's start.

    ``steady`` teaches the limits; then the fault is on for ``window + grace``. Requests due in the
    window are counted; ``grace`` lets the last of them end while the fault is still on, so that
    what is still in flight when it is lifted really hung. ``recovery`` follows. ``rate`` is 0 for
    a closed loop, where nobody knows how many requests will be due.
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


class Request(NamedTuple):
    """What a request is about to do: the operation, the short name of its key, and the token of
    the value that it writes (None: it reads)."""

    op: str
    key: str
    value: str | None = None


class Answer(NamedTuple):
    """What came of it; the columns ``outcome``, ``value`` (of a read), ``error`` and ``sent``."""

    outcome: str
    value: str | None = None
    error: str | None = None
    sent: bool | None = None


class Session(Protocol):
    """What a load drives: the requests of one application. Only `enter` may raise."""

    def enter(self) -> None:
        """Called once by each thread of the load before its first request: for what a client has
        for each thread, such as a connection."""
        ...

    def request(self, number: int) -> Request: ...

    def answer(self, number: int) -> Answer: ...

    def finish(self) -> list[tuple[float, str]]:
        """The messages that it was given: when (monotonic), and each one's token. Once it returns
        none is acknowledged any more."""
        ...


class Load:
    """Threads that make the requests of ``session`` by ``schedule``, from ``start`` (monotonic).

    The threads are daemons: a call that hangs cannot keep the process from reporting and leaving.
    What they share takes single steps for other threads: ``_done.append``, and an item of
    ``_doing``, where each thread has a slot of its own; ``next`` of ``_turns`` is under ``_take``.
    """

    def __init__(
        self,
        fault: str,
        variant: str,
        session: Session,
        schedule: Schedule,
        start: float,
        threads: int = THREADS,
    ) -> None:
        self._fault = fault
        self._variant = variant
        self._session = session
        self._schedule = schedule
        self.starts_at(start, start + schedule.clear_at)
        self._take = threading.Lock()
        self._turns = self._numbers()
        # Tuples of nothing but numbers and text: the garbage collector leaves them alone.
        self._done: list[tuple[Any, ...]] = []
        self._doing: list[tuple[int, float, float] | None] = [None] * threads
        self._entered = threading.Barrier(threads + 1)
        self._go = threading.Event()
        self._refused: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), daemon=True)
            for slot in range(threads)
        ]

    def enter(self, within: float) -> None:
        """Have every thread enter the session, before the load's start. What the session raises;
        BrokenBarrierError if it takes longer than so many seconds."""
        for thread in self._threads:
            thread.start()
        self._entered.wait(within)
        if self._refused:
            raise self._refused[0]

    def starts_at(self, start: float, lifted: float) -> None:
        """When it starts, and when its fault is lifted (both monotonic); after `enter`. The loads
        of a wave start one after the other, and their faults are lifted together."""
        self._start, self._lifted = start, lifted

    def run(self) -> list[Call]:
        """The finished calls, and those that hung. Blocks to the schedule's end; if calls hung,
        only to the moment when the fault is lifted."""
        if not self._threads[0].is_alive():
            self.enter(self._schedule.end)
        self._go.set()
        self._sleep_until(self._schedule.clear_at)
        moment = self._lifted
        hung = self._hung(moment)
        if not hung:
            self._sleep_until(self._schedule.end)
            self._join(self._schedule.end + self._schedule.grace)
            moment = _clock()
            hung = self._hung(moment)
        return self._ended_but(hung, moment) + hung

    def _numbers(self) -> Iterator[int]:
        raise NotImplementedError

    def _due(self, number: int) -> float:
        """When a request that a thread has just taken is due; it is waited for."""
        raise NotImplementedError

    def _ended(self) -> bool:
        """Whether no thread takes another request."""
        raise NotImplementedError

    def _work(self, slot: int) -> None:
        try:
            self._session.enter()
        except Exception as error:
            self._refused.append(error)
        self._entered.wait()
        self._go.wait()
        while not self._ended():
            with self._take:
                number = next(self._turns, None)
            if number is None:
                return
            due = self._due(number)
            self._sleep_until(due)
            self._record(slot, number, due)

    def _record(self, slot: int, number: int, due: float) -> None:
        """Makes a request. What can be said of it later is, so that recording costs it little."""
        began = _clock()
        self._doing[slot] = number, due, began
        answer = self._session.answer(number)
        self._done.append((number, due, began, _clock(), *answer))
        self._doing[slot] = None

    def _call(self, number: int, due: float, began: float, ended: float, *answered: Any) -> Call:
        """The record of a call; ``began`` and ``ended`` are of the clock."""
        answer = Answer(*answered)
        op, key, written = self._session.request(number)
        value = answer.value if written is None else written
        load = self._fault, self._variant, number, op, key, value
        since, until = began - self._start, ended - self._start
        return Call(*load, due, since, until, answer.outcome, answer.error, answer.sent)

    def _hung(self, moment: float) -> list[Call]:
        """What had then (of the clock) been in flight for longer than any limit of the drill
        allows. The end of a fault ends what hung in it, before anybody has looked."""
        flying = {number: (due, began) for number, due, began in filter(None, self._doing)}
        for number, due, began, ended, *_ in list(self._done):
            if ended >= moment:
                flying[number] = due, began
        return [
            self._call(number, due, began, moment, *Answer(HUNG, sent=True))
            for number, (due, began) in sorted(flying.items())
            if moment - began > self._schedule.grace
        ]

    def _ended_but(self, hung: list[Call], moment: float) -> list[Call]:
        """The records of what began before a moment (of the clock) and has ended, but for what
        hung until then."""
        known = {call.number for call in hung}
        done = [one for one in self._done if one[0] not in known and one[2] < moment]
        return [self._call(*one) for one in done]

    def _join(self, until: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, until - self._now()))

    def _now(self) -> float:
        return _clock() - self._start

    def _sleep_until(self, moment: float) -> None:
        left = moment - self._now()
        if left > 0:
            time.sleep(left)


class OpenLoad(Load):
    """Requests at ``schedule.rate``, by the clock."""

    def _numbers(self) -> Iterator[int]:
        return iter(self._schedule.requests(0, self._schedule.end))

    def _due(self, number: int) -> float:
        return self._schedule.due(number)

    def _ended(self) -> bool:
        return False


class ClosedLoad(Load):
    """As many requests as the threads get done; each pauses for ``think`` seconds between two."""

    def __init__(
        self,
        fault: str,
        variant: str,
        session: Session,
        schedule: Schedule,
        start: float,
        threads: int = THREADS,
        think: float = 0.0,
    ) -> None:
        super().__init__(fault, variant, session, schedule, start, threads)
        self._think = think

    def _numbers(self) -> Iterator[int]:
        return itertools.count()

    def _due(self, number: int) -> float:
        return max(0.0, self._now() + self._think)

    def _ended(self) -> bool:
        return self._now() + self._think >= self._schedule.end
