"""The call machine's circuit, counting as pybreaker documents (L5)."""

from __future__ import annotations

import random
import sys
from typing import NamedTuple

from ..deadline import check_seconds
from ..policy import Breaker
from ..policy.breaker import CLOSED, HALF_OPEN, OPEN, Circuit, Lease, Refusal

#: Redis keeps the opening's instant in whole seconds.
_COARSE = 1.0
STATES = (CLOSED, OPEN, HALF_OPEN)


class Standing(NamedTuple):
    """What a circuit says of itself, read at one instant."""

    state: str
    since: float
    failures: int
    successes: int


class Exactly(random.Random):
    """No spread: pybreaker's open time is `reset_timeout`, neither more nor less."""

    def random(self) -> float:
        return 0.0


class PybreakerCircuit(Circuit):
    """The circuit, counting as pybreaker documents: a failed trial adds to the failures too.

    Lock: its parent's `_lock`, on the same terms.
    """

    def admit(self, now: float, longest: float) -> Lease | Refusal | None:
        # A trial that hangs (a breaker sets no limit) must not keep the circuit shut for ever.
        return super().admit(now, min(longest, self.config.open_for))

    def success(self, now: float, lease: Lease | None = None) -> None:
        with self._lock:
            if lease is not None and lease in self._leases:
                self.failures = 0
        super().success(now, lease)

    def _fail(
        self, now: float, began: float, reason: str, lease: Lease | None
    ) -> tuple[str, str, str, float] | None:
        if self.state != CLOSED and lease is not None and lease in self._leases:
            self.failures += 1
        return super()._fail(now, began, reason, lease)

    def reconfigure(self, config: Breaker) -> None:
        """Go on with `config`; an open time that runs is counted anew from its beginning."""
        with self._lock:
            self.config = config
            self._open_time = config.open_for
            if self.state == OPEN:
                self._retry_at = self.since + config.open_for

    def go(self, state: str, reason: str, now: float) -> None:
        """Go to `state` by hand; a state that it has already begins anew."""
        with self._lock:
            change = self._become(state, reason, now)
            self._successes = 0
            self._leases.clear()
            if state == CLOSED:
                self.failures = 0
                self.attentive = False
        self._tell(change)

    def standing(self) -> Standing:
        """What it says of itself now."""
        with self._lock:
            return self._standing()

    def _standing(self) -> Standing:
        return Standing(self.state, self.since, self.failures, self._successes)

    def adopt(
        self, mine: Standing, *, state: str | None, since: float, failures: int | None, now: float
    ) -> Standing | None:
        """Take over what others know (None: nothing new), unless it is no longer as `mine` says.

        Returns how it stands afterwards, or None: it has moved on, and its own news is newer.
        """
        change = None
        with self._lock:
            if self._standing() != mine:
                return None
            if state == OPEN and self.state == OPEN:
                if since > self.since + _COARSE:
                    self.since = since
                    self._retry_at = since + self.config.open_for
            elif state is not None:
                change = self._become(state, "the storage says so", since if state == OPEN else now)
            if failures is not None:
                # with news of the state, the counter may still be that of the state before
                more = state is None and failures > self.failures
                self.failures = failures
                change = self._weigh(now, more) or change
            standing = self._standing()
        self._tell(change)
        return standing

    def _weigh(self, now: float, more: bool) -> tuple[str, str, str, float] | None:
        """Open when failures of others, added to ours, are enough."""
        if self.state != CLOSED:
            return None
        self.attentive = self.failures > 0
        if more and self.failures >= self.config.failures:
            return self._become(OPEN, f"{self.failures} failures, others' included", now)
        return None


def breaker_config(fail_max: int, reset_timeout: float, success_threshold: int) -> Breaker:
    """Our settings from pybreaker's. ValueError or TypeError names the argument and the value."""
    for name, value in (("fail_max", fail_max), ("success_threshold", success_threshold)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"CircuitBreaker({name}) must be a whole number from 1, not {value!r}")
    seconds = check_seconds("CircuitBreaker(reset_timeout)", reset_timeout, zero=True)
    # no open time at all: the shortest there is
    open_for = seconds or sys.float_info.min
    return Breaker(
        failures=fail_max,
        failure_rate=None,
        open_for=open_for,
        open_max=open_for,
        probes=success_threshold,
    )
