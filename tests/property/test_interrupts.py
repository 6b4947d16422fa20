"""Threads, faults and interrupts at any bytecode: no wrong answer, nothing lost, nothing leaked.

No wall time is asserted: a failure here is never the machine's.
"""

from __future__ import annotations

import gc
import random
import threading
import time

import pytest

from tests.property.crowd import Crowd, until
from timedblock import Policy, TimedBlock, Unavailable, faults
from timedblock.faults.proxy import Relay
from timedblock.memcache import Client
from timedblock.net.pool import ConnectTimeout, PoolFull
from timedblock.testing import EmbeddedMemcached

# a socket that was lost to an interrupt is closed by the collector: that is the design
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
SIZE = 4


def test_a_bulkhead_loses_no_slot_to_interrupts(eager_switches: None) -> None:
    """Threads interrupted anywhere in `.call`, `with` and begin/succeeded: all slots come back."""
    block = TimedBlock("interrupted", Policy(bulkhead=3, breaker=None))

    def body() -> None:
        assert len(block.in_flight) > 0

    def work(rng: random.Random) -> None:
        try:
            way = rng.randrange(3)
            if way == 0:
                block.call(body)
            elif way == 1:
                with block:
                    body()
            else:
                call = block.begin()
                try:
                    body()
                except BaseException:
                    call.abandoned()
                    raise
                call.succeeded()
        except Unavailable:
            pass

    crowd = Crowd(work, seed=11)
    crowd.run(2.0, 200)
    assert crowd.wrong == []
    assert crowd.interrupts > 100
    assert crowd.done > 100
    del crowd, work
    gc.collect()
    block.sweep()
    assert len(block.in_flight) == 0
    calls = [block.begin() for _ in range(3)]
    assert len(calls) == 3


def test_no_more_calls_than_the_bulkhead_run_at_once(eager_switches: None) -> None:
    """Sixteen threads at a bulkhead of two: never three in the work together."""
    block = TimedBlock("crowded", Policy(bulkhead=2, breaker=None))
    running: dict[int, bool] = {}
    worst: list[int] = []

    def body() -> None:
        me = threading.get_ident()
        running[me] = True
        worst.append(len(running))
        for _ in range(20):
            pass
        del running[me]

    def work() -> None:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            for way in range(3):
                try:
                    if way == 0:
                        block.call(body)
                    elif way == 1:
                        with block:
                            body()
                    else:
                        call = block.begin()
                        body()
                        call.succeeded()
                except Unavailable:
                    pass

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst) == 2
    assert not block.in_flight


def _value(key: str) -> bytes:
    return (key * 50).encode()


def _check(client: Client, rng: random.Random, wrong: list[str]) -> None:
    key = f"key-{rng.randrange(200)}"
    try:
        way = rng.randrange(4)
        if way == 0:
            client.set(key, _value(key))
        elif way == 1:
            found = client.get(key)
            if found is not None and found != _value(key):
                wrong.append(f"get {key}: {found[:40]!r}")
        elif way == 2:
            keys = [f"key-{rng.randrange(200)}" for _ in range(5)]
            for name, value in client.get_many(keys).items():
                if value != _value(name) or name not in keys:
                    wrong.append(f"get_many {name}: {value[:40]!r}")
        else:
            # a number of its own thread: the answer is known
            own = f"own-{threading.get_ident()}-{rng.randrange(10**9)}"
            if client.add(own, b"1"):
                grown = client.incr(own, 5)
                if grown not in (6, None):
                    wrong.append(f"incr {own}: {grown}")
    except Unavailable:
        pass


FAULTS: list[faults.Fault] = [
    faults.Reset(),
    faults.Cut(after=10),
    faults.Hang(),
    faults.Drip(),
    faults.Corrupt(),
    faults.ErrorRate(0.3),
    faults.Latency(0.02, jitter=0.02),
    faults.Refuse(),
]


def test_no_wrong_answer_and_nothing_lost_under_faults_and_interrupts(
    eager_switches: None, no_leaks: None
) -> None:
    """Eight threads, a fault every quarter of a second, interrupts all the time."""
    rng = random.Random(7)
    wrong: list[str] = []
    with EmbeddedMemcached() as server, Relay() as relay:
        link = relay.listen(upstream=server.address)
        client = Client(link.address, timeout=0.3, max_pool_size=SIZE)
        changed = [time.monotonic()]

        def change() -> None:
            if time.monotonic() - changed[0] > 0.25:
                changed[0] = time.monotonic()
                if rng.random() < 0.4:
                    link.clear()
                else:
                    link.inject(rng.choice(FAULTS))

        crowd = Crowd(lambda rng: _check(client, rng, wrong), seed=3)
        crowd.run(6.0, 1000, change)
        link.clear()
        assert crowd.wrong == []
        assert wrong == []
        assert crowd.interrupts > 500
        assert crowd.done > 100
        del crowd
        gc.collect()
        _assert_whole(client)
        client.close()
        gc.collect()


def _assert_whole(client: Client) -> None:
    """Every connection of the pool can be used at the same time, and no slot is taken."""
    pool = client._pool
    assert until(lambda: pool.count()["connecting"] == 0 and pool._workers.busy == 0)
    together = threading.Barrier(SIZE)
    answers: list[object] = []

    def one(number: int) -> None:
        key = f"whole-{number}"
        end = time.monotonic() + 8
        while time.monotonic() < end:
            try:
                call = client._blocks["get"].begin()
                wire = pool.take(call, lambda: 0.3)
                try:
                    together.wait(3)  # all connections are out at once
                finally:
                    pool.give(wire)
                    call.succeeded()
                client.set(key, b"x")
                answers.append(client.get(key))
                return
            except (Unavailable, ConnectTimeout, PoolFull, threading.BrokenBarrierError):
                call.abandoned()
                together.reset()
                threading.Event().wait(0.1)
            except Exception as error:
                answers.append(error)
                return

    for _ in range(100):  # let the breaker close
        try:
            client.get("x")
            break
        except Unavailable:
            threading.Event().wait(0.1)
    threads = [threading.Thread(target=one, args=(number,)) for number in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"x"] * SIZE
    count = pool.count()
    assert count["open"] == count["idle"] <= SIZE
    assert count["waiting"] == count["connecting"] == 0
    for block in client._blocks.values():
        block.sweep()
        assert not block.in_flight, block
