"""What a fault costs, and what became of the requests over time."""

from __future__ import annotations

import math

import pytest

from tests.drills.records import SCHEDULE, call, load_of, samples
from timedblock.drill.loads import Times
from timedblock.drill.nines import Cost, cost
from timedblock.drill.series import STACK, bar_width, bars, breaker, learnt_limit

TIMES = Times(rate=100.0, fault_at=1.0, window_end=5.0, clear_at=6.0, end=7.0)
CLOSED = Times(rate=None, fault_at=1.0, window_end=5.0, clear_at=6.0, end=7.0)
ALL = range(700)


def test_a_request_is_served_in_time_with_an_answer_or_an_honest_error() -> None:
    """Of ten requests of the window, the late, the hung, the wrong, the dishonest and the one that
    never began were not served."""
    late = call(101, 0.26)
    calls = [
        call(99, 9.0, "hung"),  # before the window
        call(100, 0.24),
        late,
        call(102, 0.001, began=1.3),  # it was waiting for a thread
        call(103, 0.2, "unavailable", "CircuitOpen"),
        call(104, 0.001, "wrong"),
        call(105, 0.001, "dishonest", "KeyError"),
        call(106, 4.0, "hung"),
        call(500, 9.0),  # after it
    ]
    found = cost(load_of(calls), TIMES)
    assert (found.due, found.served) == (400, 2)


def test_a_closed_loop_has_the_requests_that_were_made() -> None:
    """Without a rate nobody knows of requests that didn't begin."""
    found = cost(load_of(call(n, 0.001) for n in range(0, 700, 2)), CLOSED)
    assert (found.due, found.served) == (200, 200)


@pytest.mark.parametrize(
    ("due", "served", "availability", "nines", "minutes"),
    [
        (1000, 999, 0.999, 3.0, 0.432),
        (1000, 900, 0.9, 1.0, 43.2),
        (1000, 0, 0.0, 0.0, 432.0),
        (1000, 1000, 1.0, math.inf, 0.0),
        (0, 0, 1.0, math.inf, 0.0),
    ],
)
def test_nines_and_minutes_a_month(
    due: int, served: int, availability: float, nines: float, minutes: float
) -> None:
    """Three nines are 99.9 %; a fault that is on for 1 % of 30 days has 432 minutes to lose."""
    found = Cost(due, served)
    assert found.availability == pytest.approx(availability)
    assert found.nines == pytest.approx(nines)
    assert found.minutes() == pytest.approx(minutes)


def test_minutes_are_proportional_to_the_share() -> None:
    """At a tenth of the time a fault costs a tenth of the minutes."""
    assert Cost(10, 5).minutes(0.001) == pytest.approx(Cost(10, 5).minutes(0.01) / 10)


def test_the_stack_shows_what_became_of_every_request() -> None:
    """Each bar has all requests that came due, those that never began and the late ones too."""
    calls = [call(n, 0.001) for n in ALL if n < 200 or n >= 600]
    calls += [call(n, 0.9, "unavailable", "TimeoutError") for n in range(200, 300)]
    made = bars(load_of(calls), TIMES)
    sums = [sum(column) for column in zip(*made.stack, strict=True)]
    assert sums == pytest.approx([100.0] * len(sums))
    by_name = dict(zip(STACK, made.stack, strict=True))
    at = int(2.5 / made.width)
    assert by_name["late"][at] == 100.0
    assert by_name["not begun"][int(4 / made.width)] == 100.0
    assert by_name["ok"][0] == 100.0
    assert made.offered == 100.0


def test_throughput_counts_calls_as_they_end() -> None:
    """What ends late is throughput, and served it is not."""
    made = bars(load_of(call(n, 2.0, "unavailable") for n in range(100)), TIMES)
    assert sum(made.finished) * made.width == pytest.approx(100)
    assert sum(made.served) == 0
    assert made.finished[0] == 0


def test_nothing_is_told_of_a_load_that_was_ended() -> None:
    """Calls hung, so the process was ended with the fault: after it, nothing "did not begin"."""
    made = bars(load_of([call(n, 0.001) for n in range(100)] + [call(100, 5.0, "hung")]), TIMES)
    not_begun = made.stack[STACK.index("not begun")]
    assert not_begun[int(5.5 / made.width)] == 100.0
    assert not_begun[int(6.5 / made.width)] == 0.0


def test_a_part_of_a_bar_is_still_a_rate() -> None:
    """The last bar of a load that ends within it isn't lower for that."""
    times = Times(100.0, 1.0, 5.0, 6.0, 6.9)
    made = bars(load_of(call(n, 0.0) for n in range(690)), times)
    assert made.stack[0][-1] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize(
    ("end", "width"), [(10, 0.25), (16, 0.25), (20, 0.5), (3600, 60), (1e6, 15625)]
)
def test_bars_are_few(end: float, width: float) -> None:
    """However long a load is, a stack has at most 64 bars."""
    assert bar_width(end) == width


def test_lines_keep_their_changes() -> None:
    """Of samples each 0.1 s only the changes are kept, with the first and the last."""
    found = samples("hang", "timedblock", SCHEDULE.end)
    assert learnt_limit(found) == ([0.0, 0.8, 6.9], [1.0, 0.05, 0.05])
    assert breaker(found) == ([0.0, 1.5, 6.2, 6.4, 6.9], [0.0, 2.0, 1.0, 0.0, 0.0])


def test_no_breaker_no_line() -> None:
    """A variant without a breaker has none, and no samples have no lines."""
    without = [one._replace(breaker=None) for one in samples("hang", "timedblock", 1.0)]
    assert breaker(without) == ([], [])
    assert learnt_limit([]) == ([], [])
