"""One deadline, handed down; inner ones only shorten it."""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Iterator

import pytest

from timedblock import Deadline, Policy, TimedBlock, bind, remaining, time_limit
from timedblock import clock as clocks
from timedblock.deadline import LONGEST, check_seconds, get, sooner
from timedblock.testing import FakeClock

BAD = [math.nan, math.inf, -1, -0.001, 0, LONGEST * 2, 10**400, -(10**400)]


@pytest.mark.parametrize("value", BAD, ids=lambda value: str(value)[:12])
def test_a_number_that_is_no_duration_is_refused(value: float) -> None:
    """NaN, infinity, zero, negative and huge values: ValueError that names argument and value."""
    with pytest.raises(ValueError, match="Fixed\\(seconds\\)") as caught:
        check_seconds("Fixed(seconds)", value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", ["1", None, True, [], 1j, object])
def test_a_duration_of_a_wrong_type_is_refused(value: object) -> None:
    """What is no number is a TypeError that names argument and value."""
    with pytest.raises(TypeError) as caught:
        check_seconds("timeout", value)
    assert "timeout" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_zero_is_a_duration_where_it_is_allowed() -> None:
    """An idle time of zero seconds may be asked for."""
    assert check_seconds("pause", 0, zero=True) == 0.0


@pytest.mark.parametrize("value", [math.nan, 0, -1, 1e12, 10**400], ids=lambda v: str(v)[:9])
def test_time_limit_refuses_bad_seconds_at_construction(value: float) -> None:
    """A bad time_limit is found when it is made, not when it is entered."""
    with pytest.raises(ValueError, match="time limit"):
        time_limit(value)


def test_remaining_is_what_is_left(clock: FakeClock) -> None:
    """remaining() counts down, stays at zero, and is None without a deadline."""
    assert remaining() is None
    with time_limit(0.25):
        assert remaining() == pytest.approx(0.25)
        clock.advance(0.2)
        assert remaining() == pytest.approx(0.05)
        clock.advance(1)
        assert remaining() == 0.0
    assert remaining() is None


def test_an_inner_limit_only_shortens(clock: FakeClock) -> None:
    """The shorter of two nested limits is in force; leaving restores the outer one."""
    with time_limit(1.0):
        with time_limit(5.0):
            assert remaining() == pytest.approx(1.0)
        with time_limit(0.5):
            assert remaining() == pytest.approx(0.5)
            clock.advance(0.4)
        assert remaining() == pytest.approx(0.6)


def test_none_changes_nothing(clock: FakeClock) -> None:
    """time_limit(None) leaves what is in force, or nothing."""
    with time_limit(None):
        assert remaining() is None
        with time_limit(1.0), time_limit(None):
            assert remaining() == pytest.approx(1.0)
    assert get() is None


def test_the_exit_never_raises_and_hides_nothing(clock: FakeClock) -> None:
    """A passed limit raises nothing at the exit, and an error inside passes through."""
    with time_limit(0.1):
        clock.advance(1)
    with pytest.raises(KeyError), time_limit(0.1):
        clock.advance(1)
        raise KeyError
    assert get() is None


def test_one_time_limit_can_be_entered_again(clock: FakeClock) -> None:
    """The same object nests in itself; each entry is measured from its own start."""
    limit = time_limit(1.0)
    with limit:
        clock.advance(0.4)
        with limit:
            assert remaining() == pytest.approx(0.6)
        assert remaining() == pytest.approx(0.6)
    assert get() is None
    with limit:
        assert remaining() == pytest.approx(1.0)


def test_a_deadline_may_be_given(clock: FakeClock) -> None:
    """time_limit(Deadline) takes over an instant, and doesn't lengthen the one in force."""
    deadline = Deadline.after(0.3)
    clock.advance(0.1)
    with time_limit(deadline):
        assert remaining() == pytest.approx(0.2)
    with time_limit(0.1), time_limit(deadline):
        assert remaining() == pytest.approx(0.1)


def _counting(seconds: float) -> Iterator[int]:
    with time_limit(seconds):
        yield 1
        yield 2


def test_leaving_in_another_context_is_quiet() -> None:
    """A generator closed in another context changes nothing there and raises nothing."""
    generator = _counting(5.0)
    contextvars.copy_context().run(next, generator)
    with time_limit(1.0):
        generator.close()  # type: ignore[attr-defined]
        assert remaining() == pytest.approx(1.0, abs=0.1)
    assert get() is None


def test_leaving_elsewhere_takes_nothing_from_the_others() -> None:
    """One time_limit for all: who leaves it in another context doesn't end a stranger's entry."""
    shared = time_limit(5.0)

    def walk() -> Iterator[int]:
        with shared:
            yield 1

    generator = walk()
    contextvars.copy_context().run(next, generator)

    def inside() -> None:
        with shared:
            generator.close()  # type: ignore[attr-defined]
        assert get() is None

    contextvars.copy_context().run(inside)


def test_a_generator_that_outlives_the_callers_limit_leaves_no_dead_limit(
    clock: FakeClock,
) -> None:
    """Limits left in the wrong order: none of them is in force for the next call."""
    generator = _counting(0.5)
    with time_limit(1.0):
        next(generator)
    generator.close()  # type: ignore[attr-defined]
    clock.advance(10)
    assert remaining() is None


def test_a_generator_that_ends_within_a_younger_limit_leaves_it_in_force(
    clock: FakeClock,
) -> None:
    """A limit that was entered after a generator's stays when the generator is closed."""
    generator = _counting(5.0)
    next(generator)
    with time_limit(1.0):
        generator.close()  # type: ignore[attr-defined]
        assert remaining() == pytest.approx(1.0)
    assert remaining() is None


def test_a_generator_closed_in_another_context_leaves_no_dead_limit(clock: FakeClock) -> None:
    """A limit that was left in another context isn't in force where it was entered."""
    generator = _counting(5.0)
    with time_limit(60.0):
        next(generator)
        contextvars.Context().run(generator.close)  # type: ignore[attr-defined]
        clock.advance(10)
        assert remaining() == pytest.approx(50.0)


def test_what_was_started_inside_keeps_the_limit(clock: FakeClock) -> None:
    """Work that carries the context goes on within the limit after its starter left it."""
    with time_limit(1.0):
        context = contextvars.copy_context()

    def later() -> None:
        assert remaining() == pytest.approx(1.0)
        with time_limit(0.5):
            assert remaining() == pytest.approx(0.5)
        assert remaining() == pytest.approx(1.0)

    context.run(later)


def test_a_block_without_a_limit_leaves_no_limit(clock: FakeClock) -> None:
    """In a block whose policy has no timeout, and without a caller's deadline, none is left."""
    block = TimedBlock("endless", Policy(timeout=None))
    assert block.call(remaining) is None
    assert block.call(lambda: get().to_header()) == "2592000000"  # type: ignore[union-attr]
    with time_limit(1.0):
        assert block.call(remaining) == pytest.approx(1.0)


def test_a_plain_thread_has_no_deadline_and_bind_gives_it_one(clock: FakeClock) -> None:
    """Threads don't inherit; bind(fn) carries the deadline, and the name, for many threads."""
    found: list[float | None] = []

    def look() -> None:
        """Look at what is left."""
        found.append(remaining())

    with time_limit(1.0):
        bound = bind(look)
        threads = [threading.Thread(target=work) for work in (look, bound, bound)]
        for thread in threads:
            thread.start()
            thread.join()
    assert found == [None, pytest.approx(1.0), pytest.approx(1.0)]
    assert bound.__doc__ == look.__doc__


def test_the_header_is_whole_milliseconds_rounded_down(clock: FakeClock) -> None:
    """A deadline crosses processes as the milliseconds that are left."""
    deadline = Deadline.after(0.2509)
    assert deadline.to_header() == "250"
    clock.advance(1)
    assert deadline.to_header() == "0"


@pytest.mark.parametrize("value", ["250", b"250", " 250 ", "0250"])
def test_a_header_becomes_a_deadline(clock: FakeClock, value: str | bytes) -> None:
    """Text or bytes of a number are that many milliseconds from now."""
    deadline = Deadline.from_header(value)
    assert deadline is not None
    assert deadline.remaining() == pytest.approx(0.25)


@pytest.mark.parametrize(
    "value",
    [None, "", "x", "-1", "1.5", "1e3", "nan", "٣٠", b"\xff\xfe", "9" * 13, "1 2", "+5", "0x10"],
)
def test_a_garbage_header_is_no_deadline(value: str | bytes | None) -> None:
    """What is no plain number of milliseconds is ignored."""
    assert Deadline.from_header(value) is None


def test_a_header_only_shortens(clock: FakeClock) -> None:
    """A caller's header can't lengthen the limit in force, a huge one is the longest limit."""
    with time_limit(0.1), time_limit(Deadline.from_header("5000")):
        assert remaining() == pytest.approx(0.1)
    huge = Deadline.from_header("999999999999")
    assert huge is not None
    assert huge.remaining() == LONGEST


def test_an_instant_is_read_on_another_clock() -> None:
    """A deadline of a fake clock, seen from the system's: what is left counts."""
    with FakeClock():
        deadline = Deadline.after(3.0)
    at = sooner(deadline, clocks.SYSTEM)
    assert at - clocks.SYSTEM.monotonic() == pytest.approx(3.0, abs=0.1)
    assert sooner(None, clocks.SYSTEM) == math.inf


def test_a_deadline_tells_its_owner(clock: FakeClock) -> None:
    """The repr has the owner and what is left."""
    assert repr(Deadline.after(1.5, "request")) == "<Deadline of request: 1.500 s>"
