"""How much may be repeated: one token budget an endpoint, for retries and hedges together (L2).

After Finagle's RetryBudget: repeats of the last ten seconds stay within a share of the calls of
the last ten seconds, so that a dead store gets at most 1.1 × its load; where that is less than one
there may be one, so that a process with a call a minute can still repeat it. A budget never touches
an attempt that is under way.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from .. import fork
from ..latency import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable

#: Not the whole tenth: the calls of ten seconds are now more, now fewer, and a dead store gets what
#: the most of them allowed. At 100 calls a second a tenth made 1.102 × the calls of a minute, this
#: 1.097 ×.
RATIO = 0.095
SPAN = 10.0
#: Calls are counted in whole slices, up to one too many: asked for so much less, never too many.
_COUNTED = SPAN - SLICE


class Budget:
    """Permits repeats. Lock: `_lock` guards the instants of the repeats of the last `SPAN`."""

    def __init__(self, calls_within: Callable[[float, float], int]) -> None:
        """`calls_within(now, seconds)` counts the first attempts of the last `seconds`."""
        self._calls_within = calls_within
        self._spent: deque[float] = deque()
        self._lock = threading.Lock()
        fork.register(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def allowed(self, now: float) -> float:
        """Repeats that are left at `now`."""
        with self._lock:
            self._forget(now)
            spent = len(self._spent)
        return max(0.0, _granted(self._calls_within(now, _COUNTED) - spent) - spent)

    def withdraw(self, now: float) -> bool:
        """Take one repeat; False when the budget is spent."""
        # The attempts that were repeats are in the count too; they earn nothing.
        calls = self._calls_within(now, _COUNTED)
        with self._lock:
            self._forget(now)
            spent = len(self._spent)
            if spent + 1 > _granted(calls - spent):
                return False
            self._spent.append(now)
            return True

    def _forget(self, now: float) -> None:
        while self._spent and self._spent[0] <= now - SPAN:
            self._spent.popleft()


def _granted(calls: int) -> float:
    """Repeats for so many calls: a share, and one where that is less than one."""
    return max(1.0, RATIO * calls)
