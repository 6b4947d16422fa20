"""The dots of a chart: which calls are drawn, and their compact form. Pure.

Nothing but successes is ever left out, and of those never the slowest. Where a whole report would
pass its size all the same (millions of failures), dots that fall on the same small cell of the
chart are drawn once: the picture is the same, and its caption says so.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from timedblock.drill.history import OK, OUTCOMES
from timedblock.drill.loads import Load

#: Dots of one panel before successes are thinned.
PANEL_DOTS = 20_000
#: Dots of a whole report: 5 bytes each, a third more as base64; 2.3 MB of the 3 that it may have.
REPORT_DOTS = 345_000
#: Steps of a chart's axis: what 16 bits hold; and the coarser ones, tried where the report is full.
_STEPS = 65_536
_COARSER = (4_096, 2_048, 1_024, 512, 256, 128, 64)
_OK = OUTCOMES.index(OK)
_SLICES = 200


@dataclass(frozen=True)
class Chosen:
    """The positions of a load's calls that are drawn, and of how many successes they are."""

    positions: list[int]
    successes: int
    shown: int


def choose(load: Load, most: int) -> Chosen:
    """All failures and the slowest of each 200th of the time, and so many evenly spaced successes
    that there are ``most`` dots, or a tenth of them where failures leave no room."""
    good = [n for n, outcome in enumerate(load.outcome) if outcome == _OK]
    room = max(most - (len(load) - len(good)), most // 10)
    if len(good) <= room:
        return Chosen(list(range(len(load))), len(good), len(good))
    kept = set(_slowest(load, good))
    left = max(1, room - len(kept))
    kept.update(good[int(n * len(good) / left)] for n in range(left))
    positions = [n for n, outcome in enumerate(load.outcome) if outcome != _OK or n in kept]
    return Chosen(positions, len(good), len(kept))


def _slowest(load: Load, positions: Sequence[int]) -> Iterator[int]:
    """The slowest call of each of 200 runs of ``positions``."""
    size = math.ceil(len(positions) / _SLICES)
    for start in range(0, len(positions), size):
        part = positions[start : start + size]
        yield max(part, key=lambda n: load.ended[n] - load.began[n])


@dataclass(frozen=True)
class Scales:
    """The scales of a chart: seconds from 0 to ``end``, durations from ``low`` to ``high`` (s) on
    a logarithmic axis."""

    end: float
    low: float
    high: float

    def x(self, at: float) -> int:
        return _step(at / self.end)

    def y(self, duration: float) -> int:
        share = math.log(max(duration, self.low) / self.low) / math.log(self.high / self.low)
        return _step(share)


def _step(share: float) -> int:
    return min(max(round(share * (_STEPS - 1)), 0), _STEPS - 1)


def decades(durations: Iterable[float], lowest: float = 1e-5) -> tuple[float, float]:
    """The powers of ten around all durations, those below 10 µs aside: there is only our clock."""
    low, high = math.inf, 0.0
    for duration in durations:
        low, high = min(low, duration), max(high, duration)
    if not high:
        low = high = 1.0
    # What is a hundredth below a power of ten may lie on it; on the upper edge a dot would be cut.
    bottom = math.floor(math.log10(max(low * 1.01, lowest)))
    top = math.ceil(math.log10(max(high, lowest) * 1.05))
    return 10.0**bottom, 10.0 ** max(top, bottom + 1)


#: A dot's x and y steps, and the number of its kind.
Dot = tuple[int, int, int]


def place(load: Load, chosen: Chosen, scales: Scales) -> list[Dot]:
    """The dots in the order of time; those that are the same are one."""
    dots = {
        (scales.x(load.began[n]), scales.y(load.ended[n] - load.began[n]), load.kind[n])
        for n in chosen.positions
    }
    return sorted(dots)


def merge(dots: Iterable[Dot], grid: int) -> list[Dot]:
    """One dot for those of a kind that are in one cell of ``grid`` × ``grid``."""
    cell = (_STEPS - 1) / (grid - 1)

    def snap(step: int) -> int:
        return round(round(step / cell) * cell)

    return sorted({(snap(x), snap(y), kind) for x, y, kind in dots})


@dataclass(frozen=True)
class Panel:
    """A load's dots, and what its caption has to say of them."""

    chosen: Chosen
    dots: list[Dot]
    merged: bool

    def encoded(self) -> str:
        """base64 of all x (16 bits, little-endian), then all y, then all kinds (8 bits)."""
        count = len(self.dots)
        xs, ys, kinds = zip(*self.dots, strict=True) if count else ((), (), ())
        packed = struct.pack(f"<{2 * count}H{count}B", *xs, *ys, *kinds)
        return base64.b64encode(packed).decode("ascii")

    @property
    def caption(self) -> str:
        """What is not drawn; empty if every call is."""
        parts = []
        if self.chosen.shown < self.chosen.successes:
            parts.append(
                f"{self.chosen.shown:,} of {self.chosen.successes:,} successes are drawn,"
                " every failure and the slowest calls are."
            )
        if self.merged:
            parts.append("Calls that fall on the same point are drawn once.")
        return " ".join(parts)


def panels(
    loads: Sequence[Load],
    scales: Sequence[Scales],
    most: int = PANEL_DOTS,
    in_all: int = REPORT_DOTS,
) -> list[Panel]:
    """The dots of all loads, each on its scales: at most ``most`` of one, where its failures leave
    room for that, and ``in_all``."""
    if sum(min(len(load), most) for load in loads) > in_all:
        most = min(most, in_all // len(loads))
    chosen = [choose(load, most) for load in loads]
    made = [
        Panel(one, place(load, one, scale), merged=False)
        for load, one, scale in zip(loads, chosen, scales, strict=True)
    ]
    for grid in _COARSER:
        if sum(len(panel.dots) for panel in made) <= in_all:
            break
        made = [Panel(panel.chosen, merge(panel.dots, grid), merged=True) for panel in made]
    return made
