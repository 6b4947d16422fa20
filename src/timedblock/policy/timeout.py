"""How long an attempt may take: fixed, or learnt from percentiles (L2, no I/O, no sleep)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..deadline import check_seconds

if TYPE_CHECKING:
    from ..latency import Histogram


@dataclass(frozen=True)
class Fixed:
    """The same limit for an attempt and for the call, in seconds."""

    seconds: float

    def __post_init__(self) -> None:
        check_seconds("Fixed(seconds)", self.seconds)

    @property
    def ceiling(self) -> float:
        """The longest that a call may take, in seconds."""
        return self.seconds


@dataclass(frozen=True)
class Percentile:
    """A limit learnt from the latency of the last half minute: ``margin × the q-th percentile``.

    The method: attempts that were cut count as "at least this long" (Kaplan and Meier 1958), so
    that the limit can't ratchet down; while so many are cut that the percentile lies beyond every
    answer, the limit doubles, up to the ceiling.

    Args:
        q: the percentile, 50 to under 100.
        margin: factor on the percentile, 1 or more.
        floor: the least limit, in seconds.
        ceiling: the call limit and the most that an attempt's limit may be, in seconds.
        initial: the limit before `min_samples` answers are known, in seconds; None: the ceiling.
        min_samples: answers needed before the data are trusted.

    Raises:
        ValueError, TypeError: naming the argument and the value.
    """

    q: float = 99.5
    margin: float = 2.0
    floor: float = 0.05
    ceiling: float = 1.0
    initial: float | None = None
    min_samples: int = 100

    def __post_init__(self) -> None:
        if isinstance(self.q, bool) or not isinstance(self.q, (int, float)):
            raise TypeError(f"Percentile(q) must be a number, not {self.q!r}")
        if not 50 <= self.q < 100:
            raise ValueError(f"Percentile(q) must be from 50 to under 100, not {self.q!r}")
        margin = self.margin
        if isinstance(margin, bool) or not isinstance(margin, (int, float)):
            raise TypeError(f"Percentile(margin) must be a number, not {margin!r}")
        if not 1 <= margin <= 1000:
            raise ValueError(f"Percentile(margin) must be from 1 to 1000, not {self.margin!r}")
        for name in ("floor", "ceiling"):
            check_seconds(f"Percentile({name})", getattr(self, name))
        if self.floor > self.ceiling:
            raise ValueError(
                f"Percentile(floor={self.floor!r}) is above its ceiling {self.ceiling!r}"
            )
        if self.initial is not None:
            check_seconds("Percentile(initial)", self.initial)
            if self.initial > self.ceiling:
                raise ValueError(
                    f"Percentile(initial={self.initial!r}) is above its ceiling {self.ceiling!r}"
                )
        least = self.min_samples
        if not isinstance(least, int) or isinstance(least, bool) or least < 1:
            raise ValueError(
                f"Percentile(min_samples) must be a whole number from 1, not {least!r}"
            )

    @property
    def first(self) -> float:
        """The limit before anything is known, in seconds."""
        return self.ceiling if self.initial is None else self.initial

    def describe(self) -> str:
        """``p99.5 × 2``, for messages."""
        return f"p{self.q:g} × {self.margin:g}"


@dataclass(frozen=True)
class Learnt:
    """An attempt's limit in seconds, and where it is from.

    `source` is ``learnt``, ``initial``, ``fixed`` or ``ceiling``; `median` (seconds) is None
    until enough answers are known.
    """

    limit: float
    source: str
    median: float | None = None


def learn(timeout: Percentile, histogram: Histogram, before: Learnt) -> Learnt:
    """The limit after a slice was closed: a pure function of what was measured."""
    if histogram.answered + histogram.censored < timeout.min_samples:
        if before.source == "learnt":
            return before  # a quiet hour forgets nothing
        return Learnt(timeout.first, "initial")
    median, quantile = histogram.quantiles(0.5, timeout.q / 100)
    if quantile is None:
        # Everything cut is longer than everything seen. Only fresh evidence makes it grow.
        grown = before.limit * 2 if histogram.recent_cut() else before.limit
        limit = min(timeout.ceiling, max(grown, timeout.floor))
    else:
        limit = min(timeout.ceiling, max(timeout.floor, quantile * timeout.margin))
        if before.source == "learnt" and 0.95 * before.limit < limit < before.limit:
            limit = before.limit  # hysteresis: no trembling downwards
    return Learnt(limit, "learnt", median)
