"""Which calls a chart draws, and how they are packed."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drills.records import call, load_of
from timedblock.drill.dots import Scales, choose, decades, panels, place
from timedblock.drill.history import OUTCOMES
from timedblock.drill.loads import Kinds, Load

SCALES = Scales(end=10.0, low=1e-4, high=10.0)


def unpack(text: str) -> list[tuple[int, int, int]]:
    """The dots of a panel, as the page reads them."""
    data = base64.b64decode(text)
    count = len(data) // 5
    xs, ys = struct.unpack(f"<{count}H{count}H", data[: 4 * count])[:count], None
    ys = struct.unpack(f"<{count}H{count}H", data[: 4 * count])[count:]
    return list(zip(xs, ys, data[4 * count :], strict=True))


def mixed(size: int, failures: set[int]) -> Load:
    """Calls that take different times; those of `failures` have no answer."""
    return load_of(
        call(n, 0.001 + n * 37 % 101 * 1e-4, "unavailable" if n in failures else "ok", due=n / 100)
        for n in range(size)
    )


def test_all_calls_are_drawn_up_to_the_limit() -> None:
    """As many calls as there may be dots are all drawn, and there is nothing to say."""
    load = mixed(500, {3, 4})
    (panel,) = panels([load], [SCALES], most=500)
    assert len(panel.chosen.positions) == 500
    assert panel.caption == ""


def test_past_the_limit_successes_are_thinned_and_the_caption_says_so() -> None:
    """One call too many thins the successes to the limit, and the numbers are told."""
    load = mixed(2_000, set(range(100)))
    (panel,) = panels([load], [SCALES], most=1_000)
    assert 900 <= len(panel.chosen.positions) <= 1_200
    assert panel.caption == (
        f"{panel.chosen.shown:,} of 1,900 successes are drawn, every failure and the slowest calls"
        " are."
    )


@given(
    durations=st.lists(st.floats(1e-6, 60), min_size=1, max_size=300),
    outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=300, max_size=300),
    most=st.integers(1, 300),
)
def test_thinning_never_drops_a_failure_or_the_worst(
    durations: list[float], outcomes: list[str], most: int
) -> None:
    """Whatever the calls and the limit, every failure stays, and so does the slowest success."""
    calls = [call(n, d, o) for n, (d, o) in enumerate(zip(durations, outcomes, strict=False))]
    load = load_of(calls)
    drawn = set(choose(load, most).positions)
    assert drawn >= {n for n, one in enumerate(calls) if one.outcome != "ok"}
    good = [n for n, one in enumerate(calls) if one.outcome == "ok"]
    if good:
        longest = max(load.ended[n] - load.began[n] for n in good)
        assert any(load.ended[n] - load.began[n] == longest for n in drawn & set(good))


def test_thinned_successes_are_spread_over_the_whole_time() -> None:
    """No stretch of the load loses all of its dots."""
    load = mixed(10_000, set())
    drawn = choose(load, 1_000).positions
    assert all(any(n // 500 == part for n in drawn) for part in range(20))


def test_dots_come_back_where_they_were() -> None:
    """What is packed is the time, the duration and the kind, to a 65,535th of the axis."""
    kinds = Kinds()
    calls = [
        call(0, 0.0001, due=0.0),
        call(1, 10.0, "hung", due=2.5),
        call(2, 0.0316227766, "unavailable", "CircuitOpen", due=10.0),
    ]
    (panel,) = panels([load_of(calls, kinds)], [SCALES])
    dots = unpack(panel.encoded())
    assert [x for x, _, _ in dots] == [0, 16384, 65535]
    assert [y for _, y, _ in dots] == pytest.approx([0, 65535, 32768], abs=1)
    assert [kinds.pairs[kind] for _, _, kind in dots] == [(0, None), (4, None), (1, "CircuitOpen")]


def test_a_full_report_draws_dots_of_one_cell_once() -> None:
    """Failures that don't fit are merged on a grid, not dropped: each has its dot's cell drawn,
    and the caption says it."""
    failures = load_of(
        call(n, 1e-4 + n % 50 * 1e-5, "unavailable", due=n / 400) for n in range(4_000)
    )
    made = panels([failures], [SCALES], in_all=2_000)
    assert len(made[0].dots) <= 2_000
    assert made[0].caption == "Calls that fall on the same point are drawn once."
    exact = place(failures, choose(failures, 2_000), SCALES)
    for x, y, kind in exact:
        near = (abs(a - x) <= 600 and abs(b - y) <= 600 for a, b, k in made[0].dots if k == kind)
        assert any(near)


def test_a_big_load_beside_small_ones_keeps_its_dots() -> None:
    """Successes are thinned for the whole report's sake only when the whole report is full."""
    loads = [mixed(900, set()), mixed(10, set()), mixed(10, set())]
    made = panels(loads, [SCALES] * 3, most=900, in_all=1_000)
    assert [len(panel.chosen.positions) for panel in made] == [900, 10, 10]
    made = panels(loads, [SCALES] * 3, most=900, in_all=600)
    assert len(made[0].chosen.positions) <= 400


@pytest.mark.parametrize(
    ("durations", "bounds"),
    [
        ([0.002, 0.5], (0.001, 1.0)),
        ([1e-7, 0.5], (1e-5, 1.0)),
        ([0.002, 0.99], (0.001, 10.0)),
        ([], (1.0, 10.0)),
        ([0.0], (1.0, 10.0)),
        ([7.2], (1.0, 10.0)),
    ],
)
def test_the_scale_holds_all_durations(durations: list[float], bounds: tuple[float, float]) -> None:
    """Powers of ten around all durations, with room above; below 10 µs there is only our clock."""
    assert decades(durations) == pytest.approx(bounds)


def test_kinds_are_few() -> None:
    """A store that invents an error for each call makes no more kinds than a byte can count."""
    kinds = Kinds()
    numbers = {kinds.number(1, f"E{n}") for n in range(1_000)}
    assert max(numbers) < 256
    assert kinds.pairs[kinds.number(1, "E999")] == (1, "other")
    assert kinds.number(1, "E3") == 3
