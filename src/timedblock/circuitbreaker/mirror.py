"""Keeps a circuit in step with a storage that other processes share (L5)."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, NamedTuple

from pybreaker import CircuitBreakerStorage, CircuitMemoryStorage

from .. import clock as _clock
from .. import events, fork
from ..net.workers import Full, Workers
from ..policy.breaker import OPEN
from .circuit import STATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .circuit import PybreakerCircuit, Standing

#: Seconds between two looks at a storage in the background: what is known is at most 1 s old.
LOOK = 0.5


class _Seen(NamedTuple):
    """What a storage said when it was read last."""

    state: str
    opened_at: datetime | None
    counter: int


class Mirror:
    """Keeps a circuit and a storage in step.

    The circuit decides; what it decided is written, and what others wrote is adopted. Only a value
    that *changed* since the last look is adopted: a storage that lost a write (or answers with its
    fallback while Redis is down) can't take back what this process saw by itself.

    A plain `CircuitMemoryStorage` is in step at once (`direct`). Any other may block: one daemon
    worker, which ends with the mirror, looks each `LOOK` seconds and when there is news. Lock:
    `_lock` guards a direct step; only the worker takes the other kind.
    """

    def __init__(
        self,
        storage: CircuitBreakerStorage,
        circuit: PybreakerCircuit,
        name: str,
        announce: Callable[[], object],
    ) -> None:
        self.direct = type(storage) is CircuitMemoryStorage
        self._storage = storage
        self._circuit = circuit
        self._clock = _clock.current()
        self._announce = announce
        self._name = name
        self._known = circuit.standing()
        self._seen: _Seen | None = None
        self._complained = False
        self._workers = Workers(name, 1)
        self._start_fresh()
        self._running = True  # so to speak: its owner says `start` once it is complete
        fork.register(self)

    def _start_fresh(self) -> None:
        self._lock = threading.Lock()
        self._news = threading.Lock()  # released: there is news
        self._news.acquire()
        self._running = False

    def after_fork(self) -> None:
        """The worker stayed in the parent; the next call starts one here."""
        self._start_fresh()

    def before(self) -> bool:
        """A call is about to begin; whether something may have changed here by it."""
        if not self.direct:
            if not self._running:
                self.start()
            return False
        storage, circuit = self._storage, self._circuit
        if storage.state == circuit.state and storage.counter == circuit.failures:
            return False
        self.step_now()
        return True

    def after(self) -> None:
        """Something may have changed here."""
        if self._circuit.standing() == self._known:
            return
        if self.direct:
            self.step_now()
        else:
            with contextlib.suppress(RuntimeError):  # released already
                self._news.release()

    def step_now(self) -> None:
        """Come in step at once (only where nothing can block)."""
        with self._lock:
            self._step()

    def start(self) -> None:
        """Look at the storage in the background from now on."""
        self._running = True
        news = self._news

        def wake(_: object) -> None:
            with contextlib.suppress(RuntimeError):
                news.release()

        try:
            # weakly, and woken when it is gone: a breaker that nobody holds leaves no thread
            self._workers.submit(
                functools.partial(_keep_step, weakref.ref(self, wake), news, self._clock)
            )
        except (Full, RuntimeError) as error:  # the thread can't be had: the next call tries again
            self._running = False
            self._complain(error)

    def background_step(self) -> None:
        """Come in step, whatever the storage does; on the worker."""
        try:
            self._step()
            self._complained = False
            self._announce()
        except BaseException as error:  # the worker outlives whatever a storage or listener raises
            self._complain(error)

    def _complain(self, error: BaseException) -> None:
        """One line, until it works again."""
        if self._complained:
            return
        self._complained = True
        text = f"the breaker's storage is out of reach ({type(error).__name__})"
        events.log_state(self._clock.monotonic(), logging.WARNING, self._name, "storage", text)

    def _step(self) -> None:
        mine = self._circuit.standing()
        self._write(mine)
        seen = self._read()
        before = self._seen
        state = seen.state if before is None or self._news_of_state(before, seen) else None
        failures = seen.counter if before is None or seen.counter != before.counter else None
        now = self._clock.monotonic()
        standing = self._circuit.adopt(
            mine, state=state, since=self._since(seen, now), failures=failures, now=now
        )
        if standing is not None:
            self._seen, self._known = seen, standing

    def _news_of_state(self, before: _Seen, seen: _Seen) -> bool:
        return (before.state, before.opened_at) != (seen.state, seen.opened_at)

    def _write(self, mine: Standing) -> None:
        """Write what is news; what was written is known, should the rest fail."""
        storage, known = self._storage, self._known
        if (mine.state, mine.since) != (known.state, known.since):
            if mine.state == OPEN:
                ago = timedelta(seconds=self._clock.monotonic() - mine.since)
                storage.opened_at = datetime.now(timezone.utc) - ago
            storage.state = mine.state
            self._known = known._replace(state=mine.state, since=mine.since)
        _bring(mine.failures, known.failures, storage.increment_counter, storage.reset_counter)
        self._known = self._known._replace(failures=mine.failures)
        _bring(
            mine.successes,
            known.successes,
            storage.increment_success_counter,
            storage.reset_success_counter,
        )
        self._known = mine

    def _read(self) -> _Seen:
        state = self._storage.state
        if state not in STATES:
            raise ValueError(f"unknown state {state!r} in the storage")
        opened_at = self._storage.opened_at if state == OPEN else None
        return _Seen(state, opened_at, self._storage.counter)

    def _since(self, seen: _Seen, now: float) -> float:
        """When the circuit opened, on our clock; other hosts' clocks may be wrong, so bounded."""
        longest = self._circuit.config.open_for
        if seen.opened_at is None:
            return now - longest
        opened_at = seen.opened_at
        if opened_at.tzinfo is None:
            opened_at = opened_at.replace(tzinfo=timezone.utc)
        ago = (datetime.now(timezone.utc) - opened_at).total_seconds()
        return now - min(max(0.0, ago), longest)


def _bring(
    value: int, known: int, increment: Callable[[], object], reset: Callable[[], object]
) -> None:
    """Bring a counter of the storage from what was known of it to `value`."""
    if value < known:
        reset()
        known = 0
    for _ in range(value - known):
        increment()


def _keep_step(mirror_ref: weakref.ref[Mirror], news: threading.Lock, clock: _clock.Clock) -> None:
    """The worker's loop; it holds the mirror only while it works."""
    while True:
        mirror = mirror_ref()
        if mirror is None:
            return
        mirror.background_step()
        del mirror
        clock.wait(news, LOOK)
