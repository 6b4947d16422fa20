"""One connection to RabbitMQ: who waits for it, what is asked on it, who consumes there (L4)."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from pika import exceptions

from .. import errors
from ..call import ANSWER, BROKEN
from ..errors import Unavailable
from .connecting import PAUSE, Connecting
from .connection import sever
from .request import Failure, Request
from .topology import AGAIN, Restoring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pika

    from ..block import TimedBlock
    from .consuming import Consumer
    from .engine import Engine
    from .topology import Topology

logger = logging.getLogger("timedblock")

#: Channels that are kept for later questions.
_SPARE_CHANNELS = 8
#: The call machine has been told already.
TOLD = "told"


class Link(Connecting):
    """Everything here runs on the I/O thread, but the reading of `connection`, `ready`, `blocked`.

    A request waits here until there is a connection; each question (get, declare, …) has a channel
    to itself, so that a channel that RabbitMQ closes over one is an answer to that one alone.
    """

    #: what is exclusive belongs to this connection
    _owns_exclusive = True
    #: a request can be sent as soon as there is a connection
    _serves_at_once = True

    def __init__(
        self,
        engine: Engine,
        hosts: Sequence[pika.ConnectionParameters],
        connect: TimedBlock,
        topology: Topology,
    ) -> None:
        super().__init__(engine, hosts, connect)
        self._topology = topology
        self._waiting: deque[Request] = deque()
        #: sent and not settled
        self._asked: dict[Request, Any] = {}
        self._channels: list[Any] = []
        #: given up, and whether their connection is to blame is still to be looked at
        self._doubted: deque[Request] = deque()
        self._consumers: list[Consumer] = []

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    # -- requests -----------------------------------------------------------------------------

    def take(self, request: Request) -> None:
        """Send `request`, now or when there is a connection."""
        if self._engine.ended:
            request.fail(lost("the client was closed"))
        elif self.ready:
            self._send(request)
        else:
            request.waited = True
            request.at = request.until
            self._waiting.append(request)
            self._want()
        if not request.settled:
            self._engine.expire((request,))

    def _send(self, request: Request) -> None:
        if request.given_up:
            return
        if request.waited and not self._restart(request, self._now()):
            return
        request.connection = self.connection
        request.heard = self.connection.frames_received
        if request.begin():
            request.go(self)
        else:
            request.connection = None

    def _restart(self, request: Request, now: float) -> bool:
        """The attempt of one that waited begins only now; False: it has too little time left."""
        planned, call = request.at, request.call
        try:
            call.restart(now)
        except Unavailable as error:  # the machine has counted it
            request.fail(Failure(error, TOLD))
            return False
        if call.at != planned:
            request.hasten(call.at)
            if call.at < planned:
                self._engine.expire((request,))
        return True

    def ask(self, request: Request, question: Callable[[Any, Callable[[Any], None]], None]) -> None:
        """Put ``question(channel, answered)`` on a channel of its own."""
        self._asked[request] = None
        while self._channels:
            spare = self._channels.pop()
            if spare.is_open:
                self._ask_on(spare, request, question)
                return
        connection = self.connection

        def opened(channel: Any) -> None:
            channel.add_on_close_callback(self._channel_closed)
            if connection is self.connection:
                self._ask_on(channel, request, question)

        self._guarded(request, lambda: connection.channel(on_open_callback=opened))

    def _ask_on(
        self,
        channel: Any,
        request: Request,
        question: Callable[[Any, Callable[[Any], None]], None],
    ) -> None:
        def answered(value: Any) -> None:
            self._asked.pop(request, None)
            if channel.is_open:
                self._keep(channel)
            request.succeed(value)

        self._asked[request] = channel
        self._guarded(request, lambda: question(channel, answered))

    def _keep(self, channel: Any) -> None:
        if len(self._channels) < _SPARE_CHANNELS:
            self._channels.append(channel)
        else:
            channel.close()

    def _guarded(self, request: Request, fn: Callable[[], Any]) -> None:
        """What pika raises at once over a bad argument is an answer; but not that the connection or
        the channel closes just now, of which we have not been told yet."""
        try:
            fn()
        except (exceptions.AMQPConnectionError, exceptions.AMQPChannelError) as error:
            self._asked.pop(request, None)
            request.sent = False
            request.fail(lost(type(error).__name__))
        except Exception as error:
            self._asked.pop(request, None)
            request.fail(Failure(error))

    def _channel_closed(self, channel: Any, reason: Exception) -> None:
        if channel in self._channels:
            self._channels.remove(channel)
        for request, its in list(self._asked.items()):
            if its is channel:
                del self._asked[request]
                told = isinstance(reason, exceptions.ChannelClosedByBroker)
                request.fail(Failure(reason, ANSWER) if told else lost(""))

    @property
    def consumers(self) -> list[Consumer]:
        """Those that consume here."""
        return list(self._consumers)

    def consume(self, consumer: Consumer) -> None:
        """Keep `consumer` consuming on whatever connection there is."""
        consumer.link = self
        self._consumers.append(consumer)
        if self.ready:
            consumer.begin(self.connection)
        else:
            self._want()

    def stop_consuming(self, consumer: Consumer) -> None:
        """Undo `consume`."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)
        consumer.end()

    def doubt(self, request: Request) -> None:
        """A caller gave `request` up: once its ceiling is over, is the connection dead?"""
        if request.connection is None:
            with contextlib.suppress(ValueError):
                self._waiting.remove(request)
        elif request.sent and not request.settled:
            self._doubted.append(request)
            if len(self._doubted) == 1:
                self._look_later()

    def _look_later(self) -> None:
        first = self._doubted[0].call
        left = first.began + first.owner.ceiling - self._now()
        self._engine.ioloop.call_later(max(0.0, left), self._look)

    def _look(self) -> None:
        """A connection from which no frame has come since is dead. (Bytes may come all the same,
        and disappear in a frame whose size was corrupted.) On another one, RabbitMQ may answer a
        question that nobody waits for: it has back what it would answer with."""
        now = self._now()
        while self._doubted:
            request = self._doubted[0]
            if request.call.began + request.call.owner.ceiling > now:
                self._look_later()
                return
            self._doubted.popleft()
            connection = self.connection
            if connection is None or connection is not request.connection or request.settled:
                continue
            if self.blocked:
                continue  # RabbitMQ reads nothing here, and said so
            if connection.frames_received == request.heard:
                self.drop("nothing was heard from RabbitMQ")
            else:
                self._leave(request)

    def _leave(self, request: Request) -> None:
        channel = self._asked.pop(request, None)
        if channel is not None and channel.is_open:
            channel.close()

    # -- connecting ---------------------------------------------------------------------------

    @property
    def _is_wanted(self) -> bool:
        return bool(self._waiting)

    def _unreachable(self, cause: Exception) -> None:
        while self._waiting:
            request = self._waiting.popleft()
            request.fail(Failure(cause, BROKEN, errors.ConnectFailed))

    def _forget(self) -> None:
        super()._forget()
        self._channels.clear()

    def _prepare(self) -> None:
        self._restore(self._get_ready)

    def _restore(self, then: Callable[[], None]) -> None:
        """Declare what this client declared; `then` goes on."""
        connection, later = self.connection, self._engine.ioloop.call_later

        def declare() -> None:
            declares = self._topology.all(exclusive=self._owns_exclusive)
            if connection is self.connection and connection.is_open:
                Restoring(
                    connection,
                    declares,
                    self._attempt,
                    progress=self._guard_again,
                    # pika has not forgotten the channel's number yet
                    then=lambda: later(0, go_on),
                    again=lambda: later(AGAIN, declare),
                )

        def go_on() -> None:
            if connection is self.connection and connection.is_open and not self.ready:
                then()

        if self._topology.all(exclusive=self._owns_exclusive):
            declare()
        else:
            then()

    def _get_ready(self) -> None:
        super()._get_ready()
        if self._serves_at_once and not self._waiting:
            self._new_way()
        while self._waiting and self.ready:
            self._send(self._waiting.popleft())
        for consumer in self._consumers:
            if self.ready:
                consumer.begin(self.connection)

    # -- ending -------------------------------------------------------------------------------

    def sever(self, why: str) -> None:
        """Whatever state it is in, the connection is gone, without the loop's help."""
        connection, self.connection = self.connection, None
        self._guard = self._timer = None  # of a loop that is no more
        self._connecting = True  # who has to wait now must not begin on that loop: see `revive`
        try:
            self._forget()
            self._lose(why)
            for consumer in self._consumers:
                consumer.lost()
        finally:
            self._connecting = False
            if connection is not None:
                sever(connection)

    def leave(self) -> None:
        """Go to another host, as soon as no question is out."""
        if not self.ready or self._topology.has_exclusive:
            return  # what is exclusive would end with the connection
        if self._asked:
            self._engine.ioloop.call_later(PAUSE, self.leave)
        else:
            self.drop("another host is asked")

    def revive(self) -> None:
        """Connect again, on the engine's new loop."""
        self._start_after_pause()
        if self._doubted:
            self._look_later()

    def drop(self, why: str) -> None:
        """The connection is dead: no farewell, and a new one."""
        connection, was_ready, self.ready = self.connection, self.ready, False
        self._lose(why)
        self._abort(why)
        if was_ready and connection is not None and connection.is_closed:
            # pika has told, or never does
            self._closed(connection, exceptions.StreamLostError(why))
        while self._engine.ended and self._waiting:
            self._waiting.popleft().fail(lost(why))

    def close(self) -> None:
        """Say farewell; whatever waits is told."""
        while self._waiting:
            self._waiting.popleft().fail(lost("the client was closed"))
        connection = self.connection
        if connection is None:
            return
        if connection.is_open:
            connection.close()
        else:
            self._abort("the client was closed")

    def _lose(self, why: str) -> None:
        asked, self._asked = self._asked, {}
        for request in asked:
            request.fail(lost(why))


def lost(why: str) -> Failure:
    """The connection ended before the answer."""
    return Failure(ConnectionResetError(why), BROKEN, errors.ConnectionLost, why)
