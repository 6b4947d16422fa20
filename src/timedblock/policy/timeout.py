"""How long an attempt may take: fixed, or learnt from percentiles (L2, no I/O, no sleep)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING

from ..deadline import check_seconds
from ..latency import pooled

if TYPE_CHECKING:
    from collections.abc import Callable

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
    until enough answers are known. `exploring`: attempts were cut lately, so that one in
    `EXPLORE` is to run to the ceiling. `pooled`: learnt from all operations of its kind. `base`:
    where there are few attempts now, what more of them gave; the limit is above it when these ask
    for that.
    """

    limit: float
    source: str
    median: float | None = None
    exploring: bool = False
    pooled: bool = False
    base: float | None = None


#: While attempts are being cut, one in so many runs to the ceiling, so that the tail stays known.
EXPLORE = 50
#: Changes are looked for in the newest so many attempts, small to see great ones at once, large to
#: see small ones at all.
_LOOKS = (50, 200, 800)
#: Standard deviations past the expected number of cut attempts that are no accident.
_SIGMAS = 3.5
_HYSTERESIS = 0.95


def learn(
    timeout: Percentile,
    histogram: Histogram,
    before: Learnt,
    now: float = 0.0,
    kin: Callable[[], list[Histogram]] = list,
) -> Learnt:
    """The limit after a slice was closed, from what was measured and nothing else.

    Forgets (`Histogram.forget`) what is older than a change that it finds. `kin()` are the
    histograms of the operations of the same kind, asked for where this one knows too little.
    """
    change = _changed_since(timeout, histogram, before)
    if change is not None:
        histogram.forget(change, now)
    grown = min(timeout.ceiling, before.limit * 2) if change is not None else timeout.floor
    if histogram.answered + histogram.censored < timeout.min_samples:
        return _from_little(timeout, histogram, before, grown, kin)
    median, quantile = histogram.quantiles(0.5, timeout.q / 100)
    cut = any(newest.cut for newest in histogram.newest(before.limit, 1))
    if quantile is None:
        # Everything cut is longer than everything seen. Only fresh evidence makes it grow.
        limit = max(grown, before.limit * 2 if cut else before.limit)
    else:
        limit = max(grown, quantile * timeout.margin)
        if before.source == "learnt" and _HYSTERESIS * before.limit < limit < before.limit:
            limit = before.limit  # no trembling downwards
    limit = min(timeout.ceiling, max(timeout.floor, limit))
    return Learnt(limit, "learnt", median, cut)


def _changed_since(timeout: Percentile, histogram: Histogram, before: Learnt) -> float | None:
    """The instant after which many more attempts were cut than the percentile allows, or None."""
    if before.source != "learnt" or before.limit >= timeout.ceiling:
        return None
    for newest in histogram.newest(before.limit, *_LOOKS):
        expected = (1 - timeout.q / 100) * newest.attempts
        if newest.cut > expected + _SIGMAS * sqrt(expected) + 1:
            return newest.since
    return None


def _from_little(
    timeout: Percentile,
    histogram: Histogram,
    before: Learnt,
    grown: float,
    kin: Callable[[], list[Histogram]],
) -> Learnt:
    found = _base(timeout, before, kin)
    if found.source != "learnt" or found.base is None:
        return found
    limit = max(found.base, grown, _asked_for(timeout, histogram, before))
    limit = min(timeout.ceiling, max(timeout.floor, limit))
    return replace(found, limit=limit, exploring=found.pooled or limit > found.base)


def _base(timeout: Percentile, before: Learnt, kin: Callable[[], list[Histogram]]) -> Learnt:
    """What was learnt when there was more to learn from, else from the kind."""
    if before.source == "learnt" and not before.pooled:
        # a quiet hour forgets nothing
        return before if before.base is not None else replace(before, base=before.limit)
    fallback = before if before.pooled else Learnt(timeout.first, "initial")
    family = kin()
    if len(family) < 2:
        return fallback
    attempts, (median, quantile) = pooled(family, 0.5, timeout.q / 100)
    if attempts < timeout.min_samples or quantile is None:
        return fallback
    limit = min(timeout.ceiling, max(timeout.floor, quantile * timeout.margin))
    return Learnt(limit, "learnt", median, pooled=True, base=limit)


def _asked_for(timeout: Percentile, histogram: Histogram, before: Learnt) -> float:
    """The limit that the few attempts in the window ask for, who may be slower than their kind.

    Without it a call a minute that got slower would be cut for ever: there are never enough of
    them to learn from. What was asked for is taken back a little at a time.
    """
    above = before.base is not None and before.limit > before.base
    if not histogram.answered + histogram.censored:
        return before.limit if above else timeout.floor
    (quantile,) = histogram.quantiles(timeout.q / 100)
    if quantile is not None:
        return max(quantile * timeout.margin, _HYSTERESIS * before.limit if above else 0.0)
    cut = any(newest.cut for newest in histogram.newest(before.limit, 1))
    return before.limit * 2 if cut else before.limit
