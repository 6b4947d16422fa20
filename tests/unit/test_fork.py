"""A forked child starts with fresh locks, threads and connections, whatever the parent is at."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable

import pytest

from timedblock import Breaker, Policy, TimedBlock, Unavailable, health, stats, time_limit
from timedblock import endpoint as endpoint_module
from timedblock.endpoint import endpoint
from timedblock.memcache import Client
from timedblock.net.workers import Workers
from timedblock.testing import EmbeddedMemcached

pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
]
LIMIT = 10.0


def _in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked child; AssertionError with its traceback, also when it hangs."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(code)
    os.close(writing)
    end = time.monotonic() + LIMIT
    while (done := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reading)
            pytest.fail(f"the child hung for {LIMIT} s")
        time.sleep(0.005)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    assert done[1] == 0, told


def test_a_child_uses_the_parents_client_at_once() -> None:
    """The first call of the child is answered, on a connection of its own."""
    with EmbeddedMemcached() as server:
        client = Client(server.address)
        client.set("k", b"v")
        parents = client.sock.getsockname()

        def child() -> None:
            for _ in range(3):
                assert client.get("k") == b"v"
                assert client.sock.getsockname() != parents
            count = client._pool.count()
            assert (count["open"], count["idle"]) == (1, 1)

        _in_child(child)
        assert client.get("k") == b"v"
        assert client.sock.getsockname() == parents
        client.close()


def test_a_child_uses_the_client_while_the_parents_threads_are_in_mid_call() -> None:
    """Eight threads at work, twenty forks: every child gets its own right answers."""
    with EmbeddedMemcached() as server:
        client = Client(server.address, max_pool_size=4)
        over = threading.Event()
        wrong: list[object] = []

        def work(number: int) -> None:
            while not over.is_set():
                # a fork stops every thread of the parent for a while: an honest error may come
                with contextlib.suppress(Unavailable):
                    client.set(f"k{number}", f"v{number}".encode())
                    found = client.get(f"k{number}")
                    if found != f"v{number}".encode():
                        wrong.append(found)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()

        def child() -> None:
            for number in range(20):
                client.set(f"c{number}", b"x" * number)
                assert client.get(f"c{number}") == b"x" * number
            assert stats()["blocks"]["memcache.get"]["in_flight"] == 0
            assert health()["blocks"]["memcache.get"] == "ok"

        try:
            for _ in range(20):
                _in_child(child)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert wrong == []
        client.close()


def test_a_childs_bulkhead_is_empty() -> None:
    """The calls of the parent's other threads aren't the child's, its own are."""
    block = TimedBlock("forked", Policy(bulkhead=2, breaker=None))
    inside, over = threading.Event(), threading.Event()

    def hold() -> None:
        with block:
            inside.set()
            over.wait(LIMIT)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(LIMIT)

    def child() -> None:
        assert len(block.in_flight) == 1
        assert block.call(lambda: 7) == 7

    try:
        with block, time_limit(5.0):
            _in_child(child)
            assert len(block.in_flight) == 2
    finally:
        over.set()
        thread.join()
    assert not block.in_flight


def test_locks_held_at_the_fork_are_free_in_the_child() -> None:
    """Whatever lock another thread of the parent held."""
    one = endpoint("forked:1", Breaker())
    block = TimedBlock("forked.get", endpoint=one)
    workers = Workers("forked", 1)
    assert one.circuit is not None
    locks = [
        endpoint_module._table.lock,
        one._lock,
        one.circuit._lock,
        one.budget._lock,
        block.histogram._lock,
        workers._lock,
    ]

    def child() -> None:
        assert endpoint("forked:1", Breaker()) is one
        one.connect_failed(0.0)
        block.begin().failed(OSError())
        block.refresh(block.now() + 10)
        assert stats()["blocks"]["forked.get"]["unwell"] == 1
        assert workers.submit(lambda: 3).wait(one.clock, 5)

    for lock in locks:
        lock.acquire()
    try:
        _in_child(child)
    finally:
        for lock in locks:
            lock.release()


def test_a_child_of_a_child_works_too() -> None:
    """Forks of forks."""
    with EmbeddedMemcached() as server:
        client = Client(server.address)
        client.set("k", b"v")

        def grandchild() -> None:
            assert client.get("k") == b"v"

        def child() -> None:
            assert client.get("k") == b"v"
            _in_child(grandchild)
            assert client.get("k") == b"v"

        _in_child(child)
        client.close()
