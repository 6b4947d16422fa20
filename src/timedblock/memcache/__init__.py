"""memcached without hanging: drop-ins for pymemcache's clients (L4).

``from timedblock.memcache import Client, PooledClient, HashClient``. Everything raised for want of
an answer is a `timedblock.Unavailable` and one of pymemcache's errors.
"""

from ..net import seam as _seam
from .client import Client
from .errors import (
    CircuitOpen,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    GarbledReply,
    Overloaded,
    PartialResult,
)
from .hash import HashClient
from .pooled import PooledClient

__all__ = [
    "CircuitOpen",
    "Client",
    "ConnectFailed",
    "ConnectionLost",
    "DeadlineExceeded",
    "GarbledReply",
    "HashClient",
    "Overloaded",
    "PartialResult",
    "PooledClient",
]

_seam.from_environment()
