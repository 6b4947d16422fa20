"""What a fault costs: the availability of the service in its window, and minutes a month. Pure.

A request is *served* if it was over within 0.25 s of the moment it was due, with a right answer or
with the honest word that there is none (the application goes on without the store). Late ones, hung
ones, those that never found a free thread, wrong answers and errors that don't say that the store
is away are not. **Availability** is the share of the requests due in the fault's window that were
served; **nines** are ``-log10(1 - availability)`` (0.999: three).

If the fault were on for a share of the month, the service would be away for
``share × (1 - availability) × 43,200`` minutes of the month's 30 days.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from timedblock.drill.history import OK, OUTCOMES, UNAVAILABLE
from timedblock.drill.load import GOOD_WITHIN
from timedblock.drill.loads import Load, Times

#: The share of the month that the report takes a fault to be on: 1 %, 7.2 hours.
FAULT_SHARE = 0.01
#: Minutes in a month of 30 days.
MONTH = 30 * 24 * 60

#: The outcomes that are served if they came in time.
SERVED = {OUTCOMES.index(OK), OUTCOMES.index(UNAVAILABLE)}


@dataclass(frozen=True)
class Cost:
    """``served`` of the ``due`` requests of a fault's window."""

    due: int
    served: int

    @property
    def availability(self) -> float:
        return self.served / self.due if self.due else 1.0

    @property
    def nines(self) -> float:
        """Infinite if every request was served; see ``proved``."""
        lost = self.due - self.served
        return math.log10(self.due / lost) if lost else math.inf

    @property
    def proved(self) -> float:
        """The nines that so many requests can show at all: those with one of them not served."""
        return math.log10(self.due) if self.due else 0.0

    def minutes(self, share: float = FAULT_SHARE) -> float:
        """Minutes a month without service, were the fault on for ``share`` of it."""
        return share * (1 - self.availability) * MONTH


def served(load: Load, number: int) -> bool:
    """Whether the call at this position was served, as above."""
    lateness = load.ended[number] - load.due[number]
    return load.outcome[number] in SERVED and lateness <= GOOD_WITHIN


def cost(load: Load, times: Times) -> Cost:
    """What the fault cost this load, in the window that the drill counts."""
    since, until = times.fault_at, times.window_end
    mine = [number for number, due in enumerate(load.due) if since <= due < until]
    good = sum(served(load, number) for number in mine)
    return Cost(max(len(mine), due_between(times, since, until)), good)


def due_between(times: Times, since: float, until: float) -> int:
    """Requests of an open loop that come due in [since, until); 0 in a closed one."""
    if times.rate is None:
        return 0
    return max(0, math.ceil(until * times.rate) - math.ceil(since * times.rate))
