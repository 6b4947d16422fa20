"""pybreaker's `CircuitBreaker` on timedblock's call machine (L5).

The same constructor, methods, listeners and storages; what decides is `policy.breaker.Circuit`.
No lock is held across a call, so ten threads take the time of one. A storage that may be far away
(Redis) is read and written in the background; a call never waits for it.

Everything else that pybreaker exports is exported here too, so that an application changes its
import: ``from timedblock import circuitbreaker as pybreaker``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import random
import re
import sys
import threading
import weakref
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast, overload

import pybreaker
from pybreaker import (
    STATE_CLOSED,
    STATE_HALF_OPEN,
    STATE_OPEN,
    CircuitBreakerListener,
    CircuitBreakerStorage,
    CircuitMemoryStorage,
    CircuitRedisStorage,
)

from . import clock as _clock
from . import events, fork
from .block import TimedBlock, announce_breaker
from .call import ANSWER, CUT, UNWELL, Call
from .coroutines import CancelAt
from .deadline import check_seconds
from .errors import CircuitOpen
from .net.workers import Full, Workers
from .policy import Breaker, Policy
from .policy.breaker import CLOSED, HALF_OPEN, OPEN, Circuit, Lease, Refusal
from .registry import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence

__all__ = [
    "STATE_CLOSED",
    "STATE_HALF_OPEN",
    "STATE_OPEN",
    "CircuitBreaker",
    "CircuitBreakerError",
    "CircuitBreakerListener",
    "CircuitBreakerStorage",
    "CircuitMemoryStorage",
    "CircuitRedisStorage",
]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("timedblock")

#: Seconds between two looks at a storage in the background: what is known is at most 1 s old.
LOOK = 0.5
#: Redis keeps the opening's instant in whole seconds.
_COARSE = 1.0
#: Timers may fire this much before their instant.
_EARLY = 0.002
_STATES = (CLOSED, OPEN, HALF_OPEN)
_UNFIT = re.compile(r"[^A-Za-z0-9_.\-]")


class CircuitBreakerError(CircuitOpen, pybreaker.CircuitBreakerError):
    """The circuit is open, or this very call opened it (then `__cause__` is what it raised).

    Both a `timedblock.CircuitOpen` and a `pybreaker.CircuitBreakerError`.
    """


class _Standing(NamedTuple):
    """What a circuit says of itself, read at one instant."""

    state: str
    since: float
    failures: int
    successes: int


class _Exactly(random.Random):
    """No spread: pybreaker's open time is `reset_timeout`, neither more nor less."""

    def random(self) -> float:
        return 0.0


class _Circuit(Circuit):
    """The circuit, counting as pybreaker documents: a failed trial adds to the failures too.

    Lock: its parent's `_lock`, on the same terms.
    """

    def admit(self, now: float, longest: float) -> Lease | Refusal | None:
        # A trial that hangs (a breaker sets no limit) must not keep the circuit shut for ever.
        return super().admit(now, min(longest, self.config.open_for))

    def success(self, now: float, lease: Lease | None = None) -> None:
        with self._lock:
            if lease is not None and lease in self._leases:
                self.failures = 0
        super().success(now, lease)

    def _fail(
        self, now: float, began: float, reason: str, lease: Lease | None
    ) -> tuple[str, str, str, float] | None:
        if self.state != CLOSED and lease is not None and lease in self._leases:
            self.failures += 1
        return super()._fail(now, began, reason, lease)

    def reconfigure(self, config: Breaker) -> None:
        """Go on with `config`; an open time that runs is counted anew from its beginning."""
        with self._lock:
            self.config = config
            self._open_time = config.open_for
            if self.state == OPEN:
                self._retry_at = self.since + config.open_for

    def go(self, state: str, reason: str, now: float) -> None:
        """Go to `state` by hand; a state that it has already begins anew."""
        with self._lock:
            change = self._become(state, reason, now)
            self._successes = 0
            self._leases.clear()
            if state == CLOSED:
                self.failures = 0
                self.attentive = False
        self._tell(change)

    def standing(self) -> _Standing:
        """What it says of itself now."""
        with self._lock:
            return self._standing()

    def _standing(self) -> _Standing:
        return _Standing(self.state, self.since, self.failures, self._successes)

    def adopt(
        self, mine: _Standing, *, state: str | None, since: float, failures: int | None, now: float
    ) -> _Standing | None:
        """Take over what others know (None: nothing new), unless it is no longer as `mine` says.

        Returns how it stands afterwards, or None: it has moved on, and its own news is newer.
        """
        change = None
        with self._lock:
            if self._standing() != mine:
                return None
            if state == OPEN and self.state == OPEN:
                if since > self.since + _COARSE:
                    self.since = since
                    self._retry_at = since + self.config.open_for
            elif state is not None:
                change = self._become(state, "the storage says so", since if state == OPEN else now)
            if failures is not None:
                # with news of the state, the counter may still be that of the state before
                more = state is None and failures > self.failures
                self.failures = failures
                change = self._weigh(now, more) or change
            standing = self._standing()
        self._tell(change)
        return standing

    def _weigh(self, now: float, more: bool) -> tuple[str, str, str, float] | None:
        """Open when failures of others, added to ours, are enough."""
        if self.state != CLOSED:
            return None
        self.attentive = self.failures > 0
        if more and self.failures >= self.config.failures:
            return self._become(OPEN, f"{self.failures} failures, others' included", now)
        return None


class _Seen(NamedTuple):
    """What a storage said when it was read last."""

    state: str
    opened_at: datetime | None
    counter: int


class _Mirror:
    """Keeps a circuit and a storage in step.

    The circuit decides; what it decided is written, and what others wrote is adopted. Only a value
    that *changed* since the last look is adopted: a storage that lost a write (or answers with its
    fallback while Redis is down) can't take back what this process saw by itself.

    A plain `CircuitMemoryStorage` is in step at once (`direct`). Any other may block: one daemon
    worker, which ends with the mirror, looks each `LOOK` seconds and when there is news. Lock:
    `_lock` guards a direct step; only the worker takes the other kind.
    """

    def __init__(
        self,
        storage: CircuitBreakerStorage,
        circuit: _Circuit,
        name: str,
        announce: Callable[[], object],
    ) -> None:
        self.direct = type(storage) is CircuitMemoryStorage
        self._storage = storage
        self._circuit = circuit
        self._clock = _clock.current()
        self._announce = announce
        self._name = name
        self._known = circuit.standing()
        self._seen: _Seen | None = None
        self._complained = False
        self._workers = Workers(name, 1)
        self._start_fresh()
        self._running = True  # so to speak: its owner says `start` once it is complete
        fork.register(self)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._news = threading.Lock()  # released: there is news
        self._news.acquire()
        self._running = False

    def after_fork(self) -> None:
        """The worker stayed in the parent; the next call starts one here."""
        self._start_fresh()

    def before(self) -> bool:
        """A call is about to begin; whether something may have changed here by it."""
        if not self.direct:
            if not self._running:
                self.start()
            return False
        storage, circuit = self._storage, self._circuit
        if storage.state == circuit.state and storage.counter == circuit.failures:
            return False
        self.step_now()
        return True

    def after(self) -> None:
        """Something may have changed here."""
        if self._circuit.standing() == self._known:
            return
        if self.direct:
            self.step_now()
        else:
            with contextlib.suppress(RuntimeError):  # released already
                self._news.release()

    def step_now(self) -> None:
        """Come in step at once (only where nothing can block)."""
        with self._lock:
            self._step()

    def start(self) -> None:
        """Look at the storage in the background from now on."""
        self._running = True
        news = self._news

        def wake(_: object) -> None:
            with contextlib.suppress(RuntimeError):
                news.release()

        try:
            # weakly, and woken when it is gone: a breaker that nobody holds leaves no thread
            self._workers.submit(
                functools.partial(_keep_step, weakref.ref(self, wake), news, self._clock)
            )
        except (Full, RuntimeError) as error:  # the thread can't be had: the next call tries again
            self._running = False
            self._complain(error)

    def background_step(self) -> None:
        """Come in step, whatever the storage does; on the worker."""
        try:
            self._step()
            self._complained = False
            self._announce()
        except BaseException as error:  # the worker outlives whatever a storage or listener raises
            self._complain(error)

    def _complain(self, error: BaseException) -> None:
        """One line, until it works again."""
        if self._complained:
            return
        self._complained = True
        text = f"the breaker's storage is out of reach ({type(error).__name__})"
        events.log_state(self._clock.monotonic(), logging.WARNING, self._name, "storage", text)

    def _step(self) -> None:
        mine = self._circuit.standing()
        self._write(mine)
        seen = self._read()
        before = self._seen
        state = seen.state if before is None or self._news_of_state(before, seen) else None
        failures = seen.counter if before is None or seen.counter != before.counter else None
        now = self._clock.monotonic()
        standing = self._circuit.adopt(
            mine, state=state, since=self._since(seen, now), failures=failures, now=now
        )
        if standing is not None:
            self._seen, self._known = seen, standing

    def _news_of_state(self, before: _Seen, seen: _Seen) -> bool:
        return (before.state, before.opened_at) != (seen.state, seen.opened_at)

    def _write(self, mine: _Standing) -> None:
        """Write what is news; what was written is known, should the rest fail."""
        storage, known = self._storage, self._known
        if (mine.state, mine.since) != (known.state, known.since):
            if mine.state == OPEN:
                ago = timedelta(seconds=self._clock.monotonic() - mine.since)
                storage.opened_at = datetime.now(timezone.utc) - ago
            storage.state = mine.state
            self._known = known._replace(state=mine.state, since=mine.since)
        _bring(mine.failures, known.failures, storage.increment_counter, storage.reset_counter)
        self._known = self._known._replace(failures=mine.failures)
        _bring(
            mine.successes,
            known.successes,
            storage.increment_success_counter,
            storage.reset_success_counter,
        )
        self._known = mine

    def _read(self) -> _Seen:
        state = self._storage.state
        if state not in _STATES:
            raise ValueError(f"unknown state {state!r} in the storage")
        opened_at = self._storage.opened_at if state == OPEN else None
        return _Seen(state, opened_at, self._storage.counter)

    def _since(self, seen: _Seen, now: float) -> float:
        """When the circuit opened, on our clock; other hosts' clocks may be wrong, so bounded."""
        longest = self._circuit.config.open_for
        if seen.opened_at is None:
            return now - longest
        opened_at = seen.opened_at
        if opened_at.tzinfo is None:
            opened_at = opened_at.replace(tzinfo=timezone.utc)
        ago = (datetime.now(timezone.utc) - opened_at).total_seconds()
        return now - min(max(0.0, ago), longest)


def _bring(
    value: int, known: int, increment: Callable[[], object], reset: Callable[[], object]
) -> None:
    """Bring a counter of the storage from what was known of it to `value`."""
    if value < known:
        reset()
        known = 0
    for _ in range(value - known):
        increment()


def _keep_step(mirror_ref: weakref.ref[_Mirror], news: threading.Lock, clock: _clock.Clock) -> None:
    """The worker's loop; it holds the mirror only while it works."""
    while True:
        mirror = mirror_ref()
        if mirror is None:
            return
        mirror.background_step()
        del mirror
        clock.wait(news, LOOK)


def _config(fail_max: int, reset_timeout: float, success_threshold: int) -> Breaker:
    for name, value in (("fail_max", fail_max), ("success_threshold", success_threshold)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"CircuitBreaker({name}) must be a whole number from 1, not {value!r}")
    seconds = check_seconds("CircuitBreaker(reset_timeout)", reset_timeout, zero=True)
    # no open time at all: the shortest there is
    open_for = seconds or sys.float_info.min
    return Breaker(
        failures=fail_max,
        failure_rate=None,
        open_for=open_for,
        open_max=open_for,
        probes=success_threshold,
    )


def _block_name(name: str | None) -> str:
    """A block's name from a breaker's, which may be any text."""
    return _UNFIT.sub("_", name or "").lstrip(".-")[:100] or "circuitbreaker"


class CircuitBreaker(pybreaker.CircuitBreaker):
    """pybreaker's breaker, without its lock around the call.

    Args:
        fail_max: consecutive failures that open the circuit. Calls in flight together are one
            piece of evidence: a failure counts if its call began after the last counted one ended.
        reset_timeout: seconds open before the next call is let through as a trial.
        success_threshold: trials let through half-open, all of which must succeed to close it.
        exclude: exception types, and functions of an exception, that tell no failure.
        listeners: objects with the methods of `CircuitBreakerListener`. What they raise is logged.
        state_storage: a `CircuitBreakerStorage`. A `CircuitMemoryStorage` is used directly; any
            other is read and written in the background, and what is known of it is at most 1 s old.
        name: any text; in `timedblock.stats()` and in errors with its unfit characters as ``_``.
        throw_new_error_on_trip: whether the failure that opens the circuit raises
            `CircuitBreakerError` in place of its own error.

    Raises:
        ValueError, TypeError: naming the argument and the value.

    Calls raise `CircuitBreakerError` while the circuit is open. The breaker sets no limit; inside
    a `time_limit`, a call that is cut by it is no failure, and none begins after it.
    """

    def __init__(
        self,
        fail_max: int = 5,
        reset_timeout: float = 60,
        success_threshold: int = 1,
        exclude: Iterable[type[BaseException] | Callable[[Any], bool]] | None = None,
        listeners: Sequence[CircuitBreakerListener] | None = None,
        state_storage: CircuitBreakerStorage | None = None,
        name: str | None = None,
        throw_new_error_on_trip: bool = True,
    ) -> None:
        config = _config(fail_max, reset_timeout, success_threshold)
        storage = CircuitMemoryStorage(CLOSED) if state_storage is None else state_storage
        self._changes = threading.local()
        self._circuit = _Circuit(config, on_change=self._changed, rng=_Exactly())
        self._block = TimedBlock(
            _block_name(name),
            Policy(timeout=None, breaker=None),
            errors={CircuitOpen: CircuitBreakerError},
        )
        self._block.circuit = self._circuit
        self._mirror = _Mirror(storage, self._circuit, self._block.name, self._announce)
        if self._mirror.direct:
            self._mirror.step_now()
            self._own_changes().clear()  # how it was found is no change
        super().__init__(
            fail_max=fail_max,
            reset_timeout=reset_timeout,
            success_threshold=success_threshold,
            exclude=exclude,
            listeners=listeners,
            state_storage=storage,
            name=name,
            throw_new_error_on_trip=throw_new_error_on_trip,
        )
        if not self._mirror.direct:
            self._mirror.start()
        fork.register(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    # -- settings ---------------------------------------------------------------------------

    @property
    def fail_max(self) -> int:
        """Consecutive failures that open the circuit."""
        return self._fail_max

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        self._reconfigure(_config(number, self._reset_timeout, self._success_threshold))
        self._fail_max = number

    @property
    def reset_timeout(self) -> float:
        """Seconds open before a trial; a change applies to an open circuit at once."""
        return self._reset_timeout

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        self._reconfigure(_config(self._fail_max, timeout, self._success_threshold))
        self._reset_timeout = timeout

    @property
    def success_threshold(self) -> int:
        """Successful trials that close a half-open circuit."""
        return self._success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._reconfigure(_config(self._fail_max, self._reset_timeout, threshold))
        self._success_threshold = threshold

    def _reconfigure(self, config: Breaker) -> None:
        self._circuit.reconfigure(replace(config))

    @property
    def throw_new_error_on_trip(self) -> bool:
        """Whether the failure that opens the circuit raises `CircuitBreakerError`."""
        return self._throw_new_error_on_trip

    @property
    def name(self) -> str | None:
        """The breaker's name, or None."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        self._name = name
        self._block.name = check_name(_block_name(name))

    def is_system_error(self, exception: BaseException) -> bool:
        """Whether `exception` tells a failure: no exclusion applies. A broken one doesn't."""
        return not any(_excludes(exclusion, exception) for exclusion in self._excluded_exceptions)

    # -- state ------------------------------------------------------------------------------

    @property
    def fail_counter(self) -> int:
        """Consecutive failures so far."""
        self._look()
        return self._circuit.failures

    @property
    def success_counter(self) -> int:
        """Successful trials so far, half-open."""
        self._look()
        return self._circuit.standing().successes

    @property
    def current_state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        self._look()
        return self._circuit.state

    @property
    def state(self) -> pybreaker.CBStateType:
        """pybreaker's object for the present state; its `name` is `current_state`."""
        name = self.current_state
        if self._state.name != name:
            return self._create_new_state(name)
        return self._state

    @state.setter
    def state(self, state_str: str) -> None:
        self._go(state_str)

    def open(self) -> bool:
        """Open the circuit for `reset_timeout` seconds; returns `throw_new_error_on_trip`."""
        self._go(OPEN)
        return self._throw_new_error_on_trip

    def half_open(self) -> None:
        """Let the next `success_threshold` calls through as trials."""
        self._go(HALF_OPEN)

    def close(self) -> None:
        """Close the circuit and forget its failures."""
        self._go(CLOSED)

    def _go(self, state: str) -> None:
        if state not in _STATES:
            raise ValueError(f"Unknown state {state!r}, valid states: {', '.join(_STATES)}")
        self._circuit.go(state, "by hand", self._block.now())
        self._spread()

    def _look(self) -> None:
        told = not self._own_changes()  # else a listener reads: changes are told in their order
        if self._mirror.before() and told:
            self._announce()

    # -- calls ------------------------------------------------------------------------------

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return ``func(*args, **kwargs)``, guarded.

        Of a generator or a coroutine, the outcome is known, and counted, when it ends.
        """
        call = self._begin(func, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            raised = self._failed(call, error)
            if raised is error:
                raise
            raise raised from error
        if type(result) is GeneratorType or type(result) is CoroutineType:
            return cast("T", self._follow(call, result))
        self._succeeded(call)
        return result

    async def acall(
        self, func: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any
    ) -> T:
        """Return ``await func(*args, **kwargs)``, guarded; cancelled at the caller's deadline."""
        call = self._begin(func, args, kwargs)
        return cast("T", await self._await(call, func, args, kwargs))

    def call_async(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """`acall` in a task of the running loop: to be awaited, or yielded to Tornado."""
        return asyncio.ensure_future(self.acall(func, *args, **kwargs))

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """``with breaker.calling():`` guards the code inside."""
        call = self._begin(self.calling, (), {})
        try:
            yield
        except BaseException as error:
            raised = self._failed(call, error)
            if raised is error:
                raise
            raise raised from error
        else:
            self._succeeded(call)

    @overload  # type: ignore[override]  # pybreaker's says Any; a decorator keeps the type
    def __call__(self, func: Callable[P, T], /, **flags: bool) -> Callable[P, T]: ...

    @overload
    def __call__(self, /, **flags: bool) -> Callable[[Callable[P, T]], Callable[P, T]]: ...

    def __call__(self, func: Callable[..., Any] | None = None, /, **flags: bool) -> Any:
        """Decorate a function, generator function or coroutine function.

        The keyword argument ``__pybreaker_call_async=True`` says that it returns an awaitable.
        """
        as_task = flags.pop("__pybreaker_call_async", False)
        decorate = self._decorate_async if as_task else self._decorate
        return decorate if func is None else decorate(func)

    def _decorate(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(func):

            @functools.wraps(func)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                return await self.acall(func, *args, **kwargs)

            return awaited

        @functools.wraps(func)
        def called(*args: Any, **kwargs: Any) -> Any:
            return self.call(func, *args, **kwargs)

        return called

    def _decorate_async(self, func: Callable[..., Any]) -> Callable[..., asyncio.Task[Any]]:
        @functools.wraps(func)
        def called(*args: Any, **kwargs: Any) -> asyncio.Task[Any]:
            return self.call_async(func, *args, **kwargs)

        return called

    # -- one call ---------------------------------------------------------------------------

    def _begin(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Call:
        news = self._mirror.before()
        try:
            # Not put in force: a breaker sets no limit, the caller's deadline stays the one.
            call = self._block.begin()
        except BaseException:
            self._spread()
            raise
        try:
            if news or self._circuit.shut:
                self._spread()
            if self._listeners:
                self._tell("before_call", func, *args, **kwargs)
        except BaseException:
            call.abandoned()
            raise
        return call

    def _succeeded(self, call: Call) -> None:
        news = self._circuit.attentive  # else a success changes nothing
        call.succeeded()
        if news:
            self._spread()
        if self._listeners:
            self._tell("success")

    def _failed(self, call: Call, error: BaseException) -> BaseException:
        """Count a call that raised `error`; returns what to raise."""
        if not isinstance(error, Exception):
            call.abandoned()
            return error
        if not self.is_system_error(error):
            call.failed(error, kind=ANSWER, repeatable=False)
            self._spread()
            self._tell("success")
            return error
        cut = isinstance(error, TimeoutError) and self._block.now() >= call.at - _EARLY
        raised = call.failed(error, kind=CUT if cut else UNWELL, repeatable=False).error
        trips = [old for old, new, _, _ in self._own_changes() if new == OPEN]
        self._mirror.after()
        self._tell("failure", error)
        self._announce()
        if trips and self._throw_new_error_on_trip:
            return self._trip(call, error, trips[-1])
        return raised

    def _trip(self, call: Call, error: Exception, old: str) -> CircuitBreakerError:
        why = "Trial call failed" if old == HALF_OPEN else "Failures threshold reached"
        call.sent = bool(getattr(error, "sent", True))
        after = self._circuit.retry_after(self._block.now())
        raised = call.unavailable(CircuitOpen, note=f"{why}, circuit breaker opened")
        assert isinstance(raised, CircuitBreakerError)
        raised.retry_after = after
        raised.message = (
            f"{self._block.name} failed with {type(error).__name__}: {raised.note}, "
            f"retry after {after:.3f} s"
        )
        raised.args = (raised.message,)
        return raised

    def _follow(self, call: Call, work: Any) -> Any:
        """`work` (a generator or a coroutine), which tells `call` how it ended."""
        if type(work) is CoroutineType:
            followed: Any = self._await_begun(call, work)
        else:
            followed = self._generate(call, work)
        # dropped before it was begun: nothing of it would run, so nothing would tell
        weakref.finalize(followed, call.abandoned).atexit = False
        return followed

    def _generate(self, call: Call, generator: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        try:
            result = yield from generator
        except BaseException as error:
            raised = self._failed(call, error)
            if raised is error:
                raise
            raise raised from error
        self._succeeded(call)
        return result

    async def _await_begun(self, call: Call, coroutine: Coroutine[Any, Any, T]) -> T:
        return cast("T", await self._await(call, lambda: coroutine, (), {}))

    async def _await(self, call: Call, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            async with CancelAt(self._block.clock, call.at):
                result = func(*args, **kwargs)
                if inspect.isawaitable(result):
                    result = await result
        except BaseException as error:
            raised = self._failed(call, error)
            if raised is error:
                raise
            raise raised from error
        self._succeeded(call)
        return result

    # -- telling ----------------------------------------------------------------------------

    def _own_changes(self) -> list[tuple[str, str, str, float]]:
        """Changes that this thread made and has not told yet."""
        changes: list[tuple[str, str, str, float]]
        try:
            changes = self._changes.made
        except AttributeError:
            changes = self._changes.made = []
        return changes

    def _changed(self, old: str, new: str, reason: str, now: float) -> None:
        self._own_changes().append((old, new, reason, now))

    def _spread(self) -> None:
        """To the storage, then to everybody."""
        self._mirror.after()
        self._announce()

    def _announce(self) -> None:
        """Tell everybody of this thread's changes, with no lock held."""
        changes = self._own_changes()
        while changes:
            old, new, reason, now = changes.pop(0)
            before = self._state if self._state.name == old else self._create_new_state(old)
            self._state = self._create_new_state(new, prev_state=before)
            announce_breaker(self._block.name, None, old, new, reason, now)
            self._tell("state_change", before, self._state)

    def _tell(self, what: str, *args: Any, **kwargs: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                getattr(listener, what)(self, *args, **kwargs)
            except Exception as error:
                logger.warning("%s of a listener raised %s; ignored", what, type(error).__name__)

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self._block.name}: {self._circuit.state}>"


def _excludes(exclusion: Any, exception: BaseException) -> bool:
    if isinstance(exclusion, type):
        return isinstance(exception, exclusion)
    try:
        return bool(exclusion(exception))
    except Exception as error:
        logger.warning("an exclusion raised %s; ignored", type(error).__name__)
        return False
