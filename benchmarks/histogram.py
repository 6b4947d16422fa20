"""What recording one latency costs, as it stands on the hot path, and reading the quantiles.

python -m benchmarks.histogram [--json FILE]

The statement is taken from the source of ``TimedBlock.call``, and timed with the names that are
local there as locals and the module's own as globals; an empty loop is subtracted.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import random
import statistics
import sys
import textwrap
import time
import timeit

from benchmarks import _harness as harness
from timedblock import Percentile, Policy, TimedBlock
from timedblock.latency import SLICE, Histogram
from timedblock.policy.timeout import Learnt, learn

NUMBER = 10_000
ROUNDS = 150


def recording_statement() -> str:
    """The one statement of ``TimedBlock.call`` that increments a bucket."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(TimedBlock.call)))
    found = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.AugAssign) and "counts" in ast.unparse(node.target)
    ]
    assert len(found) == 1, f"TimedBlock.call records in {len(found)} places: {found}"
    return found[0]


def record() -> list[harness.Figure]:
    """Nanoseconds of the statement."""
    statement = recording_statement()
    module = inspect.getmodule(TimedBlock)
    assert module is not None
    block = TimedBlock("bench.histogram", Policy(timeout=Percentile(99.5, ceiling=1.0)))
    names = {**vars(module), "_block": block, "_began": time.monotonic()}
    local = "self, began, ended = _block, _began, _began + 0.00123; histogram = self.histogram"
    empty = timeit.Timer("pass", local, globals=names)
    whole = timeit.Timer(statement, local, globals=names)
    samples = harness.interleave(
        {
            "empty": lambda: empty.timeit(NUMBER) / NUMBER,
            "record": lambda: whole.timeit(NUMBER) / NUMBER,
        },
        repeat=ROUNDS,
    )
    spent = (min(samples["record"]) - min(samples["empty"])) * 1e9
    median = harness.median_note(samples["record"], 1e9, "ns")
    note = f"{median}: {statement}"
    return [harness.absolute("histogram record, on the hot path", spent, "ns", 150.0, note=note)]


def refresh() -> list[harness.Figure]:
    """Microseconds of closing a slice and of learning from a full window of samples."""
    chance = random.Random(1)
    now = 0.0
    histogram, learnt = Histogram(now), Learnt(1.0, "initial")
    rotating, reading = [], []
    for _ in range(200):
        for _ in range(500):
            histogram.record(chance.lognormvariate(-6.0, 0.6))
        histogram.cut_at(0.5)
        now += SLICE
        started = time.perf_counter()
        assert histogram.rotate(now)
        rotating.append((time.perf_counter() - started) * 1e6)
        started = time.perf_counter()
        learnt = learn(Percentile(), histogram, learnt, now)
        reading.append((time.perf_counter() - started) * 1e6)
    whole = [one + other for one, other in zip(rotating, reading, strict=True)]
    judged = harness.absolute(
        "refresh of a limit: the slice closed, its quantiles read, and learnt from",
        statistics.median(whole),
        "us",
        100.0,
        high=max(whole),
        note=f"median; min {min(whole):.0f} us, once a slice of {SLICE} s",
    )
    parts = [
        harness.shown(name, statistics.median(spent), "us", low=min(spent), high=max(spent))
        for name, spent in (("closing the slice", rotating), ("learning", reading))
    ]
    return [judged, *parts]


def measure(_: argparse.Namespace) -> list[harness.Figure]:
    """Both."""
    return record() + refresh()


if __name__ == "__main__":
    sys.exit(harness.main("histogram", __doc__, measure))
