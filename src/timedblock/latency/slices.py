"""Counts in little room: the stretches of time that a window is made of (L1)."""

from __future__ import annotations

import struct

from .buckets import SIZE

# Counts are added and subtracted all at once, as one great integer with so many bits a bucket: no
# loop in Python, no dependency, and no carry from one lane to the next, since none gets negative
# and 2^32 samples don't fit into a window.
LANE = 32
BYTES = LANE // 8
#: struct's letter for a lane of so many bytes.
FORMATS = {4: "I", 8: "Q"}


def unpack(lanes: int, size: int) -> tuple[int, ...]:
    """The first `size` counts of `lanes`."""
    return struct.unpack(f"<{size}I", lanes.to_bytes(BYTES * size, "little"))


def narrow(lanes: int, width: int = BYTES) -> list[bytes]:
    """To keep `lanes` in little room: the lowest byte of all, the next of all, up to the last."""
    size = -(-lanes.bit_length() // (8 * width))
    data = lanes.to_bytes(width * size, "little")
    planes = [data[byte::width] for byte in range(width)]
    while planes and not planes[-1].strip(b"\0"):
        planes.pop()
    return planes


def wide(planes: list[bytes], width: int = BYTES) -> int:
    """What `narrow` was given."""
    if not planes:
        return 0
    data = bytearray(width * len(planes[0]))
    for byte, plane in enumerate(planes):
        data[byte::width] = plane
    return int.from_bytes(data, "little")


class Slice:
    """Samples of a stretch of time: `planes` are the counts of the buckets from `low` on.

    Attributes:
        samples: exact ones, late answers included.
        cuts: by bucket, the censored attempts that nothing more was heard of, and by bucket +
            `SIZE` all attempts that were cut. (One dict, and none without cuts: memory.)
        attempts: cut or answered in this time.
    """

    __slots__ = ("attempts", "began", "cuts", "end", "first", "last", "low", "planes", "samples")

    def __init__(self, number: int, began: float, end: float) -> None:
        self.first = self.last = number
        self.began = began
        self.end = end
        self.low = 0
        self.planes: list[bytes] = []
        self.cuts: dict[int, int] | None = None
        self.attempts = self.samples = 0

    def keep(self, lanes: int, low: int) -> None:
        """Take `lanes` for the counts of the buckets from `low` on; zeros at the ends are left."""
        skipped = ((lanes & -lanes).bit_length() - 1) // LANE if lanes else 0
        self.low = low + skipped
        self.planes = narrow(lanes >> LANE * skipped)

    def join(self, newer: Slice) -> None:
        """Take in the slice that follows this one."""
        low = min(one.low for one in (self, newer))
        self.keep(self.lanes(low) + newer.lanes(low), low)
        if newer.cuts:
            both = dict(self.cuts or {})
            for index, count in newer.cuts.items():
                both[index] = both.get(index, 0) + count
            self.cuts = both
        self.attempts += newer.attempts
        self.samples += newer.samples
        self.end, self.last = newer.end, newer.last

    def lanes(self, low: int) -> int:
        """The counts of the buckets from `low` on, which is not past the first of them."""
        return wide(self.planes) << LANE * (self.low - low)

    def censored(self) -> list[tuple[int, int]]:
        """(bucket, attempts that nothing more was heard of)."""
        if self.cuts is None:
            return []
        return [(index, count) for index, count in self.cuts.items() if index < SIZE]

    def reached(self, index: int) -> int:
        """Attempts that were cut in bucket `index` or a later one."""
        if self.cuts is None:
            return 0
        return sum([count for at, count in self.cuts.items() if at >= SIZE + index])
