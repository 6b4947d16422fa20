"""One call through a timed block: a state machine without I/O (L3).

deadline → breaker → bulkhead → attempt (→ retry) → record. `TimedBlock.begin` makes a `Call`;
whoever does the work tells it `succeeded`, `failed` or `abandoned`, once, from any thread. `.call`,
``with``, wrappers, asyncio and the simulator drive this machine and no other.

Every undo is idempotent, so that a KeyboardInterrupt between any two steps leaks nothing: the slot
of the bulkhead is the call's own entry in the block's dict, and ending twice ends once.
"""

from __future__ import annotations

import logging
import math
from math import floor, log2
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from . import events
from .deadline import LONGEST, Deadline, sooner
from .errors import CircuitOpen, DeadlineExceeded, Overloaded, Unavailable
from .events import listeners
from .latency import SUB, TINY, ZERO
from .policy.breaker import SILENCE, Refusal

if TYPE_CHECKING:
    from .block import TimedBlock
    from .coroutines import CancelAt
    from .policy.breaker import Lease
    from .policy.timeout import Learnt

logger = logging.getLogger("timedblock")

#: An attempt found so long past its limit was late by our own doing.
OVERSLEPT = 0.05
#: Timers may fire this much before their instant.
_EARLY = 0.002

ANSWER, UNWELL, CUT, BROKEN, STALLED, DEPENDENCY, UNCONNECTED, CROWDED = (
    "answer",
    "unwell",
    "cut",
    "broken",
    "stalled",
    "dependency",
    "unconnected",
    "crowded",
)


def _is_timeout(error: Exception) -> bool:
    # Python 3.10's asyncio has a TimeoutError of its own; asking by name doesn't load asyncio
    kind = type(error)
    return isinstance(error, TimeoutError) or (
        kind.__name__ == "TimeoutError" and kind.__module__ == "asyncio.exceptions"
    )


def _seconds_asked(error: Exception, seconds: Any) -> float:
    """`seconds` to be left alone, or those of `error`; nothing where neither makes sense."""
    try:
        seconds = getattr(error, "retry_after", None) if seconds is None else seconds
    except Exception:  # a driver's own property
        return 0.0
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        return 0.0
    return float(seconds) if seconds <= LONGEST else math.inf


class Verdict(NamedTuple):
    """What follows a failed attempt.

    `retry_after`: seconds until `Call.again` is to be tried, or None: stop and raise `error`.
    """

    retry_after: float | None
    error: BaseException


class Late:
    """A way to say when the answer of a cut attempt came after all; made when it is cut.

    Whoever still listens (a parked connection, an abandoned future) tells `answered` or `silent`,
    once, from any thread. An attempt of which neither is told stays "at least so long".
    """

    __slots__ = ("_began", "_block", "_cut", "_number", "told")

    def __init__(self, block: TimedBlock, began: float, cut: float, number: int | None) -> None:
        """`number`: of the slice that has the censored sample; None: there is no sample."""
        self._block = block
        self._began = began
        self._cut = cut
        self._number = number
        self.told = False

    @property
    def until(self) -> float:
        """When to stop listening: the operation's ceiling after the cut."""
        return self._began + self._cut + self._block.ceiling

    def answered(self, at: float) -> None:
        """The first byte of the answer came at `at` (seconds on the block's clock).

        An exact sample takes the place of the censored one, and the endpoint is alive.
        """
        if self.told:
            return
        self.told = True
        if self._number is not None:
            self._block.histogram.late(self._cut, self._number, at - self._began)
        if self._block.circuit is not None:
            self._block.circuit.heard()

    def silent(self, at: float) -> None:
        """Nothing had come by `at`, and nobody listens any more: "at least so long"."""
        if self.told:
            return
        self.told = True
        if self._number is not None:
            self._block.histogram.lengthen(self._cut, self._number, at - self._began)


class Call(Deadline):
    """One call; also the deadline in force while it runs.

    Attributes:
        began: when this attempt began, seconds on the block's clock.
        at: when this attempt is to end.
        attempt: 1 for the first.
        sent: whether any byte of the request left, in any attempt; set by whoever sends.
        spent: where the time went, for the error's message; seconds by name.
        late: after an attempt was cut, how to tell of its late answer.
    """

    owner: TimedBlock
    began: float
    attempt: int = 1
    sent: bool = False
    spent: dict[str, float] | None = None
    lease: Lease | None = None
    late: Late | None = None
    # this attempt runs to the ceiling, so that the tail stays known
    exploring: bool = False
    # somebody else's deadline ends this attempt, not its own limit
    borrowed: bool = False
    entered: bool = False
    timer: CancelAt | None = None
    # observe mode: it would not have been started
    _refused: bool = False
    _started: float | None = None
    _limit: float | None = None

    # -- reading ----------------------------------------------------------------------------

    @property
    def limit(self) -> float:
        """Seconds that this attempt may take in all."""
        return self.at - self.began

    @property
    def started(self) -> float:
        """When the call's first attempt began."""
        return self.began if self._started is None else self._started

    @property
    def call_at(self) -> float:
        """When the call is to end, its attempts and pauses together."""
        own = self.owner.ceiling if self._limit is None else self._limit
        return min(self.started + own, sooner(self.outer, self.clock))

    # -- beginning --------------------------------------------------------------------------

    def admit(self) -> None:
        """The rare way in: a breaker that isn't closed, or a shorter deadline."""
        block, began = self.owner, self.began
        call_at = self.call_at
        if call_at <= began:
            self._reject("deadline", DeadlineExceeded, note="no time was left to start")
        circuit = block.circuit
        if circuit is not None and circuit.shut:
            answer = circuit.admit(began, min(call_at - began, 3600.0))
            if isinstance(answer, Refusal):
                self._refuse("circuit", CircuitOpen, retry_after=answer.retry_after)
            else:
                self.lease = answer
        try:
            self._set_limit(call_at)
        except BaseException:
            self._give_back_lease()
            raise

    def check_slot(self) -> None:
        """More calls are in flight than the bulkhead allows: the first ones in the dict stay.

        Each call enters itself before it looks. A place in the dict only ever moves forward, so
        whoever was once among the first stays there, and no more than these ever run; a look
        before the entry would let two threads see the same last slot.
        """
        block = self.owner
        block.sweep()
        bulkhead, calls = block.bulkhead, list(block.in_flight)
        if len(calls) <= bulkhead or self in calls[: int(bulkhead)]:
            return
        block.in_flight.pop(self, None)
        self._give_back_lease()
        note = f"{bulkhead} calls are in flight, which fills the bulkhead"
        self._reject("bulkhead", Overloaded, note=note)

    def _set_limit(self, call_at: float) -> None:
        block, began = self.owner, self.began
        # a probe, and a limit given for this one call, run to the end: they must learn, or obey
        self.exploring = self._limit is None and block.explores()
        whole = self.lease is not None or self._limit is not None or self.exploring
        own_at = call_at if whole else began + block.limit
        outer_at = sooner(self.outer, self.clock)
        self.borrowed = outer_at < own_at or (whole and outer_at <= call_at)
        self.at = min(own_at, call_at)
        median = block.median
        if self.borrowed and self.lease is None and self.at - began < median:
            self._refuse(
                "deadline",
                DeadlineExceeded,
                note=f"{self.at - began:.3f} s left is less than its median {median:.3f} s",
            )

    def restart(self, now: float) -> None:
        """The attempt begins only now (the pool and the connection took until `now`)."""
        if self._started is None:
            self._started = self.began
        self.began = now
        block = self.owner
        if not (self.outer or self._limit or self.lease or self.exploring or block._exploring):
            self.at = min(now + block.limit, self._started + block.ceiling)
            return
        try:
            self._set_limit(self.call_at)
        except BaseException:
            self.owner.in_flight.pop(self, None)
            self._give_back_lease()
            raise

    def again(self) -> None:
        """Begin the next attempt; raises Unavailable (the call is over) when it may not."""
        if self._started is None:
            self._started = self.began
        self.attempt += 1
        self.began = self.owner.now()
        try:
            self.owner.in_flight.pop(self, None)  # its own slot is no reason to wait
            self.admit()
            self.owner.in_flight[self] = self._limit is None
            if len(self.owner.in_flight) > self.owner.bulkhead:
                self.check_slot()
        except BaseException:
            self.owner.in_flight.pop(self, None)
            raise

    # -- ending -----------------------------------------------------------------------------

    def succeeded(self) -> bool:
        """The answer is here. False (and nothing else) for a call that had ended before."""
        block = self.owner
        learns = block.in_flight.pop(self, None)
        ended = block.now()
        if not learns:
            if learns is not None:
                block.settle(self, ended)
            return learns is not None
        histogram, circuit = block.histogram, block.circuit
        if (
            ended > self.at
            or ended >= histogram.due
            or (circuit is not None and circuit.attentive)
            or listeners
        ):
            block.settle(self, ended)
        else:
            try:
                histogram.counts[floor(log2(ended - self.began + TINY) * SUB + ZERO)] += 1
            except IndexError:  # hours
                histogram.record(ended - self.began)
        return True

    def abandoned(self) -> None:
        """Left by a BaseException, or not started after all: neither success nor failure."""
        if self.owner.in_flight.pop(self, None) is not None:
            self._give_back_lease()
            if events.listeners:
                now = self.owner.now()
                self._emit(events.CallAbandoned, now, elapsed=now - self.began)

    def failed(
        self,
        error: BaseException,
        *,
        kind: str | None = None,
        waited: float | None = None,
        connect: Learnt | None = None,
        repeatable: bool = True,
        retry_after: float | None = None,
    ) -> Verdict:
        """The attempt ended with `error`.

        Args:
            error: what the work raised.
            kind: ``answer``, ``unwell``, ``cut``, ``broken``, ``stalled``, ``unconnected`` (no
                connection in time) or ``crowded`` (our own pool or workers are full) where the
                driver of this machine knows; else told from the error and the time.
            waited: of a stalled attempt, the seconds that it truly waited for the peer.
            connect: of an unconnected attempt, the connect limit that it ran into.
            repeatable: whether another attempt is allowed at all.
            retry_after: seconds that the store asks to be left alone; None: ``error.retry_after``
                where that is a number. A retry waits so long at least; where the call's time
                doesn't allow that, there is none.
        """
        block, now = self.owner, self.owner.now()
        if not isinstance(error, Exception):
            self.abandoned()
            return Verdict(None, error)
        # taking the slot decides which of two threads ends the call
        slot = block.in_flight.pop(self, None)
        if slot is None:
            return Verdict(None, error)
        kind = kind or self._kind(error, now)
        self._blame(kind, error, now, waited, connect)
        if now >= block.histogram.due:
            block.refresh(now)
        if repeatable and kind != ANSWER:
            pause = self._pause(error, now, retry_after)
            if pause is not None:
                block.in_flight[self] = slot
                return Verdict(pause, error)
        return Verdict(None, self._end(kind, error))

    def _kind(self, error: Exception, now: float) -> str:
        if isinstance(error, Unavailable):
            return DEPENDENCY
        if isinstance(error, self.owner.policy.ignore):
            return ANSWER
        if _is_timeout(error) and now >= self.at - _EARLY:
            return CUT
        return UNWELL

    def _blame(
        self,
        kind: str,
        error: Exception,
        now: float,
        waited: float | None,
        connect: Learnt | None,
    ) -> None:
        block, circuit = self.owner, self.owner.circuit
        elapsed = now - self.began
        histogram = block.histogram
        if block.observing and kind in (ANSWER, UNWELL, BROKEN) and self.cut_on_paper(now):
            circuit = None  # on paper, this was already over
        if kind == ANSWER:
            block._sample(self, elapsed)
            if circuit is not None:
                circuit.success(now, self.lease)
        elif kind == CUT:
            self._censor(elapsed)
            self._blame_cut(now)
        elif kind == STALLED:
            block.tally.stalled += 1
            self.late = Late(block, self.began, elapsed, None)
            self._add_silence(self.began + (elapsed if waited is None else waited))
        elif kind == UNCONNECTED:
            self._blame_connect(now, connect or block.learnt)
        elif kind == CROWDED:
            self._give_back_lease()  # never blames the store
        elif kind == DEPENDENCY:
            # counted by the inner block's breaker; our own limit may still have been what cut it
            if now >= self.at - _EARLY:
                self._censor(elapsed)
            self._give_back_lease()
        else:
            histogram.miss()
            if circuit is not None:
                circuit.failure(now, self.began, type(error).__name__, self.lease)
        self._emit(events.CallFailed, now, elapsed=elapsed, kind=kind, error=type(error).__name__)

    def _censor(self, elapsed: float) -> None:
        number = None
        if self._limit is None:
            number = self.owner.histogram.cut_at(elapsed)
        else:
            self.owner.histogram.miss()
        self.late = Late(self.owner, self.began, elapsed, number)

    def _blame_cut(self, now: float) -> None:
        block, circuit = self.owner, self.owner.circuit
        if circuit is None:
            return
        # What the pool or earlier attempts left may be too little to prove anything.
        limit = self.limit
        if block.observing and self.lease is None and now - self.began > block.learnt.limit:
            limit = block.learnt.limit  # on paper it was cut then
        elif self.borrowed or limit < block.limit / 2:
            self._add_silence(now)
            return
        circuit.cut(
            now,
            self.began,
            limit=limit,
            learnt=block.learnt.source == "learnt" and self._limit is None,
            ceiling=block.ceiling,
            lease=self.lease,
        )

    def _blame_connect(self, now: float, connect: Learnt) -> None:
        """No connection in time. No sample: an attempt begins with its first byte."""
        block, circuit = self.owner, self.owner.circuit
        block.histogram.miss()
        if circuit is None:
            return
        if (
            now < self.began + connect.limit - _EARLY
            and now < self.started + block.ceiling - _EARLY
        ):
            self._add_silence(now)  # somebody else's deadline
            return
        learnt = connect.source == "learnt" and self.lease is None
        circuit.cut(
            now,
            self.began,
            limit=connect.limit,
            learnt=learnt,
            ceiling=block.ceiling,
            lease=self.lease,
        )

    def _add_silence(self, until: float) -> None:
        circuit = self.owner.circuit
        if circuit is not None:
            patience = math.inf
            if self.owner.learnt.source == "learnt":
                patience = min(SILENCE * self.owner.limit, self.owner.ceiling)
            circuit.starved(until, self.began, limit=self.owner.limit, patience=patience)
        self._give_back_lease()

    def _pause(self, error: Exception, now: float, asked: float | None) -> float | None:
        retry = self.owner.policy.retry
        if retry is None or not retry.wants(error, self.attempt):
            return None
        try:
            pause = retry.pause(self.attempt, error)
        except Exception as broken:  # a wait of the user's own: the call still ends, once
            logger.warning("a Retry's wait raised %s; no retry", type(broken).__name__)
            return None
        pause = max(pause, _seconds_asked(error, asked))
        # a pause that leaves less than an attempt usually takes is no retry
        if now + pause + self.owner.median >= self.call_at or not self.owner.budget.withdraw(now):
            return None
        self.lease = None
        self._emit(events.CallRetried, now, attempt=self.attempt, wait=pause)
        return pause

    def _end(self, kind: str, error: Exception) -> BaseException:
        block = self.owner
        if kind in (CUT, STALLED) and not isinstance(error, Unavailable):
            # work of the application's own: what it did by then nobody knows
            self.sent = self.sent or block.endpoint is None
            cut = self.unavailable(DeadlineExceeded)
            cut.__cause__ = error
            error = cut
        if isinstance(error, Unavailable) or kind in (BROKEN, UNCONNECTED, CROWDED):
            block.tally.unavailable += 1  # the driver of this machine raises its own
        elif kind != ANSWER:
            block.tally.unwell += 1
        return error

    def _give_back_lease(self) -> None:
        if self.lease is not None and self.owner.circuit is not None:
            self.owner.circuit.release(self.lease)
        self.lease = None

    # -- telling ----------------------------------------------------------------------------

    def unavailable(self, kind: type[Unavailable], *, note: str = "", **fields: Any) -> Unavailable:
        """The error to raise for this call, which says where the time went."""
        circuit = self.owner.circuit
        if not note and circuit is not None and circuit.failures:
            note = f"{circuit.failures} of {circuit.config.failures} failures"
        return self._error(kind, note=note, **fields)

    def _error(self, kind: type[Unavailable], /, **fields: Any) -> Unavailable:
        block, now = self.owner, self.owner.now()
        kind = block.errors.get(kind, kind)
        whole = self.call_at - self.started
        attempt = getattr(self, "at", math.inf) - self.began
        return kind(
            block=block.name,
            endpoint=None if block.endpoint is None else block.endpoint.name,
            elapsed=now - self.started,
            limit=None if math.isinf(whole) else max(0.0, whole),
            attempt_limit=None if math.isinf(attempt) else max(0.0, attempt),
            limit_source=self._source(),
            sent=self.sent,
            spent=self.spent,
            **fields,
        )

    def _source(self) -> str:
        if self.borrowed and self.outer is not None:
            return f"the deadline of {getattr(self.outer.owner, 'name', self.outer.owner)}"
        if self.lease is not None:
            return "ceiling: a probe"
        if self.exploring:
            return "ceiling: one attempt in many finds out how long answers take"
        return self.owner.describe_limit()

    def _refuse(self, reason: str, kind: type[Unavailable], /, **fields: Any) -> None:
        """Reject by what was learnt; a block that only observes counts it, and goes on."""
        if not self.owner.observing:
            self._reject(reason, kind, **fields)
        self.owner.tally.would_reject += not self._refused
        self._refused = True

    def cut_on_paper(self, ended: float) -> bool:
        """Whether a learnt limit would have cut what ended by itself; then the breaker is told."""
        block = self.owner
        learnt = block.learnt
        spared = self._refused or self.lease is not None or self._limit is not None
        if spared or ended - self.began <= learnt.limit or learnt.limit >= block.ceiling:
            return False
        block.tally.would_cut += 1
        if block.circuit is not None:
            block.circuit.cut(
                self.began + learnt.limit,
                self.began,
                limit=learnt.limit,
                learnt=learnt.source == "learnt",
                ceiling=block.ceiling,
            )
            block.circuit.heard()  # its late answer
        return True

    def _reject(self, reason: str, kind: type[Unavailable], /, **fields: Any) -> NoReturn:
        self.owner.tally.unavailable += 1
        self._emit(events.CallRejected, self.began, reason=reason)
        raise self._error(kind, **fields)

    def _emit(self, kind: type[events.Event], now: float, /, **fields: Any) -> None:
        if events.listeners:
            endpoint = self.owner.endpoint
            name = None if endpoint is None else endpoint.name
            events.emit(kind(block=self.owner.name, endpoint=name, at=now, **fields))
