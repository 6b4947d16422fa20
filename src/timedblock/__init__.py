"""Resilient client wrappers: one total limit on every call.

Whatever the network, the store or the driver does, a call returns an answer or an honest error
within its limit, and the next call is not harmed by it.
"""

from typing import TYPE_CHECKING

from . import registry as _registry
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
from .snapshot import load_learnt, save_learnt
from .stats import health, stats
from .tags import tag

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
    "load_learnt",
    "remaining",
    "save_learnt",
    "stats",
    "subscribe",
    "tag",
    "time_limit",
]


def _find_source() -> _registry.Source:
    """The configuration, when the first block is made: importing reads no file."""
    from . import config

    return config.begin()


_registry.find_source = _find_source


def __getattr__(name: str) -> object:
    """`CircuitBreaker` on its first use: pybreaker imports redis and tornado where they are."""
    if name == "CircuitBreaker":
        from .circuitbreaker import CircuitBreaker

        return CircuitBreaker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
