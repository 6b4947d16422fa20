"""The simulator: deterministic, and driving the production machine."""

from __future__ import annotations

import pytest

from timedblock import Fixed, Percentile, Policy, Retry
from timedblock.simulate import (
    CUT,
    FAILED,
    OK,
    REFUSED,
    Client,
    LeastConnections,
    RandomChoice,
    RoundRobin,
    Server,
    Simulation,
    bimodal,
    bursts,
    constant,
    fixed,
    gamma,
    lognormal,
    poisson,
)


def _run(seed: int) -> Client:
    simulation = Simulation(seed)
    servers = [Server(simulation, lognormal(0.02, 1.0), concurrency=4) for _ in range(3)]
    client = Client(simulation, RandomChoice(servers), policy=Policy(retry=Retry()))
    client.watch()
    client.load(poisson(100))
    simulation.at(10, servers[0].silence)
    simulation.at(15, servers[1].fail, 0.5)
    simulation.at(20, servers[0].heal)
    simulation.run(30)
    return client


def test_the_same_seed_gives_the_same_run() -> None:
    """To the last bit: breakers' open times and retries' pauses included."""
    one, two, other = _run(1), _run(1), _run(2)
    assert one.trace.elapsed == two.trace.elapsed
    assert one.trace.outcome == two.trace.outcome
    assert one.trace.limits == two.trace.limits
    assert one.trace.elapsed != other.trace.elapsed


def test_a_queue_is_first_come_first_served() -> None:
    """Ten calls at once on a server that does two at a time take five turns."""
    simulation = Simulation(1)
    server = Server(simulation, fixed(0.1), concurrency=2)
    client = Client(simulation, server, policy=Policy(timeout=Fixed(10)))
    for _ in range(10):
        client.call()
    simulation.run(5)
    took = sorted(round(elapsed, 6) for elapsed in client.trace.elapsed)
    assert took == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]
    assert server.load == 0


def test_a_full_queue_refuses() -> None:
    """What finds no room is refused, and counts as a failure."""
    simulation = Simulation(1)
    server = Server(simulation, fixed(0.1), concurrency=1, queue=1)
    client = Client(simulation, server)
    for _ in range(3):
        client.call()
    simulation.run(5)
    assert sorted(client.trace.outcome) == [OK, OK, FAILED]


def test_who_waited_too_long_is_worked_on_for_an_error() -> None:
    """A server's own patience: the work is done, and the answer is an error."""
    simulation = Simulation(1)
    server = Server(simulation, fixed(0.1), concurrency=1, patience=0.05)
    client = Client(simulation, server)
    for _ in range(2):
        client.call()
    simulation.run(5)
    assert list(client.trace.outcome) == [OK, FAILED]
    assert client.trace.elapsed[1] == pytest.approx(0.2)


@pytest.mark.parametrize(("asked", "waited"), [(0.3, 0.3), (3.0, None)])
def test_a_retry_waits_as_long_as_a_server_asks(asked: float, waited: float | None) -> None:
    """Retry-After: at least so long; no retry where that doesn't fit into the call."""
    simulation = Simulation(1)
    server = Server(simulation, fixed(0.1), concurrency=1, patience=0.05, retry_after=asked)
    client = Client(simulation, server, policy=Policy(retry=Retry(backoff=0.001)))
    for _ in range(2):
        client.call()
    simulation.run(5)
    first = 0.2  # the second call waited for the first, and was worked on for an error
    if waited is None:
        assert list(client.trace.outcome) == [OK, FAILED]
        assert client.trace.elapsed[1] == pytest.approx(first)
    else:
        assert list(client.trace.outcome) == [OK, OK]
        assert client.trace.elapsed[1] == pytest.approx(first + waited + 0.1, abs=0.01)


def test_silence_is_cut_at_the_limit_and_then_refused() -> None:
    """Every call to a silent server ends within its limit; soon the breaker answers."""
    simulation = Simulation(1)
    server = Server(simulation, fixed(0.01))
    client = Client(simulation, server)
    client.load(constant(50))
    server.silence()
    simulation.run(20)
    assert max(client.trace.elapsed) <= 1.0 + 1e-9
    assert set(client.trace.outcome) == {CUT, REFUSED}
    assert list(client.trace.outcome).count(CUT) < 100


@pytest.mark.parametrize("kind", [RandomChoice, RoundRobin, LeastConnections])
def test_a_balancer_uses_every_server(kind: type) -> None:
    """All servers get about their share."""
    simulation = Simulation(1)
    servers = [Server(simulation, fixed(0.05)) for _ in range(4)]
    target = kind(servers)
    client = Client(simulation, target)
    client.load(poisson(100))
    simulation.run(20)
    assert target.received == sum(server.received for server in servers)
    for server in servers:
        assert server.received == pytest.approx(target.received / 4, rel=0.2)


def test_least_connections_avoids_the_slow_server() -> None:
    """The slow one has its requests longer, so it gets fewer of them."""
    simulation = Simulation(1)
    fast, slow = Server(simulation, fixed(0.01)), Server(simulation, fixed(0.5))
    client = Client(simulation, LeastConnections([fast, slow]))
    client.load(poisson(100))
    simulation.run(20)
    assert fast.received > 5 * slow.received


def test_loads_have_their_rate() -> None:
    """Poisson, constant and in bursts: so many calls a second in the mean."""
    for load in (poisson(100), constant(100), bursts(100, 10)):
        simulation = Simulation(3)
        client = Client(simulation, Server(simulation, fixed(0.001)))
        client.load(load, until=60)
        simulation.run(61)
        assert len(client.trace) == pytest.approx(6000, rel=0.1)


def test_delays_have_their_size() -> None:
    """Median, mean and share are those asked for."""
    chance = Simulation(5).random
    drawn = sorted(lognormal(0.01, 0.5)(chance) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(0.01, rel=0.05)
    drawn = [gamma(0.01, 3)(chance) for _ in range(20_000)]
    assert sum(drawn) / 20_000 == pytest.approx(0.01, rel=0.05)
    drawn = [bimodal(fixed(0.01), 0.05, 50)(chance) for _ in range(20_000)]
    assert sum(one > 0.4 for one in drawn) / 20_000 == pytest.approx(0.05, rel=0.15)


def test_a_callers_deadline_is_kept() -> None:
    """The client's budget cuts before the operation's own limit."""
    simulation = Simulation(1)
    client = Client(simulation, Server(simulation, fixed(0.5)), budget=0.2)
    client.call()
    simulation.run(3)
    assert list(client.trace.elapsed) == [pytest.approx(0.2)]


def test_an_own_stall_is_not_the_stores_fault() -> None:
    """A process that slept through its limits learns nothing from them and blames nobody."""
    simulation = Simulation(4)
    policy = Policy(timeout=Percentile(floor=0.01))
    client = Client(simulation, Server(simulation, lognormal(0.01, 0.5)), policy=policy)
    client.watch()
    client.load(constant(200))
    simulation.run(30)
    limit, cuts = client.block.limit, client.block.histogram.cut_total
    for number in range(10):
        simulation.at(31 + number, client.stall, 0.4)
    simulation.run(45)
    assert client.block.tally.stalled > 0
    assert client.block.histogram.cut_total - cuts <= 2
    assert client.block.limit == pytest.approx(limit, rel=0.25)
    assert {state for _, state in client.trace.breaker} == {"closed"}


def test_nothing_sleeps_in_a_simulation() -> None:
    """Work that would wait on the clock is told so at once."""
    clock = Simulation(1).clock
    with pytest.raises(RuntimeError, match="a simulation"):
        clock.sleep(1.0)
    with pytest.raises(RuntimeError, match="a simulation"):
        clock.wait(None, 1.0)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a simulation"):
        clock.timer(None, 1.0, print)  # type: ignore[arg-type]
