"""pika's BlockingChannel, with one total limit on every call (L4)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pika.adapters.blocking_connection import BlockingChannel as PikaChannel
from pika.adapters.blocking_connection import _CallbackResult

if TYPE_CHECKING:
    from collections.abc import Callable

    import pika

    from .connection import BlockingConnection

F = TypeVar("F", bound="Callable[..., Any]")

#: A body of so many bytes takes its time: it may have all of the ceiling.
LARGE = 131_072


def _limited(operation: str, method: F) -> F:
    """`method` of pika's channel, within the limit of `operation`."""

    @functools.wraps(method)
    def run(self: BlockingChannel, *args: Any, **kwargs: Any) -> Any:
        return self.connection._run(operation, method, self, args, kwargs)

    return cast("F", run)


class _Confirm(_CallbackResult):
    """The confirm that a publish waits for; those of messages that were given up are not it."""

    __slots__ = ("_channel",)

    def __init__(self, channel: BlockingChannel, value_class: Any) -> None:
        super().__init__(value_class)
        self._channel = channel

    def set_value_once(self, *args: Any, **kwargs: Any) -> None:
        """The broker's ack or nack, of one message or of several."""
        awaited = self._channel._awaited
        if awaited is not None and args[0].method.delivery_tag >= awaited:
            super().set_value_once(*args, **kwargs)


class BlockingChannel(PikaChannel):
    """pika's BlockingChannel; made by `BlockingConnection.channel`.

    Its methods, arguments and results are pika's. Each ends within its limit.
    """

    def __init__(self, channel_impl: pika.channel.Channel, connection: BlockingConnection) -> None:
        super().__init__(channel_impl, connection)
        #: the tag that RabbitMQ gives to the next message, once confirms are on
        self._next_tag = 1
        #: that of the publish in hand, and its message
        self._awaited: int | None = None
        self._message: tuple[str, str, bytes] | None = None
        self._message_confirmation_result = _Confirm(self, self._OnMessageConfirmationReportArgs)

    def __enter__(self) -> BlockingChannel:
        return self

    @property
    def connection(self) -> BlockingConnection:
        """The connection that this is a channel of."""
        return cast("BlockingConnection", self._connection)

    basic_ack = _limited("basic_ack", PikaChannel.basic_ack)
    basic_cancel = _limited("basic_cancel", PikaChannel.basic_cancel)
    # `consume` is a generator, `basic_consume` only checks its arguments: both do this
    _basic_consume_impl = _limited("basic_consume", PikaChannel._basic_consume_impl)
    basic_nack = _limited("basic_nack", PikaChannel.basic_nack)
    basic_qos = _limited("basic_qos", PikaChannel.basic_qos)
    basic_recover = _limited("basic_recover", PikaChannel.basic_recover)
    basic_reject = _limited("basic_reject", PikaChannel.basic_reject)
    cancel = _limited("basic_cancel", PikaChannel.cancel)
    close = _limited("close_channel", PikaChannel.close)
    confirm_delivery = _limited("confirm_delivery", PikaChannel.confirm_delivery)
    exchange_bind = _limited("exchange_bind", PikaChannel.exchange_bind)
    exchange_declare = _limited("exchange_declare", PikaChannel.exchange_declare)
    exchange_delete = _limited("exchange_delete", PikaChannel.exchange_delete)
    exchange_unbind = _limited("exchange_unbind", PikaChannel.exchange_unbind)
    flow = _limited("flow", PikaChannel.flow)
    queue_bind = _limited("queue_bind", PikaChannel.queue_bind)
    queue_declare = _limited("queue_declare", PikaChannel.queue_declare)
    queue_delete = _limited("queue_delete", PikaChannel.queue_delete)
    queue_purge = _limited("queue_purge", PikaChannel.queue_purge)
    queue_unbind = _limited("queue_unbind", PikaChannel.queue_unbind)
    stop_consuming = _limited("basic_cancel", PikaChannel.stop_consuming)
    tx_commit = _limited("tx_commit", PikaChannel.tx_commit)
    tx_rollback = _limited("tx_rollback", PikaChannel.tx_rollback)
    tx_select = _limited("tx_select", PikaChannel.tx_select)

    def start_consuming(self) -> None:
        """As pika's, until all consumers are cancelled; it ends too with what ends
        `BlockingConnection.process_data_events`."""
        depth = self.connection._event_dispatch_suspend_depth
        try:
            super().start_consuming()
        except BaseException:
            self.connection._mend_dispatch(depth)
            raise

    def basic_get(self, queue: str, auto_ack: bool = False) -> Any:
        """As pika's, within its learnt limit; a message that comes in pieces may have all of the
        ceiling."""
        # pika would send it on a closed channel, and RabbitMQ would end the connection for that
        self._impl._raise_if_not_open()
        return self.connection._run("get", PikaChannel.basic_get, self, (queue, auto_ack), {})

    def basic_publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str,
        properties: pika.BasicProperties | None = None,
        mandatory: bool = False,
    ) -> None:
        """As pika's. After `confirm_delivery` a return means that RabbitMQ has the message; without
        it, that this process has handed it to the operating system, which is no more than pika
        says.

        Raises:
            UnroutableError, NackError: pika's own, with confirms.
            Overloaded: RabbitMQ takes no messages; ``sent`` True: it may take this one later.
            timedblock.Unavailable: no answer within the limit.
        """
        confirmed = self._delivery_confirmation
        self.connection._run(
            "publish" if confirmed else "publish_unconfirmed",
            BlockingChannel._publish,
            self,
            (exchange, routing_key, body, properties, mandatory),
            {},
            whole=isinstance(body, (bytes, str)) and len(body) >= LARGE,
        )

    def _publish(
        self, exchange: str, routing_key: str, body: Any, properties: Any, mandatory: bool
    ) -> None:
        publish = PikaChannel.basic_publish
        if not self._delivery_confirmation:
            publish(self, exchange, routing_key, body, properties, mandatory)
            return
        impl = self.connection._impl
        before = impl.bytes_sent
        self._awaited = self._next_tag
        self._message = exchange, routing_key, body.encode() if isinstance(body, str) else body
        self._puback_return = None
        try:
            publish(self, exchange, routing_key, body, properties, mandatory)
        finally:
            self._awaited = self._message = None
            if impl.bytes_sent != before:
                self._next_tag += 1

    def _on_puback_message_returned(
        self, channel: Any, method: Any, properties: Any, body: bytes
    ) -> None:
        # one that was given up may come back while another is waited for
        if self._message == (method.exchange, method.routing_key, body):
            super()._on_puback_message_returned(channel, method, properties, body)
