"""pybreaker's `CircuitBreaker` on timedblock's call machine (L5).

The same constructor, methods, listeners and storages; what decides is `policy.breaker.Circuit`.
No lock is held across a call, so ten threads take the time of one. A storage that may be far away
(Redis) is read and written in the background; a call never waits for it.

Everything else that pybreaker exports is exported here too, so that an application changes its
import: ``from timedblock import circuitbreaker as pybreaker``.
"""

from __future__ import annotations

from pybreaker import (
    STATE_CLOSED,
    STATE_HALF_OPEN,
    STATE_OPEN,
    CircuitBreakerListener,
    CircuitBreakerStorage,
    CircuitMemoryStorage,
    CircuitRedisStorage,
)

from .breaker import CircuitBreaker
from .errors import CircuitBreakerError

__all__ = [
    "STATE_CLOSED",
    "STATE_HALF_OPEN",
    "STATE_OPEN",
    "CircuitBreaker",
    "CircuitBreakerError",
    "CircuitBreakerListener",
    "CircuitBreakerStorage",
    "CircuitMemoryStorage",
    "CircuitRedisStorage",
]
