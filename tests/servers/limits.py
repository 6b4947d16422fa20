"""What the server tests measure: a call cut at its limit, and the recovery after a fault."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timedblock import Unavailable

# The ceiling that tests give to a client, so that they end soon.
LIMIT = 0.3
# Past the limit: two shared cores make a thread late, a call without a limit is seconds late.
TOLERANCE = 0.25
# A breaker that opened lets a probe through after 0.5 s, later ones after twice the time each.
RECOVERY = 4.0


@dataclass(frozen=True)
class Ended:
    """How one call ended, and after how many seconds."""

    value: Any
    error: Unavailable | None
    elapsed: float


def timed(call: Callable[[], Any], *, limit: float = LIMIT) -> Ended:
    """Make the call and hold it to `limit` + TOLERANCE, whatever its outcome."""
    value = error = None
    began = time.perf_counter()
    try:
        value = call()
    except Unavailable as caught:
        error = caught
    elapsed = time.perf_counter() - began
    assert elapsed <= limit + TOLERANCE, f"{elapsed:.3f} s for a limit of {limit} s: {error}"
    return Ended(value, error, elapsed)


def failed(call: Callable[[], Any], *, limit: float = LIMIT) -> Unavailable:
    """The error of a call that must not have an answer, within its limit."""
    ended = timed(call, limit=limit)
    assert ended.error is not None, f"answered {ended.value!r} under the fault"
    return ended.error


def recovered(call: Callable[[], Any], *, within: float = RECOVERY, limit: float = LIMIT) -> Any:
    """The first answer once a fault is over; each try before it is held to its limit."""
    end = time.monotonic() + within
    while True:
        ended = timed(call, limit=limit)
        if ended.error is None:
            return ended.value
        assert time.monotonic() < end, f"no answer {within} s after the fault: {ended.error}"
        time.sleep(0.02)


def comes(condition: Callable[[], bool], seconds: float = 5.0, look: float = 0.01) -> bool:
    """Whether `condition` is true within `seconds`; it is looked at each `look` seconds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(look)
    return True
