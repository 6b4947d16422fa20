"""The drill's own hand on RabbitMQ, past the faults."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

from timedblock.drill import queue_checker
from timedblock.drill.checker import Violation
from timedblock.drill.errors import DrillError
from timedblock.drill.history import Call, Delivery
from timedblock.drill.rabbitmq.clients import HEARTBEAT
from timedblock.drill.rabbitmq.session import Messages
from timedblock.drill.store import Address

#: Seconds that each step of a connection may take.
_TIMEOUT = 5.0
#: Seconds after which a message that a client held when it ended has to be back in its queue.
_BACK_WITHIN = 20.0
_LOOK = 0.1


class QueueData:
    """A durable queue for each load: declared at the first server, which leads it, and looked at
    from the last one."""

    def __init__(self, servers: Sequence[Address], arguments: dict[str, Any] | None = None) -> None:
        self._first, self._last = servers[0], servers[-1]
        self._arguments = arguments

    def check(self) -> None:
        with _channel(self._last):
            pass

    def prepare(self, prefix: str) -> None:
        with _channel(self._first) as channel:
            channel.queue_declare(prefix, durable=True, arguments=self._arguments)

    def violations(
        self,
        prefix: str,
        calls: Sequence[Call],
        deliveries: Sequence[Delivery],
        *,
        restarted: bool,
    ) -> list[Violation]:
        """A restart excuses nothing: messages are persistent, and the queue is durable. A message
        that is missing may be held by a connection of which RabbitMQ doesn't know yet that it is
        gone."""
        whole: set[str] = set()
        spoilt: set[str] = set()
        until = time.monotonic() + _BACK_WITHIN
        with _channel(self._last) as channel:
            _drain(channel, prefix, whole, spoilt)
            while queue_checker.unfound(calls, deliveries, whole | spoilt):
                if time.monotonic() > until:
                    break
                time.sleep(_LOOK)
                _drain(channel, prefix, whole, spoilt)
        strange = spoilt - {call.value for call in calls}
        if strange:
            raise DrillError(f"{prefix} holds {len(strange)} messages that are not the drill's")
        return queue_checker.check(calls, deliveries, left=whole | spoilt, spoilt=spoilt)

    def delete(self, prefix: str) -> None:
        with _channel(self._last) as channel:
            channel.queue_delete(prefix)


@contextmanager
def _channel(server: Address) -> Iterator[BlockingChannel]:
    """DrillError when RabbitMQ can't be reached, or ends it."""
    parameters = pika.ConnectionParameters(
        *server, socket_timeout=_TIMEOUT, stack_timeout=_TIMEOUT, heartbeat=HEARTBEAT
    )
    try:
        connection = pika.BlockingConnection(parameters)
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()
    except (OSError, pika.exceptions.AMQPError) as error:
        reason = str(error) or type(error).__name__
        raise DrillError(f"no RabbitMQ at {server[0]}:{server[1]}: {reason}") from error


def _drain(channel: BlockingChannel, queue: str, whole: set[str], spoilt: set[str]) -> None:
    """The tokens of what is in the queue, which is empty afterwards; by their message ids those
    whose body is spoilt."""
    messages = Messages(queue)
    for properties, body in _taken(channel, queue):
        token = messages.token(body)
        if token is None:
            spoilt.add(str(properties.message_id))
        else:
            whole.add(token)


def _taken(channel: BlockingChannel, queue: str) -> Iterator[tuple[pika.BasicProperties, bytes]]:
    count = channel.queue_declare(queue, passive=True).method.message_count
    if not count:
        return
    tag = 0
    for method, properties, body in channel.consume(queue, inactivity_timeout=_TIMEOUT):
        if method is None or properties is None or body is None:
            break
        yield properties, body
        tag, count = method.delivery_tag, count - 1
        if not count:
            break
    if tag:
        channel.basic_ack(tag, multiple=True)
    channel.cancel()
