"""The breaker beside a small model of its rules, in any order of events."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from timedblock import Breaker
from timedblock.policy.breaker import CLOSED, HALF_OPEN, OPEN, Circuit, Lease, Refusal

CONFIG = Breaker(
    failures=3, failure_rate=None, slow_rate=None, probes=2, open_for=1.0, open_max=4.0
)
PASSED = st.sampled_from([0.0, 0.01, 0.3, 1.0, 1.3, 6.0])


class Model(RuleBasedStateMachine):
    """Outright failures, answers and probes; the model keeps lists, not counters."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.changes: list[tuple[str, str]] = []
        self.circuit = Circuit(
            CONFIG,
            on_change=lambda old, new, reason, now: self.changes.append((old, new)),
            rng=random.Random(0),
        )
        # the model
        self.state = CLOSED
        self.pieces: list[float] = []  # when each counted failure ended
        self.opened: list[float] = []  # instants of opening since it was closed last
        self.leases: dict[Lease, float] = {}
        self.old_leases: list[Lease] = []
        self.answered = 0
        self.began: list[float] = [0.0]

    # -- time and beginnings ----------------------------------------------------------------

    @rule(passed=PASSED)
    def advance(self, passed: float) -> None:
        self.now += passed
        self.began.append(self.now)

    @rule()
    def admit(self) -> None:
        answer = self.circuit.admit(self.now, 1.0)
        if self.state == CLOSED:
            assert answer is None
            return
        if self.state == OPEN:
            base = min(CONFIG.open_for * 2 ** (len(self.opened) - 1), CONFIG.open_max)
            waited = self.now - self.opened[-1]
            if isinstance(answer, Refusal):
                assert waited < base * 1.25
                assert 0 < answer.retry_after <= base * 1.25 - waited + 1e-9
                return
            assert waited >= base
            self.become(HALF_OPEN)
        self.leases = {one: end for one, end in self.leases.items() if end > self.now}
        if len(self.leases) + self.answered < CONFIG.probes:
            assert isinstance(answer, Lease)
            self.leases[answer] = self.now + 2.0
        else:
            assert isinstance(answer, Refusal)

    def become(self, state: str) -> None:
        self.state = state
        self.old_leases += self.leases
        self.leases, self.answered = {}, 0
        if state == OPEN:
            self.opened.append(self.now)
        elif state == CLOSED:
            self.opened, self.pieces = [], []

    # -- results ----------------------------------------------------------------------------

    @rule(data=st.data())
    def failure(self, data: st.DataObject) -> None:
        began = data.draw(st.sampled_from(self.began[-6:]))
        self.circuit.failure(self.now, began, "OSError")
        if self.state == CLOSED:
            last = max(self.counted, default=float("-inf"))
            if began >= last:
                self.pieces.append(self.now)
                self.counted.append(self.now)
            if len(self.pieces) >= CONFIG.failures:
                self.become(OPEN)

    @property
    def counted(self) -> list[float]:
        if not hasattr(self, "_counted"):
            self._counted: list[float] = []
        return self._counted

    @rule()
    def success(self) -> None:
        self.circuit.success(self.now)
        if self.state == CLOSED:
            self.pieces = []

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), well=st.booleans())
    def probe_ends(self, data: st.DataObject, well: bool) -> None:
        lease = data.draw(st.sampled_from(list(self.leases)))
        if well:
            self.circuit.success(self.now, lease)
            self.old_leases.append(lease)
            del self.leases[lease]
            self.answered += 1
            if self.answered >= CONFIG.probes:
                self.become(CLOSED)
        else:
            self.circuit.failure(self.now, self.now, "OSError", lease)
            self.become(OPEN)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def probe_left(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(list(self.leases)))
        self.circuit.release(lease)
        self.old_leases.append(lease)
        del self.leases[lease]

    @precondition(lambda self: self.old_leases and self.state != CLOSED)
    @rule(data=st.data(), well=st.booleans())
    def an_old_probe_ends_late(self, data: st.DataObject, well: bool) -> None:
        lease = data.draw(st.sampled_from(self.old_leases))
        if well:
            self.circuit.success(self.now, lease)
        else:
            self.circuit.failure(self.now, 0.0, "OSError", lease)

    @rule()
    def connected(self) -> None:
        self.circuit.connected(self.now)
        if self.state == OPEN:
            self.become(HALF_OPEN)

    # -- what always holds ------------------------------------------------------------------

    @invariant()
    def same_state(self) -> None:
        assert self.circuit.state == self.state
        assert self.circuit.shut is (self.state != CLOSED)
        if self.state == CLOSED:
            assert self.circuit.failures == len(self.pieces)

    @invariant()
    def a_failure_is_never_overlooked(self) -> None:
        if self.pieces or self.state != CLOSED:
            assert self.circuit.attentive

    @invariant()
    def changes_are_told_one_by_one(self) -> None:
        told = CLOSED
        for old, new in self.changes:
            assert old == told != new
            told = new
        assert told == self.state


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=200, stateful_step_count=50)
