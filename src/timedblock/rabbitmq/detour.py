"""Another connection, for messages that get no confirm on the one that publishes (L4)."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import pika
from pika import exceptions

from ..call import ANSWER, UNWELL
from . import hosts as _hosts
from .errors import Nacked
from .link import Link
from .request import Failure, Item, Publication
from .returns import Returns

if TYPE_CHECKING:
    from .encoding import Route
    from .request import Request

logger = logging.getLogger("timedblock")

Sent: TypeAlias = "Publication | Item"

#: Routes on one detour, each with a channel.
_MOST_LANES = 64
#: Seconds from a lane's end to its channel's: somebody may still wait for a confirm.
_LINGER = 1.0
#: Seconds that a connection without routes is kept after a nack.
_IDLE = 10.0
#: Seconds that the polite end of the connection may take.
_FAREWELL = 0.5
#: Seconds between two tries of one route: the first pause, and the longest; routes remembered.
_PAUSE, _PAUSE_MAX, _MOST_PAUSES = 0.5, 2.0, 1000


class Pauses:
    """When a route may be tried on a detour again. On the I/O thread only."""

    def __init__(self) -> None:
        self._next: dict[Route, tuple[float, float]] = {}

    def over(self, route: Route, now: float) -> bool:
        """Whether it may be tried now; if so, the next pause begins."""
        until, pause = self._next.get(route, (now, _PAUSE))
        if now < until:
            return False
        while len(self._next) >= _MOST_PAUSES:
            del self._next[next(iter(self._next))]
        self._next[route] = now + pause, min(_PAUSE_MAX, pause * 2)
        return True

    def forget(self, route: Route) -> None:
        """It is served."""
        self._next.pop(route, None)


class _Lane:
    """The channel of one route."""

    __slots__ = (
        "channel",
        "held",
        "is_open",
        "nacked",
        "proven",
        "returns",
        "tag",
        "unconfirmed",
    )

    def __init__(self, nacked: bool) -> None:
        self.nacked = nacked
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


class Detour(Link):
    """Serves the routes that the publishing connection doesn't.

    A quorum queue whose leader its host can't reach gives no confirm there, and its state in
    RabbitMQ's channel may stay so, or nack everything, when the leader is back; other queues on the
    same channel are served all the while, and stay where they are. On a *new* channel the first
    message for a queue without a leader blocks all that follow, for seconds: so each route has a
    channel of its own here. A route that isn't served here either goes back.
    """

    _owns_exclusive = False

    def __init__(self, *args: Any, avoid: tuple[str | None, ...]) -> None:
        """`avoid`: hosts to try last, the last one of them least of all."""
        super().__init__(*args)
        self._avoid = avoid
        self._invited: dict[Route, bool] = {}
        self._lanes: dict[Route, _Lane] = {}
        self._over = False
        self._start_round()

    def _rank(self, parameters: pika.ConnectionParameters) -> tuple[bool, ...]:
        host = _hosts.show(parameters)
        return tuple(host != one for one in reversed(self._avoid))

    # -- routes -------------------------------------------------------------------------------

    def serves(self, route: Route) -> bool:
        """Whether its messages go this way."""
        return route in self._lanes

    def invite(self, route: Route, nacked: bool) -> None:
        """Serve it, as soon as there is a connection."""
        if len(self._lanes) + len(self._invited) < _MOST_LANES and route not in self._lanes:
            if self.ready:
                self._lanes[route] = _Lane(nacked)
            else:
                self._invited[route] = nacked

    def _get_ready(self) -> None:
        super()._get_ready()
        invited, self._invited = self._invited, {}
        for route, nacked in invited.items():
            self._lanes[route] = _Lane(nacked)

    def hold(self, one: Sent) -> None:
        """Send it on its lane."""
        one.sent = False
        route = one.envelope.route
        lane = self._lanes.get(route)
        if lane is None:  # it went back meanwhile
            self._send_back(deque((one,)))
            return
        lane.held.append(one)
        self._pump(route, lane)

    def _pump(self, route: Route, lane: _Lane) -> None:
        try:
            if lane.channel is None:
                lane.channel = self.connection.channel(
                    on_open_callback=lambda channel: self._opened_lane(route, lane, channel)
                )
            while lane.held and lane.is_open and not self.blocked:
                one = lane.held.popleft()
                if one.begin():
                    self._publish(lane, one)
        except Exception as error:  # it closes just now, and its callback has not come
            logger.debug("RabbitMQ's detour: %s", type(error).__name__)
            self._give_back(route)

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

    def _give_back(self, route: Route) -> None:
        """It isn't served here."""
        lane = self._lanes.pop(route, None)
        if lane is None:
            return
        self._send_back(lane.held)
        self._engine.ioloop.call_later(_LINGER, lambda: _close(lane.channel))
        self._engine.consume_again(self, route)
        # a queue that refuses what it has no room for nacks again and again: this is not the host
        self._engine.ioloop.call_later(_IDLE if lane.nacked else 0, self._finish_if_idle)

    def _finish_if_idle(self) -> None:
        if not self._lanes and not self._invited:
            self.finish()

    # -- channels -----------------------------------------------------------------------------

    def _opened_lane(self, route: Route, lane: _Lane, channel: Any) -> None:
        channel.add_on_close_callback(lambda its, reason: self._lane_closed(lane, reason))
        channel.add_on_return_callback(
            lambda its, *returned: lane.returns.tell(lane.unconfirmed, lane.tags, *returned)
        )

        def ready(frame: Any) -> None:
            lane.is_open = True
            self._pump(route, lane)

        channel.confirm_delivery(lambda frame: self._told(route, lane, frame.method), ready)

    def _told(self, route: Route, lane: _Lane, method: Any) -> None:
        nacked = method.NAME == "Basic.Nack"
        for one in _take(lane, method.delivery_tag, method.multiple):
            if nacked:
                one.fail(Failure(Nacked(), UNWELL))
            else:
                one.succeed()
        if nacked:
            self._give_back(route)
        elif not lane.proven and self._lanes.get(route) is lane:
            lane.proven = True
            if not lane.nacked:
                self._engine.proved(self, route)

    def _lane_closed(self, lane: _Lane, reason: Exception) -> None:
        lane.channel, lane.is_open, lane.tag, lane.returns = None, False, 0, Returns()
        told = isinstance(reason, exceptions.ChannelClosedByBroker)
        for one in _take(lane, 0, True):
            if told:
                one.fail(Failure(reason, ANSWER))
            else:
                self._lost(one, "")
        self._engine.ioloop.call_later(0, self._engine.publishing.pump)

    def _lost(self, one: Sent, why: str) -> None:
        """It is repeated on the connection that publishes, if this client repeats."""
        self._engine.publishing._lost(one, why)

    # -- doubt and end ------------------------------------------------------------------------

    def _leave(self, request: Request) -> None:
        if isinstance(request, Publication) and not self.blocked:
            self._give_back(request.envelope.route)

    def finish(self) -> None:
        """Nothing goes this way any more."""
        if self._over:
            return
        self._over = True
        self._engine.detour_over(self)
        for route in list(self._lanes):
            self._give_back(route)
        if self.connection is not None:
            later = self._engine.ioloop.call_later
            later(_LINGER, self.close)
            later(_LINGER + _FAREWELL, lambda: self._abort("it isn't needed any more"))

    def _lose(self, why: str) -> None:
        super()._lose(why)
        lanes, self._lanes = self._lanes, {}
        self.finish()
        for route, lane in lanes.items():
            lane.channel, lane.is_open = None, False
            self._engine.consume_again(self, route)
            for one in _take(lane, 0, True):
                self._lost(one, why)
            self._send_back(lane.held)

    def _try_next(self, error: BaseException | None) -> None:
        if not self._over:
            super()._try_next(error)

    def _start_round(self) -> None:
        if not self._over:
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
