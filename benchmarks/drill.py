"""What the drill's own instruments cost, and how well its open loop keeps the time.

python -m benchmarks.drill [--json FILE]

- *Recorder*: what a request of a load takes as it is recorded, over what it takes by itself, on
  memcached, in one thread, which is kept busy by nothing else; and the share of a core that the
  samples and the heartbeat take is added. The throughput of a load is lower by so much.
- *Schedule*: at 1,000 requests/s, how long after it was due a request began, p99; the median of
  ten spells of a second.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from dataclasses import replace

from benchmarks import _harness as harness
from benchmarks import _servers as servers
from timedblock.drill.load import ClosedLoad, OpenLoad, Schedule, Session
from timedblock.drill.memcache import STORE, CacheData
from timedblock.drill.sampler import Sampler
from timedblock.drill.starvation import Heartbeat
from timedblock.drill.store import LEARNT

PREFIX = "timedblock-bench-drill"
ROUNDS = 60
INSTRUMENTED = 3.0
RATE = 1000.0
SECONDS = 1.0
SPELLS = 10
#: Seconds that the last requests of a spell may take.
GRACE = 0.25


class _Bare(ClosedLoad):
    """The same load; nothing is kept."""

    def _record(self, slot: int, number: int, due: float) -> None:
        self._session.answer(number)


def instruments() -> float:
    """The share of a core that the samples and the heartbeat take, beside the load."""
    sampler = Sampler("none", LEARNT, STORE.operation, time.monotonic())
    with Heartbeat():
        busy, start = time.process_time(), time.monotonic()
        time.sleep(INSTRUMENTED)
        share = (time.process_time() - busy) / (time.monotonic() - start)
    sampler.stop()
    return share


def recorder(session: Session) -> harness.Figure:
    """What a recorded request takes, over what it takes by itself."""
    load = "none", LEARNT, session, Schedule(0, 1.0, 0.0, 0.0, 0.0), time.monotonic(), 1
    rounds = {
        name: harness.timed("record(0, 1, 0.5)", {"record": kind(*load)._record})
        for name, kind in (("recorded", ClosedLoad), ("bare", _Bare))
    }
    samples = harness.interleave(rounds, repeat=ROUNDS)
    share = instruments()
    ratios = [one + share for one in harness.paired(samples["recorded"], samples["bare"])]
    note = f"bare {min(samples['bare']) * 1e6:.0f} us; samples and heartbeat {share:.2%} of a core"
    return harness.ratio("drill: a recorded request", ratios, at_most=1.05, note=note)


def lateness(session: Session) -> float:
    """Milliseconds after which 99 of 100 requests of an open loop had begun; inf if one is
    missing."""
    start = time.monotonic() + 0.1
    spell = Schedule(RATE, SECONDS - GRACE, 0.0, GRACE, 0.0)
    calls = OpenLoad("none", LEARNT, session, spell, start).run()
    late = [(call.began - call.due) * 1000 for call in calls]
    return statistics.quantiles(late, n=100)[98] if len(calls) == RATE * SECONDS else math.inf


def schedule(session: Session) -> harness.Figure:
    """How late the requests of an open loop begin."""
    rounds = [lateness(session) for _ in range(SPELLS)]
    note = f"median of {SPELLS} spells of {SECONDS:g} s, not the smallest"
    if lossy := rounds.count(math.inf):
        note += f"; in {lossy} of them a request had not ended {GRACE:g} s after the spell"
    name = f"drill: lateness of a request at {RATE:g}/s, p99"
    figure = harness.absolute(
        name, statistics.median(rounds), "ms", 2.0, high=max(rounds), note=note
    )
    return replace(figure, low=min(rounds))


def measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    """Both, on one server."""
    with servers.memcached() as server:
        data = CacheData([server.address])
        data.prepare(PREFIX)
        session = STORE.variants[LEARNT].session([server.address], PREFIX, 0.1)
        try:
            return [recorder(session), schedule(session)]
        finally:
            data.delete(PREFIX)


if __name__ == "__main__":
    sys.exit(harness.main("drill", __doc__, measure))
