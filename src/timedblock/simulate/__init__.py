"""The production call machine on virtual time (L5; needs `timedblock[simulate]`).

An hour of calls takes seconds, and the same seed gives the same hour. Clients here run
`TimedBlock`, `Call`, `Circuit`, `Budget` and the learnt limits of production, nothing else; only
the network and the servers are simulated. simpy keeps the time::

    simulation = Simulation(seed=1)
    server = Server(simulation, lognormal(0.010, sigma=0.5))
    client = Client(simulation, server, policy=Policy(timeout=Percentile(99)))
    client.load(poisson(200))
    simulation.at(60, server.slow_down, 20)
    simulation.run(120)
    print(client.trace.share_ok(60, 120), client.block.limit)
"""

from __future__ import annotations

from .balance import Balancer, LeastConnections, RandomChoice, RoundRobin
from .client import Client
from .delays import Delay, Load, bimodal, bursts, constant, fixed, gamma, lognormal, poisson
from .engine import SimClock, Simulation
from .server import Request, Server, Target
from .trace import CUT, FAILED, OK, REFUSED, Trace

__all__ = [
    "CUT",
    "FAILED",
    "OK",
    "REFUSED",
    "Balancer",
    "Client",
    "Delay",
    "LeastConnections",
    "Load",
    "RandomChoice",
    "Request",
    "RoundRobin",
    "Server",
    "SimClock",
    "Simulation",
    "Target",
    "Trace",
    "bimodal",
    "bursts",
    "constant",
    "fixed",
    "gamma",
    "lognormal",
    "poisson",
]
