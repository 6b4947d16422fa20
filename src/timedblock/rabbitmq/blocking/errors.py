"""The errors of the drop-in: each is an AMQPConnectionError, as what pika raises where it gives up.

Code that was written for pika catches that one to connect again.
"""

from __future__ import annotations

import socket
from typing import Any

from pika import exceptions

from ... import errors as core
from .. import errors


class DeadlineExceeded(errors.DeadlineExceeded, exceptions.AMQPConnectionError):
    """The limit passed. Also an AMQPConnectionError: where `sent` is True, the connection is
    closed."""


class CircuitOpen(errors.CircuitOpen, exceptions.AMQPConnectionError):
    """The breaker is open; the connection is as it was. Also an AMQPConnectionError."""


class Overloaded(errors.Overloaded, exceptions.AMQPConnectionError):
    """RabbitMQ takes nothing of this connection (``connection.blocked``). Also an
    AMQPConnectionError, though the connection may still be open: ask ``is_open``."""


class BlockedTooLong(Overloaded, exceptions.ConnectionBlockedTimeout):
    """``blocked_connection_timeout`` passed. Also a ConnectionBlockedTimeout."""


class HeartbeatLost(errors.ConnectionLost, exceptions.AMQPHeartbeatTimeout):
    """Nothing was heard from RabbitMQ. Also an AMQPHeartbeatTimeout."""


class ClosedByBroker(errors.ConnectionLost, exceptions.ConnectionClosedByBroker):
    """RabbitMQ ended the connection because it stops, or an operator wants it to. Also a
    ConnectionClosedByBroker.
    """

    def __init__(
        self, message: str = "", *, code: int = 320, text: str = "", **fields: Any
    ) -> None:
        super().__init__(message, **fields)
        self.code = code
        self.text = text

    @property
    def reply_code(self) -> int:
        """RabbitMQ's number."""
        return self.code

    @property
    def reply_text(self) -> str:
        """RabbitMQ's words."""
        return self.text


class NameNotResolved(errors.ConnectFailed, socket.gaierror):
    """The host's name has no address. Also a socket.gaierror."""


class NotRabbitMQ(errors.ConnectFailed, exceptions.IncompatibleProtocolError):
    """The peer hung up before it said anything. Also an IncompatibleProtocolError."""


#: what the call machine raises in place of its own
KINDS: dict[type[core.Unavailable], type[core.Unavailable]] = {
    core.DeadlineExceeded: DeadlineExceeded,
    core.ConnectFailed: errors.ConnectFailed,
    core.ConnectionLost: errors.ConnectionLost,
    core.CircuitOpen: CircuitOpen,
    core.Overloaded: Overloaded,
}
