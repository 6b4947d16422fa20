"""What happened, as frozen records, to whoever listens (L0).

Listeners are called in the thread of the call, after the fact. A broken listener can't break a
call: what it raises is logged (its type only) and forgotten.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("timedblock")


@dataclass(frozen=True)
class Event:
    """Something happened in a block at `at` (seconds on the block's clock)."""

    block: str
    endpoint: str | None
    at: float


@dataclass(frozen=True)
class CallSucceeded(Event):
    """An attempt has its answer. `late`: after its limit; `stalled`: our own process slept."""

    elapsed: float
    late: bool = False
    stalled: bool = False


@dataclass(frozen=True)
class CallFailed(Event):
    """An attempt ended without a good answer. `error` is the type's name, never its text.

    `kind`: ``answer`` (a logical error), ``unwell``, ``cut`` (ran into a limit), ``broken``,
    ``stalled`` or ``dependency`` (an inner block's Unavailable).
    """

    elapsed: float
    kind: str
    error: str


@dataclass(frozen=True)
class CallRejected(Event):
    """A call was not started: ``circuit``, ``bulkhead`` or ``deadline``."""

    reason: str


@dataclass(frozen=True)
class CallAbandoned(Event):
    """A call was left by a BaseException: neither success nor failure."""

    elapsed: float


@dataclass(frozen=True)
class CallRetried(Event):
    """A call is to be tried again after `wait` seconds."""

    attempt: int
    wait: float


@dataclass(frozen=True)
class FellBack(Event):
    """The fallback's value was used instead of the answer."""

    error: str


@dataclass(frozen=True)
class LimitChanged(Event):
    """The limit of an attempt moved (seconds). `key`: of those with that tag or size, or None."""

    old: float
    new: float
    source: str
    key: str | None = None


@dataclass(frozen=True)
class BreakerChanged(Event):
    """A breaker went to another state; `block` is the breaker's name."""

    old: str
    new: str
    reason: str


Listener = "Callable[[Event], object]"

# Read on the hot path as a truth value: empty means that no event is made at all.
listeners: list[Callable[[Event], object]] = []


def subscribe(listener: Callable[[Event], object]) -> Callable[[], None]:
    """Call `listener(event)` for every event from now on; returns the function that ends it."""
    listeners.append(listener)

    def unsubscribe() -> None:
        if listener in listeners:
            listeners.remove(listener)

    return unsubscribe


def emit(event: Event) -> None:
    """Hand `event` to every listener."""
    for listener in tuple(listeners):
        try:
            listener(event)
        except Exception as error:
            logger.warning("an event listener raised %s; ignored", type(error).__name__)


_WORTH_A_LINE_EVERY = 1.0
_last_line: dict[tuple[str, str], float] = {}


def log_state(at: float, level: int, name: str, key: str, text: str) -> None:
    """One log line for a change of state, at most one a second for the same name and key."""
    last = _last_line.get((name, key))
    if last is not None and 0 <= at - last < _WORTH_A_LINE_EVERY:
        return
    if len(_last_line) > 4096:
        _last_line.clear()
    _last_line[name, key] = at
    logger.log(level, "%s: %s", name, text)
