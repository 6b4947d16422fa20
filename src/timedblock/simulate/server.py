"""Servers: so many requests at once, a queue before them, and what can be wrong with them."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .delays import Delay
    from .engine import Simulation


class Request(Protocol):
    """What a server is handed."""

    def reply(self) -> None:
        """The whole answer arrived."""

    def lost(self) -> None:
        """Nothing will come (told to nobody but the simulation: who waits runs into its limit)."""

    def refused(self) -> None:
        """The connection was refused or reset."""

    def unwell(self, retry_after: float | None) -> None:
        """The answer is that the server can't, and not before `retry_after` seconds."""


class Target(Protocol):
    """A server, or a balancer before several."""

    def submit(self, request: Request) -> None:
        """Take `request`, which will be told what becomes of it."""


class Server:
    """A server of fixed concurrency; it works on, whether or not anybody still waits.

    Args:
        simulation: the world that it is in.
        delay: seconds of work a request.
        concurrency: requests worked on at once; the others queue, first come first served.
        queue: the most that wait; past it requests are refused.
        patience: seconds; a request that waited longer here is still worked on, and then answered
            with an error (a statement's time limit, a lock that is gone). None: never.
        retry_after: seconds that such an error asks to be left alone, or None.
    """

    def __init__(
        self,
        simulation: Simulation,
        delay: Delay,
        *,
        concurrency: int = 1_000_000,
        queue: int = 1_000_000,
        patience: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.simulation = simulation
        self.delay = delay
        self.concurrency = concurrency
        self.queue = queue
        self.retry_after = retry_after
        self.patience = math.inf if patience is None else patience
        #: requests that reached it, all attempts counted
        self.received = 0
        self.busy = 0
        self._waiting: deque[tuple[Request, float]] = deque()
        self._factor = 1.0
        self._silent = self._refusing = False
        self._error_rate = 0.0
        self._random = simulation.random

    @property
    def load(self) -> int:
        """Requests here: worked on and waiting."""
        return self.busy + len(self._waiting)

    # -- faults -------------------------------------------------------------------------------

    def slow_down(self, factor: float) -> None:
        """From now on work takes `factor` times as long as at first."""
        self._factor = factor

    def silence(self) -> None:
        """Requests and replies are lost, as behind a firewall that drops packets."""
        self._silent = True

    def refuse(self) -> None:
        """Nobody listens."""
        self._refusing = True

    def fail(self, share: float) -> None:
        """A `share` of the requests is refused."""
        self._error_rate = share

    def heal(self) -> None:
        """All is well again."""
        self._silent = self._refusing = False
        self._factor, self._error_rate = 1.0, 0.0

    # -- work ---------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Take a request."""
        self.received += 1
        if self._silent:
            request.lost()
        elif self._refusing or (self._error_rate and self._random.random() < self._error_rate):
            request.refused()
        elif self.busy < self.concurrency:
            self._work(request, False)
        elif len(self._waiting) < self.queue:
            self._waiting.append((request, self.simulation.now))
        else:
            request.refused()

    def _work(self, request: Request, unwell: bool) -> None:
        self.busy += 1
        seconds = self.delay(self._random) * self._factor
        self.simulation.after(seconds, self._finish, request, unwell)

    def _finish(self, request: Request, unwell: bool) -> None:
        self.busy -= 1
        if self._waiting:
            waiting, since = self._waiting.popleft()
            self._work(waiting, self.simulation.now - since > self.patience)
        if self._silent:
            request.lost()
        elif unwell:
            request.unwell(self.retry_after)
        else:
            request.reply()
