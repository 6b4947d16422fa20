"""Every rule of the breaker, on instants written by hand."""

from __future__ import annotations

import random

import pytest

from timedblock import Breaker
from timedblock.policy.breaker import CLOSED, HALF_OPEN, OPEN, Circuit, Lease, Refusal


class _Told(list[tuple[str, str, str, float]]):
    def __call__(self, *change: object) -> None:
        self.append(change)  # type: ignore[arg-type]


def _circuit(answered: int = 0, **config: object) -> Circuit:
    return Circuit(
        Breaker(**config),  # type: ignore[arg-type]
        answered_within=lambda now, seconds: answered,
        rng=random.Random(1),
    )


def _open(now: float = 0.0, **config: object) -> Circuit:
    circuit = _circuit(failures=1, **config)
    circuit.failure(now, now, "OSError")
    assert circuit.state == OPEN
    return circuit


def _probe(circuit: Circuit, now: float, longest: float = 1.0) -> Lease:
    lease = circuit.admit(now, longest)
    assert isinstance(lease, Lease)
    return lease


# -- opening ----------------------------------------------------------------------------------


def test_consecutive_failures_open_it() -> None:
    """The fifth failure in a row opens it, the fourth doesn't."""
    circuit = _circuit()
    for second in range(4):
        circuit.failure(second + 0.5, second, "OSError")
        assert circuit.state == CLOSED
    circuit.failure(4.5, 4, "OSError")
    assert (circuit.state, circuit.shut) == (OPEN, True)


def test_a_success_in_between_starts_the_count_anew() -> None:
    """Four failures, an answer, four failures: closed."""
    circuit = _circuit(failure_rate=None)
    for second in range(9):
        if second == 4:
            circuit.success(second)
        else:
            circuit.failure(second + 0.5, second, "OSError")
    assert circuit.state == CLOSED
    assert circuit.attentive


def test_calls_in_flight_together_are_one_piece_of_evidence() -> None:
    """A hundred calls that began together and failed are one failure in a row, not a hundred."""
    circuit = _circuit()
    for number in range(100):
        circuit.failure(1.0 + number / 1000, 0.5, "OSError")
    assert (circuit.state, circuit.failures) == (CLOSED, 1)


def test_a_call_that_began_after_the_last_failure_is_new_evidence() -> None:
    """Five waves of failures, each begun after the last ended, open it."""
    circuit = _circuit()
    for wave in range(5):
        for _ in range(10):
            circuit.failure(wave + 0.9, wave, "OSError")
    assert circuit.state == OPEN


def test_the_failure_rate_needs_its_volume() -> None:
    """Half of the calls failing opens it from minimum_calls on, not before."""
    few = _circuit(answered=5, failures=1000, minimum_calls=20)
    enough = _circuit(answered=10, failures=1000, minimum_calls=20)
    for circuit in (few, enough):
        for number in range(10):
            circuit.failure(number / 10 + 0.05, number / 10, "OSError")
    assert (few.state, enough.state) == (CLOSED, OPEN)


def test_the_failure_rate_forgets_what_is_older_than_the_window() -> None:
    """Failures from before the window don't count."""
    circuit = _circuit(failures=1000, minimum_calls=10, window=10.0)
    for number in range(9):
        circuit.failure(number * 0.1, number * 0.1, "OSError")
    circuit.failure(20.0, 20.0, "OSError")
    assert circuit.state == CLOSED


def test_a_single_burst_isnt_a_rate() -> None:
    """A hundred calls cut together by one hiccup are one piece of evidence for the rate too."""
    circuit = _circuit(failures=5, minimum_calls=20)
    for _ in range(100):
        circuit.failure(1.0, 0.5, "OSError")
    assert circuit.state == CLOSED


# -- slow is not dead -------------------------------------------------------------------------


def _cut(circuit: Circuit, began: float, now: float, **fields: object) -> None:
    arguments = {"limit": 0.1, "learnt": True, "ceiling": 1.0, **fields}
    circuit.cut(now, began, **arguments)  # type: ignore[arg-type]


def test_a_learnt_limit_is_slow_until_ten_limits_of_silence() -> None:
    """Cut at a learnt limit: no failure before nothing was heard for 10 × the limit; then all."""
    circuit = _circuit()
    for number in range(9):
        _cut(circuit, number * 0.1, number * 0.1 + 0.1)
    assert circuit.failures == 0
    _cut(circuit, 0.9, 1.0)
    assert circuit.state == OPEN


def test_the_silence_is_capped_by_the_ceiling() -> None:
    """A limit of 0.4 s under a ceiling of 1 s: dead after 1 s of silence, not after 4."""
    circuit = _circuit()
    _cut(circuit, 0.0, 0.4, limit=0.4)
    _cut(circuit, 0.4, 0.8, limit=0.4)
    assert circuit.failures == 0
    _cut(circuit, 0.8, 1.2, limit=0.4)
    assert circuit.failures == 1


@pytest.mark.parametrize("sign", ["heard", "success", "connected"])
def test_any_sign_of_life_ends_the_silence(sign: str) -> None:
    """A byte, an answer or a connection: the ten limits begin anew."""
    circuit = _circuit()
    for number in range(9):
        _cut(circuit, number * 0.1, number * 0.1 + 0.1)
    if sign == "heard":
        circuit.heard()
    elif sign == "success":
        circuit.success(0.9)
    else:
        circuit.connected(0.9)
    for number in range(9, 18):
        _cut(circuit, number * 0.1, number * 0.1 + 0.1)
    assert circuit.failures == 0


def test_silence_is_time_not_calls() -> None:
    """Fifty calls that listened in vain at the same time were one time of silence."""
    circuit = _circuit()
    for number in range(50):
        _cut(circuit, number / 1000, 0.1 + number / 1000)
    assert circuit.failures == 0


def test_a_limit_that_isnt_learnt_counts_at_once() -> None:
    """Fixed, initial, ceiling: one cut is one failure."""
    circuit = _circuit()
    _cut(circuit, 0.0, 1.0, limit=1.0, learnt=False)
    assert circuit.failures == 1


def test_silence_opens_it_in_the_end() -> None:
    """A dead store is found behind a learnt limit too: after 10 limits."""
    circuit = _circuit()
    now = 0.0
    while circuit.state == CLOSED and now < 10:
        _cut(circuit, now, now + 0.1)
        now += 0.1
    assert circuit.state == OPEN
    assert now == pytest.approx(1.0)


def test_slow_calls_that_began_together_are_one_piece_of_evidence_too() -> None:
    """Fifty calls cut in one hiccup as long as the ceiling are one failure, and it stays closed."""
    circuit = _circuit()
    for number in range(50):
        _cut(circuit, number / 1000, 1.0 + number / 1000, limit=1.0)
    assert (circuit.failures, circuit.state) == (1, CLOSED)


def test_the_slow_rate_opens_only_where_asked_for() -> None:
    """slow_rate is off by default; set, too many slow calls open it though it lives."""
    default, asked = _circuit(answered=20), _circuit(answered=20, slow_rate=0.5)
    for circuit in (default, asked):
        for number in range(25):
            _cut(circuit, number * 0.2, number * 0.2 + 0.1)
            circuit.heard()
    assert (default.state, asked.state) == (CLOSED, OPEN)


def test_the_slow_rate_forgets_too() -> None:
    """Slow calls from before the window don't count."""
    circuit = _circuit(slow_rate=0.5, minimum_calls=10, window=5.0)
    for number in range(30):
        _cut(circuit, number * 1.0, number * 1.0 + 0.1)
        circuit.heard()
    assert circuit.state == CLOSED


# -- somebody else's deadline -----------------------------------------------------------------


def test_waits_of_starved_calls_add_up_to_failures() -> None:
    """Calls cut by somebody else's deadline: one failure for each limit of silence together."""
    circuit = _circuit()
    for number in range(24):
        circuit.starved(number * 0.02 + 0.02, number * 0.02, limit=0.1)
    assert circuit.failures == 4
    circuit.starved(0.5, 0.48, limit=0.1)
    assert circuit.state == OPEN


def test_an_answer_ends_the_waits() -> None:
    """Anything heard in between: the waits begin anew."""
    circuit = _circuit()
    for number in range(100):
        circuit.starved(number * 0.02 + 0.02, number * 0.02, limit=0.1)
        if number % 3 == 0:
            circuit.success(number * 0.02 + 0.02)
    assert (circuit.state, circuit.failures) == (CLOSED, 0)


def test_short_deadlines_before_a_limit_that_grew_open_it_after_one_silence() -> None:
    """Pages of 0.25 s on a store that is gone, while the limit has doubled up to the ceiling: one
    ceiling of silence and five calls open it, not five ceilings."""
    circuit = _circuit()
    for number in range(3):
        circuit.starved(number * 0.25 + 0.25, number * 0.25, limit=1.0, patience=1.0)
    assert (circuit.state, circuit.failures) == (CLOSED, 0)
    for number in range(3, 5):
        circuit.starved(number * 0.25 + 0.25, number * 0.25, limit=1.0, patience=1.0)
    assert circuit.state == OPEN


def test_short_deadlines_that_began_together_are_no_long_silence() -> None:
    """Twenty calls that began in the same moment say no more than one."""
    circuit = _circuit()
    for _ in range(20):
        circuit.starved(1.1, 0.0, limit=2.0, patience=1.0)
    assert circuit.state == CLOSED


def test_starved_calls_dont_touch_an_open_circuit() -> None:
    """What began before it opened is the result of an older state."""
    circuit = _open()
    retry = circuit.retry_after(0.1)
    circuit.starved(0.1, 0.0, limit=0.01)
    assert circuit.retry_after(0.1) == retry


# -- open and half-open -----------------------------------------------------------------------


def test_an_open_circuit_refuses_with_the_time_that_is_left() -> None:
    """retry_after counts down to the probe."""
    circuit = _open()
    first = circuit.admit(0.1, 1.0)
    later = circuit.admit(0.2, 1.0)
    assert isinstance(first, Refusal)
    assert isinstance(later, Refusal)
    assert first.retry_after - later.retry_after == pytest.approx(0.1)
    assert first.retry_after == pytest.approx(circuit.retry_after(0.1))


@pytest.mark.parametrize("seed", range(20))
def test_the_open_time_is_open_for_and_up_to_a_quarter_more(seed: int) -> None:
    """open_for × 1-1.25."""
    circuit = Circuit(Breaker(failures=1, open_for=0.5), rng=random.Random(seed))
    circuit.failure(0.0, 0.0, "OSError")
    assert 0.5 <= circuit.retry_after(0.0) <= 0.625


def test_the_open_time_doubles_up_to_open_max() -> None:
    """Each failed probe doubles it; closing resets it."""
    circuit = _open(open_for=0.5, open_max=3.0)
    now, bases = 0.0, []
    for _ in range(5):
        now += circuit.retry_after(now)
        lease = _probe(circuit, now)
        circuit.failure(now, now, "OSError", lease)
        bases.append(circuit.retry_after(now))
    for base, expected in zip(bases, [1.0, 2.0, 3.0, 3.0, 3.0], strict=True):
        assert expected <= base <= expected * 1.25
    now += circuit.retry_after(now)
    circuit.success(now, _probe(circuit, now))
    circuit.failure(now, now, "OSError")
    assert 0.5 <= circuit.retry_after(now) <= 0.625


@pytest.mark.parametrize("probes", [1, 3])
def test_exactly_probes_calls_get_through_half_open(probes: int) -> None:
    """Of fifty callers at the half-open circuit `probes` get a lease."""
    circuit = _open(probes=probes)
    answers = [circuit.admit(1.0, 1.0) for _ in range(50)]
    assert sum(isinstance(answer, Lease) for answer in answers) == probes


def test_all_probes_must_succeed() -> None:
    """Two of two answered close it; one of two doesn't; no third is let through meanwhile."""
    circuit = _open(probes=2)
    first, second = _probe(circuit, 1.0), _probe(circuit, 1.0)
    circuit.success(1.1, first)
    assert circuit.state == HALF_OPEN
    assert isinstance(circuit.admit(1.1, 1.0), Refusal)
    circuit.success(1.2, second)
    assert circuit.state == CLOSED


def test_one_failed_probe_opens_it_again() -> None:
    """The other probe's late success changes nothing."""
    circuit = _open(probes=2)
    first, second = _probe(circuit, 1.0), _probe(circuit, 1.0)
    circuit.failure(1.1, 1.0, "OSError", first)
    assert circuit.state == OPEN
    circuit.success(1.2, second)
    assert circuit.state == OPEN


def test_a_probe_cut_at_a_learnt_limit_failed() -> None:
    """A probe has no ten limits of patience."""
    circuit = _open()
    lease = _probe(circuit, 1.0)
    _cut(circuit, 1.0, 1.1, lease=lease)
    assert circuit.state == OPEN


def test_late_results_of_an_older_state_are_ignored() -> None:
    """Calls without a live lease neither close, nor open again, nor lengthen."""
    circuit = _open()
    retry = circuit.retry_after(0.1)
    circuit.success(0.1)
    circuit.failure(0.1, -1.0, "OSError")
    _cut(circuit, -1.0, 0.1, learnt=False)
    assert (circuit.state, circuit.retry_after(0.1)) == (OPEN, retry)
    lease = _probe(circuit, 1.0)
    circuit.failure(1.0, 0.0, "OSError")
    circuit.success(1.0)
    assert circuit.state == HALF_OPEN
    circuit.success(1.0, lease)
    assert circuit.state == CLOSED
    circuit.success(1.0, lease)
    assert circuit.state == CLOSED


def test_a_released_probe_goes_to_the_next_caller() -> None:
    """An abandoned probe is neither success nor failure."""
    circuit = _open()
    lease = _probe(circuit, 1.0)
    assert isinstance(circuit.admit(1.0, 1.0), Refusal)
    circuit.release(lease)
    circuit.release(None)
    _probe(circuit, 1.0)


def test_a_lost_probe_expires() -> None:
    """A lease that outlives its call's limit is given to another; its own result is ignored."""
    circuit = _open()
    lost = _probe(circuit, 1.0, longest=1.0)
    refused = circuit.admit(1.5, 1.0)
    assert isinstance(refused, Refusal)
    assert refused.retry_after == pytest.approx(1.5)
    fresh = _probe(circuit, 3.1)
    circuit.failure(3.2, 1.0, "OSError", lost)
    assert circuit.state == HALF_OPEN
    circuit.success(3.3, fresh)
    assert circuit.state == CLOSED


def test_a_background_connect_grants_a_probe_at_once() -> None:
    """An open endpoint to which a connection was made is tried without waiting."""
    circuit = _open(open_for=5.0)
    assert isinstance(circuit.admit(0.1, 1.0), Refusal)
    circuit.connected(0.1)
    _probe(circuit, 0.1)
    circuit.connected(0.1)  # half-open already: no second probe
    assert isinstance(circuit.admit(0.1, 1.0), Refusal)


def test_a_probe_older_than_a_connection_says_nothing_of_it() -> None:
    """It fails when another way has been found meanwhile: that one is tried without waiting."""
    circuit = _open(open_for=5.0)
    probe = _probe(circuit, 6.3)
    circuit.connected(7.0)
    circuit.failure(7.3, 6.3, "TimeoutError", probe)
    assert circuit.state == OPEN
    fresh = _probe(circuit, 7.3)
    circuit.failure(7.4, 7.3, "TimeoutError", fresh)
    assert isinstance(circuit.admit(12.0, 1.0), Refusal)


def test_changes_are_told_outside_the_lock() -> None:
    """The callback may ask the circuit."""
    seen: list[str] = []
    circuit = Circuit(Breaker(failures=1), on_change=lambda *change: seen.append(change[1]))
    circuit._on_change = lambda *change: (circuit.admit(0.0, 1.0), seen.append(change[1]))
    circuit.failure(0.0, 0.0, "OSError")
    assert seen == [OPEN]


def test_it_can_be_forced() -> None:
    """By hand: open, closed; to where it is already, nothing happens."""
    told = _Told()
    circuit = Circuit(Breaker(), on_change=told)
    circuit.force(CLOSED, "by hand", 0.0)
    assert told == []
    circuit.force(OPEN, "by hand", 0.0)
    assert isinstance(circuit.admit(0.1, 1.0), Refusal)
    circuit.force(CLOSED, "by hand", 0.2)
    assert circuit.admit(0.2, 1.0) is None
    assert [change[:3] for change in told] == [
        (CLOSED, OPEN, "by hand"),
        (OPEN, CLOSED, "by hand"),
    ]


def test_closing_forgets_the_failures_before() -> None:
    """After recovery one failure isn't the sixth."""
    circuit = _open()
    circuit.success(1.0, _probe(circuit, 1.0))
    assert (circuit.failures, circuit.attentive, circuit.shut) == (0, False, False)


def test_a_fork_frees_the_lock_and_the_probes() -> None:
    """The parent's probe isn't the child's, nor is its lock."""
    circuit = _open()
    _probe(circuit, 1.0)
    circuit._lock.acquire()
    circuit.after_fork()
    _probe(circuit, 1.0)


def test_a_silence_with_many_calls_in_flight_is_found_when_it_is_long_enough() -> None:
    """200 calls a second, each limited to a second: dead after 1.5 s, not after five limits."""
    circuit = _circuit()
    opened = None
    for number in range(400):
        began = number / 200
        _cut(circuit, began, began + 1.0, limit=1.0)
        if opened is None and circuit.state == OPEN:
            opened = began + 1.0
    assert opened == pytest.approx(1.5, abs=0.01)


def test_calls_that_began_together_are_no_silence_of_their_own() -> None:
    """Fifty calls begun at once and cut at the ceiling are one failure at the most."""
    circuit = _circuit()
    for _ in range(50):
        _cut(circuit, 0.0, 1.0, limit=1.0)
    assert circuit.failures <= 1
    assert circuit.state == CLOSED
