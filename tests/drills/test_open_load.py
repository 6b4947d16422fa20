"""The load itself: requests keep coming due, whatever the client does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from timedblock.drill.load import Answer, ClosedLoad, OpenLoad, Request, Schedule

pytestmark = pytest.mark.wall

SCHEDULE = Schedule(rate=100, steady=0.2, window=0.5, grace=0.2, recovery=0.2)


class _Session:
    """Requests that do one thing; every third one writes."""

    def __init__(self, work: Callable[[int], object]) -> None:
        self._work = work

    def enter(self) -> None:
        pass

    def finish(self) -> list[tuple[float, str]]:
        return []

    def request(self, number: int) -> Request:
        return Request("get", "k1") if number % 3 else Request("set", "k2", f"w{number}")

    def answer(self, number: int) -> Answer:
        self._work(number)
        return Answer("ok", "0")


def _open(work: Callable[[int], object], start: float, threads: int) -> OpenLoad:
    return OpenLoad("none", "x", _Session(work), SCHEDULE, start, threads)


def test_every_request_is_made_once_at_its_time(no_leaks: None) -> None:
    """110 requests in 1.1 s, none before it was due."""
    calls = _open(lambda number: None, time.monotonic() + 0.05, threads=4).run()
    assert sorted(call.number for call in calls) == list(SCHEDULE.requests(0, SCHEDULE.end))
    assert all(call.began >= call.due == SCHEDULE.due(call.number) for call in calls)
    for call in calls:
        expected = ("get", "k1", "0") if call.number % 3 else ("set", "k2", f"w{call.number}")
        assert (call.op, call.key, call.value) == expected


def test_request_without_a_thread_is_late_from_when_it_was_due() -> None:
    """With one thread and calls of 50 ms, requests due each 10 ms begin ever later."""

    calls = _open(lambda number: time.sleep(0.05), time.monotonic(), threads=1).run()
    late = {call.number: call.began - SCHEDULE.due(call.number) for call in calls}
    assert late[10] > 0.3
    assert max(late) < 30


def test_calls_that_hang_are_reported_when_the_fault_is_lifted() -> None:
    """The load doesn't wait for them: it tells how long they have been in flight."""
    released = threading.Event()

    start = time.monotonic()
    calls = _open(lambda number: number >= 20 and released.wait(), start, threads=4).run()
    released.set()
    assert time.monotonic() - start < SCHEDULE.clear_at + 0.25
    hung = [call for call in calls if call.outcome == "hung"]
    assert [call.number for call in hung] == [20, 21, 22, 23]
    assert all(call.duration > SCHEDULE.window for call in hung)
    assert [call.value for call in hung] == [None, "w21", None, None]  # what may be written


def test_calls_that_the_end_of_the_fault_ends_hung_all_the_same() -> None:
    """The load looks 50 ms after the fault was lifted, when they have long been answered."""
    start = time.monotonic() + 0.05
    lifted = start + SCHEDULE.clear_at
    began = []

    def work(number: int) -> None:
        if number >= 20:
            began.append(number)
            time.sleep(max(0.0, lifted - time.monotonic()))

    load = _open(work, start, threads=4)
    load.starts_at(start + 0.05, lifted)
    calls = load.run()
    hung = [call for call in calls if call.outcome == "hung"]
    assert [call.number for call in hung] == [20, 21, 22, 23]
    assert all(call.ended == pytest.approx(SCHEDULE.clear_at - 0.05) for call in hung)
    # Those four had every thread: what follows began after the fault.
    assert len(began) > 4 and sorted(call.number for call in calls) == list(range(24))


def test_closed_load_makes_a_request_when_the_one_before_has_ended(no_leaks: None) -> None:
    """Two threads, 20 ms of work and 30 ms of pause: about 40 requests/s, until the end."""
    schedule = replace(SCHEDULE, rate=0)
    session = _Session(lambda number: time.sleep(0.02))
    calls = ClosedLoad("none", "x", session, schedule, time.monotonic(), 2, think=0.03).run()
    assert [call.number for call in sorted(calls)] == list(range(len(calls)))
    assert 10 <= len(calls) <= 2 * SCHEDULE.end / 0.05 + 2
    assert all(call.due <= call.began < schedule.end + 0.25 for call in calls)
    assert min(call.duration for call in calls) >= 0.02


def test_closed_load_makes_few_requests_of_a_slow_store() -> None:
    """That is what coordinated omission is; the open loop is there to avoid it."""
    schedule = replace(SCHEDULE, rate=0)
    session = _Session(lambda number: time.sleep(0.4))
    calls = ClosedLoad("none", "x", session, schedule, time.monotonic(), 2).run()
    assert 2 <= len(calls) <= 6
