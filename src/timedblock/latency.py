"""What an operation's latency was lately: a windowed log-linear histogram with censoring (L1).

Recording is one index and one increment, done in place by the block::

    histogram.counts[floor(log2(elapsed + TINY) * SUB + ZERO)] += 1

``counts`` only ever grows, so that no increment of another thread is lost to a rotation: once a
slice, `rotate` takes a copy and keeps the difference. A list item's ``+= 1`` has no point at which
CPython with a GIL (3.10-3.13) switches threads.

An attempt that was cut is *censored*: it would have taken at least so long. Quantiles are those of
the product-limit estimator (E. L. Kaplan, P. Meier: Nonparametric Estimation from Incomplete
Observations, JASA 53, 1958), on buckets.
"""

from __future__ import annotations

import operator
import threading
from array import array
from collections import deque
from itertools import compress
from math import floor, log2

from . import fork

#: Buckets an octave: each is 2.2 % wide in the mean of the octave, 3.1 % at most.
SUB = 32.0
#: Added to a duration before its logarithm: a fake clock can make a zero, and -inf is no index.
TINY = 6e-8
#: Index of one second; above it is room for 2^14 s (4.5 hours).
ZERO = 24.0 * SUB
SIZE = 38 * 32

SLICE = 0.5
WINDOW = 30.0


def bucket(elapsed: float) -> int:
    """The bucket of a duration in seconds (the hot path has this expression inlined)."""
    return min(SIZE - 1, floor(log2(elapsed + TINY) * SUB + ZERO))


def middle(index: int) -> float:
    """The geometric middle of a bucket, in seconds."""
    return float(2.0 ** ((index + 0.5 - ZERO) / SUB))


class Histogram:
    """Attempts of the last `window` seconds, in slices of `slice_` seconds.

    `cut` counts censored attempts by the bucket in which they were cut. All reading is done on the
    sums of whole slices; the running slice joins at the next `rotate`. Lock: `rotate` and `cut_at`
    hold `_lock`, which is never held across a call or a callback.
    """

    __slots__ = (
        "__weakref__",
        "_censored",
        "_cut_slice",
        "_lock",
        "_missed",
        "_plain",
        "_seen",
        "_slice",
        "_slices",
        "_sum",
        "_window",
        "answered",
        "counts",
        "cut_total",
        "due",
        "plain_total",
    )

    def __init__(self, now: float, *, slice_: float = SLICE, window: float = WINDOW) -> None:
        self.counts: list[int] = [0] * SIZE
        self._seen = array("Q", self.counts)
        self._sum = array("I", self.counts)
        self._censored: dict[int, int] = {}
        self._cut_slice: dict[int, int] = {}
        # one entry a slice: (its end, bucket indices, their counts, censored, missed, plain)
        self._slices: deque[tuple[float, array[int], array[int], dict[int, int], int, int]] = (
            deque()
        )
        self._missed = self._plain = 0
        self._slice = slice_
        self._window = window
        self._lock = threading.Lock()
        self.answered = 0
        self.cut_total = self.plain_total = 0
        self.due = now + slice_
        fork.register(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def record(self, elapsed: float) -> None:
        """One answered attempt of `elapsed` seconds (what the hot path does inline)."""
        self.counts[bucket(elapsed)] += 1

    def cut_at(self, elapsed: float) -> None:
        """One attempt that had no answer after `elapsed` seconds."""
        index = bucket(elapsed)
        with self._lock:
            self._cut_slice[index] = self._cut_slice.get(index, 0) + 1
            self.cut_total += 1

    def miss(self) -> None:
        """One attempt that tells nothing about latency: refused, lost, unwell."""
        with self._lock:
            self._missed += 1

    def answer(self) -> None:
        """One answer that is no sample: our process slept, or the call had a limit of its own."""
        with self._lock:
            self._plain += 1
            self.plain_total += 1

    def rotate(self, now: float) -> bool:
        """Close the running slice when it is due; False when it isn't, or another thread does it.

        About 50 µs: the difference is taken by C loops, only the buckets in use by Python's.
        """
        if now < self.due or not self._lock.acquire(False):
            return False
        try:
            self._close_slice(now)
            while self._slices and self._slices[0][0] <= now - self._window:
                self._drop(*self._slices.popleft()[1:4])
            self.due = now + self._slice
        finally:
            self._lock.release()
        return True

    def _close_slice(self, now: float) -> None:
        counts = self.counts[:]
        new = list(map(operator.sub, counts, self._seen))
        self._seen = array("Q", counts)
        used = array("H", compress(range(SIZE), new))
        values = array("I", [new[index] for index in used])
        cut, self._cut_slice = self._cut_slice, {}
        missed, self._missed = self._missed, 0
        plain, self._plain = self._plain, 0
        if not used and not cut and not missed and not plain:
            return
        total = self._sum
        for index, count in zip(used, values, strict=True):
            total[index] += count
        for index, count in cut.items():
            self._censored[index] = self._censored.get(index, 0) + count
        self.answered += sum(values)
        self._slices.append((now, used, values, cut, missed, plain))

    def _drop(self, used: array[int], values: array[int], cut: dict[int, int]) -> None:
        total = self._sum
        for index, count in zip(used, values, strict=True):
            total[index] -= count
        self.answered -= sum(values)
        for index, count in cut.items():
            left = self._censored[index] - count
            if left:
                self._censored[index] = left
            else:
                del self._censored[index]

    @property
    def answered_total(self) -> int:
        """Answers since the beginning, those that are no samples and the running slice included."""
        return sum(self.counts) + self.plain_total

    @property
    def censored(self) -> int:
        """Censored attempts in the window."""
        return sum(self._censored.values())

    def recent(self, now: float, seconds: float) -> tuple[int, int]:
        """(answered, not answered) attempts of about the last `seconds`, to this moment."""
        since = now - seconds
        with self._lock:
            answered = sum(self.counts) - sum(self._seen) + self._plain
            other = sum(self._cut_slice.values()) + self._missed
            for end, _, values, cut, missed, plain in self._slices:
                if end > since:
                    answered += sum(values) + plain
                    other += sum(cut.values()) + missed
        return answered, other

    def recent_cut(self) -> int:
        """Attempts that were cut in the newest closed slice."""
        newest = self._slices[-1] if self._slices else None
        return sum(newest[3].values()) if newest else 0

    def quantiles(self, *levels: float) -> list[float | None]:
        """Product-limit quantiles in seconds, one per level (0-1, ascending).

        None where the level isn't reached: so many attempts were cut that all that is known is
        that the quantile lies beyond every answer.
        """
        with self._lock:
            censored = sorted(self._censored.items())
            used = list(compress(range(SIZE), self._sum))
            counts = [self._sum[index] for index in used]
        return _product_limit(used, counts, censored, levels)


def _product_limit(
    used: list[int],
    counts: list[int],
    censored: list[tuple[int, int]],
    levels: tuple[float, ...],
) -> list[float | None]:
    at_risk = sum(counts) + sum(count for _, count in censored)
    surviving = 1.0
    found: list[float | None] = [None] * len(levels)
    wanted = 0
    cuts = iter(censored)
    cut = next(cuts, None)
    for index, count in zip(used, counts, strict=True):
        # a cut in the same bucket is taken to be after the answers there: Kaplan and Meier's rule
        while cut is not None and cut[0] < index:
            at_risk -= cut[1]
            cut = next(cuts, None)
        surviving *= 1 - count / at_risk
        at_risk -= count
        while wanted < len(levels) and 1 - surviving >= levels[wanted] - 1e-12:
            found[wanted] = middle(index)
            wanted += 1
        if wanted == len(levels):
            break
    return found
