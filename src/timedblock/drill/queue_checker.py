"""Replays the history of a queue: is every message that was confirmed still somewhere?

A load publishes each message once, with an id of its own, and takes some of them back. Each was
delivered to the load or is left in the queue when the load is over, or it is lost:

- what was confirmed (``publish`` is ``ok``) must not be lost, whatever the fault was;
- what never left the process (``sent`` False) must not be anywhere;
- nothing is delivered before its publishing began;
- a body must be the one that was published: it carries its queue, its id and a checksum.

A message whose outcome is unknown may be there or not, and one may be delivered twice (at least
once). These are necessary conditions: what they accuse can't be right. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from timedblock.drill.checker import Violation
from timedblock.drill.history import OK, Call, Delivery

#: What a publish is called in the history.
PUBLISH = "publish"


def check(
    calls: Iterable[Call],
    deliveries: Iterable[Delivery],
    *,
    left: Collection[str] = (),
    spoilt: Collection[str] = (),
) -> list[Violation]:
    """What is wrong in the calls of one load.

    Args:
        calls: in any order.
        deliveries: what the load was given, in any order.
        left: the ids of what was in the queue after it.
        spoilt: the ids of those of them whose body isn't the one that was published.
    """
    first: dict[str, float] = {}
    for one in deliveries:
        first[one.value] = min(one.at, first.get(one.value, one.at))
    published = [call for call in calls if call.op == PUBLISH]
    found = [
        Violation(call, reason)
        for call in published
        for reason in _reasons(call, first, left, spoilt)
    ]
    return sorted(found, key=lambda violation: violation.call.number)


def unfound(
    calls: Iterable[Call], deliveries: Iterable[Delivery], left: Collection[str]
) -> list[str]:
    """The ids of confirmed messages that are nowhere."""
    given = {one.value for one in deliveries}
    confirmed = (call.value for call in calls if call.op == PUBLISH and call.outcome == OK)
    return [one for one in confirmed if one is not None and one not in given and one not in left]


def _reasons(
    call: Call, first: dict[str, float], left: Collection[str], spoilt: Collection[str]
) -> Iterator[str]:
    token = call.value
    assert token is not None
    if token in spoilt:
        yield "a body that nobody published"
    if token in first and first[token] < call.began:
        yield "delivered before it was published"
    there = token in first or token in left
    if call.outcome == OK and not there:
        yield "confirmed, and lost"
    if call.outcome != OK and call.sent is False and there:
        yield "published, though nothing of it had left"
