"""The load itself: requests keep coming due, whatever the client does."""

from __future__ import annotations

import threading
import time

import pytest

from timedblock.drill.load import OpenLoad, Outcome, Schedule

pytestmark = pytest.mark.wall

SCHEDULE = Schedule(rate=100, steady=0.2, window=0.5, grace=0.2, recovery=0.2)


def test_every_request_is_made_once_at_its_time(no_leaks: None) -> None:
    """110 requests in 1.1 s, none before it was due."""
    load = OpenLoad(lambda index: Outcome("ok"), SCHEDULE, time.monotonic() + 0.05, threads=4)
    calls = load.run()
    assert sorted(call.number for call in calls) == list(SCHEDULE.requests(0, SCHEDULE.end))
    assert all(call.began >= SCHEDULE.due(call.number) for call in calls)


def test_request_without_a_thread_is_late_from_when_it_was_due() -> None:
    """With one thread and calls of 50 ms, requests due each 10 ms begin ever later."""

    def slow(index: int) -> Outcome:
        time.sleep(0.05)
        return Outcome("ok")

    calls = OpenLoad(slow, SCHEDULE, time.monotonic(), threads=1).run()
    late = {call.number: call.began - SCHEDULE.due(call.number) for call in calls}
    assert late[10] > 0.3
    assert max(late) < 30


def test_calls_that_hang_are_reported_when_the_fault_is_lifted() -> None:
    """The load doesn't wait for them: it tells how long they have been in flight."""
    released = threading.Event()

    def hangs(index: int) -> Outcome:
        if index >= 20:
            released.wait()
        return Outcome("ok")

    start = time.monotonic()
    calls = OpenLoad(hangs, SCHEDULE, start, threads=4).run()
    released.set()
    assert time.monotonic() - start < SCHEDULE.clear_at + 0.25
    hung = [call for call in calls if call.kind == "hung"]
    assert [call.number for call in hung] == [20, 21, 22, 23]
    assert all(call.duration > SCHEDULE.window for call in hung)
