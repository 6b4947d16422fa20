"""Another connection, for routes that the one that publishes doesn't serve (L4)."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import pika
from pika import exceptions

from ..call import ANSWER, UNWELL
from .errors import Nacked
from .link import Link
from .request import Batch, Failure, Item, Publication
from .returns import Returns

if TYPE_CHECKING:
    from .encoding import Route
    from .hosts import Place
    from .request import Request
    from .routing import Routing

logger = logging.getLogger("timedblock")

Sent: TypeAlias = "Publication | Item"

#: Routes on one detour, each with a channel.
_MOST_LANES = 64
#: Seconds from a lane's end to its channel's: somebody may still wait for a confirm.
_LINGER = 1.0
#: Seconds that a connection without routes is kept: the next try may be soon.
_IDLE = 10.0
#: Seconds that the polite end of the connection may take.
_FAREWELL = 0.5
#: Seconds in which a channel has to be opened.
_OPEN_WITHIN = 1.0


class _Lane:
    """The channel of one route."""

    __slots__ = (
        "channel",
        "held",
        "is_open",
        "proven",
        "returns",
        "tag",
        "unconfirmed",
    )

    def __init__(self) -> None:
        self.channel: Any = None
        self.is_open = False
        self.proven = False
        self.tag = 0
        self.returns = Returns()
        self.unconfirmed: dict[int, Sent] = {}
        self.held: deque[Sent] = deque()

    @property
    def tags(self) -> range:
        """Those that may be unconfirmed."""
        return range(next(iter(self.unconfirmed), self.tag + 1), self.tag + 1)

    @property
    def waiting(self) -> list[Sent]:
        """Those that are unconfirmed, oldest first."""
        return list(self.unconfirmed.values())


class Detour(Link):
    """Serves routes that the publishing connection doesn't.

    A quorum queue whose leader its host can't reach gives no confirm there, and its state in
    RabbitMQ's channel may stay so, or nack everything, when the leader is back; other queues on the
    same channel are served all the while, and stay where they are. On a *new* channel the first
    message for a queue without a leader blocks all that follow, for seconds: so each route has a
    channel of its own here. A route that isn't served here either goes back.
    """

    _owns_exclusive = False
    _serves_at_once = False

    def __init__(self, *args: Any, order: list[Place]) -> None:
        """`order`: the places that are known, the best one first."""
        super().__init__(*args)
        self._order = order
        self._invited: list[Route] = []
        self._lanes: dict[Route, _Lane] = {}
        self._idle_since = math.inf
        #: nothing goes this way any more
        self.over = False
        self._start_round()

    def _prefer(self, place: Place) -> tuple[float, ...]:
        return (-self._order.index(place) if place in self._order else math.inf,)

    @property
    def _routing(self) -> Routing:
        return self._engine.routing

    # -- routes -------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether one more route can be served."""
        return not self.over and len(self._lanes) + len(self._invited) < _MOST_LANES

    def serves(self, route: Route) -> bool:
        """Whether its messages can go this way."""
        lane = self._lanes.get(route)
        return lane is not None and lane.is_open

    def invite(self, route: Route) -> None:
        """Serve it, as soon as there is a connection."""
        if self.ready:
            self._open_lane(route)
        else:
            self._invited.append(route)

    def _get_ready(self) -> None:
        super()._get_ready()
        invited, self._invited = self._invited, []
        for route in invited:
            self._open_lane(route)

    def hold(self, one: Sent) -> None:
        """Send it on its lane."""
        one.sent = False
        route = one.envelope.route
        lane = self._lanes.get(route)
        if lane is None or not lane.is_open:  # it went back meanwhile
            self._send_back(deque((one,)))
            return
        lane.held.append(one)
        self._pump(route, lane)

    def _pump(self, route: Route, lane: _Lane) -> None:
        try:
            while lane.held and lane.is_open and not self.blocked:
                one = lane.held.popleft()
                if one.begin():
                    self._publish(lane, one)
        except Exception as error:  # it closes just now, and its callback has not come
            logger.debug("RabbitMQ's detour: %s", type(error).__name__)
            self._give_back(route, lane)

    def _send_back(self, held: deque[Sent]) -> None:
        """What was not sent goes to the connection that publishes."""
        publishing = self._engine.publishing
        while held:
            held.popleft().again(publishing)
        # not now: this may be one of pika's callbacks, in the middle of a close
        self._engine.ioloop.call_later(0, publishing.pump)

    def _publish(self, lane: _Lane, one: Sent) -> None:
        envelope = one.envelope
        lane.tag += 1
        lane.unconfirmed[lane.tag] = one
        lane.channel.basic_publish(
            *envelope.route,
            one.body,
            pika.BasicProperties(**envelope.properties),  # type: ignore[no-untyped-call]
            envelope.mandatory,
        )
        if not one.confirm:
            one.succeed()

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        super()._on_unblocked(connection, frame)
        for route, lane in list(self._lanes.items()):
            self._pump(route, lane)

    def _fails(self, route: Route, lane: _Lane, *, nacked: bool) -> None:
        """It isn't served here either: on to the next host."""
        if self._lanes.get(route) is lane:
            self._give_back(route, lane)
            self._unserved(route, nacked=nacked)

    def _unserved(self, route: Route, *, nacked: bool) -> None:
        self._routing.failed(route, self.place)
        self._routing.unserved(route, self.place, nacked=nacked)

    def _give_back(self, route: Route, lane: _Lane) -> None:
        """Nothing goes that way any more."""
        if self._lanes.get(route) is not lane:
            return
        del self._lanes[route]
        self._routing.left(self, route)
        self._send_back(lane.held)
        later = self._engine.ioloop.call_later
        later(_LINGER, lambda: _close(lane.channel))
        if not self._lanes:
            self._idle_since = self._now()
            later(_IDLE, self._finish_if_idle)

    def _finish_if_idle(self) -> None:
        if not self._lanes and not self._invited and self._now() - self._idle_since >= _IDLE:
            self.finish()

    # -- channels -----------------------------------------------------------------------------

    def _open_lane(self, route: Route) -> None:
        lane = self._lanes[route] = _Lane()
        self._engine.ioloop.call_later(_OPEN_WITHIN, lambda: self._lane_overdue(route, lane))
        try:
            lane.channel = self.connection.channel(
                on_open_callback=lambda channel: self._opened_lane(route, lane, channel)
            )
        except Exception as error:
            logger.debug("RabbitMQ's detour: %s", type(error).__name__)
            self._give_back(route, lane)

    def _opened_lane(self, route: Route, lane: _Lane, channel: Any) -> None:
        channel.add_on_close_callback(lambda its, reason: self._lane_closed(route, lane, reason))
        channel.add_on_return_callback(
            lambda its, *returned: lane.returns.tell(lane.unconfirmed, lane.tags, *returned)
        )

        def ready(frame: Any) -> None:
            lane.is_open = True
            self._new_way()

        channel.confirm_delivery(lambda frame: self._told(route, lane, frame.method), ready)

    def _lane_overdue(self, route: Route, lane: _Lane) -> None:
        if self._lanes.get(route) is lane and not lane.is_open:
            self.drop("no channel was opened in time")

    def _told(self, route: Route, lane: _Lane, method: Any) -> None:
        nacked = method.NAME == "Basic.Nack"
        for one in _take(lane, method.delivery_tag, method.multiple):
            if nacked:
                one.fail(Failure(Nacked(), UNWELL))
            else:
                one.succeed()
        if nacked:
            self._fails(route, lane, nacked=True)
        elif not lane.proven and self._lanes.get(route) is lane:
            lane.proven = True
            self._routing.proved(self, route)

    def _lane_closed(self, route: Route, lane: _Lane, reason: Exception) -> None:
        lane.is_open = False
        told = isinstance(reason, exceptions.ChannelClosedByBroker)
        for one in _take(lane, 0, True):
            if told:
                one.fail(Failure(reason, ANSWER))
            else:
                self._lost(one, "")
        if told:
            self._give_back(route, lane)
        else:
            self._fails(route, lane, nacked=False)
        self._engine.ioloop.call_later(0, self._engine.publishing.pump)  # for what is repeated

    def _lost(self, one: Sent, why: str) -> None:
        """It is repeated on the connection that publishes, if this client repeats."""
        self._engine.publishing._lost(one, why)

    # -- doubt and end ------------------------------------------------------------------------

    def doubt(self, request: Request) -> None:
        """See `Link.doubt`; of a batch, each route on which something is unconfirmed is doubted."""
        if not isinstance(request, Batch):
            super().doubt(request)
            return
        if self.blocked:
            return
        for route, lane in list(self._lanes.items()):
            if any(isinstance(one, Item) and one.batch is request for one in lane.waiting):
                self._fails(route, lane, nacked=False)

    def _leave(self, request: Request) -> None:
        if isinstance(request, Publication) and not self.blocked:
            route = request.envelope.route
            lane = self._lanes.get(route)
            if lane is not None and request in lane.waiting:  # and not on one before it
                self._fails(route, lane, nacked=False)

    def finish(self) -> None:
        """Nothing goes this way any more."""
        if self.over:
            return
        self.over = True
        for route, lane in list(self._lanes.items()):
            self._give_back(route, lane)
        for route in self._invited:
            self._routing.left(self, route)
        if self.connection is not None:
            later = self._engine.ioloop.call_later
            later(_LINGER, self.close)
            later(_LINGER + _FAREWELL, lambda: self._abort("it isn't needed any more"))

    def _lose(self, why: str) -> None:
        super()._lose(why)
        lanes = dict(self._lanes)
        for route in self._invited:
            self._routing.failed(route, self.place)
        self.finish()
        for route, lane in lanes.items():
            lane.is_open = False
            for one in _take(lane, 0, True):
                self._lost(one, why)
            if not self._connecting:  # else nobody may connect just now: see `Link.sever`
                self._unserved(route, nacked=False)

    def _failed(self, error: BaseException) -> None:
        for route in self._invited:
            self._routing.failed(route, self.place)
        super()._failed(error)

    def _try_next(self, error: BaseException | None) -> None:
        if not self.over:
            super()._try_next(error)

    def _start_round(self) -> None:
        if not self.over:
            super()._start_round()

    def _round_failed(self, error: BaseException | None) -> None:
        self._connecting = False
        self.finish()


def _close(channel: Any) -> None:
    if channel is not None and channel.is_open:
        channel.close()


def _take(lane: _Lane, tag: int, multiple: bool) -> list[Sent]:
    """Those that are settled; of tag 0: all."""
    tags = [one for one in lane.unconfirmed if not tag or one <= tag] if multiple else [tag]
    taken = (lane.unconfirmed.pop(one, None) for one in tags)
    return [one for one in taken if one is not None]
