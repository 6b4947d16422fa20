"""The checker: right histories pass, every kind of impossible answer is found."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from timedblock.drill.checker import SETTLE, check
from timedblock.drill.history import Call
from timedblock.drill.memcache import INITIAL


def _call(number: int, op: str, value: str | None, began: float, ended: float, **more: Any) -> Call:
    given = {"outcome": "ok", "error": None, "sent": None, "key": "k", **more}
    key, outcome = given.pop("key"), given.pop("outcome")
    return Call("none", "x", number, op, key, value, began, began, ended, outcome, **given)


def _read(number: int, value: str | None, began: float, ended: float, **more: Any) -> Call:
    return _call(number, "get", value, began, ended, **more)


def _write(number: int, began: float, ended: float, **more: Any) -> Call:
    return _call(number, "set", f"w{number}", began, ended, **more)


def _unknown(number: int, began: float, ended: float) -> Call:
    return _write(number, began, ended, outcome="unavailable", error="E", sent=True)


def _accused(*calls: Call, **more: Any) -> list[tuple[int, str]]:
    return [(found.call.number, found.reason) for found in check(calls, INITIAL, **more)]


def test_initial_value_is_right_until_it_is_overwritten() -> None:
    """A read that overlaps the write may see either; one after it may not."""
    write = _write(1, 1.0, 2.0)
    assert not _accused(write, _read(2, INITIAL, 1.5, 3.0), _read(3, "w1", 1.5, 1.6))
    assert _accused(write, _read(2, INITIAL, 2.1, 2.2)) == [(2, "a stale value")]


def test_value_that_nobody_wrote_is_wrong() -> None:
    """Nor one of another key of the load."""
    other = _write(1, 0, 1, key="other")
    assert _accused(other, _read(2, "w1", 2, 3)) == [(2, "a value that nobody can have written")]


def test_value_from_the_future_is_wrong() -> None:
    """Nobody reads what is written later."""
    calls = _write(1, 5, 6), _read(2, "w1", 1, 2)
    assert _accused(*calls) == [(2, "a value from before it was written")]


def test_write_that_never_left_cannot_be_read() -> None:
    """``sent`` False is a promise: nothing of it reached the store."""
    write = _write(1, 0, 1, outcome="unavailable", error="E", sent=False)
    assert _accused(write, _read(2, "w1", 2, 3))
    assert not _accused(write, _read(2, INITIAL, 2, 3))


def test_write_of_unknown_outcome_may_come_at_any_time_or_never() -> None:
    """Even after later ones were answered: its bytes may have been on their way."""
    unknown, later = _unknown(1, 0, 1), _write(2, 2, 3)
    assert not _accused(unknown, later, _read(3, "w2", 4, 5), _read(4, "w1", 100, 101))
    assert not _accused(unknown, _read(3, INITIAL, 4, 5))


def test_write_that_was_seen_has_come() -> None:
    """Once read, an unknown write can't come again after a later one."""
    unknown, seen, later = _unknown(1, 0, 1), _read(2, "w1", 1.5, 1.6), _write(3, 2, 3)
    assert _accused(unknown, seen, later, _read(4, "w1", 4, 5)) == [(4, "a stale value")]


def test_reads_do_not_go_back_in_time() -> None:
    """Two writes at once: whichever was seen last stays the last."""
    writes = _write(1, 0, 10), _unknown(2, 0, 10)
    reads = _read(3, "w1", 2, 3), _read(4, "w2", 4, 5)
    assert not _accused(*writes, *reads)
    assert not _accused(*writes, *reads, _read(5, "w1", 6, 7))  # w1 may have been first to arrive
    write, late = _write(6, 5.5, 5.9), _read(7, "w2", 6, 7)
    assert _accused(*writes, *reads, write, late) == [(7, "a stale value")]


def test_miss_is_wrong_unless_the_store_may_forget() -> None:
    """A store that was restarted has lost its keys, honestly."""
    assert _accused(_read(1, None, 0, 1)) == [(1, "a miss of a key that was stored")]
    assert not _accused(_read(1, None, 0, 1), may_lose=True)


def test_reads_without_an_answer_say_nothing() -> None:
    """Unavailable is honest; hung is somebody else's verdict."""
    assert not _accused(_read(1, None, 0, 1, outcome="unavailable"))
    assert not _accused(_read(1, None, 0, 1, outcome="hung"))


def test_noreply_write_has_a_while_to_arrive() -> None:
    """It said "stored" before it was: a moment later that has to be true."""
    write = _write(1, 0, 0.001, sent=True)
    assert not _accused(write, _read(2, INITIAL, SETTLE / 2, SETTLE))
    assert _accused(write, _read(2, INITIAL, SETTLE + 0.1, SETTLE + 0.2)) == [(2, "a stale value")]


def test_acknowledged_write_that_is_gone_in_the_end_was_a_lie() -> None:
    """The write is blamed, not the drill's own look."""
    write = _write(1, 0, 1)
    assert _accused(write, final={"k": INITIAL}) == [(1, "stored, as it said, and lost")]
    assert not _accused(write, final={"k": "w1"})
    assert not _accused(write, final={"k": None})  # the whole key is gone: not this write's doing
    assert not _accused(_unknown(1, 0, 1), final={"k": INITIAL})
    assert not _accused(write, final={"k": "somebody's"})


# A register that keeps its promise, under any schedule: every call takes effect at one moment
# between its beginning and its end; an unknown write at any later moment, or never.


@st.composite
def _histories(draw: st.DrawFn) -> list[Call]:
    moments = st.floats(0, 100, allow_nan=False)
    effects: list[tuple[float, int, str]] = []
    planned: list[tuple[int, str, float, float, float, bool]] = []
    for number in range(draw(st.integers(1, 25))):
        began, length = draw(moments), draw(st.floats(0, 10))
        op = draw(st.sampled_from(["get", "set", "unknown"]))
        share = draw(st.floats(0, 1))
        effect = began + length * share + (draw(moments) if op == "unknown" else 0)
        happens = op != "unknown" or draw(st.booleans())
        planned.append((number, op, began, began + length, effect, happens))
        if op != "get" and happens:
            effects.append((effect, number, f"w{number}"))
    effects.sort()
    return [_played(plan, effects) for plan in planned]


def _played(
    plan: tuple[int, str, float, float, float, bool], effects: list[tuple[float, int, str]]
) -> Call:
    number, op, began, ended, effect, _ = plan
    if op == "set":
        return _write(number, began, ended)
    if op == "unknown":
        return _unknown(number, began, ended)
    value = [token for at, _, token in effects if at <= effect][-1:] or [INITIAL]
    return _read(number, value[0], began, ended)


@given(_histories())
def test_register_that_keeps_its_promise_is_never_accused(calls: list[Call]) -> None:
    """Whatever overlaps, and whenever writes of unknown outcome arrive."""
    assert check(calls, INITIAL) == []


@given(_histories(), st.data())
def test_one_lie_is_found(calls: list[Call], data: st.DataObject) -> None:
    """A read, after everything has ended, of a value that an answered write has replaced."""
    number = len(calls)
    old = data.draw(st.sampled_from(["initial", "written"]))
    end = max(call.ended for call in calls) + 200
    extra = [_write(number, end, end + 1), _write(number + 1, end + 2, end + 3)]
    value = INITIAL if old == "initial" else f"w{number}"
    lie = _read(number + 2, value, end + 4, end + 5)
    assert [found.call.number for found in check([*calls, *extra, lie], INITIAL)] == [number + 2]
