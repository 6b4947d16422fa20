"""Durations in log-linear buckets, and the quantiles of what is counted there (L1).

Quantiles are those of the product-limit estimator (E. L. Kaplan, P. Meier: Nonparametric Estimation
from Incomplete Observations, JASA 53, 1958).
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, compress
from math import floor, log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Buckets an octave: each is 2.2 % wide in the mean of the octave, 3.1 % at most.
SUB = 32.0
#: Added to a duration before its logarithm: a fake clock can make a zero, and -inf is no index.
TINY = 6e-8
#: Index of one second; above it is room for 2^14 s (4.5 hours).
ZERO = 24.0 * SUB
SIZE = 38 * 32


def bucket(elapsed: float) -> int:
    """The bucket of a duration in seconds (the hot path has this expression inlined)."""
    return min(SIZE - 1, floor(log2(elapsed + TINY) * SUB + ZERO))


def middle(index: int) -> float:
    """The geometric middle of a bucket, in seconds."""
    return float(2.0 ** ((index + 0.5 - ZERO) / SUB))


def product_limit(
    low: int, counts: Sequence[int], censored: list[tuple[int, int]], levels: tuple[float, ...]
) -> list[float | None]:
    """Kaplan and Meier's quantiles of ``counts`` (of the buckets from `low` on) and cuts.

    Who was first inside one bucket isn't known: cuts there count as half at risk, which is what
    life tables do (S. J. Cutler, F. Ederer: Maximum Utilization of the Life Table Method in
    Analyzing Survival, J. Chronic Dis. 8:699-712, 1958)."""
    running = list(accumulate(counts))
    total = (running[-1] if running else 0) + sum([count for _, count in censored])
    # below the first cut the estimate is the plain share: found by bisection
    plain = len(counts) if not censored else max(0, min(len(counts), censored[0][0] - low))
    found: list[float | None] = []
    for level in levels:
        position = bisect_left(running, level * total - 1e-9, 0, plain) if total else plain
        found.append(middle(low + position) if position < plain else None)
    if None in found and plain < len(counts):
        before = running[plain - 1] if plain else 0
        _beyond(low, counts, plain, total - before, total, censored, levels, found)
    return found


def _beyond(
    low: int,
    counts: Sequence[int],
    position: int,
    at_risk: int,
    total: int,
    censored: list[tuple[int, int]],
    levels: tuple[float, ...],
    found: list[float | None],
) -> None:
    """Fill in the quantiles from the bucket of the first cut, `position`, on."""
    surviving = at_risk / total
    wanted = found.index(None)
    cuts = iter([*censored, (SIZE, 0)])
    where, cut = next(cuts)
    for index in compress(range(position, len(counts)), counts[position:]):
        while where < low + index:
            at_risk -= cut
            where, cut = next(cuts)
        here = cut if where == low + index else 0
        surviving *= 1 - counts[index] / (at_risk - here / 2)
        at_risk -= counts[index]
        while wanted < len(levels) and 1 - surviving >= levels[wanted] - 1e-12:
            found[wanted] = middle(low + index)
            wanted += 1
        if wanted == len(levels):
            return
