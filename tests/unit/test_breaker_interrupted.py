"""A KeyboardInterrupt in the middle of a breaker's decision doesn't break the breaker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.interrupts import every_line
from timedblock.policy import Breaker, breaker
from timedblock.policy.breaker import CLOSED, OPEN, Circuit, Lease, Refusal

CONFIG = Breaker(failures=2, open_for=0.5, open_max=0.5)


def _fail(circuit: Circuit, now: float) -> None:
    circuit.failure(now, now, "refused", _permit(circuit, now))


def _permit(circuit: Circuit, now: float) -> Lease | None:
    """As a call does it: the circuit is asked only while it is shut."""
    answer = circuit.admit(now, 1.0) if circuit.shut else None
    assert not isinstance(answer, Refusal), "it refuses what it should let through"
    return answer


def _opens_and_closes(circuit: Circuit, now: float) -> None:
    """Failures open it, an answered probe closes it, whatever it is now."""
    for _ in range(4):
        now += 5
        _fail(circuit, now)
    assert circuit.state == OPEN
    assert circuit.shut
    assert isinstance(circuit.admit(now, 1.0), Refusal)
    now += 5
    circuit.success(now, _permit(circuit, now))
    assert circuit.state == CLOSED
    assert _permit(circuit, now) is None
    assert not circuit.shut


def test_interrupted_while_it_opens(untraced: None) -> None:
    """At whatever line of the failure that opens it: it can still open, and close."""

    def prepare() -> Callable[[], Any]:
        circuit = circuits[-1]
        return lambda: [_fail(circuit, 1.0), _fail(circuit, 2.0)]

    circuits = [Circuit(CONFIG)]
    for _ in every_line(breaker, prepare):
        _opens_and_closes(circuits[-1], 100.0)
        circuits.append(Circuit(CONFIG))


def test_interrupted_while_it_closes(untraced: None) -> None:
    """At whatever line of the probe that closes it: it can still open, and close."""

    def opened() -> Circuit:
        circuit = Circuit(CONFIG)
        _fail(circuit, 1.0)
        _fail(circuit, 2.0)
        return circuit

    def prepare() -> Callable[[], Any]:
        circuit = circuits[-1]
        return lambda: circuit.success(10.0, _permit(circuit, 10.0))

    circuits = [opened()]
    for _ in every_line(breaker, prepare):
        _opens_and_closes(circuits[-1], 100.0)
        circuits.append(opened())
