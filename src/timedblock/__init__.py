"""Resilient client wrappers: one total limit on every call.

Whatever the network, the store or the driver does, a call returns an answer or an honest error
within its limit, and the next call is not harmed by it.
"""

from typing import TYPE_CHECKING

from .block import TimedBlock
from .call import Call, Verdict
from .deadline import Deadline, bind, remaining, time_limit
from .endpoint import Endpoint
from .errors import (
    CircuitOpen,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    PartialResult,
    Unavailable,
)
from .events import Event, subscribe
from .policy import Breaker, Fixed, Percentile, Policy, Retry
from .stats import health, stats

if TYPE_CHECKING:
    from .circuitbreaker import CircuitBreaker

__version__ = "0.1.0"

__all__ = [
    "Breaker",
    "Call",
    "CircuitBreaker",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectionLost",
    "Deadline",
    "DeadlineExceeded",
    "Endpoint",
    "Event",
    "Fixed",
    "Overloaded",
    "PartialResult",
    "Percentile",
    "Policy",
    "Retry",
    "TimedBlock",
    "Unavailable",
    "Verdict",
    "bind",
    "health",
    "remaining",
    "stats",
    "subscribe",
    "time_limit",
]


def __getattr__(name: str) -> object:
    """`CircuitBreaker` on its first use: pybreaker imports redis and tornado where they are."""
    if name == "CircuitBreaker":
        from .circuitbreaker import CircuitBreaker

        return CircuitBreaker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
