"""timedblock's errors as RabbitMQ's clients know them: each is also one of pika's."""

from __future__ import annotations

from typing import Any

from pika import exceptions

from .. import errors


class DeadlineExceeded(errors.DeadlineExceeded, exceptions.AMQPError):
    """The limit passed before RabbitMQ answered. Also a TimeoutError and an AMQPError."""


class ConnectFailed(errors.ConnectFailed, exceptions.AMQPConnectionError):
    """No connection to RabbitMQ. Also a ConnectionError and an AMQPConnectionError."""


class ConnectionLost(errors.ConnectionLost, exceptions.StreamLostError):
    """The connection ended before the answer. Also a StreamLostError."""


class CircuitOpen(errors.CircuitOpen, exceptions.AMQPError):
    """The breaker of this RabbitMQ is open. Also an AMQPError."""


class Overloaded(errors.Overloaded, exceptions.AMQPError):
    """Our bulkhead or the bound on unconfirmed messages is full, or RabbitMQ takes no messages
    (``connection.blocked``). Also an AMQPError."""


class Unroutable(exceptions.UnroutableError):
    """RabbitMQ had no queue for a mandatory message, and doesn't have the message. An answer.

    Attributes:
        sent: True.
        reply_code: 312.
        reply_text: ``NO_ROUTE``.
    """

    sent = True

    def __init__(self, reply_code: int, reply_text: str) -> None:
        super().__init__([])
        self.reply_code = reply_code
        self.reply_text = reply_text
        self.args = (f"RabbitMQ returned the message: {reply_code} {reply_text}",)

    __repr__ = Exception.__repr__

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reply_code, self.reply_text)


class Nacked(exceptions.NackError):
    """RabbitMQ refused to be responsible for the message; nobody knows whether it kept it.

    Attributes:
        sent: True.
    """

    sent = True

    def __init__(self) -> None:
        super().__init__([])
        self.args = ("RabbitMQ nacked the message",)

    __repr__ = Exception.__repr__

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


#: what the call machine raises in place of its own
KINDS: dict[type[errors.Unavailable], type[errors.Unavailable]] = {
    errors.DeadlineExceeded: DeadlineExceeded,
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectionLost: ConnectionLost,
    errors.CircuitOpen: CircuitOpen,
    errors.Overloaded: Overloaded,
}
