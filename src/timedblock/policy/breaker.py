"""When to stop trying: the circuit breaker (L2, no I/O, no sleep).

After M. Nygard, *Release It!* (2007), with what the field learnt since. Invariants:

* Slow is not dead. Refused, reset, unreachable and limits that aren't learnt count at once;
  running into a learnt limit only once nothing at all was heard for 10 × that limit.
* Such a silence is evidence by itself once as many calls were cut in it as failures are needed and
  their beginnings lie apart by half of it.
* Calls in flight together are one piece of evidence: a failure counts as consecutive only if its
  call began after the last counted failure ended.
* Half-open: exactly `probes` leased permits. A result without a live lease is ignored.

Lock: `Circuit._lock` guards every decision and is never held across a call or a callback. The hot
path reads `shut` and `attentive` without it: a call that reads them a moment too early is the same
as a call that began a moment earlier.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import fork
from ..deadline import check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSED = "closed"
OPEN = "open"
HALF_OPEN = "half-open"

#: How many learnt limits of silence make slow dead.
SILENCE = 10
_JITTER = 0.25
#: (old state, new state, reason, instant)
_Change = tuple[str, str, str, float]
_REMEMBERED = 4096


@dataclass(frozen=True)
class Breaker:
    """When an endpoint counts as down, and how it is tried again.

    Args:
        failures: consecutive failures (pieces of evidence) that open it.
        failure_rate: share of failed calls in the window that opens it, or None.
        slow_rate: share of calls cut at a learnt limit in the window that opens it, or None.
        window: seconds that the rates look back.
        minimum_calls: calls in the window before a rate means anything.
        open_for: seconds open before the first probe (× 1-1.25 at random).
        open_max: seconds; the open time doubles at each failed probe up to this.
        probes: calls let through half-open, all of which must succeed to close it.

    Raises:
        ValueError, TypeError: naming the argument and the value.
    """

    failures: int = 5
    failure_rate: float | None = 0.5
    slow_rate: float | None = None
    window: float = 10.0
    minimum_calls: int = 20
    open_for: float = 0.5
    open_max: float = 5.0
    probes: int = 1

    def __post_init__(self) -> None:
        for name in ("failures", "minimum_calls", "probes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Breaker({name}) must be a whole number from 1, not {value!r}")
        for name in ("failure_rate", "slow_rate"):
            rate = getattr(self, name)
            if rate is None:
                continue
            number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
            if not number or not 0 < rate <= 1:
                raise ValueError(f"Breaker({name}) must be over 0 and at most 1, not {rate!r}")
        for name in ("window", "open_for", "open_max"):
            check_seconds(f"Breaker({name})", getattr(self, name))
        if self.open_for > self.open_max:
            raise ValueError(
                f"Breaker(open_for={self.open_for!r}) is above its open_max {self.open_max!r}"
            )


class Lease:
    """A permit of a half-open circuit; one that outlives its call's limit expires."""

    __slots__ = ("expires",)

    def __init__(self, expires: float) -> None:
        self.expires = expires


@dataclass(frozen=True)
class Refusal:
    """The circuit is open; `retry_after` is in seconds."""

    retry_after: float


class Circuit:
    """The state of one breaker.

    Attributes:
        shut: not closed; a call must ask `admit`.
        attentive: there is evidence against the endpoint; a success must be told.
        outage: when the trouble began that opened it last.
        turned: when it last closed, or last left closed; -inf while it always was closed.
        reason: why it is closed, or why it isn't (a probe that begins is no reason).
    """

    def __init__(
        self,
        config: Breaker,
        *,
        answered_within: Callable[[float, float], int] = lambda now, seconds: 0,
        on_change: Callable[[str, str, str, float], object] = lambda old, new, reason, now: None,
        rng: random.Random | None = None,
    ) -> None:
        """`answered_within(now, seconds)` counts answers; `on_change(old, new, reason, now)`."""
        self.config = config
        self.state = CLOSED
        self.since = self.turned = -math.inf
        self.reason = ""
        self.shut = False
        self.attentive = False
        self.failures = 0
        self._answered_within = answered_within
        self._on_change = on_change
        #: what the open times are drawn from
        self.random = rng or random.Random()
        self._lock = threading.Lock()
        self._retry_at = 0.0
        self._open_time = config.open_for
        # when the last connection was made in the background
        self._connected_at = -math.inf
        self._leases: set[Lease] = set()
        self._successes = 0
        self._evidence_end = -math.inf
        self.outage = -math.inf
        # when the first of the attempts began that failed or were cut since anything was heard
        self._trouble = math.inf
        # silence: the union of the times somebody listened in vain since anything was heard
        self._silence = 0.0
        self._listened_until = -math.inf
        self._starved = 0.0
        # calls that were cut in the present silence, and when the first of them began
        self._silent_calls = 0
        self._silent_from = -math.inf
        # (instant, whether it is a piece of evidence of its own)
        self._failed: deque[tuple[float, bool]] = deque(maxlen=_REMEMBERED)
        self._slow: deque[float] = deque(maxlen=_REMEMBERED)
        fork.register(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock; its probes aren't ours."""
        self._lock = threading.Lock()
        self._leases = set()

    # -- asking -----------------------------------------------------------------------------

    def admit(self, now: float, longest: float) -> Lease | Refusal | None:
        """May a call begin? None: yes. A Lease: yes, as a probe of at most `longest` seconds."""
        with self._lock:
            if self.state == CLOSED:
                self.shut = False  # an interrupt came while it closed
                return None
            change = None
            if self.state == OPEN:
                if now < self._retry_at:
                    return Refusal(self._retry_at - now)
                change = self._become(HALF_OPEN, "time for a probe", now)
            answer = self._lease(now, longest)
        self._tell(change)
        return answer

    def _lease(self, now: float, longest: float) -> Lease | Refusal:
        self._leases = {lease for lease in self._leases if lease.expires > now}
        if not self._leases:  # an interrupt may have come between the last success and the closing
            self._successes = min(self._successes, self.config.probes - 1)
        if len(self._leases) + self._successes >= self.config.probes:
            return Refusal(
                max(0.0, min((lease.expires for lease in self._leases), default=now) - now)
            )
        lease = Lease(now + longest + 1.0)
        self._leases.add(lease)
        return lease

    def holds(self, lease: Lease) -> bool:
        """Whether the result of the call with this permit would count."""
        return lease in self._leases

    def retry_after(self, now: float) -> float:
        """Seconds until a probe may be permitted; 0 when closed."""
        return max(0.0, self._retry_at - now) if self.state == OPEN else 0.0

    # -- telling ----------------------------------------------------------------------------

    def success(self, now: float, lease: Lease | None = None) -> None:
        """An answer came."""
        change = None
        with self._lock:
            # nobody listened in vain before this instant
            self._listened_until = max(self._listened_until, now)
            if self.state == CLOSED:
                self._hear()
                self.failures = 0
                self.attentive = False
            elif lease is not None and lease in self._leases:
                self._leases.discard(lease)
                self._hear()
                self._successes += 1
                if self._successes >= self.config.probes:
                    change = self._become(CLOSED, "the probe was answered", now)
        self._tell(change)

    def failure(self, now: float, began: float, reason: str, lease: Lease | None = None) -> None:
        """A call that began at `began` failed outright."""
        with self._lock:
            change = self._fail(now, began, reason, lease)
        self._tell(change)

    def cut(
        self,
        now: float,
        began: float,
        *,
        limit: float,
        learnt: bool,
        ceiling: float,
        lease: Lease | None = None,
    ) -> None:
        """A call heard nothing until its limit. Learnt: slow, and dead only after silence."""
        change = None
        with self._lock:
            self._listen(began, now)
            patience = min(SILENCE * limit, ceiling)
            if self.state == CLOSED and self._is_dead(began, patience):
                change = self._become(OPEN, f"silent for {self._silence:.2f} s", now)
            elif not learnt or lease is not None:
                change = self._fail(now, began, "no answer within the limit", lease)
            elif self.state == CLOSED:
                change = self._be_slow(now, began, patience)
        self._tell(change)

    def starved(
        self, now: float, began: float, *, limit: float, patience: float = math.inf
    ) -> None:
        """A call was cut by somebody else's deadline (or stalled), after waiting from `began`.

        Such waits add up until anything is heard; each time they reach `limit`, one failure counts.
        Many of them in a silence of `patience` seconds are evidence by themselves: that a learnt
        limit has grown in the outage is no reason to wait for five of it.
        """
        change = None
        with self._lock:
            self._starved += self._listen(began, now)
            self.attentive = True
            dead = self._is_dead(began, patience)
            if self.state == CLOSED and dead:
                change = self._become(OPEN, f"silent for {self._silence:.2f} s", now)
            elif self._starved >= limit - 1e-9:
                self._starved = 0.0
                # the waits are disjoint from those already counted: evidence of its own
                change = self._fail(now, now, "silent for many short calls", None)
        self._tell(change)

    def heard(self) -> None:
        """A sign of life that is no answer: any byte."""
        with self._lock:
            self._hear()

    def connected(self, now: float) -> None:
        """A connection was made in the background: an open circuit may be probed at once; so may
        one that opens because a probe failed that is older."""
        change = None
        with self._lock:
            self._hear()
            self._connected_at = now
            if self.state == OPEN:
                self._retry_at = now
                change = self._become(HALF_OPEN, "a connection was made", now)
        self._tell(change)

    def release(self, lease: Lease | None) -> None:
        """A probe was abandoned: neither success nor failure; the next caller may probe."""
        if lease is not None:
            with self._lock:
                self._leases.discard(lease)

    def reconfigure(self, config: Breaker) -> None:
        """Go on with `config`: state and evidence stay, an open time that runs is not changed."""
        with self._lock:
            self.config = config
            self._open_time = config.open_for

    def force(self, state: str, reason: str, now: float) -> None:
        """Go to `state` by hand."""
        with self._lock:
            change = self._become(state, reason, now)
        self._tell(change)

    # -- under the lock ---------------------------------------------------------------------

    def _hear(self) -> None:
        self._silence = self._starved = 0.0
        self._silent_calls = 0
        self._trouble = math.inf

    def _listen(self, began: float, now: float) -> float:
        """Add [began, now] to the union of listening times; returns what it added."""
        waited = max(0.0, now - max(began, self._listened_until))
        self._listened_until = max(self._listened_until, now)
        self._silence += waited
        self._trouble = min(self._trouble, began)
        return waited

    def _fail(self, now: float, began: float, reason: str, lease: Lease | None) -> _Change | None:
        if self.state != CLOSED:
            if lease is None or lease not in self._leases:
                return None  # the result of an older state
            self._open_time = min(self._open_time * 2, self.config.open_max)
            change = self._become(OPEN, f"probe failed: {reason}", now)
            if began < self._connected_at:
                self._retry_at = now
            return change
        self.attentive = True
        self._trouble = min(self._trouble, began)
        own = began >= self._evidence_end
        self._failed.append((now, own))
        if own:
            self.failures += 1
            self._evidence_end = now
        return self._judge(now, reason)

    def _be_slow(self, now: float, began: float, patience: float) -> _Change | None:
        self.attentive = True
        self._slow.append(now)
        if self._silence >= patience - 1e-9:
            return self._fail(now, began, f"silent for {self._silence:.2f} s", None)
        if self._too_many(self._slow, self.config.slow_rate, now):
            return self._become(OPEN, "too many slow calls", now)
        return None

    def _is_dead(self, began: float, patience: float) -> bool:
        """Whether the present silence is evidence enough by itself.

        It is long, as many calls were cut in it as failures are needed, and they did not all begin
        together. Without this a busy service would wait for one limit after the other, while the
        limit grows.
        """
        if not self._silent_calls:
            self._silent_from = began
        self._silent_calls += 1
        return (
            self._silence >= patience - 1e-9
            and self._silent_calls >= self.config.failures
            and began - self._silent_from >= patience / 2
        )

    def _judge(self, now: float, reason: str) -> _Change | None:
        if self.failures >= self.config.failures:
            return self._become(OPEN, f"{reason}, {self.failures} in a row", now)
        if self._rate_reached(now):
            return self._become(OPEN, f"{reason}, too many of the last calls", now)
        return None

    def _rate_reached(self, now: float) -> bool:
        since = now - self.config.window
        while self._failed and self._failed[0][0] <= since:
            self._failed.popleft()
        # one burst of calls in flight together is one piece of evidence, however many they are
        if sum(own for _, own in self._failed) < 2:
            return False
        return self._too_many(self._failed, self.config.failure_rate, now)

    def _too_many(
        self, bad: deque[float] | deque[tuple[float, bool]], rate: float | None, now: float
    ) -> bool:
        if rate is None:
            return False
        if bad is self._slow:
            while self._slow and self._slow[0] <= now - self.config.window:
                self._slow.popleft()
        if len(bad) < self.config.minimum_calls * rate:
            return False
        calls = len(bad) + self._answered_within(now, self.config.window)
        return calls >= self.config.minimum_calls and len(bad) >= rate * calls

    def _become(self, state: str, reason: str, now: float) -> _Change | None:
        if state == self.state and state != OPEN:
            return None
        # First the long way for every call, and the short one last: an interrupt at any line leaves
        # a circuit that is asked, and told.
        self.shut = self.attentive = True
        old, self.state, self.since = self.state, state, now
        if CLOSED in (old, state):
            self.turned = now
        if state != HALF_OPEN or old == CLOSED:
            self.reason = reason
        self._leases.clear()
        self._successes = 0
        if state == OPEN:
            if old == CLOSED:
                self.outage = min(self._trouble, now)
            self._retry_at = now + self._open_time * (1 + _JITTER * self.random.random())
        elif state == CLOSED:
            self._open_time = self.config.open_for
            self.failures = 0
            self._failed.clear()
            self._slow.clear()
            self._hear()
            self.shut = self.attentive = False
        return old, state, reason, now

    def _tell(self, change: _Change | None) -> None:
        if change is not None:
            self._on_change(*change)
