"""One absolute instant that every inner wait looks at (L1).

A deadline is computed once and handed down; inner ones can only shorten it. The one in force is
kept in a ContextVar, so threads, tasks and greenlets each see their own.
"""

from __future__ import annotations

import contextvars
import functools
import math
import weakref
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
    # written so that NaN, which compares as False, fails
    if not (0 <= value <= LONGEST) or (value == 0 and not zero):
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
        return str(int(min(self.remaining(), LONGEST) * 1000))

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
    if outer.__class__ is _Entry:
        outer = _lasting(outer)
    if outer is None:
        return math.inf
    if outer.clock is clock:
        return outer.at
    return clock.monotonic() + outer.remaining()


def remaining() -> float | None:
    """Seconds left of the deadline in force (never below zero), or None without one."""
    deadline = _lasting(get())
    if deadline is None or math.isinf(deadline.at):
        return None
    return deadline.remaining()


class _Entry(Deadline):
    """The deadline of one entry of a `time_limit`."""

    maker: weakref.ref[time_limit]
    #: in turn; it may still limit a task that was started inside
    left: bool = False
    #: left while it was not the innermost one, or in another context
    stale: bool = False


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
        self._open: list[_Entry] = []

    def __enter__(self) -> Deadline | None:
        outer = _lasting(get())
        if self._limit is None:
            return outer
        inner = self._entry(self._limit, outer)
        self._open.append(inner)
        put(inner)
        return inner

    def _entry(self, limit: float | Deadline, outer: Deadline | None) -> _Entry:
        mine = _Entry()
        mine.maker, mine.outer = weakref.ref(self), outer
        if isinstance(limit, Deadline):
            mine.at, mine.clock, mine.owner = limit.at, limit.clock, limit.owner
        else:
            mine.clock = _clock.current()
            mine.at, mine.owner = mine.clock.monotonic() + limit, self._name
        if outer is not None and sooner(outer, mine.clock) <= mine.at:
            mine.at, mine.clock, mine.owner = outer.at, outer.clock, outer.owner
        return mine

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        current = get()
        mine = self._mine(current)
        if mine is None:
            return
        if mine is current:
            put(_in_force(mine.outer))  # first: an interrupt before this line leaves it in force
        mine.left = True
        if mine in self._open:
            self._open.remove(mine)
        if mine is current:
            return
        # A generator's limit, left out of turn or in another context than the one where it was
        # entered: somebody may still have it in force, where it must limit no more.
        mine.at, mine.stale = math.inf, True
        outer = _in_force(mine.outer)
        if outer is not None:
            mine.at, mine.clock = outer.at, outer.clock

    def _mine(self, deadline: Deadline | None) -> _Entry | None:
        """Which entry this exit is of, as far as that can be told."""
        while deadline is not None:
            if isinstance(deadline, _Entry) and deadline.maker() is self and not deadline.left:
                return deadline
            deadline = deadline.outer
        return self._open[0] if len(self._open) == 1 else None


def _in_force(deadline: Deadline | None) -> Deadline | None:
    # One that was left in turn may still limit a task that was started inside.
    while isinstance(deadline, _Entry) and deadline.stale:
        deadline = deadline.outer
    return deadline


def _lasting(deadline: Deadline | None) -> Deadline | None:
    """Without the entries whose ``with`` is gone, though they were never left.

    An interrupt on the first lines of `__exit__` does that; it must not limit the thread for ever.
    """
    while isinstance(deadline, _Entry) and not deadline.left and deadline.maker() is None:
        deadline = deadline.outer
    return deadline


def bind(fn: Callable[P, R]) -> Callable[P, R]:
    """`fn` with this context's deadline (and other context variables), for a plain thread."""
    context = contextvars.copy_context()

    @functools.wraps(fn)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        # a copy each: one context can't be entered twice at once
        return context.copy().run(fn, *args, **kwargs)

    return bound
