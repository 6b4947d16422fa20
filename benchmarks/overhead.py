"""What a timed block adds to a call that succeeds, beside its peers.

python -m benchmarks.overhead [--json FILE]

The block has everything: Percentile + Breaker + bulkhead 64 + Retry + budget + a constant
fallback, inside one ``time_limit``; the function does nothing, and its own call is included.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import _harness as harness
from benchmarks import _peers as peers
from timedblock import Breaker, Percentile, Policy, Retry, TimedBlock, time_limit

ROUND, ROUNDS = 0.0015, 150
REACH = {"TimedBlock.call": 1.2, "decorator": 1.4, "with": 1.4}
PROMISED = {"pyresilience": 15.0, "pyresilience without timeout": 1.8}


def nothing() -> None:
    """The work: none."""


def blocks() -> tuple[TimedBlock, TimedBlock]:
    """A block with every policy, and the same less what ``with`` cannot have."""
    whole = Policy(
        timeout=Percentile(99.5, ceiling=1.0),
        breaker=Breaker(),
        bulkhead=64,
        retry=Retry(),
        fallback=0,
    )
    bare = Policy(timeout=Percentile(99.5, ceiling=1.0), breaker=Breaker(), bulkhead=64)
    return TimedBlock("bench.call", whole), TimedBlock("bench.with", bare)


def timed(statement: str, **names: object) -> harness.Round:
    """A short round of a statement."""
    return harness.timed(statement, names, round_seconds=ROUND)


def rounds() -> dict[str, harness.Round]:
    """One round for each way of calling, ours and the peers'."""
    whole, bare = blocks()
    made = {
        "TimedBlock.call": timed("call(fn)", call=whole.call, fn=nothing),
        "decorator": timed("fn()", fn=whole(nothing)),
        "with": timed("with block: pass", block=bare),
    }
    for name, wrap in peers.overhead_peers().items():
        made[name] = timed("fn()", fn=wrap(nothing))
    return made


def measure(_: argparse.Namespace) -> list[harness.Figure]:
    """The absolutes of ours, and the ratios of every peer to ``TimedBlock.call``."""
    with time_limit(600):
        samples = harness.interleave(rounds(), repeat=ROUNDS)
    figures = [
        harness.absolute(
            f"{name} of a no-op",
            min(samples[name]) * 1e6,
            "us",
            reach,
            high=max(samples[name]) * 1e6,
            note=harness.median_note(samples[name], 1e6, "us"),
        )
        for name, reach in REACH.items()
    ]
    return figures + against(samples)


def against(samples: dict[str, list[float]]) -> list[harness.Figure]:
    """Each peer: its own cost in the note, its ratio judged where the project promises one."""
    ours = samples["TimedBlock.call"]
    figures = []
    for name in peers.overhead_peers():
        theirs = samples[name]
        title = f"{name} / TimedBlock.call"
        note = f"min {min(theirs) * 1e6:.3g} us, {harness.median_note(theirs, 1e6, 'us')}"
        figures.append(harness.cheaper(title, theirs, ours, PROMISED.get(name), note))
    return figures


if __name__ == "__main__":
    sys.exit(harness.main("overhead", __doc__, measure))
