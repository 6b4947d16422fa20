"""The queue's checker: what was confirmed is somewhere, what never left is nowhere."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from timedblock.drill.history import Call, Delivery
from timedblock.drill.queue_checker import check, unfound


def _publish(number: int, began: float = 0.0, **more: Any) -> Call:
    told = {"outcome": "ok", "error": None, "sent": None, **more}
    times = began, began, began + 0.1
    return Call("none", "x", number, "publish", "queue", f"m{number}", *times, **told)


def _unsure(number: int, sent: bool) -> Call:
    return _publish(number, outcome="unavailable", error="E", sent=sent)


def _given(number: int, at: float) -> Delivery:
    return Delivery("none", "x", at, f"m{number}")


def _accused(*calls: Call, deliveries: tuple[Delivery, ...] = (), **more: Any) -> list[Any]:
    return [(one.call.number, one.reason) for one in check(calls, deliveries, **more)]


def test_confirmed_message_is_delivered_or_left() -> None:
    """Or it is lost."""
    assert not _accused(_publish(1), left={"m1"})
    assert not _accused(_publish(1), deliveries=(_given(1, 1.0),))
    assert _accused(_publish(1)) == [(1, "confirmed, and lost")]


def test_message_that_never_left_is_nowhere() -> None:
    """``sent`` False is a promise; one whose outcome is unknown may be there or not."""
    broken = [(1, "published, though nothing of it had left")]
    assert _accused(_unsure(1, sent=False), left={"m1"}) == broken
    assert _accused(_unsure(1, sent=False), deliveries=(_given(1, 1.0),)) == broken
    assert not _accused(_unsure(1, sent=False))
    assert not _accused(_unsure(1, sent=True), left={"m1"})
    assert not _accused(_unsure(1, sent=True))


def test_message_is_not_delivered_before_it_is_published() -> None:
    """It may be before its confirm has come."""
    late = _publish(1, began=5.0)
    assert not _accused(late, deliveries=(_given(1, 5.05), _given(1, 7.0)))
    assert _accused(late, deliveries=(_given(1, 4.9), _given(1, 6.0))) == [
        (1, "delivered before it was published")
    ]


def test_spoilt_body_accuses_the_message_of_its_id() -> None:
    """It isn't the one that was published."""
    found = _accused(_publish(1), _publish(2), left={"m1", "m2"}, spoilt={"m2"})
    assert found == [(2, "a body that nobody published")]


def test_a_get_is_not_a_message() -> None:
    """Its value is what was taken, and isn't lost."""
    taken = _publish(1)._replace(op="get", value="m7")
    assert not _accused(taken)
    assert unfound([taken], [], set()) == []


@given(st.sets(st.integers(0, 50)), st.sets(st.integers(0, 50)), st.sets(st.integers(0, 50)))
def test_exactly_the_confirmed_that_are_nowhere_are_accused(
    confirmed: set[int], delivered: set[int], left: set[int]
) -> None:
    """Whatever else was published, delivered or left."""
    calls = [
        _publish(number) if number in confirmed else _unsure(number, sent=True)
        for number in range(51)
    ]
    deliveries = [_given(number, 1.0) for number in delivered]
    there = {f"m{number}" for number in left}
    lost = sorted(confirmed - delivered - left)
    assert [one.call.number for one in check(calls, deliveries, left=there)] == lost
    assert sorted(unfound(calls, deliveries, there)) == sorted(f"m{number}" for number in lost)
