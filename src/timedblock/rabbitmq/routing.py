"""Which routes take a detour, and over which host (L4)."""

from __future__ import annotations

import logging
import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .detour import Detour
    from .encoding import Route
    from .engine import Engine
    from .hosts import Place
    from .link import Link
    from .request import Batch, Publication
    from .topology import Topology

logger = logging.getLogger("timedblock")

#: Seconds between two tries of one route: the first pause, and the longest; routes remembered. A
#: try costs a channel, and whatever is waited here comes on top of what an election takes.
_PAUSE, _PAUSE_MAX, _MOST_ROUTES = 0.5, 1.0, 1000


class _Tries:
    """Where one route was not served and when, and whether by silence, ever; the instant of its
    last try, which may be to come, and the pause until the next."""

    __slots__ = ("at", "failed", "pause", "silent")

    def __init__(self) -> None:
        self.failed: dict[Place | None, float] = {}
        self.at = -math.inf
        self.pause = _PAUSE / 2
        self.silent = False


class Routing:
    """Tries a route that isn't served at one node after the other, longest ago first.

    There is a detour to each of them at the most, which stays for a while: a queue that refuses for
    ever, being full, costs a channel for each try, and no connection. On the I/O thread only.
    """

    def __init__(self, engine: Engine, topology: Topology, make: Callable[..., Detour]) -> None:
        """``make(order=places)`` makes a detour that prefers them in that order."""
        self._engine = engine
        self._topology = topology
        self._make = make
        self._detours: list[Detour] = []
        self._tries: dict[Route, _Tries] = {}
        #: the detour of each route that has one, or is to have one
        self.ways: dict[Route, Detour] = {}

    @property
    def links(self) -> list[Detour]:
        """The detours, and those that are over whose connection isn't."""
        self._detours = [one for one in self._detours if one.open or not one.over]
        return self._detours

    @property
    def detours(self) -> list[Detour]:
        """Those that can be used."""
        return [one for one in self.links if not one.over]

    def way(self, route: Route) -> Detour | None:
        """Over which detour its messages go, if over any."""
        detour = self.ways.get(route)
        return detour if detour is not None and detour.serves(route) else None

    # -- tries --------------------------------------------------------------------------------

    def unserved(self, route: Route, place: Place | None, *, nacked: bool) -> None:
        """It isn't served at `place`: maybe at another one, or on another channel there."""
        now = self._engine.clock.monotonic()
        tries = self._of(route)
        tries.failed.setdefault(place, now)
        tries.silent = tries.silent or not nacked
        if self._engine.ended or route in self.ways or now < tries.at:
            return  # it goes elsewhere already, or soon
        tries.at = at = max(now, tries.at + tries.pause)
        tries.pause = min(_PAUSE_MAX, tries.pause * 2)
        if at > now:
            self._engine.ioloop.call_later(at - now, lambda: self._try(route, tries))
        else:
            self._try(route, tries)

    def failed(self, route: Route, place: Place | None) -> None:
        """The try at `place` was in vain: all others come first."""
        self._of(route).failed[place] = self._engine.clock.monotonic()

    def _of(self, route: Route) -> _Tries:
        tries = self._tries.get(route)
        if tries is None:
            while len(self._tries) >= _MOST_ROUTES:
                del self._tries[next(iter(self._tries))]
            tries = self._tries[route] = _Tries()
        return tries

    def _try(self, route: Route, tries: _Tries) -> None:
        if self._engine.ended or route in self.ways or self._tries.get(route) is not tries:
            return
        detour = self._choose(tries)
        if detour.has_room:
            self.ways[route] = detour
            detour.invite(route)

    def _choose(self, tries: _Tries) -> Detour:
        """The detour to where it failed longest ago."""
        at = {one.place: one for one in self.detours}
        places = self._engine.places.all()
        order = sorted(
            random.sample(places, len(places)),
            key=lambda place: (tries.failed.get(place, -math.inf), place not in at),
        )
        if not at or (order[0] not in at and len(self.detours) < len(places)):
            detour = self._make(order=order)
            self._detours.append(detour)
            logger.info("another connection to RabbitMQ is tried: some messages get no confirm")
            return detour
        return next((at[place] for place in order if place in at), self.detours[0])

    # -- what detours say ---------------------------------------------------------------------

    def proved(self, detour: Detour, route: Route) -> None:
        """It is served there: its consumers go there too. Not if all it ever had was nacks, as a
        full queue has, which would have to do without its consumers each time."""
        tries = self._tries.get(route)
        if tries is None or not tries.silent:
            return
        del self._tries[route]
        asking = self._engine.asking
        if self.ways.get(route) is detour and detour.place != asking.place:
            self._move_consumers(asking, detour, route)

    def left(self, detour: Detour, route: Route) -> None:
        """It goes that way no longer."""
        if self.ways.get(route) is detour:
            del self.ways[route]
        self._move_consumers(detour, self._engine.asking, route)

    def _move_consumers(self, here: Link, there: Link, route: Route) -> None:
        queues = self._topology.queues(*route)
        for consumer in here.consumers:
            if consumer.queue in queues and not self._topology.is_exclusive(consumer.queue):
                here.stop_consuming(consumer)
                there.consume(consumer)

    # -- what the publishing connection says --------------------------------------------------

    def doubt(self, request: Publication | Batch) -> None:
        """Its caller gave it up; if it went over a detour, is that to blame?"""
        for detour in self.detours:
            detour.doubt(request)

    def end(self) -> None:
        """There is a new connection that publishes: what detours were made for is gone."""
        self._tries.clear()
        for detour in self.detours:
            detour.finish()
