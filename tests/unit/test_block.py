"""One call through a timed block, by `.call`, by begin/succeeded, and under thread isolation."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from timedblock import (
    Breaker,
    CircuitOpen,
    DeadlineExceeded,
    Event,
    Fixed,
    Overloaded,
    Percentile,
    Policy,
    Retry,
    TimedBlock,
    Unavailable,
    events,
    remaining,
    stats,
    time_limit,
)
from timedblock.call import BROKEN, CROWDED, CUT, STALLED, UNCONNECTED, UNWELL
from timedblock.deadline import get
from timedblock.endpoint import endpoint
from timedblock.policy.breaker import OPEN
from timedblock.policy.timeout import Learnt
from timedblock.testing import FakeClock


def _fail(error: BaseException) -> None:
    raise error


def _learnt(block: TimedBlock, limit: float, median: float = 0.0) -> TimedBlock:
    """`block` with a limit as if it were learnt."""
    block.learnt = Learnt(limit, "learnt", median)
    block.limit, block.median = limit, median
    return block


def _count(block: TimedBlock) -> dict[str, Any]:
    found: dict[str, Any] = stats()["blocks"][block.name]
    return found


# -- three kinds of outcome -------------------------------------------------------------------


def test_an_answer_passes_unchanged(clock: FakeClock) -> None:
    """What the work returns is what the caller gets; arguments pass through, `fn=` too."""
    block = TimedBlock("answers")
    assert block.call(dict, a=1, fn=2, self=3) == {"a": 1, "fn": 2, "self": 3}
    assert _count(block)["ok"] == 1


def test_an_ignored_error_is_an_answer(clock: FakeClock) -> None:
    """A logical error passes unchanged and is a success for the breaker."""
    block = TimedBlock("ignoring", Policy(ignore=(KeyError,), breaker=Breaker(failures=2)))
    error = KeyError("k")
    for _ in range(5):
        with pytest.raises(OSError):
            block.call(_fail, OSError())
        with pytest.raises(KeyError) as caught:
            block.call(_fail, error)
        assert caught.value is error
    count = _count(block)
    assert (count["ok"], count["unwell"], count["breaker"]) == (5, 5, "closed")


def test_every_other_exception_is_a_failure_that_passes(clock: FakeClock) -> None:
    """The work's own error is raised as it is, and counts."""
    block = TimedBlock("failing", Policy(breaker=Breaker(failures=3)))
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            block.call(lambda: 1 / 0)
    with pytest.raises(CircuitOpen) as caught:
        block.call(lambda: 1 / 0)
    assert caught.value.retry_after > 0
    assert caught.value.sent is False
    count = _count(block)
    assert (count["calls"], count["unwell"], count["unavailable"]) == (4, 3, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_a_base_exception_is_neither(clock: FakeClock, error: BaseException) -> None:
    """It passes, gives back the slot, and is neither success nor failure."""
    block = TimedBlock(
        f"left-by-{type(error).__name__}", Policy(breaker=Breaker(failures=1), bulkhead=1)
    )
    with pytest.raises(type(error)):
        block.call(_fail, error)
    assert block.call(lambda: 1) == 1
    count = _count(block)
    assert (count["calls"], count["breaker"], count["in_flight"]) == (1, "closed", 0)


def test_a_timeout_error_at_the_limit_is_a_cut_call(clock: FakeClock) -> None:
    """The work's own TimeoutError at the limit becomes DeadlineExceeded with it as the cause."""
    block = TimedBlock("cut", Policy(timeout=Fixed(0.5)))

    def work() -> None:
        clock.advance(0.5)
        raise TimeoutError("mine")

    with pytest.raises(DeadlineExceeded) as caught:
        block.call(work)
    error = caught.value
    assert isinstance(error.__cause__, TimeoutError)
    assert (error.block, error.endpoint) == ("cut", None)
    assert error.limit == pytest.approx(0.5)
    assert error.attempt_limit == pytest.approx(0.5)
    assert error.elapsed == pytest.approx(0.5)
    assert error.limit_source == "fixed"
    assert _count(block)["unavailable"] == 1


def test_a_cut_work_of_ones_own_may_have_sent_something(clock: FakeClock) -> None:
    """Work that was begun may have done anything: it isn't called safe to repeat."""
    block = TimedBlock("sent", Policy(timeout=Fixed(0.5)))

    def work() -> None:
        clock.advance(0.5)
        raise TimeoutError

    with pytest.raises(DeadlineExceeded) as caught:
        block.call(work)
    assert caught.value.sent is True
    assert "nothing sent" not in str(caught.value)


def test_an_early_timeout_error_is_the_works_own(clock: FakeClock) -> None:
    """A TimeoutError before the limit passes unchanged, as a failure."""
    block = TimedBlock("early", Policy(timeout=Fixed(0.5)))
    error = TimeoutError("the driver's own")
    with pytest.raises(TimeoutError) as caught:
        block.call(_fail, error)
    assert caught.value is error


def test_a_late_answer_is_returned_and_counted(clock: FakeClock) -> None:
    """Work that finished is never turned into an error."""
    block = TimedBlock("late", Policy(timeout=Fixed(0.1)))
    assert block.call(lambda: clock.advance(3) or "answer") == "answer"
    count = _count(block)
    assert (count["ok"], count["late"], count["unavailable"]) == (1, 1, 0)


def test_hours_are_counted_too(clock: FakeClock) -> None:
    """An answer after five hours is an answer, by every way in."""
    block = TimedBlock("hours", Policy(timeout=None))
    block.call(clock.advance, 5 * 3600.0)
    with block:
        clock.advance(5 * 3600.0)
    block.histogram.due += 1e9
    block.call(clock.advance, 5 * 3600.0)
    call = block.begin()
    clock.advance(5 * 3600.0)
    assert call.succeeded()
    assert _count(block)["ok"] == 4


# -- deadlines --------------------------------------------------------------------------------


def test_the_work_sees_what_is_left(clock: FakeClock) -> None:
    """Inside, remaining() is the block's limit or the caller's deadline, whichever is sooner."""
    block = TimedBlock("seeing", Policy(timeout=Fixed(0.5)))
    assert block.call(remaining) == pytest.approx(0.5)
    with time_limit(0.2):
        assert block.call(remaining) == pytest.approx(0.2)
        assert remaining() == pytest.approx(0.2)
    assert get() is None


@pytest.mark.parametrize("error", [None, OSError(), KeyboardInterrupt()])
def test_the_deadline_is_put_back_however_it_ends(
    clock: FakeClock, error: BaseException | None
) -> None:
    """After a call the caller's deadline is in force again."""
    block = TimedBlock("restoring")
    with time_limit(3.0):
        outer = get()
        try:
            block.call(_fail if error else int, *([error] if error else []))
        except BaseException as raised:
            assert raised is error
        assert get() is outer


def test_nothing_is_started_after_the_deadline(clock: FakeClock) -> None:
    """A caller without time left gets DeadlineExceeded, sent False, and the work isn't run."""
    ran: list[int] = []
    with time_limit(0.1):
        clock.advance(0.2)
        with pytest.raises(DeadlineExceeded) as caught:
            TimedBlock("b").call(ran.append, 1)
    assert caught.value.sent is False
    assert ran == []


def test_a_budget_below_the_median_isnt_started(clock: FakeClock) -> None:
    """Less time than the operation usually takes: refused at once, blaming nobody."""
    block = _learnt(TimedBlock("median", Policy(breaker=Breaker(failures=1))), 0.2, median=0.05)
    with time_limit(0.04), pytest.raises(DeadlineExceeded, match=r"median 0\.050") as caught:
        block.begin()
    assert caught.value.sent is False
    assert block.circuit is not None
    assert not block.circuit.attentive
    with time_limit(0.06):
        block.begin().succeeded()


def test_the_error_names_whose_deadline_it_was(clock: FakeClock) -> None:
    """A call cut by the caller's deadline says so."""
    block = TimedBlock("whose")

    def work() -> None:
        clock.advance(0.25)
        raise TimeoutError

    with time_limit(0.25, "request"), pytest.raises(DeadlineExceeded, match="deadline of request"):
        block.call(work)


def test_a_block_without_timeout_has_the_callers_deadline_only(clock: FakeClock) -> None:
    """timeout=None: no limit of its own."""
    block = TimedBlock("endless", Policy(timeout=None))
    block.call(clock.advance, 1000.0)
    assert _count(block)["late"] == 0
    with time_limit(1.0):
        assert block.call(remaining) == pytest.approx(1.0)


# -- blame ------------------------------------------------------------------------------------


def _cut_after(block: TimedBlock, clock: FakeClock, seconds: float) -> None:
    call = block.begin()
    clock.advance(seconds)
    call.failed(TimeoutError())


def test_a_call_cut_by_anothers_deadline_is_no_failure_by_itself(clock: FakeClock) -> None:
    """The waits of cut calls add up: one failure each time they reach the operation's limit."""
    block = TimedBlock("starved", Policy(timeout=Fixed(1.0)))
    assert block.circuit is not None
    for _ in range(9):
        with time_limit(0.1):
            _cut_after(block, clock, 0.1)
    assert block.circuit.failures == 0
    with time_limit(0.1):
        _cut_after(block, clock, 0.1)
    assert block.circuit.failures == 1


def test_an_answer_forgives_the_starved_waits(clock: FakeClock) -> None:
    """A store that answers others isn't blamed for callers in a hurry."""
    block = TimedBlock("forgiven", Policy(timeout=Fixed(1.0)))
    assert block.circuit is not None
    for _ in range(50):
        with time_limit(0.3):
            _cut_after(block, clock, 0.3)
        block.call(int)
    assert block.circuit.failures == 0


def test_a_fixed_limit_counts_at_once(clock: FakeClock) -> None:
    """Running into a limit that isn't learnt is a failure each time."""
    block = TimedBlock("fixed", Policy(timeout=Fixed(0.1), breaker=Breaker(failures=3)))
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            block.call(lambda: clock.advance(0.1) or _fail(TimeoutError()))
    assert block.circuit is not None
    assert block.circuit.state == OPEN


def test_a_learnt_limit_is_slow_not_dead(clock: FakeClock) -> None:
    """Cut at a learnt limit: no failure until ten limits of silence; one answer resets."""
    block = _learnt(TimedBlock("slow", Policy(timeout=Percentile(ceiling=10.0))), 0.1)
    block.histogram.due = 1e12  # keep the limit where it is
    assert block.circuit is not None
    for _ in range(5):
        for _ in range(9):
            _cut_after(block, clock, 0.1)
        block.call(int)
    assert block.circuit.failures == 0
    for _ in range(10):
        _cut_after(block, clock, 0.1)
    assert block.circuit.state == OPEN


def test_an_attempt_that_began_late_isnt_blamed_on_the_store(clock: FakeClock) -> None:
    """Our own pool took the call's time: the rest, too short for an attempt, proves nothing."""
    block = TimedBlock("crowded", Policy(timeout=Fixed(1.0)))
    assert block.circuit is not None
    for _ in range(4):
        call = block.begin()
        clock.advance(0.99)
        call.restart(clock.now())
        clock.advance(0.01)
        call.failed(TimeoutError(), kind=CUT)
    assert block.circuit.failures == 0


def test_calls_in_flight_together_are_one_failure(clock: FakeClock) -> None:
    """Sixty-four calls that hit one hiccup don't open the breaker."""
    block = TimedBlock("together", Policy(timeout=Fixed(1.0)))
    calls = [block.begin() for _ in range(64)]
    clock.advance(1.0)
    for call in calls:
        call.failed(TimeoutError())
    assert block.circuit is not None
    assert (block.circuit.state, block.circuit.failures) == ("closed", 1)


def test_a_stalled_attempt_is_no_failure_of_its_own(clock: FakeClock) -> None:
    """Our process slept: no sample, no failure; what it truly waited still adds up."""
    block = TimedBlock("stalled", Policy(timeout=Fixed(1.0)))
    assert block.circuit is not None
    for number in range(10):
        call = block.begin()
        clock.advance(3.0)
        verdict = call.failed(TimeoutError(), kind=STALLED, waited=0.25)
        assert isinstance(verdict.error, DeadlineExceeded)
        assert block.circuit.failures == (number + 1) // 4
    assert _count(block)["stalled"] == 10
    assert block.histogram.recent(clock.now(), 1000) == (0, 0)


def test_a_crowded_call_never_blames_the_store(clock: FakeClock) -> None:
    """Pool and workers full: the breaker hears nothing."""
    block = TimedBlock("full", Policy(breaker=Breaker(failures=1)))
    block.begin().failed(RuntimeError(), kind=CROWDED)
    assert block.circuit is not None
    assert block.circuit.state == "closed"
    assert not block.circuit.attentive


def test_no_connection_in_time_blames_by_the_connect_limit(clock: FakeClock) -> None:
    """A fixed connect limit run into is a failure; another's deadline isn't."""
    block = TimedBlock("unconnected", Policy(timeout=Fixed(1.0)))
    assert block.circuit is not None
    call = block.begin()
    clock.advance(0.2)
    call.failed(TimeoutError(), kind=UNCONNECTED, connect=Learnt(0.2, "fixed"))
    assert block.circuit.failures == 1
    with time_limit(0.1):
        call = block.begin()
        clock.advance(0.1)
        call.failed(TimeoutError(), kind=UNCONNECTED, connect=Learnt(0.2, "fixed"))
    assert block.circuit.failures == 1
    assert block.histogram.censored == 0


@pytest.mark.parametrize("kind", [BROKEN, UNCONNECTED, CROWDED, CUT, STALLED])
def test_no_answer_is_counted_as_unavailable(clock: FakeClock, kind: str) -> None:
    """A lost connection, none in time, a full pool: unavailable, not unwell."""
    block = TimedBlock(f"no-answer-{kind}", Policy(breaker=None))
    block.begin().failed(ConnectionResetError(), kind=kind)
    count = _count(block)
    assert (count["unavailable"], count["unwell"]) == (1, 0)


def test_unwell_is_counted_as_unwell(clock: FakeClock) -> None:
    """SERVER_ERROR and its like: counted apart, a failure for the breaker."""
    block = TimedBlock("unwell", Policy(breaker=Breaker(failures=1)))
    block.begin().failed(RuntimeError(), kind=UNWELL)
    count = _count(block)
    assert (count["unavailable"], count["unwell"], count["breaker"]) == (0, 1, "open")


def test_a_probe_runs_to_the_ceiling(clock: FakeClock) -> None:
    """Half-open: the learnt limit doesn't cut the probe, and its time teaches it."""
    block = _learnt(TimedBlock("probe", Policy(breaker=Breaker(failures=1))), 0.1, median=0.08)
    with pytest.raises(OSError):
        block.call(_fail, OSError())
    clock.advance(1.0)
    call = block.begin()
    assert call.limit == pytest.approx(1.0)
    clock.advance(0.7)
    before = block.histogram.answered_total
    call.succeeded()
    assert block.histogram.answered_total == before + 1
    assert block.circuit is not None
    assert block.circuit.state == "closed"
    assert _count(block)["late"] == 0


def test_an_abandoned_probe_lets_the_next_one_in(clock: FakeClock) -> None:
    """A KeyboardInterrupt in the probe, or a full bulkhead, costs no lease."""
    block = TimedBlock("lease", Policy(breaker=Breaker(failures=1), bulkhead=1))
    with pytest.raises(OSError):
        block.call(_fail, OSError())
    clock.advance(1.0)
    with pytest.raises(KeyboardInterrupt):
        block.call(_fail, KeyboardInterrupt())
    held = block.begin()
    with pytest.raises(CircuitOpen):
        block.begin()
    held.abandoned()
    assert block.call(lambda: "closed again") == "closed again"


def test_fifty_callers_at_a_half_open_breaker(clock: FakeClock) -> None:
    """Exactly `probes` of them reach the work."""
    block = TimedBlock("rush", Policy(breaker=Breaker(failures=1, probes=2)))
    with pytest.raises(OSError):
        block.call(_fail, OSError())
    clock.advance(1.0)
    reached, refused = [], 0
    for _ in range(50):
        try:
            reached.append(block.begin())
        except CircuitOpen:
            refused += 1
    assert (len(reached), refused) == (2, 48)


# -- the inner block's Unavailable ------------------------------------------------------------


def test_an_inner_unavailable_passes_an_outer_block(clock: FakeClock) -> None:
    """The inner breaker counted it; the outer's doesn't, and the error is the inner's own."""
    inner = TimedBlock("inner", Policy(breaker=Breaker(failures=1)))
    outer = TimedBlock("passing", Policy(breaker=Breaker(failures=1)))
    with pytest.raises(OSError):
        inner.call(_fail, OSError())
    for _ in range(5):
        with pytest.raises(CircuitOpen) as caught:
            outer.call(inner.call, int)
        assert caught.value.block == "inner"
    assert outer.circuit is not None
    assert outer.circuit.state == "closed"
    assert _count(outer)["unavailable"] == 5


def test_an_inner_block_cut_by_the_outer_limit_blames_the_right_one(clock: FakeClock) -> None:
    """Slow inner work under a short outer block: the inner starves, the outer's limit learns."""
    inner = TimedBlock("inner", Policy(timeout=Fixed(1.0), breaker=Breaker(failures=1)))
    outer = TimedBlock("outer", Policy(timeout=Percentile(ceiling=0.2, floor=0.01)))

    def work() -> None:
        left = remaining()
        assert left == pytest.approx(0.2)
        clock.advance(left)
        raise TimeoutError

    with pytest.raises(DeadlineExceeded, match="deadline of outer"):
        outer.call(inner.call, work)
    assert inner.circuit is not None
    assert inner.circuit.state == "closed"
    assert outer.histogram.cut_total == 1


# -- the bulkhead -----------------------------------------------------------------------------


def test_a_full_bulkhead_refuses_at_once(clock: FakeClock) -> None:
    """Past bulkhead= Overloaded comes without waiting; a slot that is given back serves."""
    block = TimedBlock("bulk", Policy(bulkhead=2))
    calls = [block.begin(), block.begin()]
    with pytest.raises(Overloaded, match="bulkhead") as caught:
        block.call(int)
    assert caught.value.sent is False
    calls.pop().succeeded()
    assert block.call(int) == 0


def test_a_call_that_nobody_holds_gives_its_slot_back(clock: FakeClock) -> None:
    """Lost between two bytecodes by an interrupt: swept when the bulkhead is full."""
    block = TimedBlock("sweep", Policy(bulkhead=3))
    kept = block.begin()
    block.begin()
    block.begin()
    assert block.call(lambda: 1) == 1
    assert list(block.in_flight) == [kept]


def test_lost_calls_that_hold_each_other_are_swept_together(clock: FakeClock) -> None:
    """An interrupt may lose a call whose deadline is the outer one of others."""
    block = TimedBlock("chain", Policy(bulkhead=3))
    first = block.begin()
    second = block.begin()
    third = block.begin()
    second.outer, third.outer = first, second
    del first, second, third
    block.sweep()
    assert not block.in_flight


def test_a_call_ends_once(clock: FakeClock) -> None:
    """Ending again, in any way, changes nothing."""
    block = TimedBlock("once", Policy(breaker=Breaker(failures=1)))
    call = block.begin()
    assert call.succeeded() is True
    assert call.succeeded() is False
    call.abandoned()
    error = OSError()
    assert call.failed(error).error is error
    count = _count(block)
    assert (count["calls"], count["ok"], count["breaker"]) == (1, 1, "closed")


# -- fallback ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["value", None, 0, []])
def test_a_fallback_value_is_used_without_an_answer(clock: FakeClock, value: object) -> None:
    """A constant, None included, stands in for a failure and for a refusal."""
    block = TimedBlock("constant", Policy(fallback=value, breaker=Breaker(failures=1)))
    assert block.call(_fail, OSError()) is value
    assert block.call(lambda: "not tried") is value


def test_a_fallback_callable_has_its_own_limit(clock: FakeClock) -> None:
    """fallback_limit seconds, inside the caller's deadline."""
    block = TimedBlock("callable", Policy(fallback=remaining, fallback_limit=0.1))
    assert block.call(_fail, OSError()) == pytest.approx(0.1)
    with time_limit(0.05):
        assert block.call(_fail, OSError()) == pytest.approx(0.05)
    assert get() is None


def test_no_fallback_for_answers_and_base_exceptions(clock: FakeClock) -> None:
    """A logical error is an answer; who wants to leave may leave."""
    block = TimedBlock("nofall", Policy(fallback="f", ignore=(KeyError,)))
    for error in (KeyError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            block.call(_fail, error)


def test_a_broken_fallback_raises_with_its_context(clock: FakeClock) -> None:
    """What the fallback raises is raised; the reason for falling back is its context."""
    block = TimedBlock("broken", Policy(fallback=lambda: 1 / 0, bulkhead=1))
    with pytest.raises(ZeroDivisionError) as caught:
        block.call(_fail, OSError())
    assert isinstance(caught.value.__context__, OSError)
    assert not block.in_flight
    assert get() is None


# -- stalls of our own sockets ----------------------------------------------------------------


def test_an_answer_found_late_on_our_sockets_is_our_own_stall(clock: FakeClock) -> None:
    """A wrapper's call: well past its limit means that we slept; no sample, an answer."""
    block = TimedBlock("memcache.get", Policy(timeout=Fixed(0.1)), endpoint=endpoint("h:1", None))
    call = block.begin()
    clock.advance(3.0)
    call.succeeded()
    count = _count(block)
    assert (count["ok"], count["stalled"], count["late"], count["p50"]) == (1, 1, 1, None)
    assert block.histogram.recent(clock.now(), 10) == (1, 0)


# -- learning ---------------------------------------------------------------------------------


def test_the_limit_is_learnt_in_use(clock: FakeClock) -> None:
    """A hundred answers of 40 ms: the limit is about 80 ms and says so."""
    block = TimedBlock("learning", Policy(timeout=Percentile(99)))
    assert block.limit == 1.0
    for _ in range(120):
        block.call(clock.advance, 0.04)
    assert block.limit == pytest.approx(0.08, rel=0.05)
    count = _count(block)
    assert count["limit_source"] == "learnt"
    assert count["p50"] == pytest.approx(0.04, rel=0.05)
    assert "learnt: p99 × 2" in repr(block)


# -- the decorator and the repr ---------------------------------------------------------------


def test_it_decorates_functions(clock: FakeClock) -> None:
    """The decorated function keeps its name and its doc and is timed."""
    block = TimedBlock("deco")

    @block
    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    assert double(4) == 8
    assert (double.__name__, double.__doc__) == ("double", "Twice the number.")
    assert _count(block)["ok"] == 1


def test_a_repr_shows_the_limit(clock: FakeClock) -> None:
    """Name, endpoint, limit, and where the limit is from."""
    assert repr(TimedBlock("b")) == "<TimedBlock b: limit 1.000 s, initial>"
    block = TimedBlock("b", Policy(timeout=Fixed(2)), endpoint=endpoint("h:1", None))
    assert repr(block) == "<TimedBlock b on h:1: limit 2.000 s, fixed>"


# -- thread isolation -------------------------------------------------------------------------


def _isolated(name: str, **policy: Any) -> TimedBlock:
    return TimedBlock(name, Policy(isolation="thread", **policy))


def test_isolated_work_runs_on_another_thread_in_the_callers_context() -> None:
    """It sees the caller's deadline, and its answer, or error, is the caller's."""
    block = _isolated("iso", timeout=Fixed(5))
    thread, left = block.call(lambda: (threading.get_ident(), remaining()))
    assert thread != threading.get_ident()
    assert left is not None
    assert 4 < left <= 5
    with pytest.raises(ZeroDivisionError):
        block.call(lambda: 1 / 0)
    assert not block.in_flight


def test_the_caller_is_back_on_time_from_what_nothing_can_interrupt(clock: FakeClock) -> None:
    """The caller gets DeadlineExceeded at the limit while the work still hangs."""
    block = _isolated("hang", timeout=Fixed(1.0), breaker=Breaker(failures=1))
    release, began = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        clock.advance(1.0)
        release.wait()

    with pytest.raises(DeadlineExceeded) as caught:
        block.call(hang)
    assert caught.value.sent is True
    assert began.is_set()
    assert not release.is_set()
    assert not block.in_flight
    release.set()


def test_isolated_workers_are_bounded(clock: FakeClock) -> None:
    """Work that hangs keeps its worker; when all hang, Overloaded comes at once."""
    block = _isolated("bound", timeout=Fixed(1.0), bulkhead=2, breaker=None)
    release = threading.Event()

    def hang() -> None:
        clock.advance(1.0)
        release.wait()

    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            block.call(hang)
    with pytest.raises(Overloaded) as caught:
        block.call(int)
    assert caught.value.sent is False
    release.set()
    assert block._workers is not None
    while block._workers.busy:
        threading.Event().wait(0.001)
    assert block.call(int) == 0


def test_a_late_isolated_answer_is_a_sign_of_life(clock: FakeClock) -> None:
    """Work that ends after its caller left proves that the store lives."""
    block = _learnt(_isolated("alive", timeout=Percentile(ceiling=10.0)), 1.0)
    assert block.circuit is not None
    release = threading.Event()

    def slow() -> None:
        clock.advance(1.0)
        release.wait()

    with pytest.raises(DeadlineExceeded):
        block.call(slow)
    assert block.circuit._silence > 0
    release.set()
    assert block._workers is not None
    while block._workers.busy:
        threading.Event().wait(0.001)
    assert block.circuit._silence == 0


# -- restarts and second attempts -------------------------------------------------------------


def test_an_attempt_begins_with_its_connection(clock: FakeClock) -> None:
    """After restart the attempt has its own limit anew, inside the call limit."""
    block = _learnt(TimedBlock("restart"), 0.3)
    call = block.begin()
    clock.advance(0.6)
    call.restart(clock.now())
    assert call.limit == pytest.approx(0.3)
    assert call.started == pytest.approx(clock.now() - 0.6)
    clock.advance(0.3)
    call.restart(clock.now())
    assert call.limit == pytest.approx(0.1)


def test_a_restart_without_enough_time_is_refused(clock: FakeClock) -> None:
    """The pool took the caller's time: what is left is below the median, nothing is sent."""
    block = _learnt(TimedBlock("toolate", Policy(bulkhead=1)), 0.3, median=0.1)
    with time_limit(0.4):
        call = block.begin()
        clock.advance(0.35)
        with pytest.raises(DeadlineExceeded):
            call.restart(clock.now())
    assert not block.in_flight


def test_errors_of_a_store_replace_the_cores(clock: FakeClock) -> None:
    """A wrapper's own subclass is raised where the machine would raise its own."""

    class Mine(DeadlineExceeded):
        """A store's."""

    block = TimedBlock("mine", errors={DeadlineExceeded: Mine})
    with time_limit(0.1):
        clock.advance(1)
        with pytest.raises(Mine):
            block.begin()


def test_call_and_begin_give_the_same_events(clock: FakeClock, heard: list[Event]) -> None:
    """`.call` writes its success path out; it tells the same story as the machine."""
    one, other = TimedBlock("same"), TimedBlock("same")
    for late in (0.0, 0.3, 2.0):
        one.call(clock.advance, late)
        call = other.begin()
        clock.advance(late)
        call.succeeded()
    told = [
        (type(event), round(event.elapsed, 9), event.late)
        for event in heard
        if isinstance(event, events.CallSucceeded)
    ]
    assert told[::2] == told[1::2]
    assert len(told) == 6
    assert one.histogram.counts == other.histogram.counts


def test_a_retrying_block_restores_the_deadline_between_attempts(clock: FakeClock) -> None:
    """Every attempt sees its own limit, the fallback the caller's."""
    seen: list[float | None] = []

    def work() -> None:
        seen.append(remaining())
        raise OSError

    block = TimedBlock("attempts", Policy(timeout=Fixed(1), retry=Retry(attempts=2), fallback=1))
    with time_limit(5.0):
        assert block.call(work) == 1
        assert remaining() == pytest.approx(5.0 - (clock.now() - 1000.0))
    assert len(seen) == 2
    assert all(left is not None and left <= 1 for left in seen)


def test_unavailable_by_the_work_itself_passes(clock: FakeClock) -> None:
    """An Unavailable that the application raises is a dependency's."""
    error = Unavailable("theirs")
    with pytest.raises(Unavailable) as caught:
        TimedBlock("theirs").call(_fail, error)
    assert caught.value is error
