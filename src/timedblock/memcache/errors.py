"""timedblock's errors as memcached's clients know them: each is also pymemcache's."""

from __future__ import annotations

from pymemcache.exceptions import (
    MemcacheError,
    MemcacheUnexpectedCloseError,
    MemcacheUnknownError,
)

from .. import errors


class DeadlineExceeded(errors.DeadlineExceeded, MemcacheError):
    """The limit passed before memcached answered. Also a TimeoutError and a MemcacheError."""


class ConnectFailed(errors.ConnectFailed, MemcacheError):
    """No connection to memcached. Also a ConnectionError and a MemcacheError."""


class ConnectionLost(errors.ConnectionLost, MemcacheUnexpectedCloseError):
    """The connection ended before the answer. Also a MemcacheUnexpectedCloseError."""


class GarbledReply(ConnectionLost, MemcacheUnknownError):
    """The reply can't belong to the request. Also a MemcacheUnknownError."""


class CircuitOpen(errors.CircuitOpen, MemcacheError):
    """The breaker of this memcached is open. Also a MemcacheError."""


class Overloaded(errors.Overloaded, MemcacheError):
    """Our own pool or bulkhead is full. Also a MemcacheError."""


class PartialResult(errors.PartialResult, MemcacheError):
    """Some keys have no answer. Also a MemcacheError."""


#: what the call machine raises in place of its own
KINDS: dict[type[errors.Unavailable], type[errors.Unavailable]] = {
    errors.DeadlineExceeded: DeadlineExceeded,
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectionLost: ConnectionLost,
    errors.CircuitOpen: CircuitOpen,
    errors.Overloaded: Overloaded,
    errors.PartialResult: PartialResult,
}
