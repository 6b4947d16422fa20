"""`timedblock.CircuitBreaker`: what pybreaker documents, on our machine, and never in the way."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import fakeredis
import pybreaker
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import timedblock
from timedblock import CircuitBreaker, CircuitOpen, Unavailable, time_limit
from timedblock import circuitbreaker as drop_in
from timedblock.circuitbreaker.mirror import Mirror
from timedblock.testing import FakeClock

SLACK = 0.25


class Broken(Exception):
    """What the guarded work raises."""


def fails() -> None:
    raise Broken("no")


def works() -> str:
    return "yes"


def trip(breaker: CircuitBreaker) -> None:
    """Let it open by failures."""
    for _ in range(breaker.fail_max):
        with suppress(Broken, pybreaker.CircuitBreakerError):
            breaker.call(fails)
    assert breaker.current_state == "open"


def wait_for(what: Callable[[], object], seconds: float = 2.0) -> None:
    """Wait until `what()` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def in_threads(count: int, work: Callable[[], object]) -> None:
    """Run `work` in `count` threads at once and wait for all."""
    ready = threading.Barrier(count)

    def run() -> None:
        ready.wait()
        work()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Recorder(pybreaker.CircuitBreakerListener):
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        self.told.append(("before", args, kwargs))

    def failure(self, cb: Any, exc: BaseException) -> None:
        self.told.append(("failure", type(exc), cb.fail_counter))

    def success(self, cb: Any) -> None:
        self.told.append("success")

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self.told.append((old_state.name, new_state.name))


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    with FakeClock() as clock:
        yield clock


# -- what pybreaker's README says ---------------------------------------------------------------


def test_defaults_are_pybreakers() -> None:
    """Made without arguments, every setting is the original's."""
    ours, theirs = CircuitBreaker(), pybreaker.CircuitBreaker()
    names = "fail_max reset_timeout success_threshold fail_counter success_counter current_state"
    for name in (*names.split(" "), "excluded_exceptions", "listeners", "name"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.throw_new_error_on_trip is True
    assert ours.state.name == "closed"
    assert isinstance(ours, pybreaker.CircuitBreaker)


def test_import_change_is_enough() -> None:
    """`from timedblock import circuitbreaker as pybreaker` has all that pybreaker exports."""
    for name in pybreaker.__all__:
        assert hasattr(drop_in, name), name
    assert issubclass(drop_in.CircuitBreakerError, pybreaker.CircuitBreakerError)


def test_opens_after_fail_max_failures_in_a_row(clock: FakeClock) -> None:
    """The last of `fail_max` failures opens it and raises CircuitBreakerError from its own."""
    breaker = CircuitBreaker(fail_max=3)
    for count in (1, 2):
        with pytest.raises(Broken):
            breaker.call(fails)
        assert (breaker.fail_counter, breaker.current_state) == (count, "closed")
    with pytest.raises(pybreaker.CircuitBreakerError) as caught:
        breaker.call(fails)
    assert isinstance(caught.value.__cause__, Broken)
    assert "Failures threshold reached" in str(caught.value)
    assert (breaker.fail_counter, breaker.current_state) == (3, "open")


def test_success_forgets_failures(clock: FakeClock) -> None:
    """Failures count in a row only."""
    breaker = CircuitBreaker(fail_max=2)
    for _ in range(5):
        with pytest.raises(Broken):
            breaker.call(fails)
        assert breaker.call(works) == "yes"
        assert breaker.fail_counter == 0


def test_open_refuses_without_trying(clock: FakeClock) -> None:
    """Open, the work is not run; the error is both kinds and says when to come again."""
    breaker = CircuitBreaker(fail_max=1, reset_timeout=60, name="payments")
    trip(breaker)
    clock.advance(20)
    with pytest.raises(pybreaker.CircuitBreakerError) as caught:
        breaker.call(pytest.fail, "the work was run")
    error = caught.value
    assert isinstance(error, CircuitOpen)
    assert isinstance(error, Unavailable)
    assert error.retry_after == pytest.approx(40)
    assert (error.block, error.sent) == ("payments", False)


def test_trial_after_reset_timeout(clock: FakeClock) -> None:
    """After `reset_timeout`, exactly, a trial that succeeds closes it; one that fails opens it."""
    breaker = CircuitBreaker(fail_max=1, reset_timeout=60)
    trip(breaker)
    clock.advance(59.9)
    with pytest.raises(CircuitOpen):
        breaker.call(works)
    clock.advance(0.1)
    with pytest.raises(CircuitOpen, match="Trial call failed"):
        breaker.call(fails)
    assert (breaker.current_state, breaker.fail_counter) == ("open", 2)
    clock.advance(60)
    assert breaker.call(works) == "yes"
    assert (breaker.current_state, breaker.fail_counter) == ("closed", 0)


def test_original_error_when_asked(clock: FakeClock) -> None:
    """With throw_new_error_on_trip=False the call that opens it raises its own error."""
    breaker = CircuitBreaker(fail_max=1, throw_new_error_on_trip=False)
    with pytest.raises(Broken):
        breaker.call(fails)
    assert breaker.open() is False
    with pytest.raises(CircuitOpen):
        breaker.call(works)


def test_success_threshold(clock: FakeClock) -> None:
    """It closes only after `success_threshold` successful trials; a failure starts over."""
    breaker = CircuitBreaker(fail_max=1, reset_timeout=1, success_threshold=3)
    trip(breaker)
    clock.advance(1)
    breaker.call(works)
    assert (breaker.current_state, breaker.success_counter) == ("half-open", 1)
    breaker.call(works)
    assert breaker.success_counter == 2
    with pytest.raises(CircuitOpen):
        breaker.call(fails)
    assert (breaker.current_state, breaker.success_counter) == ("open", 0)
    clock.advance(1)
    for _ in range(3):
        breaker.call(works)
    assert (breaker.current_state, breaker.success_counter) == ("closed", 0)


def test_decorator_keeps_name_and_result() -> None:
    """`@breaker`, `@breaker()` and methods are guarded and keep their names."""
    breaker = CircuitBreaker(fail_max=2)

    @breaker
    def plain(value: int, *, more: int = 0) -> int:
        "Says."
        return value + more

    @breaker()
    def empty() -> None:
        raise Broken

    class Service:
        @breaker
        def twice(self, value: int) -> int:
            return 2 * value

    assert (plain(1, more=2), plain.__name__, plain.__doc__) == (3, "plain", "Says.")
    assert Service().twice(4) == 8
    with pytest.raises(Broken):
        empty()
    with pytest.raises(CircuitOpen):
        empty()


def test_calling_guards_a_with_block(clock: FakeClock) -> None:
    """`with breaker.calling():` counts what its body does, and isn't entered when open."""
    breaker = CircuitBreaker(fail_max=2, reset_timeout=10)
    with pytest.raises(Broken), breaker.calling():
        fails()
    with pytest.raises(CircuitOpen), breaker.calling():
        fails()
    with pytest.raises(CircuitOpen), breaker.calling():
        pytest.fail("the body was run")
    clock.advance(10)
    with breaker.calling():
        pass
    assert breaker.current_state == "closed"


def test_generator_counts_when_it_ends() -> None:
    """A guarded generator passes values both ways and counts at its end."""
    breaker = CircuitBreaker(fail_max=3)

    @breaker
    def echo(first: str) -> Any:
        got = yield first
        if got == "fail":
            raise Broken
        return got

    failing = echo("a")
    assert next(failing) == "a"
    assert breaker.fail_counter == 0
    with pytest.raises(Broken):
        failing.send("fail")
    assert breaker.fail_counter == 1
    fine = echo("b")
    next(fine)
    with pytest.raises(StopIteration) as stop:
        fine.send("c")
    assert stop.value.value == "c"
    assert breaker.fail_counter == 0


@pytest.mark.parametrize("begun", [False, True])
def test_generator_dropped_holds_nothing(begun: bool, clock: FakeClock) -> None:
    """A half-open trial whose generator is dropped leaves its permit to the next caller."""
    breaker = CircuitBreaker()
    breaker.half_open()

    @breaker
    def numbers() -> Iterator[int]:
        yield 1

    dropped = numbers()
    if begun:
        next(dropped)
    with pytest.raises(CircuitOpen):
        breaker.call(works)
    del dropped
    gc.collect()
    assert breaker.call(works) == "yes"
    assert breaker.current_state == "closed"


def test_contextmanager_of_a_guarded_generator() -> None:
    """An error thrown into a guarded generator reaches it; what it makes of it is what counts."""
    import contextlib

    breaker = CircuitBreaker()

    @contextlib.contextmanager
    @breaker
    def quiet() -> Any:
        with suppress(Broken):
            yield

    with quiet():
        raise Broken
    assert breaker.fail_counter == 0


def test_excluded_exceptions() -> None:
    """Types (subclasses too) and functions say which errors are answers; both can be changed."""
    breaker = CircuitBreaker(exclude=[LookupError, lambda error: str(error) == "fine"])

    def raises(error: Exception) -> None:
        raise error

    for error in (KeyError("k"), Broken("fine")):
        with suppress(Broken):
            breaker.call(fails)
        assert breaker.fail_counter == 1
        with pytest.raises(type(error)):
            breaker.call(raises, error)
        assert breaker.fail_counter == 0
    breaker.remove_excluded_exception(LookupError)
    with pytest.raises(KeyError):
        breaker.call(raises, KeyError("k"))
    assert breaker.fail_counter == 1
    breaker.add_excluded_exceptions(KeyError, ValueError)
    assert breaker.excluded_exceptions[-2:] == (KeyError, ValueError)


def test_broken_exclusion_is_a_failure() -> None:
    """A filter that raises doesn't replace the error of the call."""
    breaker = CircuitBreaker(exclude=[lambda error: error.status < 500])
    with pytest.raises(Broken):
        breaker.call(fails)
    assert breaker.fail_counter == 1


def test_settings_can_be_changed(clock: FakeClock) -> None:
    """fail_max, reset_timeout and success_threshold apply at once, to an open circuit too."""
    breaker = CircuitBreaker(fail_max=5, reset_timeout=60)
    breaker.fail_max, breaker.success_threshold = 2, 2
    trip(breaker)
    assert breaker.fail_counter == 2
    breaker.reset_timeout = 10
    clock.advance(10)
    breaker.call(works)
    assert breaker.current_state == "half-open"
    breaker.call(works)
    assert breaker.current_state == "closed"
    breaker.name = "other name"
    assert breaker.name == "other name"
    assert "other_name" in timedblock.stats()["blocks"]


def test_zero_reset_timeout(clock: FakeClock) -> None:
    """reset_timeout=0 lets the very next call try."""
    breaker = CircuitBreaker(fail_max=1, reset_timeout=0)
    trip(breaker)
    assert breaker.call(works) == "yes"


@pytest.mark.parametrize(
    "wrong",
    [
        {"fail_max": 0},
        {"fail_max": 2.5},
        {"fail_max": True},
        {"reset_timeout": -1},
        {"reset_timeout": float("nan")},
        {"reset_timeout": "60"},
        {"success_threshold": 0},
    ],
    ids=str,
)
def test_bad_settings_are_named(wrong: dict[str, Any]) -> None:
    """A value that makes no sense is refused at construction and by the setter, by name."""
    ((name, value),) = wrong.items()
    with pytest.raises((ValueError, TypeError), match=name):
        CircuitBreaker(**wrong)
    breaker = CircuitBreaker()
    before = getattr(breaker, name)
    with pytest.raises((ValueError, TypeError), match=name):
        setattr(breaker, name, value)
    assert getattr(breaker, name) == before


def test_by_hand(clock: FakeClock) -> None:
    """open(), half_open() and close() do what they say; an unknown state is refused."""
    breaker = CircuitBreaker(fail_max=3)
    with suppress(Broken):
        breaker.call(fails)
    breaker.close()
    assert breaker.fail_counter == 0
    assert breaker.open() is True
    with pytest.raises(CircuitOpen):
        breaker.call(works)
    breaker.half_open()
    assert isinstance(breaker.state, pybreaker.CircuitHalfOpenState)
    breaker.state = "closed"
    assert breaker.current_state == "closed"
    with pytest.raises(ValueError, match="'ajar'"):
        breaker.state = "ajar"


# -- listeners ----------------------------------------------------------------------------------


def test_listeners_are_told_in_pybreakers_order(clock: FakeClock) -> None:
    """The same calls tell a listener the same things, in the same order, as the original."""

    def drive(breaker: Any, listener: Recorder, wait: Callable[[], object]) -> list[Any]:
        for work in (works, fails, fails):
            with suppress(Broken, pybreaker.CircuitBreakerError):
                breaker.call(work)
        with suppress(pybreaker.CircuitBreakerError):
            breaker.call(works)
        wait()
        breaker.call(works)
        breaker.open()
        breaker.half_open()
        with suppress(pybreaker.CircuitBreakerError):
            breaker.call(fails)
        return listener.told

    ours, theirs = Recorder(), Recorder()
    settings_ = {"fail_max": 2, "reset_timeout": 0.05}
    told = drive(CircuitBreaker(**settings_, listeners=[ours]), ours, lambda: clock.advance(0.05))
    expected = drive(
        pybreaker.CircuitBreaker(**settings_, listeners=[theirs]), theirs, lambda: time.sleep(0.06)
    )
    assert told == expected


def test_listener_gets_the_arguments() -> None:
    """before_call is told the function and its arguments; listeners can come and go."""
    listener = Recorder()
    breaker = CircuitBreaker()
    breaker.add_listeners(listener)
    breaker.call(lambda *args, **kwargs: None, 1, two=2)
    assert listener.told[0] == ("before", (1,), {"two": 2})
    breaker.remove_listener(listener)
    breaker.call(works)
    assert len(listener.told) == 2
    assert breaker.listeners == ()


def test_broken_listener_breaks_no_call(clock: FakeClock) -> None:
    """Whatever a listener raises, calls and states are what they are without it."""

    class Bad:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    told = Recorder()
    breaker = CircuitBreaker(fail_max=1, reset_timeout=1, listeners=[Bad(), told])  # type: ignore[list-item]
    assert breaker.call(works) == "yes"
    trip(breaker)
    clock.advance(1)
    assert breaker.call(works) == "yes"
    assert ("half-open", "closed") in told.told


def test_listener_may_use_the_breaker(clock: FakeClock) -> None:
    """No lock is held while a listener runs: it may call, open and close."""
    breaker = CircuitBreaker(fail_max=1)

    class Closes(pybreaker.CircuitBreakerListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            if new_state.name == "open":
                cb.close()
                assert cb.call(works) == "yes"

    breaker.add_listener(Closes())
    with pytest.raises(CircuitOpen):
        breaker.call(fails)
    assert breaker.current_state == "closed"


def test_interrupt_in_a_listener_leaks_nothing(clock: FakeClock) -> None:
    """A KeyboardInterrupt inside before_call gives the trial's permit back."""

    class Interrupts(pybreaker.CircuitBreakerListener):
        def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    bad = Interrupts()
    breaker = CircuitBreaker(listeners=[bad])
    breaker.half_open()
    with pytest.raises(KeyboardInterrupt):
        breaker.call(works)
    breaker.remove_listener(bad)
    assert breaker.call(works) == "yes"


# -- evidence and threads -----------------------------------------------------------------------


def test_failures_in_flight_together_are_one_piece_of_evidence(clock: FakeClock) -> None:
    """Ten calls that fail in one instant count once; one that begins afterwards counts again."""
    breaker = CircuitBreaker(fail_max=3)
    blocks = [breaker.calling() for _ in range(10)]
    for block in blocks:
        block.__enter__()
    clock.advance(1)
    for block in blocks:
        with suppress(Broken):
            block.__exit__(Broken, Broken(), None)
    assert (breaker.fail_counter, breaker.current_state) == (1, "closed")
    with suppress(Broken):
        breaker.call(fails)
    assert breaker.fail_counter == 2


@pytest.mark.wall
def test_ten_threads_take_the_time_of_one() -> None:
    """Ten threads of 0.2 s are done in 0.45 s; through pybreaker they take 2 s."""
    breaker = CircuitBreaker()
    began = time.monotonic()
    in_threads(10, lambda: breaker.call(time.sleep, 0.2))
    assert time.monotonic() - began <= 0.2 + SLACK


@pytest.mark.parametrize("threshold", [1, 3])
def test_half_open_lets_exactly_success_threshold_through(threshold: int) -> None:
    """Of 50 callers at once on a half-open breaker, `success_threshold` reach the work."""
    breaker = CircuitBreaker(success_threshold=threshold)
    breaker.half_open()
    reached: list[int] = []
    refused: list[int] = []
    done = threading.Event()

    def work() -> None:
        reached.append(1)
        done.wait(5)

    def caller() -> None:
        try:
            breaker.call(work)
        except CircuitOpen:
            refused.append(1)
            if len(refused) == 50 - threshold:
                done.set()

    in_threads(50, caller)
    assert (len(reached), len(refused)) == (threshold, 50 - threshold)
    assert breaker.current_state == "closed"


def test_late_failures_of_an_older_state_change_nothing(clock: FakeClock) -> None:
    """A call that began before the circuit opened and closed again can't open it anew."""
    breaker = CircuitBreaker(fail_max=1, reset_timeout=5)
    old = breaker.calling()
    old.__enter__()
    trip(breaker)
    clock.advance(5)
    with suppress(Broken):
        old.__exit__(Broken, Broken(), None)
    assert breaker.current_state == "open"
    assert breaker.call(works) == "yes"


def test_hung_trial_does_not_keep_it_shut(clock: FakeClock) -> None:
    """A trial that never returns loses its permit after another `reset_timeout` (and 1 s)."""
    breaker = CircuitBreaker(fail_max=1, reset_timeout=5)
    trip(breaker)
    clock.advance(5)
    hung = breaker.calling()
    hung.__enter__()
    with pytest.raises(CircuitOpen) as caught:
        breaker.call(works)
    assert 5 <= caught.value.retry_after <= 6
    clock.advance(caught.value.retry_after)
    assert breaker.call(works) == "yes"


def test_interrupts_are_neither(clock: FakeClock) -> None:
    """A BaseException is neither failure nor success, and a half-open permit is free again."""
    breaker = CircuitBreaker(fail_max=1)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaker.call(interrupted)
    assert (breaker.fail_counter, breaker.current_state) == (0, "closed")
    breaker.half_open()
    with pytest.raises(KeyboardInterrupt):
        breaker.call(interrupted)
    assert breaker.call(works) == "yes"


def test_callers_deadline(clock: FakeClock) -> None:
    """A call cut by the caller's time_limit is no failure; other errors in it are."""
    breaker = CircuitBreaker(fail_max=1)

    def cut() -> None:
        clock.advance(1)
        raise TimeoutError("cut")

    with time_limit(1), pytest.raises(timedblock.DeadlineExceeded):
        breaker.call(cut)
    assert breaker.current_state == "closed"
    with time_limit(2), pytest.raises(CircuitOpen):
        breaker.call(cut)
    assert breaker.current_state == "open"


def test_unavailable_of_inner_blocks_counts(clock: FakeClock) -> None:
    """As any exception of the work, an Unavailable of ours counts as a failure."""
    inner = CircuitBreaker()
    inner.open()
    breaker = CircuitBreaker(fail_max=2)
    with pytest.raises(CircuitOpen):
        breaker.call(inner.call, works)
    assert breaker.fail_counter == 1


# -- coroutines ---------------------------------------------------------------------------------


async def afails() -> None:
    await asyncio.sleep(0)
    raise Broken


async def aworks() -> str:
    await asyncio.sleep(0)
    return "yes"


@pytest.mark.parametrize("way", ["acall", "call_async", "decorator", "async decorator", "call"])
def test_coroutines(way: str) -> None:
    """By every way of calling, a coroutine's outcome counts when it ends."""
    breaker = CircuitBreaker(fail_max=2)

    def guarded(fn: Any) -> Any:
        if way == "decorator":
            return breaker(fn)()
        if way == "async decorator":
            return breaker(**{"__pybreaker_call_async": True})(fn)()
        return getattr(breaker, way)(fn)

    async def main() -> None:
        assert await guarded(aworks) == "yes"
        with pytest.raises(Broken):
            await guarded(afails)
        assert breaker.fail_counter == 1
        with pytest.raises(CircuitOpen) as caught:
            await guarded(afails)
        assert isinstance(caught.value.__cause__, Broken)
        with pytest.raises(pybreaker.CircuitBreakerError):
            await guarded(aworks)

    asyncio.run(main())
    assert breaker.current_state == "open"


@pytest.mark.wall
def test_coroutines_run_together() -> None:
    """A hundred coroutines wait at the same time."""
    breaker = CircuitBreaker()

    async def main() -> float:
        began = time.monotonic()
        await asyncio.gather(*(breaker.acall(asyncio.sleep, 0.1) for _ in range(100)))
        return time.monotonic() - began

    assert asyncio.run(main()) <= 0.1 + SLACK


@pytest.mark.wall
def test_coroutine_is_cancelled_at_the_callers_deadline() -> None:
    """Inside a time_limit, acall gives up at its end; a cancelled task counts as nothing."""
    breaker = CircuitBreaker(fail_max=1)

    async def main() -> None:
        began = time.monotonic()
        with time_limit(0.1), pytest.raises(timedblock.DeadlineExceeded):
            await breaker.acall(asyncio.sleep, 5)
        assert time.monotonic() - began <= 0.1 + SLACK
        task = breaker.call_async(asyncio.sleep, 5)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (breaker.fail_counter, breaker.current_state) == (0, "closed")


# -- errors -------------------------------------------------------------------------------------


def _refused() -> Exception:
    breaker = CircuitBreaker(fail_max=1, name="a b")
    breaker.open()
    with pytest.raises(CircuitOpen) as caught:
        breaker.call(works)
    return caught.value


def _tripped() -> Exception:
    with pytest.raises(CircuitOpen) as caught:
        CircuitBreaker(fail_max=1, name="a b").call(fails)
    return caught.value


@pytest.mark.parametrize("make", [_refused, _tripped])
@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_errors_travel(make: Callable[[], Any], clone: Callable[[Any], Any]) -> None:
    """str, repr, copy and pickle work, and both parents' handlers catch the copy."""
    error = make()
    twin = clone(error)
    assert isinstance(twin, CircuitOpen)
    assert isinstance(twin, pybreaker.CircuitBreakerError)
    assert (str(twin), repr(twin)) == (str(error), repr(error))
    assert (twin.block, twin.retry_after, twin.sent) == ("a_b", error.retry_after, error.sent)
    assert twin.retry_after == pytest.approx(60, abs=1)


def test_errors_tell_what_happened() -> None:
    """A refused call says it wasn't tried; one that opened the circuit, that it failed."""
    assert "a_b was not tried: the breaker is open" in str(_refused())
    assert str(_tripped()).startswith("a_b failed with Broken: Failures threshold reached")
    assert _tripped().sent is True  # type: ignore[attr-defined]


# -- storages -----------------------------------------------------------------------------------


class Hanging(pybreaker.CircuitBreakerStorage):
    """Every method blocks until it is let go."""

    def __init__(self) -> None:
        super().__init__("hanging")
        self.let_go = threading.Event()
        self.entered = 0

    def _hang(self) -> None:
        self.entered += 1
        self.let_go.wait(60)

    @property
    def state(self) -> str:
        self._hang()
        return "closed"

    @state.setter
    def state(self, state: str) -> None:
        self._hang()

    def increment_counter(self) -> None:
        self._hang()

    def reset_counter(self) -> None:
        self._hang()

    def increment_success_counter(self) -> None:
        self._hang()

    def reset_success_counter(self) -> None:
        self._hang()

    @property
    def counter(self) -> int:
        self._hang()
        return 0

    @property
    def success_counter(self) -> int:
        self._hang()
        return 0

    @property
    def opened_at(self) -> datetime | None:
        self._hang()
        return None

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        self._hang()


def redis_storage(server: fakeredis.FakeServer, **more: Any) -> pybreaker.CircuitRedisStorage:
    redis = fakeredis.FakeStrictRedis(server=server)
    return pybreaker.CircuitRedisStorage("closed", redis, **more)


@pytest.mark.wall
def test_hanging_storage_holds_nobody_up() -> None:
    """With a storage that never answers, everything works at once, on what is known here."""
    storage = Hanging()
    began = time.monotonic()
    breaker = CircuitBreaker(fail_max=2, reset_timeout=0.05, state_storage=storage)
    wait_for(lambda: storage.entered)
    before = time.monotonic() - began
    began = time.monotonic()
    assert breaker.call(works) == "yes"
    trip(breaker)
    with pytest.raises(CircuitOpen):
        breaker.call(works)
    time.sleep(0.06)
    assert breaker.call(works) == "yes"
    breaker.open()
    breaker.close()
    assert (breaker.current_state, breaker.fail_counter, breaker.success_counter) == (
        "closed",
        0,
        0,
    )
    in_threads(10, lambda: [breaker.call(works) for _ in range(20)])
    assert before + time.monotonic() - began <= 0.06 + SLACK
    storage.let_go.set()


def test_memory_storage_is_kept_in_step(clock: FakeClock) -> None:
    """A CircuitMemoryStorage holds state, counters and opened-at as the original keeps them."""
    storage = pybreaker.CircuitMemoryStorage("closed")
    breaker = CircuitBreaker(
        fail_max=2, reset_timeout=9, success_threshold=2, state_storage=storage
    )
    with suppress(Broken):
        breaker.call(fails)
    assert (storage.state, storage.counter) == ("closed", 1)
    trip(breaker)
    assert (storage.state, storage.counter) == ("open", 2)
    assert storage.opened_at is not None
    assert abs((datetime.now(timezone.utc) - storage.opened_at).total_seconds()) < 5
    clock.advance(9)
    breaker.call(works)
    assert (storage.state, storage.counter, storage.success_counter) == ("half-open", 0, 1)
    breaker.call(works)
    assert (storage.state, storage.counter, storage.success_counter) == ("closed", 0, 0)


def test_memory_storage_shared_by_two_breakers(clock: FakeClock) -> None:
    """Two breakers on one storage are one: failures add up, and both are open."""
    storage = pybreaker.CircuitMemoryStorage("closed")
    one, two = (CircuitBreaker(fail_max=3, state_storage=storage) for _ in "12")
    for breaker in (one, two):
        with pytest.raises(Broken):
            breaker.call(fails)
    assert (one.fail_counter, two.fail_counter) == (2, 2)
    with pytest.raises(CircuitOpen):
        one.call(fails)
    with pytest.raises(CircuitOpen):
        two.call(pytest.fail, "the work was run")
    two.close()
    assert one.call(works) == "yes"


@pytest.mark.parametrize("opened", [None, 10, 70])
def test_state_found_in_a_storage(opened: int | None, clock: FakeClock) -> None:
    """A breaker made on an open storage is open for what is left, and tells nobody of it."""
    storage = pybreaker.CircuitMemoryStorage("open")
    storage.increment_counter()
    if opened is not None:
        storage.opened_at = datetime.now(timezone.utc) - timedelta(seconds=opened)
    listener = Recorder()
    breaker = CircuitBreaker(state_storage=storage, listeners=[listener])
    assert (breaker.current_state, breaker.fail_counter, listener.told) == ("open", 1, [])
    if opened == 10:
        with pytest.raises(CircuitOpen) as caught:
            breaker.call(works)
        assert caught.value.retry_after == pytest.approx(50, abs=5)
    else:
        assert breaker.call(works) == "yes"


def test_redis_carries_state_and_counter_between_breakers(no_leaks: None) -> None:
    """What one process's breaker decides, another's knows within 1 s; failures add up."""
    server = fakeredis.FakeServer()
    one, two = (CircuitBreaker(fail_max=3, state_storage=redis_storage(server)) for _ in "12")
    told = Recorder()
    two.add_listener(told)
    with suppress(Broken):
        one.call(fails)
    wait_for(lambda: two.fail_counter == 1, 1 + SLACK)
    with suppress(Broken):
        two.call(fails)
    wait_for(lambda: one.fail_counter == 2, 1 + SLACK)
    with pytest.raises(CircuitOpen):
        one.call(fails)
    wait_for(lambda: two.current_state == "open", 1 + SLACK)
    wait_for(lambda: ("closed", "open") in told.told)
    with pytest.raises(CircuitOpen) as caught:
        two.call(works)
    assert 50 < caught.value.retry_after <= 60
    two.close()
    wait_for(lambda: one.current_state == "closed", 1 + SLACK)
    assert one.fail_counter == 0


def test_redis_is_understood_by_pybreaker_itself() -> None:
    """In a fleet that moves over, pybreaker's own breakers see ours open and close."""
    server = fakeredis.FakeServer()
    ours = CircuitBreaker(fail_max=2, state_storage=redis_storage(server))
    theirs = pybreaker.CircuitBreaker(fail_max=2, state_storage=redis_storage(server))
    trip(ours)
    wait_for(lambda: theirs.current_state == "open" and theirs.fail_counter == 2)
    with pytest.raises(pybreaker.CircuitBreakerError):
        theirs.call(works)
    theirs.close()
    wait_for(lambda: ours.current_state == "closed", 1 + SLACK)
    theirs.open()
    wait_for(lambda: ours.current_state == "open", 1 + SLACK)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each look that a breaker has taken at its storage in the background."""
    taken: list[None] = []
    step = Mirror.background_step

    def counted(mirror: Mirror) -> None:
        step(mirror)
        taken.append(None)

    monkeypatch.setattr(Mirror, "background_step", counted)
    return taken


def wait_for_looks(looks: list[None], more: int) -> None:
    """Until so many looks have begun and ended, from now on: the one in progress doesn't count."""
    enough = len(looks) + more + 1
    wait_for(lambda: len(looks) >= enough, 10)


def test_redis_outage_does_not_undo_what_was_seen_here(
    caplog: pytest.LogCaptureFixture, looks: list[None]
) -> None:
    """With Redis down, this process's failures still open its circuit, and it stays open."""
    caplog.set_level("CRITICAL", logger="pybreaker")
    server = fakeredis.FakeServer()
    breaker = CircuitBreaker(fail_max=2, state_storage=redis_storage(server))
    server.connected = False
    wait_for_looks(looks, 1)
    trip(breaker)
    wait_for_looks(looks, 2)
    with pytest.raises(CircuitOpen):
        breaker.call(works)


def test_storage_that_raises_is_told_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, looks: list[None]
) -> None:
    """An error of the storage reaches the log by its type only, and the worker goes on."""

    class Raising(pybreaker.CircuitMemoryStorage):
        wrong = True

        @property
        def state(self) -> str:
            if self.wrong:
                raise OSError("redis://:secret@host")
            return super().state

        @state.setter
        def state(self, state: str) -> None:
            self._state = state

    storage = Raising("open")
    storage.opened_at = datetime.now(timezone.utc)
    breaker = CircuitBreaker(state_storage=storage, name="raising")
    assert breaker.call(works) == "yes"
    wait_for(lambda: "out of reach (OSError)" in caplog.text)
    wait_for_looks(looks, 2)
    assert caplog.text.count("out of reach") == 1
    assert "secret" not in caplog.text
    storage.wrong = False
    wait_for(lambda: breaker.current_state == "open", 1 + SLACK)


def test_dropped_breaker_leaves_no_thread(no_leaks: None) -> None:
    """A breaker with a storage far away ends its worker when nobody holds it any more."""
    with FakeClock():  # whose time stands still: the worker must be woken, not time out
        breaker = CircuitBreaker(state_storage=redis_storage(fakeredis.FakeServer()))
        breaker.call(works)
        del breaker
        gc.collect()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_looks_for_itself() -> None:
    """After a fork the child's breaker starts its own worker and still learns from others."""
    server = fakeredis.FakeServer()
    breaker = CircuitBreaker(state_storage=redis_storage(server))
    breaker.call(works)
    child = os.fork()
    if not child:
        code = 1
        try:
            breaker.call(works)
            redis_storage(server).state = "open"  # the child's own copy of the fake server
            wait_for(lambda: breaker.current_state == "open", 1 + SLACK)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- import -------------------------------------------------------------------------------------


def test_pybreaker_is_imported_on_first_use_only() -> None:
    """`import timedblock` brings neither pybreaker nor redis; `timedblock.CircuitBreaker` does."""
    code = (
        "import sys, timedblock\n"
        "assert not {'pybreaker', 'redis', 'tornado'} & set(sys.modules)\n"
        "assert not hasattr(timedblock, 'Circuitbreaker')\n"
        "from timedblock import CircuitBreaker\n"
        "assert 'pybreaker' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- all of it at once --------------------------------------------------------------------------


class AgainstTheModel(RuleBasedStateMachine):
    """Any sequence of calls, waits and hands leaves the breaker as pybreaker's README says."""

    @initialize(fail_max=st.integers(1, 4), threshold=st.integers(1, 3))
    def make(self, fail_max: int, threshold: int) -> None:
        self.clock = FakeClock()
        self.listener = Recorder()
        with self.clock:
            self.breaker = CircuitBreaker(
                fail_max=fail_max,
                reset_timeout=10,
                success_threshold=threshold,
                exclude=[KeyError],
                listeners=[self.listener],
            )
        self.fail_max, self.threshold = fail_max, threshold
        self.state, self.fails, self.successes, self.opened = "closed", 0, 0, 0.0
        # calls in flight: (the block, when it began, the age of the state that let it in, trial)
        self.flying: list[tuple[Any, float, int, bool]] = []
        self.age, self.evidence = 0, -1.0

    def become(self, state: str) -> None:
        self.state, self.successes = state, 0
        self.age += 1
        if state == "open":
            self.opened = self.clock.now()
        elif state == "closed":
            self.fails = 0

    def trials(self) -> int:
        return sum(trial and age == self.age for _, _, age, trial in self.flying)

    @rule()
    def begin(self) -> None:
        if self.state == "open" and self.clock.now() - self.opened >= 10:
            self.become("half-open")
        full = self.trials() + self.successes >= self.threshold
        block = self.breaker.calling()
        if self.state == "open" or (self.state == "half-open" and full):
            with pytest.raises(CircuitOpen):
                block.__enter__()
            return
        block.__enter__()
        self.flying.append((block, self.clock.now(), self.age, self.state == "half-open"))

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 100), error=st.sampled_from([None, KeyError, Broken]))
    def end(self, which: int, error: type[Exception] | None) -> None:
        block, began, age, trial = self.flying.pop(which % len(self.flying))
        current = age == self.age and trial == (self.state == "half-open")
        trips = self.failed(began, current, trial) if error is Broken else False
        if error is not Broken:
            self.succeeded(current, trial)
        if error is None:
            block.__exit__(None, None, None)
            return
        raised: BaseException = error("x")
        try:
            block.__exit__(error, raised, None)
        except BaseException as other:
            raised = other
        assert isinstance(raised, CircuitOpen if trips else error)

    def failed(self, began: float, current: bool, trial: bool) -> bool:
        if self.state == "half-open" and trial and current:
            self.fails += 1
            self.become("open")
            return True
        if self.state == "closed" and began >= self.evidence:
            self.evidence = self.clock.now()
            self.fails += 1
            if self.fails >= self.fail_max:
                self.become("open")
                return True
        return False

    def succeeded(self, current: bool, trial: bool) -> None:
        if self.state == "closed":
            self.fails = 0
        elif self.state == "half-open" and trial and current:
            self.fails, self.successes = 0, self.successes + 1
            if self.successes >= self.threshold:
                self.become("closed")

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: not self.flying)
    @rule()
    def wait_long(self) -> None:
        self.clock.advance(10)

    @rule(state=st.sampled_from(["open", "half-open", "closed"]))
    def by_hand(self, state: str) -> None:
        if state == "closed" and self.state == "closed":
            self.fails = 0
        elif state == "half-open" and self.state == "half-open":
            self.age, self.successes = self.age + 1, 0
        else:
            self.become(state)
        self.breaker.state = state

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "breaker"):
            return
        breaker = self.breaker
        assert breaker.current_state == self.state
        assert breaker.state.name == self.state
        assert breaker.fail_counter == self.fails
        assert breaker.success_counter == self.successes
        storage = breaker._state_storage
        assert (storage.state, storage.counter) == (self.state, self.fails)
        assert len(self.breaker._block.in_flight) == len(self.flying)


TestAgainstTheModel = AgainstTheModel.TestCase
TestAgainstTheModel.settings = settings(max_examples=60, stateful_step_count=40)
