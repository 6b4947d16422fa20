"""One absolute instant that every inner wait looks at (L1).

A deadline is computed once and handed down; inner ones can only shorten it. The one in force is
kept in a ContextVar, so threads, tasks and greenlets each see their own.
"""

from __future__ import annotations

import contextvars
import functools
import math
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from . import clock as _clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")

#: A limit past this is a mistake (milliseconds given for seconds, say), not a limit.
LONGEST = 30 * 86400.0

HEADER = "Timedblock-Deadline-Ms"


def check_seconds(name: str, value: object, *, zero: bool = False) -> float:
    """`value` as a float of seconds; ValueError or TypeError naming it when it is no duration."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or value < 0 or (value == 0 and not zero) or value > LONGEST:
        low = "from 0" if zero else "over 0"
        raise ValueError(f"{name} must be {low} and at most {LONGEST:g} seconds, not {value!r}")
    return float(value)


class Deadline:
    """An absolute monotonic instant that knows its owner.

    Attributes:
        at: the instant, seconds on `clock`.
        owner: who set it (a block, or the name of a time_limit).
        clock: the clock that `at` is read on.
        outer: the deadline that was in force before, or None.
    """

    at: float
    owner: Any = None
    clock: _clock.Clock
    outer: Deadline | None = None

    @classmethod
    def after(cls, seconds: float, owner: object = "time_limit") -> Deadline:
        """The deadline `seconds` from now; ValueError for NaN, zero, negative or huge values."""
        return cls._make(check_seconds("the time limit", seconds), owner)

    @classmethod
    def _make(cls, seconds: float, owner: object) -> Deadline:
        deadline = cls()
        deadline.clock = _clock.current()
        deadline.at = deadline.clock.monotonic() + seconds
        deadline.owner = owner
        return deadline

    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at - self.clock.monotonic())

    def to_header(self) -> str:
        """The remaining whole milliseconds, rounded down, as text for a request header."""
        return str(int(self.remaining() * 1000))

    @classmethod
    def from_header(cls, value: str | bytes | None, owner: object = "caller") -> Deadline | None:
        """The deadline that a caller sent, or None for anything that is none."""
        if value is None:
            return None
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        # isdecimal() takes other scripts' digits too, so ask for ASCII; 12 digits are 31 years
        text = value.strip()
        if not (text.isascii() and text.isdecimal() and len(text) <= 12):
            return None
        return cls._make(min(int(text) / 1000, LONGEST), owner)

    def __repr__(self) -> str:
        return f"<Deadline of {getattr(self.owner, 'name', self.owner)}: {self.remaining():.3f} s>"


_deadline: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar(
    "timedblock_deadline", default=None
)
get = _deadline.get
put = _deadline.set


def sooner(outer: Deadline | None, clock: _clock.Clock) -> float:
    """When `outer` passes, as an instant of `clock`; infinity without one."""
    if outer is None:
        return math.inf
    if outer.clock is clock:
        return outer.at
    return clock.monotonic() + outer.remaining()


def remaining() -> float | None:
    """Seconds left of the deadline in force (never below zero), or None without one."""
    deadline = get()
    return None if deadline is None else deadline.remaining()


class time_limit:
    """``with time_limit(0.250):`` gives everything inside one shared budget of seconds.

    It only ever shortens what is in force. The exit never raises: what runs inside is cut by the
    timed blocks and sockets that look at it. Takes seconds, a `Deadline`, or None (no change).
    Raises ValueError at construction for NaN, zero, negative or huge seconds.
    """

    def __init__(self, limit: float | Deadline | None, name: str = "time_limit") -> None:
        if limit is not None and not isinstance(limit, Deadline):
            limit = check_seconds("the time limit", limit)
        self._limit = limit
        self._name = name
        self._open: list[tuple[Deadline | None, Deadline | None]] = []

    def __enter__(self) -> Deadline | None:
        outer = get()
        inner = self._inner(outer)
        self._open.append((inner, outer))
        put(inner)
        return inner

    def _inner(self, outer: Deadline | None) -> Deadline | None:
        if self._limit is None:
            return outer
        if isinstance(self._limit, Deadline):
            mine = Deadline()
            mine.at, mine.clock, mine.owner = self._limit.at, self._limit.clock, self._limit.owner
        else:
            mine = Deadline._make(self._limit, self._name)
        if outer is not None and sooner(outer, mine.clock) <= mine.at:
            return outer
        mine.outer = outer
        return mine

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        current = get()
        # Left in another context (a generator closed elsewhere): nothing of ours is in force here.
        for index in range(len(self._open) - 1, -1, -1):
            inner, outer = self._open[index]
            if inner is current:
                del self._open[index]
                put(outer)
                return
        if self._open:
            self._open.pop()


def bind(fn: Callable[P, R]) -> Callable[P, R]:
    """`fn` with this context's deadline (and other context variables), for a plain thread."""
    context = contextvars.copy_context()

    @functools.wraps(fn)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        # a copy each: one context can't be entered twice at once
        return context.copy().run(fn, *args, **kwargs)

    return bound
