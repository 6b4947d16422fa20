"""Load balancers: which of several servers gets a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from .server import Request, Server


class Balancer(ABC):
    """Several servers behind one address."""

    def __init__(self, servers: Sequence[Server]) -> None:
        if not servers:
            raise ValueError("a balancer needs a server")
        self.servers = list(servers)
        self._random: Random = servers[0].simulation.random

    @abstractmethod
    def pick(self) -> Server:
        """The server for the next request."""

    def submit(self, request: Request) -> None:
        """Hand on a request."""
        self.pick().submit(request)

    @property
    def received(self) -> int:
        """Requests that reached the servers."""
        return sum(server.received for server in self.servers)


class RandomChoice(Balancer):
    """Any of them."""

    def pick(self) -> Server:
        """See `Balancer`."""
        return self.servers[int(self._random.random() * len(self.servers))]


class RoundRobin(Balancer):
    """One after the other."""

    _next = 0

    def pick(self) -> Server:
        """See `Balancer`."""
        server = self.servers[self._next]
        self._next = (self._next + 1) % len(self.servers)
        return server


class LeastConnections(Balancer):
    """The one with the fewest requests; of several, the one longest unused."""

    _next = 0

    def pick(self) -> Server:
        """See `Balancer`."""
        count = len(self.servers)
        order = self.servers[self._next :] + self.servers[: self._next]
        chosen = min(order, key=lambda server: server.load)
        self._next = (self.servers.index(chosen) + 1) % count
        return chosen
