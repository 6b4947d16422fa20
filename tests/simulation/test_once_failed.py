"""Bugs that a drill, a simulation or a reviewer found: the world and the seed that showed each.

Every test here failed on the commit before the one that its docstring's sentence became true in.
A new one: the smallest world that shows the bug, its seed, and what a user would have seen.
"""

from __future__ import annotations

import pytest

from timedblock import Percentile, Policy, Retry
from timedblock.simulate import Client, Server, Simulation, constant, lognormal, poisson


def _opened(client: Client, since: float) -> float:
    """Seconds from `since` until the breaker was seen open."""
    return next((at - since for at, state in client.trace.breaker if state != "closed"), 1e9)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_short_pages_before_a_grown_limit_open_the_breaker(seed: int) -> None:
    """Pages that give a call 0.25 s, while the learnt limit is nearer to a second: their waits
    together are the silence."""
    simulation = Simulation(seed)
    server = Server(simulation, lognormal(0.1, 0.5))
    client = Client(simulation, server, budget=0.25)
    client.watch()
    client.load(constant(20))
    simulation.at(60, server.silence)
    simulation.run(75)
    assert _opened(client, 60) <= 2.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rare_calls_that_became_slower_are_not_cut_for_ever(seed: int) -> None:
    """An operation called every ten seconds, learnt when it was busy, that now takes eight times
    as long: never enough samples to learn from, and answered all the same."""
    simulation = Simulation(seed)
    server = Server(simulation, lognormal(0.02, 0.3))
    client = Client(simulation, server, late_answers=False)
    client.load(poisson(50), until=60.0)
    simulation.at(60, server.slow_down, 8)
    simulation.at(60, client.load, constant(0.1))
    simulation.run(660)
    assert client.trace.share_ok(200, 650) == 1.0


@pytest.mark.parametrize("seed", range(1, 6))
def test_retries_to_a_refusing_store_stay_within_a_tenth(seed: int) -> None:
    """Not 1.101 times the calls either, in any minute of chance."""
    simulation = Simulation(seed)
    server = Server(simulation, lognormal(0.02, 0.5))
    policy = Policy(timeout=Percentile(), retry=Retry(attempts=3), breaker=None)
    client = Client(simulation, server, policy=policy)
    client.load(poisson(100))
    simulation.run(20)
    server.refuse()
    calls, reached = len(client.trace), server.received
    simulation.run(80)
    assert server.received - reached <= 1.1 * (len(client.trace) - calls)
