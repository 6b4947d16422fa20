"""Making a connection to RabbitMQ, and another when it ends: hosts in turn, back-off (L4)."""

from __future__ import annotations

import contextlib
import logging
import math
import random
from typing import TYPE_CHECKING, Any

from pika import exceptions

from ..net import seam
from ..net.resolve import RESOLVER, literal
from ..net.workers import Full, Workers
from . import hosts as _hosts
from .connection import Connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pika

    from ..block import TimedBlock
    from ..net.workers import Job
    from .engine import Engine
    from .hosts import Place

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
_RESOLVERS = Workers("rabbitmq-resolve", 8)


class Connecting:
    """A connection that is kept up from its first use on; on the I/O thread.

    What is done with it is its subclass's: `_prepare`, which ends with `_get_ready`; `_lose`,
    `_unreachable`, and `_is_wanted`.
    """

    def __init__(
        self, engine: Engine, hosts: Sequence[pika.ConnectionParameters], connect: TimedBlock
    ) -> None:
        self._engine = engine
        self._hosts = hosts
        self._connect_block = connect
        #: how much longer than usual an attempt may take, since some didn't end in time
        self._patience = 1.0
        self.connection: Any = None
        #: requests can be sent
        self.ready = False
        #: RabbitMQ takes no messages (a memory or disk alarm)
        self.blocked = False
        #: the host, for people, and where it is
        self.where: str | None = None
        self.place: Place | None = None
        #: when the connection to a place was lost last
        self._left: dict[Place | None, float] = {}
        self._round: list[Any] = []
        self._connecting = False
        self._began = 0.0
        self._guard: Any = None
        self._pause = PAUSE
        self._timer: Any = None
        self._refused_at = self._ready_at = -math.inf

    @property
    def open(self) -> bool:
        """Whether there is a connection, or the beginning or the end of one."""
        return self.connection is not None

    def _prepare(self) -> None:
        """What a new connection needs before requests are sent; then `_get_ready`."""
        raise NotImplementedError

    @property
    def _is_wanted(self) -> bool:
        """Whether somebody waits for a connection."""
        raise NotImplementedError

    def _lose(self, why: str) -> None:
        """Whatever was sent has no answer."""
        raise NotImplementedError

    def _unreachable(self, cause: Exception) -> None:
        """No host takes a connection, for this reason: whoever waits is told."""
        raise NotImplementedError

    # -- when ---------------------------------------------------------------------------------

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

    def _start_after_pause(self) -> None:
        self._start_later(self._pause * (1 + random.random()))
        self._pause = min(PAUSE_MAX, self._pause * 2)

    # -- where --------------------------------------------------------------------------------

    def _rank(self, parameters: pika.ConnectionParameters) -> tuple[float, ...]:
        """How much a host is preferred: as its best place is, and one that is unknown."""
        places = self._engine.places.of(parameters)
        return max((self._prefer(place) for place in places), default=(math.inf,))

    def _prefer(self, place: Place) -> tuple[float, ...]:
        """Those that were lost of late come last, in turn; our partner's rather than another."""
        left = -self._left[place] if self.was_lost(place) else math.inf
        return left, place == self._engine.partner(self).place

    def was_lost(self, place: Place | None) -> bool:
        """Whether a connection to that place was lost of late."""
        return self._now() - self._left.get(place, -math.inf) < _GRUDGE

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
        ips = [address[0] for _, address in job.outcome()]
        self._engine.places.learn(parameters, ips)
        ips.reverse()  # popped from the end: of those that are equal, the resolver's first
        ips.sort(key=lambda ip: self._prefer((ip, parameters.port)))
        self._round += [(parameters, ip) for ip in ips]
        self._try_next(None)

    def _open(self, parameters: pika.ConnectionParameters, ip: str) -> None:
        self._began = self._now()
        self.where, self.place = _hosts.show(parameters, ip), (ip, parameters.port)
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
        if self._guard is not None:
            self._engine.ioloop.remove_timeout(self._guard)
            self._guard = None

    def _round_failed(self, error: BaseException | None) -> None:
        self._connecting = False
        self.where = self.place = None
        self._refused_at = self._now()
        cause = _cause(error)
        # the machine counts a connect that hangs by its callers' own time
        if isinstance(cause, TimeoutError):
            self._patience *= 2
        else:
            self._unreachable(cause)
        self._engine.endpoint.connect_failed(self._now())
        self._start_after_pause()

    # -- a connection -------------------------------------------------------------------------

    def _opened(self, connection: Any) -> None:
        if self._engine.ended:
            self._abort("the client was closed")
            return
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._prepare()

    def _get_ready(self) -> None:
        """Requests can be sent from now on."""
        now = self._now()
        self._connecting, self.ready, self._patience = False, True, 1.0
        self._ready_at = now
        block = self._connect_block
        block.histogram.record(now - self._began)
        if now >= block.histogram.due:
            block.refresh(now)
        self._engine.endpoint.connected()

    def _new_way(self) -> None:
        """A call may go a way that is new: the breaker's probe need not wait."""
        circuit = self._engine.endpoint.circuit
        if circuit is not None and circuit.shut:
            circuit.connected(self._now())

    def _on_blocked(self, connection: Any, frame: Any) -> None:
        self.blocked = True

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        self.blocked = False

    def _abort(self, why: str) -> None:
        connection = self.connection
        if connection is not None:
            with contextlib.suppress(Exception):
                connection._terminate_stream(exceptions.StreamLostError(why))

    def _closed(self, connection: Any, reason: BaseException) -> None:
        if connection is not self.connection:
            return
        self.ready = False
        self._lose(type(reason).__name__)  # before `_forget`: who has to wait now begins nothing
        self._forget()
        self._left[self.place] = self._now()
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
                if self._is_wanted:
                    self._want()


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
