"""``timedblock.memcache.Client`` on loopback beside pymemcache's clients.

python -m benchmarks.memcache [--json FILE]

Against a real memcached of its own (Debian's, one thread); the embedded server where there is
none, and then the table says so. Default policies: the wrapper has its learnt limit, breaker and
pool; pymemcache has no timeout at all by default.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable

from pymemcache.client.base import Client, PooledClient

from benchmarks import _harness as harness
from benchmarks import _servers as servers
from timedblock import Unavailable, memcache

Get = Callable[[str], object]

KEYS = [f"key:{number}" for number in range(100)]
VALUE = b"v" * 100
THREADS = 8
CALLS_EACH = 400
# Short rounds and many: the neighbours of a pair then see the same machine.
ROUND, ROUNDS = 0.001, 500


def clients(address: tuple[str, int]) -> dict[str, Client | PooledClient | memcache.Client]:
    """Ours with its defaults, and pymemcache's with theirs."""
    return {
        "ours": memcache.Client(address),
        "Client": Client(address),
        "PooledClient": PooledClient(address),
        "Client(timeout=1)": Client(address, timeout=1, connect_timeout=1),
    }


def undisturbed(one: harness.Round) -> harness.Round:
    """The round again when a call of ours was cut: a machine that paused for 50 ms, not a cost."""

    def repeated() -> float:
        while True:
            try:
                return one()
            except Unavailable as error:
                harness.console.print(f"a round is repeated: {error}", markup=False)

    return repeated


def timed(statement: str, **names: object) -> harness.Round:
    """A round of a statement, undisturbed."""
    return undisturbed(harness.timed(statement, names, round_seconds=ROUND))


def single_thread(address: tuple[str, int]) -> list[harness.Figure]:
    """``get`` of one key and ``get_many`` of 100, one thread."""
    made = clients(address)
    made["ours"].set_many(dict.fromkeys(KEYS, VALUE), noreply=False)
    assert all(client.get(KEYS[0]) == VALUE for client in made.values())
    gets = harness.interleave(
        {name: timed("get('key:0')", get=client.get) for name, client in made.items()},
        repeat=ROUNDS,
    )
    manies = harness.interleave(
        {
            name: timed("get_many(keys)", get_many=client.get_many, keys=KEYS)
            for name, client in made.items()
        },
        repeat=ROUNDS,
    )
    return compared("get", gets, 1.05, 1.0) + compared("get_many of 100", manies, 1.0, None)


def compared(
    name: str, samples: dict[str, list[float]], to_client: float, to_pooled: float | None
) -> list[harness.Figure]:
    """The ratios of one operation."""
    reach = {"Client": to_client, "PooledClient": to_pooled, "Client(timeout=1)": None}
    own = f"min {min(samples['ours']) * 1e6:.3g} us"
    return [
        harness.ratio(
            f"{name} / {peer}",
            harness.paired(samples["ours"], samples[peer]),
            at_most=at_most,
            note=f"{own} / {min(samples[peer]) * 1e6:.3g} us",
        )
        for peer, at_most in reach.items()
    ]


def throughput(get: Get) -> harness.Round:
    """Seconds a call when 8 threads call as fast as they can."""

    failures: list[Unavailable] = []

    def worker(gate: threading.Barrier) -> None:
        gate.wait()
        try:
            for _ in range(CALLS_EACH):
                get("key:0")
        except Unavailable as error:
            failures.append(error)

    def one_round() -> float:
        gate = threading.Barrier(THREADS + 1)
        running = [threading.Thread(target=worker, args=(gate,)) for _ in range(THREADS)]
        for thread in running:
            thread.start()
        gate.wait()
        started = time.perf_counter()
        for thread in running:
            thread.join()
        spent = time.perf_counter() - started
        if failures:
            raise failures.pop()
        return spent / (THREADS * CALLS_EACH)

    return undisturbed(one_round)


def many_threads(address: tuple[str, int]) -> list[harness.Figure]:
    """Calls a second of 8 threads, ours to ``PooledClient``'s."""
    made = clients(address)
    names = ("ours", "PooledClient")
    samples = harness.interleave({name: throughput(made[name].get) for name in names}, repeat=60)
    rates = {name: f"{1 / min(samples[name]):,.0f}/s" for name in names}
    return [
        harness.ratio(
            f"{THREADS} threads, throughput / PooledClient",
            harness.paired(samples["PooledClient"], samples["ours"]),
            at_least=1.3,
            note=f"best {rates['ours']} / {rates['PooledClient']}",
        )
    ]


def measure(_: argparse.Namespace) -> list[harness.Figure]:
    """All of it against one server."""
    with servers.memcached() as server:
        harness.console.print(f"server: {server.kind}")
        return single_thread(server.address) + many_threads(server.address)


if __name__ == "__main__":
    sys.exit(harness.main("memcache", __doc__, measure))
