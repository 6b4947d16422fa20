"""What an operation's latency was lately: a windowed log-linear histogram with censoring (L1).

Recording is one index and one increment, done in place by the block::

    histogram.counts[floor(log2(elapsed + TINY) * SUB + ZERO)] += 1

``counts`` only ever grows, so that no increment of another thread is lost to a rotation: once a
slice, `rotate` takes a copy and keeps the difference. A list item's ``+= 1`` has no point at which
CPython with a GIL (3.10-3.13) switches threads.

An attempt that was cut is *censored*: it would have taken at least so long. Quantiles are those of
the product-limit estimator (E. L. Kaplan, P. Meier: Nonparametric Estimation from Incomplete
Observations, JASA 53, 1958), on buckets. When its answer comes after all, the exact value takes
the place of the censored one.
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections import deque
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from .. import fork
from .buckets import SIZE, bucket, product_limit
from .slices import BYTES, FORMATS, LANE, Slice, narrow, unpack, wide

if TYPE_CHECKING:
    from collections.abc import Sequence

SLICE = 0.5
WINDOW = 30.0
#: So many of the newest slices are kept apart; older ones are joined until they span `_COARSE`.
_FINE = 5
_COARSE = 15.0
#: A window that nobody thaws (its breaker was configured away) still does not grow for ever.
_MOST_FROZEN = 30
#: Changes that `restore` can undo: more than the doublings between any floor and its ceiling.
_CHANGES = 32
#: No sample in any bucket.
_NONE = [0] * SIZE


class Recent(NamedTuple):
    """Attempts of the newest slices: how many, how many cut, and when the slice before ended."""

    attempts: int
    cut: int
    since: float


class Histogram:
    """Attempts of the last `window` seconds, in slices of `slice_` seconds.

    `cut` counts censored attempts by the bucket in which they were cut. All reading is done on the
    sums of whole slices; the running slice joins at the next `rotate`. Slices that ended by
    `_since` count no more (`forget`): they are kept only so that `restore` can bring them back.
    Lock: `_lock` guards everything but `counts`; it is never held across a call or a callback.
    """

    __slots__ = (
        "__weakref__",
        "_began",
        "_censored",
        "_changes",
        "_cut_slice",
        "_high",
        "_late_slice",
        "_lock",
        "_low",
        "_missed",
        "_number",
        "_plain",
        "_reached",
        "_seen",
        "_seen_total",
        "_since",
        "_slice",
        "_slices",
        "_sum",
        "_torn",
        "_volumes",
        "_width",
        "_window",
        "answered",
        "counts",
        "cut_total",
        "due",
        "frozen",
        "late_total",
        "plain_total",
    )

    def __init__(self, now: float, *, slice_: float = SLICE, window: float = WINDOW) -> None:
        self.counts: list[int] = [0] * SIZE
        # of the buckets from `_low` to before `_high`, which are those that were ever used
        self._low = self._high = SIZE
        # what `counts` was at the last `rotate`, in lanes of so many bytes
        self._seen, self._width = 0, BYTES
        self._seen_total = 0
        self._sum = 0
        self._censored: dict[int, int] = {}
        self._cut_slice: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._late_slice: dict[int, int] = {}
        self._slices: deque[Slice] = deque()
        # one entry a slice: its end, attempts answered, attempts that weren't
        self._volumes = array("d"), array("I"), array("I")
        self._number = 0
        self._since = -1e300
        self._changes: deque[tuple[float, float]] = deque(maxlen=_CHANGES)
        self._missed = self._plain = 0
        self._slice = slice_
        self._window = window
        self._lock = threading.Lock()
        #: a change is under way; found set by who takes the lock: an interrupt ended it half-way
        self._torn = False
        self.answered = 0
        self.cut_total = self.plain_total = self.late_total = 0
        self._began = now
        self.due = now + slice_
        #: nothing grows old: an outage tells nothing about latency
        self.frozen = False
        fork.register(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    # -- recording --------------------------------------------------------------------------

    def record(self, elapsed: float) -> None:
        """One answered attempt of `elapsed` seconds (what the hot path does inline)."""
        self.counts[bucket(elapsed)] += 1

    def cut_at(self, elapsed: float) -> int:
        """One attempt that had no answer after `elapsed` seconds; returns its slice's number."""
        index = bucket(elapsed)
        with self._lock:
            self._cut_slice[index] = self._cut_slice.get(index, 0) + 1
            self._reached[index] = self._reached.get(index, 0) + 1
            self.cut_total += 1
            return self._number

    def late(self, cut: float, number: int, elapsed: float) -> None:
        """The attempt that `cut_at(cut)` put into slice `number` was answered after `elapsed`."""
        index, exact = bucket(cut), bucket(elapsed)
        with self._lock:
            self._uncut(index, number)
            self._late_slice[exact] = self._late_slice.get(exact, 0) + 1
            self.late_total += 1

    def lengthen(self, cut: float, number: int, elapsed: float) -> None:
        """The attempt that `cut_at(cut)` put into slice `number` is known to be longer still."""
        index, known = bucket(cut), bucket(elapsed)
        with self._lock:
            if self._uncut(index, number):
                self._cut_slice[known] = self._cut_slice.get(known, 0) + 1

    def _uncut(self, index: int, number: int) -> bool:
        """Take a censored sample out of its slice; False when it is gone with it."""
        if number == self._number:
            return _less(self._cut_slice, index)
        for one in reversed(self._slices):
            if one.first <= number <= one.last:
                found = one.cuts is not None and _less(one.cuts, index)
                if found and one.end > self._since:
                    _less(self._censored, index)
                return found
        return False

    def miss(self) -> None:
        """One attempt that tells nothing about latency: refused, lost, unwell."""
        with self._lock:
            self._missed += 1

    def answer(self) -> None:
        """One answer that is no sample: our process slept, or the call had a limit of its own."""
        with self._lock:
            self._plain += 1
            self.plain_total += 1

    # -- slices -----------------------------------------------------------------------------

    def rotate(self, now: float) -> bool:
        """Close the running slice when it is due; False when it isn't, or another thread does it.

        Some 50 µs once a slice, paid by the call that finds it due: the difference is one
        subtraction.
        """
        if now < self.due or self._lock.locked():
            return False
        with self._lock:
            if now < self.due:
                return False
            if self._torn:
                self._start_over()
            self._torn = True
            self._close_slice(now)
            if not self.frozen or len(self._slices) > _MOST_FROZEN:
                self._join_old()
                self._forget_old(now)
            self.due = now + self._slice
            self._torn = False
        return True

    def _start_over(self) -> None:
        """An interrupt ended a change half-way: no sample is left, and what comes now counts."""
        self._slices.clear()
        self._changes.clear()
        self._censored, self._cut_slice, self._late_slice, self._reached = {}, {}, {}, {}
        self._volumes = array("d"), array("I"), array("I")
        self._missed = self._plain = 0
        self._low = self._high = SIZE
        self._seen, self._width, self._seen_total = 0, BYTES, 0
        self._sum = self.answered = 0
        self._since = -1e300
        self._number += 1
        self._take_new()
        self._torn = False

    def _close_slice(self, now: float) -> None:
        lanes, answered = self._take_new()
        cut, self._cut_slice = self._cut_slice, {}
        reached, self._reached = self._reached, {}
        late, self._late_slice = self._late_slice, {}
        cuts = sum(reached.values())
        self._volume(now, answered + self._plain, self._missed + cuts)
        self._missed = self._plain = 0
        began, self._began = self._began, now
        number, self._number = self._number, self._number + 1
        if not answered and not cut and not reached and not late:
            return
        if late:
            lanes = self._with_late(lanes, late)
        one = Slice(number, began, now)
        one.keep(lanes, self._low)
        if cut or reached:
            one.cuts = {**cut, **{SIZE + index: count for index, count in reached.items()}}
        one.attempts = answered + cuts
        one.samples = answered + sum(late.values())
        self._slices.append(one)
        self._add(one, 1, lanes)

    def _take_new(self) -> tuple[int, int]:
        """(lanes from `_low` on, sum) of what was counted since the last time."""
        low, high = self._low, self._high
        if self.counts[:low] != _NONE[:low] or self.counts[high:] != _NONE[high:]:
            counts = self.counts[:]
            low = next(compress(range(SIZE), counts))
            self._widen(low, SIZE - next(compress(range(SIZE), reversed(counts))))
        counts = self.counts[self._low : self._high]
        total = sum(counts)
        before, self._seen_total = self._seen_total, total
        width = self._width
        try:
            data = struct.pack(f"<{len(counts)}{FORMATS[width]}", *counts)
        except struct.error:  # four thousand million in one bucket, after days
            self._width = width = 8
            self._seen = wide(narrow(self._seen), width)
            data = struct.pack(f"<{len(counts)}{FORMATS[width]}", *counts)
        lanes = int.from_bytes(data, "little")
        new, self._seen = lanes - self._seen, lanes
        return new if width == BYTES else wide(narrow(new, width)), total - before

    def _widen(self, low: int, high: int) -> None:
        """Let `_seen` and `_sum` reach from bucket `low` to before `high`."""
        if self._low == SIZE:
            self._low = self._high = low
        self._high = max(self._high, high)
        more = self._low - low
        if more > 0:
            self._low = low
            self._sum <<= LANE * more
            self._seen <<= 8 * self._width * more

    def _with_late(self, lanes: int, late: dict[int, int]) -> int:
        before = self._low
        self._widen(min(late), max(late) + 1)
        lanes <<= LANE * (before - self._low) if lanes else 0
        for index, count in late.items():
            lanes += count << LANE * (index - self._low)
        return lanes

    def _volume(self, end: float, answered: int, other: int) -> None:
        if not answered and not other:
            return
        ends, good, bad = self._volumes
        ends.append(end)
        good.append(answered)
        bad.append(other)
        while ends[0] <= end - self._window:
            del ends[0], good[0], bad[0]

    def _add(self, one: Slice, sign: int, lanes: int | None = None) -> None:
        """Add a slice (its `lanes` from `_low` on) to the sums, or take it out (-1)."""
        self._sum += sign * (one.lanes(self._low) if lanes is None else lanes)
        self.answered += sign * one.samples
        for index, count in one.censored():
            left = self._censored.get(index, 0) + sign * count
            if left:
                self._censored[index] = left
            else:
                self._censored.pop(index, None)

    def _join_old(self) -> None:
        """Past `_FINE` slices the oldest fine one is joined to the coarse one before it."""
        slices = self._slices
        position = len(slices) - _FINE
        if position < 1:
            return
        older, newer = slices[position - 1], slices[position]
        if newer.end - older.began <= _COARSE and not older.end <= self._since < newer.end:
            older.join(newer)
            del slices[position]

    def _forget_old(self, now: float) -> None:
        while self._slices and self._slices[0].end <= now - self._window:
            oldest = self._slices.popleft()
            if oldest.end > self._since:
                self._add(oldest, -1)

    def forget(self, since: float, now: float) -> None:
        """Let only what came after `since` count: latency has changed."""
        with self._lock:
            if self._torn:
                self._start_over()
            if since > self._since:
                self._torn = True
                self._changes.append((now, self._since))
                self._set_since(since)
                self._torn = False

    def _set_since(self, since: float) -> None:
        before, self._since = self._since, since
        for one in self._slices:
            counted, counts = one.end > before, one.end > since
            if counted != counts:
                self._add(one, 1 if counts else -1)

    def restore(self, outage: float, now: float, probed: Sequence[float] = ()) -> None:
        """An outage that began at `outage` is over: be what was known before it.

        And know what the probes that ended it took: their answers were recorded, in the time that
        is skipped.
        """
        with self._lock:
            if self._torn:
                self._start_over()
            self._torn = True
            since = self._since
            while self._changes and self._changes[-1][0] > outage:
                since = self._changes.pop()[1]
            self._set_since(since)
            while self._slices and self._slices[-1].end > outage:
                newest = self._slices.pop()
                if newest.end > self._since:
                    self._add(newest, -1)
            self._skip_running()
            for elapsed in probed:
                exact = bucket(elapsed)
                self._late_slice[exact] = self._late_slice.get(exact, 0) + 1
            self._shift(now - outage)
            self.frozen = self._torn = False

    def _skip_running(self) -> None:
        self._take_new()
        self._cut_slice, self._late_slice, self._reached = {}, {}, {}
        self._number += 1

    def _shift(self, seconds: float) -> None:
        """Make the slices younger by `seconds`."""
        for one in self._slices:
            one.began += seconds
            one.end += seconds
        self._since += seconds
        self._changes = deque(
            ((at + seconds, since + seconds) for at, since in self._changes), maxlen=_CHANGES
        )

    # -- reading ----------------------------------------------------------------------------

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
            if self._torn:
                self._start_over()
            answered = sum(self.counts) - self._seen_total + self._plain
            other = sum(self._reached.values()) + self._missed
            ends, good, bad = self._volumes
            position = len(ends)
            while position and ends[position - 1] > since:
                position -= 1
            return answered + sum(good[position:]), other + sum(bad[position:])

    def newest(self, limit: float, *least: int) -> list[Recent]:
        """The newest slices with at least so many attempts, for each of `least` (ascending).

        Fewer where there are fewer attempts in all. Cut are those that had waited `limit` seconds:
        what an older, shorter limit cut tells nothing about this one.
        """
        reached = bucket(limit) - 1
        attempts = cut = 0
        found: list[Recent] = []
        with self._lock:
            if self._torn:
                self._start_over()
            for one in reversed(self._slices):
                if one.end <= self._since:
                    break
                attempts += one.attempts
                cut += one.reached(reached)
                while attempts >= least[len(found)]:
                    found.append(Recent(attempts, cut, one.began))
                    if len(found) == len(least):
                        return found
        return found

    def quantiles(self, *levels: float) -> list[float | None]:
        """Product-limit quantiles in seconds, one per level (0-1, ascending).

        None where the level isn't reached: so many attempts were cut that all that is known is
        that the quantile lies beyond every answer.
        """
        with self._lock:
            if self._torn:
                self._start_over()
            censored = sorted(self._censored.items())
            counts, low = self._known()
        return product_limit(low, counts, censored, levels)

    def _known(self) -> tuple[tuple[int, ...], int]:
        """The counts of the window, and the bucket of the first."""
        return unpack(self._sum, self._high - self._low), self._low


def _less(counts: dict[int, int], index: int) -> bool:
    """Take one off; False when there is none."""
    left = counts.get(index, 0) - 1
    if left > 0:
        counts[index] = left
    elif left == 0:
        del counts[index]
    return left >= 0


def pooled(histograms: list[Histogram], *levels: float) -> tuple[int, list[float | None]]:
    """(attempts, quantiles) of several histograms together."""
    counts = [0] * SIZE
    censored: dict[int, int] = {}
    for one in histograms:
        with one._lock:
            if one._torn:
                one._start_over()
            for index, count in enumerate(*one._known()):
                counts[index] += count
            for index, count in one._censored.items():
                censored[index] = censored.get(index, 0) + count
    attempts = sum(counts) + sum(censored.values())
    return attempts, product_limit(0, counts, sorted(censored.items()), levels)
