"""What the drill concludes from the records of its loads."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from timedblock import faults
from timedblock.drill.history import Call, Delivery, Sample
from timedblock.drill.load import Schedule
from timedblock.drill.measure import Result, summarise
from timedblock.drill.scenario import Bounds, Episode, Step
from timedblock.drill.starvation import Starved
from timedblock.drill.verdict import Judgement, headline, judge

#: 10 requests/s: 0-9 before the fault, 10-39 in the window (20-39 its last two thirds).
SCHEDULE = Schedule(rate=10, steady=1, window=3, grace=1.25, recovery=1)
GONE = {"hang", "refuse"}


def _call(index: int, took: float = 0.001, kind: str = "ok", late: float = 0.0) -> Call:
    due = SCHEDULE.due(index)
    error = "OSError" if kind == "unavailable" else None
    return _made(index, due + late, due + late + took, kind, error)


def _made(
    index: int, began: float, ended: float, kind: str = "ok", error: str | None = None
) -> Call:
    due = SCHEDULE.due(index)
    return Call("hang", "timedblock", index, "get", "k0", None, due, began, ended, kind, error)


def _calls(took: float = 0.001, kind: str = "ok") -> list[Call]:
    return [_call(index, took, kind) for index in SCHEDULE.requests(0, SCHEDULE.end)]


def _result(
    calls: list[Call], fault: str = "hang", variant: str = "timedblock", limit: float = 1.0
) -> Result:
    return summarise(fault, variant, limit, SCHEDULE, calls)


EPISODES = {
    name: Episode(name, (Step(faults.FAULTS[name](), 1, 4.25),) if name != "none" else ())
    for name in ("none", "hang", "refuse", "latency")
}


def _judge(*results: Result, bounds: Bounds = Bounds()) -> Judgement:  # noqa: B008 - frozen
    return judge(results, EPISODES, dict.fromkeys(EPISODES, bounds), GONE)


def _hung_raw() -> list[Call]:
    hung = [_made(index, SCHEDULE.due(index), SCHEDULE.clear_at, "hung") for index in range(10, 12)]
    return [_call(index) for index in range(10)] + hung


def test_window_is_the_requests_due_while_the_fault_was_on() -> None:
    """Calls before the fault and in the recovery are not among those counted."""
    assert SCHEDULE.window_requests() == range(10, 40)
    assert SCHEDULE.tail_requests() == range(20, 40)
    row = _result(_calls()).row
    assert (row.calls, row.ok, row.unavailable, row.goodput) == (30, 30, 0, 1.0)


def test_error_in_time_is_goodput() -> None:
    """The application went on without the cache: the request was served."""
    result = _result(_calls(kind="unavailable"))
    assert (result.row.ok, result.row.unavailable, result.row.goodput) == (0, 30, 1.0)
    assert result.errors == {"OSError": 30}


def test_lateness_counts_from_when_the_request_was_due() -> None:
    """A request that waited for a thread is late although its own call was fast."""
    row = _result([_call(index, late=0.3) for index in range(40)]).row
    assert row.goodput == 0.0
    assert row.worst == pytest.approx(0.001)


def test_request_that_no_thread_took_is_not_good() -> None:
    """What was due and never began lowers the goodput, and is neither ok nor unavailable."""
    row = _result([_call(index) for index in range(10, 25)]).row
    assert (row.calls, row.ok, row.goodput) == (30, 15, 0.5)


def test_hung_call_counts_as_at_least_the_window() -> None:
    """Its process was ended while it waited: nobody knows how long it would have taken."""
    result = _result(_hung_raw(), variant="raw-default")
    assert result.hung == 2
    assert result.row.worst >= SCHEDULE.window
    assert result.row.over_limit == 2
    assert (result.row.ok, result.row.unavailable, result.row.goodput) == (0, 0, 0.0)
    assert result.recovery is None


def test_hung_call_from_just_before_the_window_counts_too() -> None:
    """A call caught by the fault while it was on its way hung because of the fault."""
    row = _result([_made(9, 0.9, SCHEDULE.clear_at, "hung")], variant="raw-default").row
    assert row.over_limit == 1
    assert row.worst >= SCHEDULE.window


def test_limit_has_a_quarter_second_of_tolerance() -> None:
    """1.24 s passes a limit of 1 s on a busy machine, 1.26 s doesn't."""
    assert _result([_call(10, took=1.24)]).row.over_limit == 0
    assert _result([_call(10, took=1.26)]).row.over_limit == 1


def test_percentiles_are_those_of_the_calls_that_began() -> None:
    """p50 and p99 lie where a sorted list has them."""
    calls = [_call(10 + index, took=0.01 * (index + 1)) for index in range(30)]
    row = _result(calls).row
    assert row.p50 == pytest.approx(0.155)
    assert row.p99 == pytest.approx(0.2971)
    assert row.worst == pytest.approx(0.3)


def test_no_call_at_all_is_told_as_zeros() -> None:
    """A load that recorded nothing has no percentiles and no goodput, and is no error."""
    row = _result([]).row
    assert (row.p50, row.p99, row.worst, row.goodput) == (0.0, 0.0, 0.0, 0.0)


def test_wrong_answer_after_the_fault_counts() -> None:
    """A stale reply that comes to another request once the fault is over is the worst kind."""
    calls = [*_calls()[:-1], _call(_calls()[-1].number, kind="wrong")]
    judgement = _judge(_result(_calls(), "none"), _result(calls))
    assert judgement.problems == ["hang: 1 wrong answer"]


def test_good_run_passes() -> None:
    """Raw hangs, ours goes on: nothing to complain of."""
    judgement = _judge(
        _result(_calls(), "none"),
        _result(_hung_raw(), variant="raw-timeout"),
        _result(_calls(kind="unavailable")),
    )
    assert judgement.passed
    assert [(check.fault, check.passed) for check in judgement.checks] == [("hang", True)]


def test_our_call_past_its_limit_fails_the_drill() -> None:
    """One call of ours that took longer than the limit is enough."""
    calls = _calls()
    calls[15] = _call(15, took=1.3)
    judgement = _judge(_result(_calls(), "none"), _result(calls))
    assert not judgement.passed
    assert "hang: 1 call took longer than the limit of 1 s" in judgement.problems[0]


def test_error_of_ours_that_is_not_unavailable_fails_the_drill() -> None:
    """A call ends in an answer or an honest error; a TypeError is neither."""
    calls = [*_calls(), _made(30, 3.0, 3.1, "dishonest", "TypeError")]
    judgement = _judge(_result(_calls(), "none"), _result(calls))
    assert judgement.problems == ["hang: 1 error other than Unavailable (errors seen: TypeError)"]


def test_raw_call_past_its_limit_does_not_fail_the_drill() -> None:
    """The raw clients are what we compare with, not what is judged."""
    raw = _result(_calls(took=1.5), variant="raw-timeout")
    assert _judge(_result(_calls(), "none"), raw, _result(_calls())).passed


def test_goodput_of_a_gone_store_is_judged_against_the_fault_free_run() -> None:
    """In the last two thirds of the window ours has to serve 0.9 of what it usually serves."""
    slow_start = [_call(i, took=0.5 if i < 20 else 0.001) for i in range(56)]
    assert _judge(_result(_calls(), "none"), _result(slow_start)).passed
    slow = [_call(i, took=0.5 if i < 23 else 0.001) for i in range(56)]
    judgement = _judge(_result(_calls(), "none"), _result(slow))
    assert judgement.problems == [
        "hang: goodput 85.0% in the last two thirds of the fault (without fault: 100.0%)"
    ]


def test_goodput_of_a_sick_store_is_judged_against_raw_timeout() -> None:
    """Where no client can be good, ours must be about as good as raw with 1 s timeouts."""
    slow = _calls(took=0.5)
    assert _judge(
        _result(_calls(), "none"),
        _result(slow, "latency", "raw-timeout"),
        _result(slow, "latency"),
    ).passed
    assert not _judge(
        _result(_calls(), "none"),
        _result(_calls(), "latency", "raw-timeout"),
        _result(slow, "latency"),
    ).passed


def test_fault_that_no_raw_client_noticed_is_named() -> None:
    """A drill whose fault didn't bite proves nothing, and says so."""
    raw = [_result(_calls(), fault, "raw-default") for fault in ("none", "refuse")]
    judgement = _judge(*raw, _result(_calls(), "none"), _result(_calls(), "refuse"))
    assert judgement.notes == ["refuse: no raw client noticed it, so it proves nothing."]


def test_machine_that_cannot_keep_up_is_told() -> None:
    """If raw is late without any fault, the figures say more about the machine than the clients."""
    judgement = _judge(_result(_calls(took=0.3), "none", "raw-default"), _result(_calls(), "none"))
    assert judgement.notes == [
        "This machine is too busy for this load: without a fault raw-default had a goodput of 0.0%."
    ]


def test_slowed_raw_client_noticed_the_fault() -> None:
    """Latency bites without an error."""
    raw = [_result(_calls(), "none", "raw-default"), _result(_calls(0.1), "latency", "raw-default")]
    assert not _judge(*raw).notes


def test_headline_says_what_happened_without_the_table() -> None:
    """Somebody who reads three lines knows how each client did."""
    results = [
        _result(_calls(), "none", "raw-default"),
        _result(_hung_raw(), "hang", "raw-default"),
        _result(_calls(), "refuse", "raw-default"),
        _result(_calls(), "none"),
        _result(_calls(kind="unavailable"), "hang"),
        _result(_calls(kind="unavailable"), "refuse"),
    ]
    assert headline(results) == [
        "raw-default: hung in 1 of 2 faults, calls went past 1 s in 1.",
        "timedblock: no call went past the limit in 2 faults, worst 0.00 s.",
    ]


def test_headline_of_a_run_without_a_fault_is_empty() -> None:
    """An interrupted drill may have nothing but its fault-free run."""
    assert headline([_result(_calls(), "none"), _result(_calls(), "none", "raw-default")]) == []


def test_request_that_began_after_the_fault_is_not_among_its_calls() -> None:
    """A backlog that is served once the fault is lifted doesn't make the fault look harmless."""
    calls = [_call(index, late=SCHEDULE.clear_at - 1) for index in range(10, 40)]
    row = _result(calls).row
    assert (row.calls, row.ok, row.goodput) == (30, 0, 0.0)


def test_stall_of_the_machine_is_no_excuse_for_a_limit() -> None:
    """A call that took too long did: 0.25 s are allowed for the machine, and no more."""
    calls, stall = [_call(10, took=1.7)], [Starved(1.1, 1.7, 0.56)]
    result = summarise("hang", "timedblock", 1.0, SCHEDULE, calls, spans=stall)
    assert result.row.over_limit == 1


def test_hung_call_is_never_excused() -> None:
    """A process that is starved for as long as its fault lasts says nothing for its client."""
    spans = [Starved(0.0, 10.0, 9.0)]
    result = summarise("hang", "raw-default", 1.0, SCHEDULE, _hung_raw(), spans=spans)
    assert result.row.over_limit == 2


def test_call_without_an_answer_on_a_starved_machine_is_stalled() -> None:
    """Half of its time belonged to somebody else: the details say so."""
    calls = [_call(10, took=0.05, kind="unavailable"), _call(11, took=0.05, kind="unavailable")]
    result = summarise("none", "timedblock", 1.0, SCHEDULE, calls, spans=[Starved(1.0, 1.04, 0.03)])
    assert (result.stalled, result.starved) == (1, 0.03)


def _samples(*states: tuple[float, str, str]) -> list[Sample]:
    return [
        Sample("hang", "timedblock", at, 0.1, "learnt", breaker, 0, health)
        for at, breaker, health in states
    ]


LONG = replace(SCHEDULE, recovery=4)


def test_times_are_from_the_fault_and_from_its_end() -> None:
    """Opened and seen count from its beginning, closed and recovered from its end."""
    samples = _samples(
        (0.5, "open", "down"),  # before the fault: not its doing
        (1.1, "closed", "ok"),
        (1.4, "closed", "degraded"),
        (1.6, "open", "down"),
        (5.3, "half-open", "degraded"),
        (5.4, "closed", "ok"),
        (5.6, "open", "down"),
        (6.05, "closed", "ok"),
    )
    late = [_call(i, kind="ok" if i >= 62 else "unavailable") for i in range(53, 90)]
    times = summarise("hang", "timedblock", 1.0, LONG, late, samples).times
    assert (times.seen, times.opened) == (pytest.approx(0.4), pytest.approx(0.6))
    assert times.closed == pytest.approx(0.8)
    assert times.recovered == pytest.approx(0.9)


def test_what_never_happened_has_no_time() -> None:
    """No sample, no answer: None, and a bound on it fails."""
    result = summarise("hang", "timedblock", 1.0, LONG, [], [])
    assert result.times.recovered is result.times.opened is result.times.seen is None
    bounds = Bounds(recovery=1, breaker_opened=1, breaker_closed=1, seen=1, goodput=None)
    problems = _judge(result, bounds=bounds).problems
    assert problems == [
        "hang: answers again: never, not within 1 s",
        "hang: breaker opened: never, not within 1 s",
        "hang: breaker closed: never, not within 1 s",
        "hang: /health not ok: never, not within 1 s",
    ]


def test_bounds_in_time_pass() -> None:
    """What came in time is a verdict, too: the bound and the value beside it."""
    result = _result(_calls())
    (verdict,) = [
        one for one in _judge(result, bounds=Bounds(p99=0.5)).verdicts if one.name == "p99"
    ]
    assert verdict.passed
    assert (verdict.bound, verdict.value) == (0.5, result.row.p99)


def _back_at(second: float) -> list[Call]:
    """No answer from the fault's beginning to some second of the load."""
    return [
        _call(index, kind="unavailable" if 1 <= SCHEDULE.due(index) < second else "ok")
        for index in SCHEDULE.requests(0, SCHEDULE.end)
    ]


@pytest.mark.parametrize(
    ("ours", "value", "passed"), [(2.0, 0.0, True), (3.0, 0.5, True), (3.2, 0.7, False)]
)
def test_way_is_counted_from_when_a_new_connection_had_one(
    ours: float, value: float, passed: bool
) -> None:
    """The witness gets through at 2.5 s: before that nobody could."""
    witness = _result(_back_at(2.5), variant="raw-fresh")
    verdicts = _judge(_result(_back_at(ours)), witness, bounds=Bounds(way=0.6)).verdicts
    (way,) = [one for one in verdicts if one.name == "way"]
    assert way.value == pytest.approx(value, abs=0.11)  # it is looked at each 0.1 s
    assert way.passed == passed
    assert way.words.endswith(", within 0.6 s" if passed else ", not within 0.6 s")


def test_witness_that_never_gets_through_proves_nothing() -> None:
    """Then the verdict fails, and says so."""
    witness = _result(_calls(kind="unavailable"), variant="raw-fresh")
    problems = _judge(_result(_calls()), witness, bounds=Bounds(way=5, goodput=None)).problems
    assert problems == ["hang: raw-fresh never found a way, so it proves nothing"]


def test_fault_that_the_witness_does_not_notice_is_no_excuse() -> None:
    """There was a way all the time."""
    witness = _result(_calls(), variant="raw-fresh")
    judged = _judge(_result(_back_at(4.0)), witness, bounds=Bounds(way=2.0, goodput=None))
    (problem,) = judged.problems
    assert re.fullmatch(
        r"hang: answers again, after raw-fresh had one: (2\.9|3\.0)0 s, not within 2 s", problem
    )


def test_silence_of_a_consumer_is_its_longest_wait_to_the_end_of_the_fault() -> None:
    """Also the one that has not ended by then; what comes later is not counted."""
    given = [Delivery("hang", "timedblock", at, f"m{at:g}") for at in (0.5, 1.0, 2.5, 5.5)]
    result = summarise("hang", "timedblock", 1.0, SCHEDULE, _calls(), deliveries=given)
    assert (result.delivered, result.silence) == (4, 2.75)
    assert _result(_calls()).silence is None


def test_what_is_not_asked_is_not_judged() -> None:
    """A bound that is off leaves no verdict behind."""
    off = Bounds(limit_kept=False, no_wrong_answer=None, goodput=None)
    assert _judge(_result(_calls(took=3)), bounds=off).verdicts == []


def test_fixed_variant_is_judged_by_its_own_run() -> None:
    """And the message names it, because it is not the default."""
    judgement = _judge(
        _result(_calls(), "none", "timedblock-fixed", 0.25),
        _result(_calls(took=0.6), "hang", "timedblock-fixed", 0.25),
    )
    assert judgement.problems[0].startswith("hang with timedblock-fixed: ")
    assert [check.against for check in judgement.checks] == ["without fault"]


def test_without_anything_to_compare_with_every_request_counts() -> None:
    """A scenario may run neither the baseline nor raw-timeout."""
    (check,) = _judge(_result(_calls())).checks
    assert (check.reference, check.against) == (1.0, "all requests")


def test_closed_loop_counts_what_was_made() -> None:
    """Nobody knows how many requests were due: those of the window that were made are."""
    closed = replace(SCHEDULE, rate=0)
    calls = [*_calls(), _made(900, 1.5, 4.0)._replace(due=1.5)]
    row = summarise("hang", "timedblock", 5.0, closed, calls).row
    assert (row.calls, row.ok) == (31, 31)
    assert row.goodput == pytest.approx(30 / 31, abs=1e-6)


def test_targets_have_runs_without_fault_of_their_own() -> None:
    """With several targets each is compared with itself."""
    results = [
        _result(_calls(took=0.6), "none@a"),
        _result(_calls(), "none@b"),
        _result(_calls(), "hang@b"),
    ]
    names = {result.row.fault: EPISODES[result.row.fault.partition("@")[0]] for result in results}
    checks = judge(results, names, dict.fromkeys(names, Bounds()), GONE).checks
    assert [(check.fault, check.reference) for check in checks] == [("hang@b", 1.0)]


def test_bystander_proves_nothing_and_need_not() -> None:
    """A target that had no fault in an episode isn't named as one whose fault didn't bite."""
    raw = [_result(_calls(), name, "raw-default") for name in ("none@a", "hang@a")]
    episodes = {"none@a": EPISODES["none"], "hang@a": EPISODES["none"]}
    assert judge(raw, episodes, dict.fromkeys(episodes, Bounds()), GONE).notes == []
