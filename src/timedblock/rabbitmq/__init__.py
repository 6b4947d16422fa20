"""RabbitMQ without hanging, on pika (L4).

``from timedblock import rabbitmq``. Everything raised for want of an answer is a
`timedblock.Unavailable` and one of pika's errors.
"""

from .batching import Report
from .blocking import BlockingChannel, BlockingConnection
from .client import Client
from .consuming import Consumer, Message
from .errors import (
    CircuitOpen,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    Nacked,
    Overloaded,
    Unroutable,
)

__all__ = [
    "BlockingChannel",
    "BlockingConnection",
    "CircuitOpen",
    "Client",
    "ConnectFailed",
    "ConnectionLost",
    "Consumer",
    "DeadlineExceeded",
    "Message",
    "Nacked",
    "Overloaded",
    "Report",
    "Unroutable",
]
