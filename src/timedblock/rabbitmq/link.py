"""One connection to RabbitMQ that is kept up: hosts in turn, back-off, who waits for it (L4)."""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections import deque
from typing import TYPE_CHECKING, Any

from pika import exceptions

from .. import errors
from ..call import ANSWER, BROKEN
from ..errors import Unavailable
from ..net import seam
from ..net.resolve import RESOLVER, literal
from ..net.workers import Full, Workers
from . import hosts as _hosts
from .connection import Connection, sever
from .request import Failure, Request
from .topology import AGAIN, Restoring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pika

    from ..block import TimedBlock
    from ..net.workers import Job
    from .consuming import Consumer
    from .engine import Engine
    from .topology import Topology

logger = logging.getLogger("timedblock")

#: The longest pause between two rounds of the hosts (doubled by chance), and the first one, in
#: seconds. A node that boots may take a round and cost it: two pauses pass then.
PAUSE_MAX = 1.0
PAUSE = 0.1
#: A connection that lived so long (seconds) is replaced at once when it ends.
LIVES = 1.0
#: The least that one host is tried for, in seconds.
ATTEMPT = 0.15
#: Seconds for which other hosts are preferred to one whose connection was lost.
_GRUDGE = 30.0
#: Channels that are kept for later questions.
_SPARE_CHANNELS = 8
#: The call machine has been told already.
TOLD = "told"
_RESOLVERS = Workers("rabbitmq-resolve", 8)


class Link:
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
        self._engine = engine
        self._topology = topology
        self._hosts = hosts
        self._connect_block = connect
        #: how much longer than usual an attempt may take, since some didn't end in time
        self._patience = 1.0
        self.connection: Any = None
        #: requests can be sent
        self.ready = False
        #: RabbitMQ takes no messages (a memory or disk alarm)
        self.blocked = False
        self.where: str | None = None
        #: when the connection to a host was lost last
        self._left: dict[str | None, float] = {}
        #: the host that was left because nothing came from it
        self._silent: str | None = None
        self._waiting: deque[Request] = deque()
        #: sent and not settled
        self._asked: dict[Request, Any] = {}
        self._channels: list[Any] = []
        self._round: list[Any] = []
        self._connecting = False
        self._began = 0.0
        self._guard: Any = None
        self._pause = PAUSE
        self._timer: Any = None
        self._refused_at = self._ready_at = -math.inf
        #: given up, and whether their connection is to blame is still to be looked at
        self._doubted: deque[Request] = deque()
        self._consumers: list[Consumer] = []

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    @property
    def open(self) -> bool:
        """Whether there is a connection, or the beginning or the end of one."""
        return self.connection is not None

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
                self._silent = self.where
                self.drop("nothing was heard from RabbitMQ")
            else:
                self._leave(request)

    def _leave(self, request: Request) -> None:
        channel = self._asked.pop(request, None)
        if channel is not None and channel.is_open:
            channel.close()

    # -- connecting ---------------------------------------------------------------------------

    def _now(self) -> float:
        return self._engine.clock.monotonic()

    @property
    def _attempt(self) -> float:
        """Seconds for one address: as connecting usually takes, so that the next host has its turn
        soon; longer each time that it was too short."""
        block = self._connect_block
        most = max(ATTEMPT, block.ceiling / len(self._hosts))
        if block.learnt.source != "learnt":
            return most
        return min(most, max(ATTEMPT, block.learnt.limit) * self._patience)

    def _want(self) -> None:
        """Somebody waits: connect, or sooner than the back-off would."""
        if self._connecting or self.connection is not None:
            return
        pause = self._refused_at + PAUSE - self._now()
        if pause <= 0:
            self._start_round()
        else:
            self._start_later(pause)

    def _start_later(self, pause: float) -> None:
        if self._timer is not None:
            self._engine.ioloop.remove_timeout(self._timer)
        self._timer = self._engine.ioloop.call_later(pause, self._start_round)

    def _start_round(self) -> None:
        if self._timer is not None:
            self._engine.ioloop.remove_timeout(self._timer)
            self._timer = None
        if self._connecting or self.connection is not None or self._engine.ended:
            return
        self._connecting = True
        # popped from the end
        self._round = sorted(random.sample(list(self._hosts), len(self._hosts)), key=self._rank)
        self._try_next(None)

    def _rank(self, parameters: pika.ConnectionParameters) -> tuple[float, ...]:
        """Those that were lost of late come last, in turn; our partner's rather than another."""
        host, partner = _hosts.show(parameters), self._engine.partner(self)
        left = self._left.get(host, -math.inf)
        return -left if self._now() - left < _GRUDGE else math.inf, host == partner.where

    def _try_next(self, error: BaseException | None) -> None:
        """The next host; after the last one, `error` for all who wait."""
        if self._engine.ended:
            return
        if not self._round:
            self._round_failed(error)
            return
        parameters = self._round.pop()
        if isinstance(parameters, tuple):
            self._open(*parameters)
            return
        if seam.injector is None and literal(parameters.host, parameters.port) is not None:
            self._open(parameters, parameters.host)
        else:
            self._resolve(parameters)

    def _resolve(self, parameters: pika.ConnectionParameters) -> None:
        engine, clock, seconds = self._engine, self._engine.clock, self._attempt
        site = seam.Site("rabbitmq", self._connect_block.name, _hosts.show(parameters))

        def ask() -> list[Any]:
            injector = seam.injector
            lookup = None if injector is None else injector.lookup(site)
            found = RESOLVER.resolve(parameters.host, parameters.port, clock, seconds, lookup)
            if injector is not None:
                injector.connecting(site, seconds)
            return found

        try:
            _RESOLVERS.submit(ask, lambda job: engine.post(self._resolved, parameters, job))
        except Full as full:
            self._try_next(full)

    def _resolved(self, parameters: pika.ConnectionParameters, job: Job[list[Any]]) -> None:
        if job.error is not None:
            self._try_next(job.error)
            return
        self._round += [(parameters, address[0]) for _, address in reversed(job.outcome())]
        self._try_next(None)

    def _open(self, parameters: pika.ConnectionParameters, ip: str) -> None:
        self._began = self._now()
        self.where = _hosts.show(parameters)
        self._guard = self._engine.ioloop.call_later(self._attempt + 0.05, self._attempt_over)
        try:
            self.connection = self._connect(
                _hosts.at(parameters, ip, self._attempt),
                on_open_callback=self._opened,
                on_open_error_callback=self._not_opened,
                on_close_callback=self._closed,
                custom_ioloop=self._engine.ioloop,
            )
        except Exception as error:  # a TLS context that can't be used, say
            self._failed(error)

    def _connect(self, parameters: Any, **callbacks: Any) -> Any:
        return Connection(parameters, **callbacks)

    def _guard_again(self) -> None:
        """It goes on: a large topology may take longer than an attempt."""
        if self._guard is not None:
            self._engine.ioloop.remove_timeout(self._guard)
            self._guard = self._engine.ioloop.call_later(self._attempt + 0.05, self._attempt_over)

    def _attempt_over(self) -> None:
        """pika's own timers end the connect; this one what follows it (a channel, confirms)."""
        self._guard = None
        if not self.ready and self.connection is not None and self.connection.is_open:
            self._abort("no channel was opened in time")

    def _not_opened(self, connection: Any, error: BaseException) -> None:
        if self._connecting and (connection is self.connection or self.connection is None):
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._connect_block.histogram.miss()
        self._forget()
        self._try_next(error)

    def _forget(self) -> None:
        self.connection = None
        self.ready = self.blocked = False
        self._channels.clear()
        if self._guard is not None:
            self._engine.ioloop.remove_timeout(self._guard)
            self._guard = None

    def _round_failed(self, error: BaseException | None) -> None:
        self._connecting = False
        self.where = None
        self._refused_at = self._now()
        cause = _cause(error)
        # the machine counts a connect that hangs by its callers' own time
        if isinstance(cause, TimeoutError):
            self._patience *= 2
        else:
            while self._waiting:
                request = self._waiting.popleft()
                request.fail(Failure(cause, BROKEN, errors.ConnectFailed))
        self._engine.endpoint.connect_failed(self._now())
        self._start_after_pause()

    def _start_after_pause(self) -> None:
        self._start_later(self._pause * (1 + random.random()))
        self._pause = min(PAUSE_MAX, self._pause * 2)

    def _opened(self, connection: Any) -> None:
        if self._engine.ended:
            self._abort("the client was closed")
            return
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._prepare()

    def _prepare(self) -> None:
        """What a new connection needs before requests are sent."""
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
        now = self._now()
        self._connecting, self.ready, self._patience = False, True, 1.0
        self._ready_at = now
        block, endpoint = self._connect_block, self._engine.endpoint
        block.histogram.record(now - self._began)
        if now >= block.histogram.due:
            block.refresh(now)
        endpoint.connected()
        if self._serves_at_once and not self._waiting:
            self._new_way()
        while self._waiting and self.ready:
            self._send(self._waiting.popleft())
        for consumer in self._consumers:
            if self.ready:
                consumer.begin(self.connection)

    def _new_way(self) -> None:
        """A call may go a way that is new: the breaker's probe need not wait."""
        circuit = self._engine.endpoint.circuit
        if circuit is not None and circuit.shut:
            circuit.connected(self._now())

    def _on_blocked(self, connection: Any, frame: Any) -> None:
        self.blocked = True

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        self.blocked = False

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
            self._closed(
                connection, exceptions.StreamLostError(why)
            )  # pika has told, or never does
        while self._engine.ended and self._waiting:
            self._waiting.popleft().fail(lost(why))

    def _abort(self, why: str) -> None:
        connection = self.connection
        if connection is not None:
            with contextlib.suppress(Exception):
                connection._terminate_stream(exceptions.StreamLostError(why))

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

    def _closed(self, connection: Any, reason: BaseException) -> None:
        if connection is not self.connection:
            return
        self._forget()
        self._lose(type(reason).__name__)
        self._left[self.where] = self._now()
        if self._engine.ended:
            return
        if self._connecting:
            self._try_next(reason)
        else:
            logger.info("the connection to RabbitMQ ended: %s", type(reason).__name__)
            if self._now() - self._ready_at >= LIVES:
                self._pause = PAUSE
                self._start_round()
            else:  # what ended it so soon may end the next one, too
                self._refused_at = self._now()
                self._start_after_pause()

    def _lose(self, why: str) -> None:
        """Whatever was sent has no answer."""
        asked, self._asked = self._asked, {}
        for request in asked:
            request.fail(lost(why))


def lost(why: str) -> Failure:
    """The connection ended before the answer."""
    return Failure(ConnectionResetError(why), BROKEN, errors.ConnectionLost, why)


def _cause(error: BaseException | None) -> Exception:
    """The error below pika's wrappers of it; a TimeoutError where time ran out."""
    for one in _unwrap(error):
        if isinstance(one, (OSError, exceptions.ProbableAuthenticationError)):
            return one
        if "Timeout" in type(one).__name__:
            return TimeoutError("no connection in time")
    return error if isinstance(error, Exception) else ConnectionError("no host to connect to")


def _unwrap(error: BaseException | None) -> list[BaseException]:
    todo, found = [error], []
    while todo:
        one = todo.pop(0)
        if one is None or one in found:
            continue
        found.append(one)
        todo += [one.__cause__, *getattr(one, "exceptions", ()), getattr(one, "exception", None)]
        todo += [arg for arg in one.args if isinstance(arg, BaseException)]
    return found
