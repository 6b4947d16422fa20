"""What a breaker raises in place of a call (L5)."""

from __future__ import annotations

import pybreaker

from ..errors import CircuitOpen


class CircuitBreakerError(CircuitOpen, pybreaker.CircuitBreakerError):
    """The circuit is open, or this very call opened it (then `__cause__` is what it raised).

    Both a `timedblock.CircuitOpen` and a `pybreaker.CircuitBreakerError`.
    """
