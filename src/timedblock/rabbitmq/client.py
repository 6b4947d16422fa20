"""`Client`: publish and get on RabbitMQ, each within one limit (L4)."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pika

from .. import fork
from ..block import TimedBlock
from ..call import CROWDED, CUT, OVERSLEPT, STALLED, UNCONNECTED
from ..deadline import check_seconds
from ..endpoint import endpoint
from ..errors import DeadlineExceeded, Overloaded, Unavailable
from ..policy import UNSET, Fixed, Policy
from ..policy.clients import effective, for_connecting
from . import hosts as _hosts
from .consuming import Consumer
from .consuming import Message as Consumed
from .engine import Engine
from .errors import KINDS
from .publishing import Message
from .request import Failure, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ..call import Call
    from .link import Link

#: pika has no default for declare, bind, purge and delete.
ADMINISTRATIVE_LIMIT = 10.0
#: Messages that a client keeps until they are confirmed.
MAX_UNCONFIRMED = 20_000
#: A second execution of these changes nothing.
_REPEATABLE = frozenset(("declare_queue", "declare_exchange", "bind", "unbind", "purge"))
_EMPTY = pika.spec.Basic.GetEmpty
#: Seconds for which `close` waits.
_CLOSE = 1.0


class Taken(NamedTuple):
    """A message that `Client.get` took: RabbitMQ has forgotten it."""

    body: bytes
    properties: pika.BasicProperties
    redelivered: bool
    exchange: str
    routing_key: str


class Report(NamedTuple):
    """What became of one message of `Client.publish_many`: None, or its error."""

    error: Exception | None

    @property
    def ok(self) -> bool:
        """Whether RabbitMQ has it."""
        return self.error is None


class Client:
    """RabbitMQ with one total limit on every call; thread-safe, fork-safe, no I/O until first used.

    Args:
        hosts: an AMQP URL, a (host, port) pair or pika's ConnectionParameters; or several of them,
            tried in random order.
        name: what the blocks are called: ``name.publish``.
        policy: for publish and get; the administrative operations are Fixed at `timeout` or 10 s.
        timeout: the ceiling of a call with its connect, in seconds; None: 1.
        on_unavailable: the value, or a callable without arguments, used where there is no answer.
        max_unconfirmed: messages that may be unconfirmed at a time, then `Overloaded`.

    Raises:
        timedblock.Unavailable: by every operation, when there is no answer within its limit.
        Unroutable, Nacked: by publishing, see there.
        pika.exceptions.ChannelClosedByBroker: RabbitMQ's answer to what it refuses (404, 406).
        ValueError, TypeError: at construction, naming the bad value.
    """

    def __init__(
        self,
        hosts: Any = ("127.0.0.1", 5672),
        *,
        name: str = "rabbitmq",
        policy: Policy | None = None,
        timeout: float | None = None,
        on_unavailable: Any = UNSET,
        max_unconfirmed: int = MAX_UNCONFIRMED,
    ) -> None:
        self._parameters = _hosts.read(hosts)
        if isinstance(max_unconfirmed, bool) or not isinstance(max_unconfirmed, int):
            raise TypeError(f"max_unconfirmed must be a whole number, not {max_unconfirmed!r}")
        if max_unconfirmed < 1:
            raise ValueError(f"max_unconfirmed must be from 1, not {max_unconfirmed!r}")
        self.name = name
        self.max_unconfirmed = max_unconfirmed
        self._timeout = None if timeout is None else check_seconds("timeout", timeout)
        self._policy = effective(policy, timeout, on_unavailable)
        where = ",".join(sorted({_hosts.show(one) for one in self._parameters}))
        self.endpoint = endpoint(
            where if name == "rabbitmq" else f"{name}@{where}", self._policy.breaker
        )
        self._blocks: dict[str, TimedBlock] = {}
        self._connect_block = self._block("connect")
        self._engine: Engine | None = None
        self._finalizer: Any = None
        self._start_fresh()
        fork.register(self)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._engine = None
        #: publishes whose callers still wait; entries come and go from any thread
        self._unconfirmed: dict[Request, None] = {}
        self._consumers: list[Consumer] = []

    def after_fork(self) -> None:
        """The I/O thread stayed in the parent, and its connections are the parent's."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._start_fresh()

    def _block(self, operation: str) -> TimedBlock:
        block = self._blocks.get(operation)
        if block is None:
            policy = self._policy
            if operation == "connect":
                policy = for_connecting(policy)
            elif operation not in ("publish", "get"):
                limit = ADMINISTRATIVE_LIMIT if self._timeout is None else self._timeout
                policy = replace(policy, timeout=Fixed(limit))
            made = TimedBlock(
                f"{self.name}.{operation}", policy, endpoint=self.endpoint, errors=KINDS
            )
            block = self._blocks.setdefault(operation, made)
        return block

    def _running(self) -> Engine:
        engine = self._engine
        if engine is not None and not engine.ended:
            return engine
        with self._lock:
            engine = self._engine
            if engine is None or engine.ended:
                engine = Engine(self.name, self._parameters, self._connect_block)
                self._engine = engine
                self._finalizer = weakref.finalize(self, engine.end)
                self._finalizer.atexit = False
        return engine

    # -- publishing ---------------------------------------------------------------------------

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str,
        properties: pika.BasicProperties | None = None,
        *,
        confirm: bool = True,
        mandatory: bool = True,
    ) -> None:
        """Publish a message; a return means that RabbitMQ has it.

        Args:
            exchange: its name; "" for the default one.
            routing_key: the queue's name, with the default exchange.
            body: text is encoded as UTF-8.
            properties: None: persistent, and nothing else.
            confirm: False returns as soon as it is handed to the connection: it may be lost.
            mandatory: whether a message that no queue gets is an error.

        Raises:
            Unroutable: no queue got it.
            Nacked: RabbitMQ refused the responsibility.
            timedblock.Unavailable: no answer within the limit; `sent` False: nothing left.
        """
        message = _message(exchange, routing_key, body, properties, confirm, mandatory)
        block = self._block("publish")
        try:
            self._call(block, "publishing", self._publishing(message))
        except Unavailable as error:
            block._fall_back(error)

    def publish_async(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str,
        properties: pika.BasicProperties | None = None,
        *,
        mandatory: bool = True,
    ) -> Future[None]:
        """Like `publish`, but returns a future at once.

        Its `result` has what `publish` returns or raises, within the same limit. What can be told
        at once is raised here (`CircuitOpen`, `Overloaded`). No retries, no fallback.
        """
        message = _message(exchange, routing_key, body, properties, True, mandatory)
        future: Future[None] = Future()
        call = self._block("publish").begin()

        def done(request: Request) -> None:
            self._unconfirmed.pop(request, None)
            failure = request.failure if request.done else self._gave_up(request)
            if failure is None:
                call.succeeded()
                future.set_result(None)
            else:
                future.set_exception(self._judge(request, failure, repeatable=False)[1])

        try:
            engine = self._running()
            request = self._request(call, self._publishing(message), done)
            self._reserve(engine, request)
            engine.post(engine.publishing.take, request)
        except BaseException as error:
            if isinstance(error, _Full):
                raise self._too_many(call, error) from None
            call.abandoned()
            raise
        return future

    def publish_many(
        self,
        messages: Iterable[tuple[str, str, bytes | str] | tuple[str, str, bytes | str, Any]],
        *,
        mandatory: bool = True,
    ) -> list[Report]:
        """Publish (exchange, routing_key, body[, properties]) each; a report for each, in order.

        Never raises for a message: `Report.error` is what `publish` would have raised for it.
        """
        futures: list[Future[None]] = []
        for exchange, routing_key, body, *rest in messages:
            properties = rest[0] if rest else None
            try:
                one = self.publish_async(
                    exchange, routing_key, body, properties, mandatory=mandatory
                )
            except Unavailable as error:
                one = Future()
                one.set_exception(error)
            futures.append(one)
        return [Report(_error(future)) for future in futures]

    @staticmethod
    def _publishing(message: Message) -> Callable[[Any, Request], None]:
        return lambda link, request: link.publish(request, message)

    # -- getting ------------------------------------------------------------------------------

    def get(self, queue: str) -> Taken | None:
        """Take one message of `queue`, or None where it is empty.

        It is acknowledged when it is here and its caller still waits, else it goes back to the
        queue: a call that was cut loses nothing.
        """

        def question(channel: Any, request: Request, answered: Callable[[Any], None]) -> None:
            def nothing(frame: Any) -> None:
                answered(None)

            def got(channel: Any, method: Any, properties: Any, body: bytes) -> None:
                # the channel is used again
                channel.callbacks.remove(channel.channel_number, _EMPTY, nothing)
                if request.given_up:
                    channel.basic_nack(method.delivery_tag, requeue=True)
                else:
                    channel.basic_ack(method.delivery_tag)
                answered(
                    Taken(
                        body,
                        properties,
                        method.redelivered,
                        method.exchange,
                        method.routing_key,
                    )
                )

            channel.add_callback(nothing, [_EMPTY], one_shot=True)
            channel.basic_get(queue, got)

        return self._ask("get", question)  # type: ignore[no-any-return]

    def consume(
        self,
        queue: str,
        handler: Callable[[Consumed], object],
        *,
        prefetch: int = 100,
        ack: Literal["auto", "manual"] = "auto",
        max_attempts: int = 5,
        requeue_delay: float = 1.0,
    ) -> Consumer:
        """Have ``handler(message)`` called for the messages of `queue`, one after the other, on a
        thread of the consumer's own; returns at once, and goes on over every reconnect.

        At least once: a message whose connection ended before it was acknowledged comes again.

        Args:
            prefetch: messages that RabbitMQ may deliver before they are acknowledged.
            ack: ``auto``: a return acknowledges; an exception gives the message back after
                `requeue_delay` seconds, and after `max_attempts` of them to its dead-letter
                exchange. ``manual``: ``message.ack()`` or ``message.nack()``, from any thread.

        Raises:
            ValueError, TypeError: naming the bad value.
        """
        if ack not in ("auto", "manual"):
            raise ValueError(f"ack must be 'auto' or 'manual', not {ack!r}")
        for what, number in (("prefetch", prefetch), ("max_attempts", max_attempts)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{what} must be a whole number from 1, not {number!r}")
        if not callable(handler):
            raise TypeError(f"the handler must be callable, not {handler!r}")
        delay = check_seconds("requeue_delay", requeue_delay, zero=True)
        consumer = Consumer(
            self._running(),
            queue,
            handler,
            prefetch=prefetch,
            ack=ack,
            max_attempts=max_attempts,
            requeue_delay=delay,
        )
        self._consumers.append(consumer)
        return consumer

    # -- topology -----------------------------------------------------------------------------

    def declare_queue(
        self,
        queue: str,
        *,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        passive: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Declare a queue (durable, unless said otherwise); its name: RabbitMQ makes one for ""."""
        frame = self._rpc(
            "declare_queue",
            lambda channel, answered: channel.queue_declare(
                queue,
                passive=passive,
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=dict(arguments or {}),
                callback=answered,
            ),
        )
        return str(frame.method.queue)

    def declare_exchange(
        self,
        exchange: str,
        exchange_type: str = "direct",
        *,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        passive: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare an exchange (durable, unless said otherwise)."""
        self._rpc(
            "declare_exchange",
            lambda channel, answered: channel.exchange_declare(
                exchange,
                exchange_type,
                passive=passive,
                durable=durable,
                auto_delete=auto_delete,
                internal=internal,
                arguments=dict(arguments or {}),
                callback=answered,
            ),
        )

    def bind(self, queue: str, exchange: str, routing_key: str = "") -> None:
        """Have `exchange` send to `queue` what has `routing_key`."""
        self._rpc(
            "bind",
            lambda channel, answered: channel.queue_bind(
                queue, exchange, routing_key, callback=answered
            ),
        )

    def unbind(self, queue: str, exchange: str, routing_key: str = "") -> None:
        """Undo `bind`."""
        self._rpc(
            "unbind",
            lambda channel, answered: channel.queue_unbind(
                queue, exchange, routing_key, callback=answered
            ),
        )

    def purge(self, queue: str) -> int:
        """Drop the messages of `queue`; how many there were."""
        frame = self._rpc(
            "purge", lambda channel, answered: channel.queue_purge(queue, callback=answered)
        )
        return int(frame.method.message_count)

    def delete_queue(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete `queue`; how many messages went with it."""
        frame = self._rpc(
            "delete_queue",
            lambda channel, answered: channel.queue_delete(
                queue, if_unused, if_empty, callback=answered
            ),
        )
        return int(frame.method.message_count)

    def delete_exchange(self, exchange: str, *, if_unused: bool = False) -> None:
        """Delete `exchange`."""
        self._rpc(
            "delete_exchange",
            lambda channel, answered: channel.exchange_delete(
                exchange, if_unused, callback=answered
            ),
        )

    # -- the path of a call -------------------------------------------------------------------

    def _rpc(self, operation: str, question: Callable[[Any, Callable[[Any], None]], None]) -> Any:
        return self._ask(operation, lambda channel, request, answered: question(channel, answered))

    def _ask(
        self,
        operation: str,
        question: Callable[[Any, Request, Callable[[Any], None]], None],
    ) -> Any:
        def start(link: Link, request: Request) -> None:
            link.ask(request, lambda channel, answered: question(channel, request, answered))

        block = self._block(operation)
        try:
            return self._call(block, "asking", start)
        except Unavailable as error:
            return block._fall_back(error)

    def _call(
        self,
        block: TimedBlock,
        link: str,
        start: Callable[[Any, Request], None],
    ) -> Any:
        call = block.begin()
        while True:
            request = None
            try:
                engine = self._running()
                request = self._request(call, start, None)
                if link == "publishing":
                    self._reserve(engine, request)
                line: Link = getattr(engine, link)
                engine.post(line.take, request)
                failure = request.failure if request.wait() else self._gave_up(request)
                if failure is None:
                    call.succeeded()
                    return request.value
                repeatable = not request.sent or block.name.rpartition(".")[2] in _REPEATABLE
                pause, error = self._judge(request, failure, repeatable=repeatable)
                engine.post(line.doubt, request)
            except _Full as full:
                raise self._too_many(call, full) from None
            except BaseException:
                call.abandoned()
                if request is not None:
                    request.given_up = True
                raise
            finally:
                if request is not None:
                    self._unconfirmed.pop(request, None)
            if pause is None:
                raise error
            call.clock.sleep(pause)
            call.again()

    def _request(
        self,
        call: Call,
        start: Callable[[Any, Request], None],
        on_done: Callable[[Request], None] | None,
    ) -> Request:
        # a connect may take its own limit, within the call's
        connect = self._connect_block.learnt.limit
        circuit = call.owner.circuit
        if circuit is None or circuit.shut:
            connect = self._connect_block.ceiling
        until = min(call.call_at, self.endpoint.clock.monotonic() + connect)
        return Request(call, start, until, on_done)

    def _reserve(self, engine: Engine, request: Request) -> None:
        """A place for a message; `_Full` where there is none.

        The link keeps also those whose callers have left, until they are confirmed or lost.
        """
        many = max(len(self._unconfirmed), engine.publishing.unconfirmed)
        if many >= self.max_unconfirmed:
            raise _Full(f"{self.max_unconfirmed} messages are unconfirmed")
        self._unconfirmed[request] = None

    def _too_many(self, call: Call, full: Exception) -> Exception:
        verdict = call.failed(full, kind=CROWDED, repeatable=False)
        assert verdict.retry_after is None
        return call.unavailable(Overloaded, note=str(full))

    def _gave_up(self, request: Request) -> Failure:
        """Its time is over."""
        request.given_up = True
        call = request.call
        engine = self._engine
        overslept = call.clock.monotonic() - request.at
        error = TimeoutError("no answer in time")
        if engine is not None and engine.publishing.blocked and request in self._unconfirmed:
            note = "RabbitMQ takes no messages: it is short of memory or disk"
            return Failure(error, CROWDED, Overloaded, note)
        if request.connection is None:
            return Failure(error, UNCONNECTED, DeadlineExceeded, "no connection")
        kind = STALLED if overslept > OVERSLEPT else CUT
        return Failure(error, kind, DeadlineExceeded)

    def _judge(
        self, request: Request, failure: Failure, *, repeatable: bool
    ) -> tuple[float | None, BaseException]:
        """Tell the machine; the pause before the next attempt, or None and the caller's error."""
        call = request.call
        call.sent = call.sent or request.sent
        if failure.kind == "told":
            return None, failure.error
        verdict = call.failed(
            failure.error,
            kind=failure.kind,
            waited=call.limit if failure.kind == STALLED else None,
            connect=self._connect_block.learnt,
            repeatable=repeatable,
        )
        request.late = call.late
        request.tell_late()
        if verdict.retry_after is not None or failure.raised is None:
            return verdict.retry_after, failure.error
        error = call.unavailable(failure.raised, note=failure.note)
        error.__cause__ = failure.error
        return None, error

    # -- health, ending -----------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """What it is connected to (None: nothing), whether RabbitMQ takes messages, and how many
        messages are unconfirmed, and how many are here for the handler of each queue."""
        engine = self._engine
        link = None if engine is None else engine.publishing
        return {
            "host": link.where if link is not None and link.ready else None,
            "blocked": link is not None and link.blocked,
            "unconfirmed": 0 if link is None else link.unconfirmed,
            "consumers": {one.queue: one.waiting for one in self._consumers if not one.stopped},
        }

    def close(self) -> None:
        """Stop the consumers, close the connections, each within a second; the next use connects
        again.

        What is still unconfirmed is told so.
        """
        consumers, self._consumers = self._consumers, []
        for consumer in consumers:
            consumer.stop(_CLOSE)
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            self._finalizer.detach()
            engine.end()
            engine.join(_CLOSE)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.name} on {self.endpoint.name}>"


class _Full(Exception):
    """Too much is unconfirmed."""


def _error(future: Future[None]) -> Exception | None:
    error = future.exception()
    if error is None or isinstance(error, Exception):
        return error
    raise error


def _message(
    exchange: str,
    routing_key: str,
    body: bytes | str,
    properties: pika.BasicProperties | None,
    confirm: bool,
    mandatory: bool,
) -> Message:
    for what, value in (("exchange", exchange), ("routing_key", routing_key)):
        if not isinstance(value, str):
            raise TypeError(f"{what} must be a string, not a {type(value).__name__}")
    if isinstance(body, str):
        body = body.encode()
    if not isinstance(body, bytes):
        raise TypeError(f"the body must be bytes or text, not a {type(body).__name__}")
    if properties is None:
        properties = pika.BasicProperties(delivery_mode=2)  # type: ignore[no-untyped-call]
    return Message(exchange, routing_key, body, properties, mandatory, confirm)
