"""What the drill's own instruments cost, and how well its open loop keeps the time.

python -m benchmarks.drill [--json FILE]

- *Recorder*: a closed loop of 8 threads on memcached, as fast as it goes, with every call recorded,
  the samples and the heartbeat; and the same loop without any of them. The ratio of their
  throughputs.
- *Schedule*: at 1,000 requests/s, how long after it was due a request began.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks import _harness as harness
from benchmarks import _servers as servers
from timedblock.drill.load import ClosedLoad, OpenLoad, Schedule, Session
from timedblock.drill.memcache import STORE, CacheData
from timedblock.drill.sampler import Sampler
from timedblock.drill.starvation import Heartbeat
from timedblock.drill.store import LEARNT

PREFIX = "timedblock-bench-drill"
THREADS = 8
ROUND = 0.5
ROUNDS = 15
RATE = 1000.0
SECONDS = 5.0


class _Unrecorded(ClosedLoad):
    """The same loop; only a number of each call is kept."""

    def _record(self, number: int, due: float) -> None:
        self._session.answer(number)
        self.made = max(number, getattr(self, "made", 0))


def _schedule(rate: float, seconds: float) -> Schedule:
    return Schedule(rate, seconds, 0.0, 0.0, 0.0)


def unrecorded(session: Session) -> float:
    """Calls a second of a bare loop."""
    load = _Unrecorded("none", LEARNT, session, _schedule(0, ROUND), time.monotonic(), THREADS)
    load.run()
    return load.made / ROUND


def recorded(session: Session) -> float:
    """Calls a second of a load as the drill runs it."""
    start = time.monotonic()
    sampler = Sampler("none", LEARNT, STORE.operation, start)
    with Heartbeat():
        load = ClosedLoad("none", LEARNT, session, _schedule(0, ROUND), start, THREADS)
        calls = load.run()
    sampler.stop()
    return len(calls) / ROUND


def recorder(session: Session) -> harness.Figure:
    """Throughput with the instruments over throughput without."""

    def round_of(loop: Callable[[Session], float]) -> harness.Round:
        return lambda: loop(session)

    rounds = {"without": round_of(unrecorded), "with": round_of(recorded)}
    samples = harness.interleave(rounds, repeat=ROUNDS)
    note = f"{statistics.median(samples['without']):.0f} calls/s without"
    ratios = harness.paired(samples["with"], samples["without"])
    return harness.ratio(
        "drill: throughput, recorded to not recorded", ratios, at_least=0.95, note=note
    )


def schedule(session: Session) -> list[harness.Figure]:
    """How late the requests of an open loop begin."""
    start = time.monotonic() + 0.1
    calls = OpenLoad("none", LEARNT, session, _schedule(RATE, SECONDS), start).run()
    late = [(call.began - call.due) * 1000 for call in calls]
    p50, p99 = (statistics.quantiles(late, n=100)[q - 1] for q in (50, 99))
    note = f"p50 {p50:.2f} ms; {len(late)} requests"
    return [
        harness.count("drill: requests of the open loop", len(calls), RATE * SECONDS),
        harness.absolute(
            f"drill: lateness at {RATE:g}/s, p99", p99, "ms", 2.0, high=max(late), note=note
        ),
    ]


def measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    """Both, on one server."""
    with servers.memcached() as server:
        data = CacheData(server.address)
        data.write(PREFIX)
        session = STORE.variants[LEARNT].session(server.address, PREFIX, 0.1)
        try:
            return [recorder(session), *schedule(session)]
        finally:
            data.delete(PREFIX)


if __name__ == "__main__":
    sys.exit(harness.main("drill", __doc__, measure))
