"""What a breaker does to calls that run side by side, beside its peers.

python -m benchmarks.concurrency [--json FILE]

Ten threads of 0.2 s through one breaker should take 0.2 s. When a breaker is half open, only its
probes may reach the backend, however many callers come at once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable

from benchmarks import _harness as harness
from benchmarks import _peers as peers
from timedblock import Breaker, Fixed, Policy, TimedBlock

Work = Callable[..., object]

WORK = 0.2
OPEN_FOR = 0.1
FAILURES = 3
LIMIT = 5.0


class BackendDown(Exception):
    """What the backend of the benchmark raises while it is down."""


class Backend:
    """Takes 0.2 s a call, fails while ``down``, and counts who reached it."""

    def __init__(self) -> None:
        self.down = False
        self.slow = True
        self.reached = 0
        self._lock = threading.Lock()

    def serve(self) -> None:
        """One call."""
        with self._lock:
            self.reached += 1
        if self.slow:
            time.sleep(WORK)
        if self.down:
            raise BackendDown


def ours(work: Work, *, failures: int, open_for: float, probes: int = 1) -> Work:
    """A block of the application's own with a breaker."""
    breaker = Breaker(failures=failures, open_for=open_for, probes=probes)
    block = TimedBlock(f"bench.breaker.{id(work)}", Policy(timeout=Fixed(LIMIT), breaker=breaker))
    return lambda: block.call(work)


def together(work: Work, threads: int) -> list[float]:
    """Start ``threads`` callers at one instant; the seconds that each took."""
    gate = threading.Barrier(threads)
    spent: list[float] = []

    def caller() -> None:
        gate.wait()
        started = time.perf_counter()
        with contextlib.suppress(Exception):
            work()
        spent.append(time.perf_counter() - started)

    running = [threading.Thread(target=caller) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return spent


def side_by_side() -> list[harness.Figure]:
    """Ten threads of 0.2 s through one closed breaker."""
    worst = {}
    for name, make in {"timedblock": ours, **peers.breaker_peers()}.items():
        guarded = make(Backend().serve, failures=FAILURES, open_for=OPEN_FOR)
        worst[name] = max(together(guarded, 10))
    name = "10 threads x 0.2 s"
    figures = [harness.absolute(f"{name}, one breaker", worst.pop("timedblock"), "s", 0.25)]
    return figures + [harness.shown(f"{name}, {peer}", worst[peer], "s") for peer in worst]


def half_open(make: Callable[..., Work], *, recovers: bool, **options: int) -> tuple[int, float]:
    """How many of 50 callers reach a backend behind a half-open breaker; the longest wait."""
    backend = Backend()
    guarded = make(backend.serve, failures=FAILURES, open_for=OPEN_FOR, **options)
    backend.down, backend.slow = True, False
    for _ in range(FAILURES):
        with contextlib.suppress(Exception):
            guarded()
    with contextlib.suppress(Exception):
        guarded()
    assert backend.reached == FAILURES, f"the breaker isn't open: {backend.reached} calls came"
    time.sleep(OPEN_FOR * 1.25 + 0.05)
    backend.reached, backend.down, backend.slow = 0, not recovers, True
    longest = max(together(guarded, 50))
    return backend.reached, longest


def probes() -> list[harness.Figure]:
    """50 callers at once on a half-open breaker."""
    figures = []
    for recovers in (True, False):
        outcome = "probe succeeds" if recovers else "probe fails"
        for permitted in (1, 3):
            reached, longest = half_open(ours, recovers=recovers, probes=permitted)
            name = f"50 callers, half open, {permitted} probe(s), {outcome}"
            note = f"longest caller {longest:.2f} s"
            figures.append(harness.count(name, reached, permitted, unit="calls", note=note))
        for name, make in peers.breaker_peers().items():
            reached, longest = half_open(make, recovers=recovers)
            note = f"longest caller {longest:.2f} s"
            title = f"50 callers, half open, {name}, {outcome}"
            figures.append(harness.shown(title, reached, "calls", note=note))
    return figures


def measure(_: argparse.Namespace) -> list[harness.Figure]:
    """Both questions."""
    return side_by_side() + probes()


if __name__ == "__main__":
    sys.exit(harness.main("concurrency", __doc__, measure))
