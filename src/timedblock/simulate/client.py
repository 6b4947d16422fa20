"""A client that drives the production call machine by events."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from ..block import TimedBlock
from ..call import BROKEN, STALLED, UNWELL
from ..call import CUT as MACHINE_CUT
from ..deadline import Deadline, get, put
from ..endpoint import Endpoint
from ..errors import Unavailable
from ..policy import Policy
from .trace import CUT, FAILED, OK, REFUSED, Sample, Trace

if TYPE_CHECKING:
    from ..call import Call, Late
    from .delays import Load
    from .engine import Simulation
    from .server import Target


class Client:
    """One process that calls a target through a timed block.

    Args:
        simulation: the world that it is in.
        target: a server, or a balancer before several.
        policy: the block's; None: the default.
        name: of the block.
        late_answers: whether connections that were cut are parked, so that late answers are heard.
        budget: seconds of the caller's own deadline around each call, or None.

    Attributes:
        block: the production block, with its limit, breaker and budget.
        trace: what happened.
    """

    def __init__(
        self,
        simulation: Simulation,
        target: Target,
        *,
        policy: Policy | None = None,
        name: str = "simulated.call",
        late_answers: bool = True,
        budget: float | None = None,
    ) -> None:
        self.simulation = simulation
        self.target = target
        self.late_answers = late_answers
        self.budget = budget
        policy = Policy() if policy is None else policy
        # not from the table of the process: each client is a process of its own
        self.endpoint = Endpoint("simulated:1", policy.breaker, simulation.clock)
        self.block = TimedBlock(name, policy, endpoint=self.endpoint)
        self.trace = Trace()
        self.asleep_until = 0.0
        if self.block.circuit is not None:
            self.block.circuit.random = random.Random(simulation.random.random())

    def load(self, load: Load, *, until: float = float("inf")) -> None:
        """Call again and again, as `load` says, from now on and until the instant `until`."""
        simulation, chance = self.simulation, random.Random(self.simulation.random.random())

        def arrive() -> None:
            if simulation.env._now >= until:
                return
            self.call()
            simulation.after(load(chance, simulation.env._now), arrive)

        simulation.after(load(chance, simulation.now), arrive)

    def watch(self, every: float = 0.5) -> None:
        """Keep the limit and the breaker's state in the trace."""
        block, trace = self.block, self.trace

        def look() -> None:
            state = "none" if block.circuit is None else block.circuit.state
            trace.limits.append(Sample(self.simulation.now, block.limit, state))
            if not trace.breaker or trace.breaker[-1][1] != state:
                trace.breaker.append((self.simulation.now, state))

        self.simulation.every(every, look)

    def stall(self, seconds: float) -> None:
        """This process stands still: a garbage collection, a throttled CPU."""
        self.asleep_until = self.simulation.now + seconds

    def call(self) -> None:
        """Begin one call; its end comes by events."""
        began = self.simulation.env._now
        if began < self.asleep_until:
            self.simulation.at(self.asleep_until, self.call)
            return
        if self.budget is None:
            self._begin(began)
            return
        outer = get()
        deadline = Deadline()
        deadline.clock, deadline.owner = self.simulation.clock, "the caller"
        deadline.at = began + self.budget
        put(deadline)
        try:
            self._begin(began)
        finally:
            put(outer)

    def _begin(self, began: float) -> None:
        self.trace.calls += 1
        try:
            call = self.block.begin()
        except Unavailable:
            self.trace.add(began, began, REFUSED)
            return
        _Attempt(self, call, began).send()


class _Unwell(Exception):
    """The server says that it can't, and not before `retry_after` seconds."""

    def __init__(self, retry_after: float | None) -> None:
        super().__init__()
        self.retry_after = retry_after


class _Attempt:
    """One request on the wire; its answers and its limit race."""

    __slots__ = ("began", "call", "client", "first", "late", "over")

    def __init__(self, client: Client, call: Call, first: float) -> None:
        self.client = client
        self.call = call
        self.first = first
        self.began = call.began
        self.over = False
        self.late: Late | None = None

    def send(self) -> None:
        client, call = self.client, self.call
        client.trace.attempts += 1
        call.sent = True
        client.simulation.after(call.at - client.simulation.env._now, self._time_is_up)
        client.target.submit(self)

    # -- what the server tells ------------------------------------------------------------------

    def reply(self) -> None:
        """See `Request`."""
        if self.over:
            self._reply_late()
        elif self._asleep(self.reply):
            return
        else:
            self.over = True
            self.call.succeeded()
            self._finish(OK)

    def lost(self) -> None:
        """See `Request`."""

    def refused(self) -> None:
        """See `Request`."""
        if not self.over and not self._asleep(self.refused):
            self._fail(ConnectionResetError("refused"), BROKEN, FAILED)

    def unwell(self, retry_after: float | None) -> None:
        """See `Request`."""
        if self.over:
            self._reply_late()
        elif not self._asleep(partial(self.unwell, retry_after)):
            self._fail(_Unwell(retry_after), UNWELL, FAILED)

    def _reply_late(self) -> None:
        late, now = self.late, self.client.simulation.env._now
        if late is not None and now <= late.until and not late.told:
            self.client.trace.late += 1
            self.client.trace.late_began.append(self.began)
            late.answered(now)

    # -- what the clock tells -------------------------------------------------------------------

    def _time_is_up(self) -> None:
        if self.over:
            return
        client, now = self.client, self.client.simulation.env._now
        if now < client.asleep_until:
            # answers that came meanwhile are read first: their events are older than this one
            client.simulation.after(client.asleep_until - now + 1e-9, self._time_is_up)
            return
        client.trace.cuts += 1
        client.trace.cut_began.append(self.call.began)
        overslept = now - self.call.at
        if overslept > 0.05:
            self._fail(TimeoutError(), STALLED, CUT, waited=self.call.limit)
        else:
            self._fail(TimeoutError(), MACHINE_CUT, CUT)

    def _park(self) -> None:
        """Listen on, to the ceiling."""
        late = self.late = self.call.late
        if late is not None:
            wait = max(0.0, late.until - self.client.simulation.env._now)
            self.client.simulation.after(wait, lambda: late.silent(late.until))

    def _asleep(self, again: object) -> bool:
        client = self.client
        left = client.asleep_until - client.simulation.env._now
        if left <= 0:
            return False
        client.simulation.after(left, again)  # type: ignore[arg-type]
        return True

    def _fail(self, error: Exception, kind: str, outcome: int, waited: float | None = None) -> None:
        self.over = True
        pause = self.call.failed(error, kind=kind, waited=waited).retry_after
        if outcome == CUT and self.client.late_answers:
            self._park()
        if pause is None:
            self._finish(outcome)
        else:
            self.client.simulation.after(pause, self._again, outcome)

    def _again(self, outcome: int) -> None:
        try:
            self.call.again()
        except Unavailable:
            self._finish(outcome)
            return
        _Attempt(self.client, self.call, self.first).send()

    def _finish(self, outcome: int) -> None:
        client = self.client
        client.trace.add(self.first, client.simulation.env._now, outcome)
