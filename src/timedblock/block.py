"""The timed block: drives the call machine for functions, coroutines and ``with`` (L3).

The success path of `TimedBlock.call` is written out flat: one deadline, one entry in a dict, two
reads of the clock, one increment. A property test holds it to the same events as `begin` and
`succeeded`. Whatever is rare lives in `Call`, `_run` and `_rescue`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import math
import sys
from dataclasses import replace
from math import floor, log2
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from . import clock as _clock
from . import events, fork, tags
from .call import OVERSLEPT, Call
from .deadline import Deadline, check_seconds, get, put, time_limit
from .errors import Overloaded, Unavailable
from .events import listeners
from .latency import SUB, TINY, ZERO
from .net.workers import Full, Workers
from .operation import Operation
from .policy import UNSET, Fixed, Percentile, Policy
from .policy.breaker import CLOSED, OPEN, Circuit
from .policy.budget import Budget
from .policy.timeout import EXPLORE, Learnt, learn
from .registry import BLOCKS, check_name, observing, settings, warm
from .tags import get as get_tag
from .tags import used as tagged

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from .endpoint import Endpoint
    from .latency import Histogram

P = ParamSpec("P")
R = TypeVar("R")

#: Threads that isolated work of one block may occupy, where no bulkhead says otherwise.
_WORKERS = 64


class TimedBlock:
    """A named piece of work that is timed, limited, guarded and counted.

    Args:
        name: letters, digits, ``_ . -``; at most 100.
        policy: how it is limited and guarded; None: ``Policy()``.

    Raises (by every way of calling):
        Unavailable: no answer within the limit (see `timedblock.errors`).
        whatever the work raises, unchanged.
    """

    def __init__(
        self,
        name: str,
        policy: Policy | None = None,
        *,
        endpoint: Endpoint | None = None,
        errors: dict[type[Unavailable], type[Unavailable]] | None = None,
    ) -> None:
        self.name = check_name(name)
        #: the code's policy; `policy` is what configuration makes of it
        self.given = Policy() if policy is None else policy
        if not isinstance(self.given, Policy):
            raise TypeError(f"policy must be a Policy, not {policy!r}")
        self.clock = endpoint.clock if endpoint is not None else _clock.current()
        self.now = self.clock.monotonic
        self.endpoint = endpoint
        #: the store's own subclass for each kind of Unavailable
        self.errors = errors or {}
        #: what the calls of this part are about; None: those of which nobody says it
        self.key: str | None = None
        self._parts: dict[str, TimedBlock] = {}
        self.policy, self.observing = settings(self)
        self._set_timeout()
        operation = endpoint.operation(self.name) if endpoint is not None else Operation(self.now())
        self._operation = self._whole = operation
        self.histogram = operation.histogram
        self.tally = operation.tally
        operation.blocks.add(self)
        self.circuit: Circuit | None = None
        self._set_circuit()
        self.budget = Budget(self._calls_within) if endpoint is None else endpoint.budget
        self._explored = 0
        self.in_flight: dict[Call, bool] = {}
        self._set_bulkhead()
        # by the code's policy: a file that changes must not turn a `with` into a TypeError
        self._enterable = (
            self.given.retry is None
            and self.given.fallback is UNSET
            and self.given.isolation == "none"
        )
        BLOCKS.add(self)
        fork.register(self)

    def after_fork(self) -> None:
        """The calls of the parent's other threads are not in flight here; this thread's are."""
        mine: set[Deadline] = set()
        deadline = get()
        while deadline is not None:
            mine.add(deadline)
            deadline = deadline.outer
        for call in list(self.in_flight):
            if call not in mine:
                self.in_flight.pop(call, None)

    def _set_timeout(self) -> None:
        timeout = self.policy.timeout
        self.median = 0.0
        if isinstance(timeout, Percentile):
            self.ceiling = timeout.ceiling
            self.learnt = Learnt(timeout.first, "initial")
        elif isinstance(timeout, Fixed):
            self.ceiling = timeout.seconds
            self.learnt = Learnt(timeout.seconds, "fixed")
        else:
            self.ceiling = math.inf
            self.learnt = Learnt(math.inf, "ceiling")
        #: what was learnt before anything was cut
        self._calm = self.learnt
        before = warm.get(self.identity)
        #: seconds that an attempt may take now
        self.limit = self.ceiling if self.observing else self.learnt.limit
        if before is not None:
            self.adopt(before)

    @property
    def identity(self) -> tuple[str, str | None, str | None]:
        """(name, endpoint's name, key): what a learnt limit is saved under."""
        return self.name, None if self.endpoint is None else self.endpoint.name, self.key

    def adopt(self, learnt: Learnt) -> None:
        """Go on from a limit that was learnt elsewhere, clipped to the policy's floor and ceiling.

        Nothing happens where the policy does not learn.
        """
        timeout = self.policy.timeout
        if not isinstance(timeout, Percentile):
            return
        limit = min(max(learnt.limit, timeout.floor), timeout.ceiling)
        self.learnt = learnt if limit == learnt.limit else replace(learnt, limit=limit)
        if not learnt.exploring:
            self._calm = self.learnt
        self.median = learnt.median or 0.0
        self.limit = self.ceiling if self.observing else limit

    def reconfigure(self, policy: Policy, observing: bool = False) -> None:
        """Go on under `policy`; attempts in flight keep the limit that they began with."""
        before, self.policy, self.observing = self.policy, policy, observing
        learnt = self.learnt
        self._set_timeout()
        if learnt.source == "learnt":
            self.adopt(learnt)
        self._set_circuit()
        if (before.bulkhead, before.isolation) != (policy.bulkhead, policy.isolation):
            self._set_bulkhead()
        self._set_detour()
        for part in list(self._parts.values()):
            part._follow(self)

    def _set_circuit(self) -> None:
        breaker, endpoint = self.policy.breaker, self.endpoint
        if breaker is None:
            self.circuit = None
        elif endpoint is not None:
            if breaker != self.given.breaker:
                endpoint.set_breaker(breaker)
            self.circuit = endpoint.circuit
        elif self.circuit is None:
            self.circuit = Circuit(
                breaker, answered_within=self._answered_within, on_change=self._changed
            )
        elif self.circuit.config != breaker:
            self.circuit.reconfigure(breaker)

    def _set_bulkhead(self) -> None:
        bulkhead = self.policy.bulkhead
        self.bulkhead: float = math.inf if bulkhead is None else bulkhead
        self._workers: Workers | None = None
        if self.policy.isolation == "thread":
            # work in hand stays with the workers that it has
            self._workers = Workers(self.name, bulkhead or _WORKERS)
        self._set_detour()

    def _set_detour(self) -> None:
        """Whether calls take the long way: on workers, or some of them to the ceiling."""
        self._exploring = self.learnt.exploring and not self.observing
        self._detour = self._exploring or self._workers is not None

    def _answered_within(self, now: float, seconds: float) -> int:
        return self._operation.recent(now, seconds)[0]

    def _calls_within(self, now: float, seconds: float) -> int:
        return sum(self._operation.recent(now, seconds))

    def _changed(self, old: str, new: str, reason: str, now: float) -> None:
        if self.circuit is not None:
            self._operation.breaker_changed(new, self.circuit.outage, now)
        announce_breaker(self.name, None, old, new, reason, now)

    # -- keys -------------------------------------------------------------------------------

    def parts(self) -> dict[str, TimedBlock]:
        """What calls with a key learn and use, by key; everything else they share with this."""
        return dict(self._parts)

    def _of(self, key: str | None) -> TimedBlock:
        """The part for `key` and the tag in force; this block where there is neither."""
        name = tags.current()
        whole = key if name is None else name if key is None else f"{name}/{key}"
        if whole is None or not isinstance(self.policy.timeout, Percentile):
            return self
        part = self._parts.get(whole)
        if part is None:
            if key is not None:
                tags.check_key("the key of a call", key)
            part = self._part(whole)
        return part

    def _part(self, key: str) -> TimedBlock:
        now = self.now()
        key, operation = self._operation.of(key, now)
        part = self._parts.get(key)
        if part is None:
            # policy, breaker, budget, bulkhead and the calls in flight are the same
            part = copy.copy(self)
            part.key, part._parts = key, {}
            part._operation, part.histogram, part._explored = operation, operation.histogram, 0
            part._set_timeout()
            part._set_detour()
            if part.learnt.source == "initial":
                part._learn(now)
            part = self._parts.setdefault(key, part)
            operation.blocks.add(part)
        return part

    def _follow(self, whole: TimedBlock) -> None:
        """Go on under the policy of the block that this is a part of."""
        learnt = self.learnt
        self.policy, self.observing, self.circuit = whole.policy, whole.observing, whole.circuit
        self.bulkhead, self._workers = whole.bulkhead, whole._workers
        self._set_timeout()
        if learnt.source == "learnt":
            self.adopt(learnt)
        self._set_detour()

    # -- the machine ------------------------------------------------------------------------

    def begin(self, *, limit: float | None = None, key: str | None = None) -> Call:
        """Start a call; it must be told how it ended.

        Args:
            limit: seconds for this call alone, in place of the learnt limit (which learns
                nothing from it).
            key: what the call's cost depends on (a size class, a prepared statement): it learns
                and uses a limit of its own. One of few: see `tag`, whose name goes before it.

        Raises:
            ValueError, TypeError: `limit` is no time, `key` is no key.
            DeadlineExceeded: the time left is below what the operation usually takes.
            CircuitOpen: the breaker is open.
            Overloaded: the bulkhead is full.
        """
        block = self if key is None and not tagged else self._of(key)
        call = Call()
        call.owner = block
        call.clock = self.clock
        call.outer = outer = get()
        call.began = began = self.now()
        call.at = at = began + block.limit
        if (
            (outer is not None and (outer.at < at or outer.clock is not call.clock))
            or limit is not None
            or block._exploring
            or (self.circuit is not None and self.circuit.shut)
        ):
            if limit is not None:
                call._limit = check_seconds(f"the limit of a call of {self.name}", limit)
            call.admit()
        # False: tells nothing about the learnt limit
        self.in_flight[call] = limit is None
        if len(self.in_flight) > self.bulkhead:
            call.check_slot()
        return call

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return ``fn(*args, **kwargs)``, timed and guarded."""
        outer = get()
        circuit = self.circuit
        in_flight = self.in_flight
        call = Call()
        call.began = began = self.now()
        call.at = at = began + self.limit
        if (
            (outer is not None and (outer.at < at or outer.clock is not self.clock))
            or self._detour
            or (circuit is not None and circuit.shut)
            or (tagged and get_tag() is not None)
        ):
            return self._run(fn, args, kwargs)
        call.owner = self
        call.clock = self.clock
        call.outer = outer
        try:
            in_flight[call] = True
            if len(in_flight) > self.bulkhead:
                call.check_slot()
            put(call)
            result = fn(*args, **kwargs)
            ended = self.now()
            put(outer)
            in_flight.pop(call, None)
        except BaseException as error:
            put(outer)
            return self._rescue(call, error, fn, args, kwargs)
        histogram = self.histogram
        if (
            ended > at
            or ended >= histogram.due
            or (circuit is not None and circuit.attentive)
            or listeners
        ):
            self.settle(call, ended)
        else:
            try:
                histogram.counts[floor(log2(ended - began + TINY) * SUB + ZERO)] += 1
            except IndexError:  # hours
                histogram.record(ended - began)
        return result

    def settle(self, call: Call, ended: float) -> None:
        """Record a success that isn't plain: late, listened to, due, or after failures."""
        elapsed = ended - call.began
        late = ended > call.at
        # Our sockets stop at the limit: an answer found well after it was here before, unseen.
        if late and self.endpoint is not None and ended - call.at > OVERSLEPT:
            self._settle_stalled(call, ended)
            return
        self._sample(call, elapsed)
        self.tally.late += late
        cut_on_paper = self.observing and call.cut_on_paper(ended)
        if self.circuit is not None and self.circuit.attentive and not cut_on_paper:
            self.circuit.success(ended, call.lease)
        if ended >= self.histogram.due:
            self.refresh(ended)
        if events.listeners:
            call._emit(events.CallSucceeded, ended, elapsed=elapsed, late=late)

    def _sample(self, call: Call, elapsed: float) -> None:
        """Learn from an answer, unless its call had a limit of its own."""
        if call._limit is not None:
            self.histogram.answer()
            return
        self.histogram.record(elapsed)
        # a result of an older state is ignored here as there
        if call.lease is not None and self.circuit is not None and self.circuit.holds(call.lease):
            self._operation.probed.append(elapsed)

    def _settle_stalled(self, call: Call, ended: float) -> None:
        """Record an answer that was late because our own process slept: no sample."""
        self.tally.stalled += 1
        self.histogram.answer()
        self.tally.late += 1
        if self.circuit is not None and self.circuit.attentive:
            self.circuit.success(ended, call.lease)
        if events.listeners:
            elapsed = ended - call.began
            call._emit(events.CallSucceeded, ended, elapsed=elapsed, late=True, stalled=True)

    def refresh(self, now: float) -> None:
        """Close the histogram's slice and learn from it; once a slice, by whoever comes first."""
        if self.histogram.rotate(now):
            for block in list(self._operation.blocks):
                block._learn(now)

    def _learn(self, now: float) -> None:
        timeout = self.policy.timeout
        circuit = self.circuit
        if not isinstance(timeout, Percentile) or (circuit is not None and circuit.shut):
            return
        after = learn(timeout, self.histogram, self.learnt, now, self._kin)
        if not after.exploring:
            self._calm = after
        self._set_learnt(after, now)
        if self.policy.timeout is not timeout:
            self.adopt(after)  # configuration changed it meanwhile

    def _restore(self, now: float) -> None:
        """After an outage: learn from the window as it was before it."""
        timeout = self.policy.timeout
        if isinstance(timeout, Percentile):
            before = replace(self._calm, limit=timeout.floor, base=None)
            after = learn(timeout, self.histogram, before, now, self._kin)
            little = after.base is not None and not after.pooled
            self._set_learnt(self._calm if little or after.limit <= timeout.floor else after, now)

    def _set_learnt(self, after: Learnt, now: float) -> None:
        before, self.learnt = self.learnt, after
        self.limit = self.ceiling if self.observing else after.limit
        self.median = after.median or 0.0
        self._set_detour()
        if events.listeners and after.limit != before.limit:
            endpoint = None if self.endpoint is None else self.endpoint.name
            changed = events.LimitChanged(
                self.name, endpoint, now, before.limit, after.limit, after.source, self.key
            )
            events.emit(changed)

    def _kin(self) -> list[Histogram]:
        """The data of all keys, or of the operations of this kind where that is too little.

        A kind is one store, endpoint and ceiling.
        """
        family, timeout = self._whole.histograms(), self.policy.timeout
        known = sum(one.answered + one.censored for one in family)
        enough = isinstance(timeout, Percentile) and known >= timeout.min_samples
        if self.endpoint is None or (enough and len(family) > 1):
            return family
        return self.endpoint.kin(self.name, self.ceiling)

    def explores(self) -> bool:
        """Whether this attempt is the one of many that runs to the ceiling."""
        if not self._exploring:
            return False
        self._explored += 1
        return self._explored % EXPLORE == 0

    def sweep(self) -> None:
        """Drop calls that nobody holds any more (lost to an interrupt)."""
        calls = list(self.in_flight)
        while calls:
            call = calls.pop()  # the newest first: an older one may be its outer deadline
            # the dict, our name and getrefcount's argument hold it; nobody else
            if sys.getrefcount(call) <= 3:
                self.in_flight.pop(call, None)

    @property
    def limit_source(self) -> str:
        """``learnt``, ``initial``, ``fixed`` or ``ceiling``."""
        on_paper = self.observing and self.learnt.source != "fixed"
        return "ceiling" if on_paper else self.learnt.source

    def describe_limit(self) -> str:
        """Where the present limit is from, for messages."""
        timeout = self.policy.timeout
        if self.limit_source == "learnt" and isinstance(timeout, Percentile):
            about = "" if self.key is None else f" for {self.key}"
            return f"learnt{about}: {timeout.describe()}"
        return self.limit_source

    # -- functions --------------------------------------------------------------------------

    def _run(self, fn: Callable[..., R], args: Any, kwargs: Any) -> R:
        """`call` with everything that is rare."""
        try:
            call = self.begin()
        except Unavailable as error:
            return cast("R", self._fall_back(error))
        try:
            return self._perform(call, fn, args, kwargs)
        except BaseException as error:
            put(call.outer)
            return self._rescue(call, error, fn, args, kwargs)

    def _perform(self, call: Call, fn: Callable[..., R], args: Any, kwargs: Any) -> R:
        put(call)
        if self._workers is None:
            result = fn(*args, **kwargs)
        else:
            result = self._isolated(self._workers, call, functools.partial(fn, *args, **kwargs))
        put(call.outer)
        call.succeeded()
        return result

    def _isolated(self, workers: Workers, call: Call, fn: Callable[[], R]) -> R:
        try:
            job = workers.submit(fn, lambda job: self._late(call, job.error))
        except Full as full:
            raise call.unavailable(Overloaded, note=str(full)) from None
        if not job.wait(self.clock, call.at - self.now()):
            raise TimeoutError("the isolated work did not return within the limit")
        return job.outcome()

    def _late(self, call: Call, error: BaseException | None) -> None:
        """Isolated work ended after its caller had left: a sign of life."""
        if call not in self.in_flight and error is None and self.circuit is not None:
            self.circuit.heard()

    def _rescue(
        self, call: Call, error: BaseException, fn: Callable[..., R], args: Any, kwargs: Any
    ) -> R:
        """After a failed attempt: the next one, the fallback, or the error."""
        while True:
            pause, error = call.failed(error)
            if pause is None:
                return cast("R", self._fall_back(error))
            try:
                self.clock.sleep(pause)
                call.again()
                return self._perform(call, fn, args, kwargs)
            except BaseException as next_error:
                put(call.outer)
                error = next_error

    def _fall_back(self, error: BaseException) -> Any:
        """The fallback's value in place of `error`, or raise it."""
        fallback = self.policy.fallback
        if fallback is UNSET or not isinstance(error, Exception) or self._is_answer(error):
            raise error
        self._tell_fallback(error)
        if not callable(fallback):
            return fallback
        with time_limit(self.policy.fallback_limit, f"{self.name}'s fallback"):
            return fallback()

    def _is_answer(self, error: Exception) -> bool:
        return isinstance(error, self.policy.ignore) and not isinstance(error, Unavailable)

    def _tell_fallback(self, error: BaseException) -> None:
        if events.listeners:
            endpoint = None if self.endpoint is None else self.endpoint.name
            name = type(error).__name__
            events.emit(events.FellBack(self.name, endpoint, self.now(), name))

    # -- coroutines -------------------------------------------------------------------------

    async def acall(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return ``await fn(*args, **kwargs)``, timed and guarded; cancelled at its limit."""
        from . import coroutines  # asyncio is loaded by those who use it

        return cast("R", await coroutines.call(self, fn, args, kwargs))

    # -- with and decorator -----------------------------------------------------------------

    def _refuse_with(self) -> None:
        policy = self.policy
        wrong = [
            name
            for name, given in (
                ("retry", policy.retry is not None),
                ("fallback", policy.fallback is not UNSET),
                ('isolation="thread"', policy.isolation == "thread"),
            )
            if given
        ]
        raise TypeError(f"{self.name}: a with block can't honour the policy's {', '.join(wrong)}")

    def __enter__(self) -> Call:
        """`begin`, written out: entering is as frequent as calling."""
        if not self._enterable:
            self._refuse_with()
        block = self._of(None) if tagged else self
        call = Call()
        call.owner = block
        call.clock = self.clock
        call.outer = outer = get()
        call.began = began = self.now()
        call.at = at = began + block.limit
        call.entered = True
        circuit = self.circuit
        if (
            (outer is not None and (outer.at < at or outer.clock is not call.clock))
            or block._exploring
            or (circuit is not None and circuit.shut)
        ):
            call.admit()
        self.in_flight[call] = True
        if len(self.in_flight) > self.bulkhead:
            call.check_slot()
        put(call)
        return call

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        call: Any = get()
        if error is None and call.__class__ is Call and call.owner is self:
            put(call.outer)
            if call.succeeded():
                return
        self._leave(call, error)

    def _leave(self, current: Deadline | None, error: BaseException | None) -> None:
        """The rare ways out: an error, or another context than the one that entered."""
        call = current
        # a part's calls are in flight here
        while call is not None and not (
            isinstance(call, Call) and call.owner.in_flight is self.in_flight
        ):
            call = call.outer
        if isinstance(call, Call):
            put(call.outer)
            if call in self.in_flight:
                self._leave_with(call, error)
                return
        # A generator was closed elsewhere. Which entry it was can't be told; one slot is given
        # back, and no time is recorded.
        for other in reversed(list(self.in_flight)):
            if other.entered:
                other.abandoned()
                return

    def _leave_with(self, call: Call, error: BaseException | None) -> None:
        if error is None:
            call.succeeded()
            return
        raised = call.failed(error, repeatable=False).error
        if raised is not error:
            raise raised

    async def __aenter__(self) -> Call:
        from . import coroutines

        return await coroutines.enter(self)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        from . import coroutines

        await coroutines.leave(self, exc_type, error, traceback)

    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, R]]
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]: ...

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function or a coroutine function."""
        if inspect.iscoroutinefunction(fn):
            acall = self.acall

            @functools.wraps(fn)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                return await acall(fn, *args, **kwargs)

            return awaited
        call = self.call

        @functools.wraps(fn)
        def called(*args: Any, **kwargs: Any) -> Any:
            return call(fn, *args, **kwargs)

        return called

    def __repr__(self) -> str:
        where = f" on {self.endpoint.name}" if self.endpoint is not None else ""
        return f"<TimedBlock {self.name}{where}: limit {self.limit:.3f} s, {self.describe_limit()}>"


def announce_breaker(
    name: str, endpoint: str | None, old: str, new: str, reason: str, now: float
) -> None:
    """Tell listeners and the log that a breaker changed."""
    if observing():
        reason = f"on paper: {reason}"
    level = logging.WARNING if new == OPEN else logging.INFO
    if new in (OPEN, CLOSED):
        events.log_state(now, level, name, new, f"breaker {new} ({reason})")
    if events.listeners:
        events.emit(events.BreakerChanged(name, endpoint, now, old, new, reason))
