"""Resilient client wrappers: one total limit on every call.

Whatever the network, the store or the driver does, a call returns an answer or an honest error
within its limit, and the next call is not harmed by it.
"""

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

__version__ = "0.1.0"

__all__ = [
    "Breaker",
    "Call",
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
