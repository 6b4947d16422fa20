"""What every block of one operation on one endpoint shares (L3): its data, not its policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import fork
from .latency import Histogram
from .policy.breaker import CLOSED, OPEN
from .weak import WeakMembers

if TYPE_CHECKING:
    from .block import TimedBlock

#: Keys (of a tag, a size class, a statement) that an endpoint's operations have together.
MOST_KEYS = 64
#: The key of what came after those.
OTHER = "other"


class Room(fork.Guard):
    """How many more keys an endpoint may have. Lock: `lock` guards it and the tables of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.left = MOST_KEYS


class Tally:
    """Counts of the rare outcomes of an operation; the frequent one is in the histogram."""

    __slots__ = ("late", "stalled", "unavailable", "unwell", "would_cut", "would_reject")

    def __init__(self) -> None:
        self.late = self.stalled = self.unavailable = self.unwell = 0
        self.would_cut = self.would_reject = 0


class Operation:
    """The latencies of an operation on an endpoint, and by key of those calls that have one."""

    def __init__(self, now: float, room: Room | None = None, tally: Tally | None = None) -> None:
        """`room`: the endpoint's; `tally`: of the operation that this one is a key's part of."""
        self.histogram = Histogram(now)
        self.tally = Tally() if tally is None else tally
        self.blocks: WeakMembers[TimedBlock] = WeakMembers()
        #: seconds that the answered probes of a half-open breaker took
        self.probed: list[float] = []
        self.keys: dict[str, Operation] = {}
        self._room = Room() if room is None else room

    def of(self, key: str, now: float) -> tuple[str, Operation]:
        """The part that `key`'s calls are, made when it is new; past the bound: "other"."""
        found = self.keys.get(key)
        if found is not None:
            return key, found
        with self._room.lock:
            if key not in self.keys:
                if self._room.left > 0:
                    self._room.left -= 1
                else:
                    key = OTHER
            if key not in self.keys:
                self.keys[key] = Operation(now, self._room, self.tally)
            return key, self.keys[key]

    def histograms(self) -> list[Histogram]:
        """Of all its calls, with a key and without."""
        return [self.histogram, *[part.histogram for part in list(self.keys.values())]]

    def recent(self, now: float, seconds: float) -> tuple[int, int]:
        """(answered, not answered) attempts of about the last `seconds`, all keys together."""
        if not self.keys:
            return self.histogram.recent(now, seconds)
        both = [one.recent(now, seconds) for one in self.histograms()]
        return sum(answered for answered, _ in both), sum(other for _, other in both)

    def breaker_changed(self, new: str, outage: float, now: float) -> None:
        """While a breaker is open nothing is forgotten; after it, all is as before the outage.

        And the probes that closed it are what is known since.
        """
        probed, self.probed = self.probed, []
        if new == OPEN:
            self.histogram.frozen = True
        elif new == CLOSED:
            self.histogram.restore(outage, now, probed)
            for block in list(self.blocks):
                block._restore(now)
        for part in list(self.keys.values()):
            part.breaker_changed(new, outage, now)
