"""Replays a history: could every answer have been given by a store that keeps its promises?

Each key is a register. A read must return a value that was written, by a write that can have been
in force at some moment of the read:

- not one whose bytes never left (``sent`` False), nor one that began after the read had ended;
- not one that was overwritten for certain: by a write that began when the older one had taken
  effect, and that had itself taken effect before the read began.

When a write has taken effect at the latest: an answered one when it ended; one that somebody has
read when that read ended; one whose answer nobody waited for (``ok``, but ``sent``: a noreply) a
while after it ended, because it claims to be done; one whose outcome is unknown never for certain.
These are necessary conditions: what they accuse can't be right. Pure: no I/O, no clock.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from timedblock.drill.history import OK, Call

#: Seconds that a write may take to arrive whose client said "stored" without waiting for it.
SETTLE = 1.0


class Violation(NamedTuple):
    """A call that can't be right, and why."""

    call: Call
    reason: str


@dataclass
class _Write:
    """A write of a token: when it can have taken effect."""

    began: float
    latest: float
    call: Call | None


def check(
    calls: Iterable[Call],
    initial: str,
    *,
    final: Mapping[str, str | None] | None = None,
    may_lose: bool = False,
) -> list[Violation]:
    """What is wrong in the calls of one load.

    Args:
        calls: in any order; those without an answer say what may have been written.
        initial: the token that every key had before the load.
        final: what the keys held after it, read past the faults; None for one that is gone.
        may_lose: the store may forget (it was restarted), so that a miss can be right.
    """
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    found: list[Violation] = []
    for key, mine in by_key.items():
        register = _Register(mine, initial, may_lose)
        found += register.violations()
        if final is not None and key in final:
            found += register.lost(final[key])
    return sorted(found, key=lambda violation: violation.call.number)


class _Register:
    """The calls of one key."""

    def __init__(self, calls: list[Call], initial: str, may_lose: bool) -> None:
        self._may_lose = may_lose
        self._reads = [call for call in calls if call.op == "get" and call.outcome == OK]
        self._writes = {
            call.value: _Write(call.began, _latest(call), call)
            for call in calls
            if call.op == "set" and call.value is not None and _left(call)
        }
        self._writes[initial] = _Write(-math.inf, -math.inf, None)
        for read in self._reads:
            self._observed(read)
        self._order()

    def _observed(self, read: Call) -> None:
        """Who has read a value knows that it was written by then."""
        write = self._writes.get(read.value) if read.value is not None else None
        if write is not None and write.began <= read.ended:
            write.latest = min(write.latest, read.ended)

    def _order(self) -> None:
        """Writes by when they had taken effect, and up to each the newest that had."""
        done = sorted((one for one in self._writes.values()), key=lambda one: one.latest)
        self._done = [one.latest for one in done]
        self._newest: list[_Write] = []
        for one in done:
            before = self._newest[-1] if self._newest else one
            self._newest.append(max(before, one, key=lambda write: write.began))

    def violations(self) -> list[Violation]:
        reasons = ((read, self._reason(read)) for read in self._reads)
        return [Violation(read, reason) for read, reason in reasons if reason]

    def _reason(self, read: Call) -> str | None:
        if read.value is None:
            return None if self._may_lose else "a miss of a key that was stored"
        write = self._writes.get(read.value)
        if write is None:
            return "a value that nobody can have written"
        if write.began > read.ended:
            return "a value from before it was written"
        return "a stale value" if self._superseded(write, read.began) else None

    def _superseded(self, write: _Write, moment: float) -> _Write | None:
        """The write that had certainly overwritten ``write`` before ``moment``."""
        done = bisect.bisect_left(self._done, moment)
        if not done:
            return None
        newest = self._newest[done - 1]
        return newest if newest.began > write.latest else None

    def lost(self, token: str | None) -> list[Violation]:
        """The write that said "stored", and isn't, where the key holds an older value."""
        write = None if token is None else self._writes.get(token)
        newest = self._superseded(write, math.inf) if write else None
        if newest is None or newest.call is None:
            return []
        return [Violation(newest.call, "stored, as it said, and lost")]


def _left(call: Call) -> bool:
    """Whether a write can have reached the store."""
    return call.outcome == OK or call.sent is not False


def _latest(call: Call) -> float:
    if call.outcome != OK:
        return math.inf
    return call.ended + SETTLE if call.sent else call.ended
