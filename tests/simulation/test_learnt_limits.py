"""What the learnt limits promise, on virtual time, in small (the whole table: nox -s prove)."""

from __future__ import annotations

import pytest

from timedblock import Percentile, Policy, Retry
from timedblock.simulate import (
    Client,
    Server,
    Simulation,
    Trace,
    bimodal,
    bursts,
    lognormal,
    poisson,
)

TIGHT = Policy(timeout=Percentile(99, margin=1.25, floor=0.01))


def _run(
    seed: int = 1,
    policy: Policy | None = None,
    rate: float = 200.0,
    until: float = 100.0,
    *,
    late: bool = True,
    factor: float = 1.0,
    sigma: float = 0.5,
    median: float = 0.02,
) -> tuple[Client, Trace]:
    """A minute of calm, then `factor` times the latency."""
    simulation = Simulation(seed)
    server = Server(simulation, lognormal(median, sigma))
    client = Client(simulation, server, policy=policy, late_answers=late)
    client.watch()
    client.load(poisson(rate))
    simulation.at(60, server.slow_down, factor)
    simulation.run(until)
    return client, client.trace


@pytest.mark.parametrize("policy", [None, TIGHT])
def test_limits_do_not_ratchet_down(policy: Policy | None) -> None:
    """Cut calls don't make the limit fall: few are cut for ever, at any percentile."""
    client, trace = _run(policy=policy)
    assert trace.share_ok(0, 100) >= 0.99
    assert client.block.learnt.source == "learnt"


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("policy", [None, TIGHT])
@pytest.mark.parametrize("factor", [4.0, 8.0])
def test_a_step_is_learnt_within_seconds(policy: Policy | None, factor: float, late: bool) -> None:
    """With or without late answers, and no breaker opens for slowness."""
    _, trace = _run(2, policy, factor=factor, late=late)
    assert trace.share_ok(60, 61) < 0.995  # the step bites
    assert trace.share_ok(65, 95) >= 0.99
    assert {state for _, state in trace.breaker} == {"closed"}


def test_late_answers_replace_what_was_cut() -> None:
    """Nearly every call that was cut after a step ends as an exact sample."""
    _, trace = _run(3, TIGHT, factor=4.0, until=65)
    assert trace.cuts > 50
    assert trace.late >= 0.9 * trace.cuts


@pytest.mark.parametrize("fault", ["silence", "refuse"])
def test_an_outage_leaves_no_trace(fault: str) -> None:
    """After it the breaker closes at the first probe, and the limit is what it was."""
    simulation = Simulation(1)
    server = Server(simulation, lognormal(0.02, 0.5))
    client = Client(simulation, server)
    client.watch()
    client.load(poisson(200))
    simulation.run(60)
    limit = client.block.limit
    getattr(server, fault)()
    simulation.run(80)
    assert client.block.circuit is not None
    assert client.block.circuit.state != "closed"
    server.heal()
    simulation.run(87)
    assert client.block.circuit.state == "closed"
    assert client.block.limit == pytest.approx(limit, rel=0.2)
    simulation.run(100)
    assert client.trace.share_ok(87, 99) >= 0.99


def test_a_small_share_of_slow_calls_is_learnt() -> None:
    """Five calls in a hundred become slower than the limit: found out, though the most are fast."""
    simulation = Simulation(6)
    server = Server(simulation, bimodal(lognormal(0.0015, 0.5), 0.05, 50))
    client = Client(simulation, server, policy=TIGHT)
    client.watch()
    client.load(poisson(200))
    simulation.at(60, server.slow_down, 4)
    simulation.run(110)
    assert client.trace.share_ok(60, 62) < 0.98
    assert client.trace.share_ok(68, 105) >= 0.99


@pytest.mark.parametrize("rate", [1 / 60, 1.0, 10.0])
def test_tiny_rates_harm_nobody(rate: float) -> None:
    """A process with a call a minute isn't cut more than a busy one."""
    _, trace = _run(1, TIGHT, rate, 3600.0)
    assert trace.share_ok(0, 3590) >= 0.98


def test_bursts_are_one_piece_of_evidence() -> None:
    """Calls that come in bursts, and a server that queues them: learnt, not called dead."""
    simulation = Simulation(1)
    server = Server(simulation, lognormal(0.005, 0.5), concurrency=4)
    client = Client(simulation, server)
    client.watch()
    client.load(bursts(100, 50))
    simulation.run(120)
    assert client.trace.share_ok(60, 119) >= 0.99
    assert {state for _, state in client.trace.breaker} == {"closed"}


@pytest.mark.parametrize("fault", ["silence", "refuse"])
def test_retries_add_a_tenth_at_most(fault: str) -> None:
    """To a dead store: 1.1 times the calls and one, even without a breaker."""
    simulation = Simulation(1)
    server = Server(simulation, lognormal(0.02, 0.5))
    client = Client(simulation, server, policy=Policy(retry=Retry(), breaker=None))
    client.load(poisson(100))
    simulation.run(20)
    getattr(server, fault)()
    calls, reached = len(client.trace), server.received
    simulation.run(80)
    assert server.received - reached > len(client.trace) - calls
    assert server.received - reached <= 1.11 * (len(client.trace) - calls) + 10
