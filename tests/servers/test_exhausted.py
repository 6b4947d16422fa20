"""A process that has nothing left to work with: an honest error, and no blame for the server."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.limits import LIMIT, failed, recovered
from timedblock import Fixed, Policy, TimedBlock, Unavailable, faults, memcache
from timedblock.errors import Overloaded
from timedblock.net import watchdog
from timedblock.net.parking import LOT
from timedblock.testing import EmbeddedMemcached

pytestmark = [pytest.mark.wall, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMemcached]:
    with EmbeddedMemcached() as one:
        yield one


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    """No thread can be started: the stack that it would get is larger than any memory."""
    threading.stack_size(1 << 46)
    try:
        with pytest.raises(RuntimeError, match="can't start"):
            threading.Thread(target=print).start()
        yield
    finally:
        threading.stack_size(0)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """No descriptor is left: the process is allowed as many as it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            socket.socket()
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def client(server: EmbeddedMemcached, name: str, **more: Any) -> memcache.Client:
    return memcache.Client(server.address, timeout=LIMIT, name=name, **more)


@pytest.mark.parametrize("nothing", [no_threads, no_descriptors])
def test_without_means_to_connect_a_call_is_overloaded(
    server: EmbeddedMemcached, nothing: Any
) -> None:
    """Ten calls in a row: Overloaded, its message says why, the breaker stays closed; then all
    is well again."""
    cache = client(server, nothing.__name__)
    with nothing():
        for _ in range(10):
            error = failed(lambda: cache.get("key"))
            assert isinstance(error, Overloaded)
            assert error.sent is False
            assert "no thread can be started" in str(error) or "Too many open" in str(error)
    circuit = cache.endpoint.circuit
    assert circuit is not None
    assert circuit.state == "closed"
    assert recovered(lambda: cache.get("key", "miss"), within=1.0) == "miss"
    cache.close()


@pytest.mark.parametrize("nothing", [no_threads, no_descriptors])
def test_a_cut_call_needs_no_thread_and_no_descriptor(
    server: EmbeddedMemcached, nothing: Any
) -> None:
    """Its late answer isn't waited for, and the error is the one that it always is."""
    cache = client(server, f"cut-{nothing.__name__}")
    cache.set("cut", "value")
    end = time.monotonic() + 5
    while LOT.count() and time.monotonic() < end:
        time.sleep(0.01)
    with nothing(), faults.inject(f"cut-{nothing.__name__}", faults.Silent()):
        error = failed(lambda: cache.get("cut"))
    assert isinstance(error, memcache.DeadlineExceeded)
    assert recovered(lambda: cache.get("cut")) == b"value"
    cache.close()


def test_isolated_work_without_threads_is_overloaded() -> None:
    """The block can't hand its work to anybody, and says so."""
    block = TimedBlock("no-thread-for-it", Policy(timeout=Fixed(LIMIT), isolation="thread"))
    with no_threads(), pytest.raises(Overloaded, match="no thread can be started"):
        block.call(lambda: 1)
    assert block.call(lambda: 2) == 2
    assert not block.in_flight


def test_a_users_socket_without_its_watchdog_is_refused(
    server: EmbeddedMemcached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody could end a call that hangs in a user's own socket, it isn't begun."""

    class Own(socket.socket):
        pass

    class Module:
        def __getattr__(self, name: str) -> Any:
            return Own if name == "socket" else getattr(socket, name)

    module: Any = Module()
    monkeypatch.setattr("timedblock.net.wire.WATCHDOG", watchdog.Watchdog())
    cache = client(server, "own-socket", socket_module=module)
    with no_threads():
        assert isinstance(failed(lambda: cache.get("key")), Overloaded)
    assert recovered(lambda: cache.get("key", "miss")) == "miss"
    cache.close()


def test_new_jobs_use_the_worker_that_is_there(server: EmbeddedMemcached) -> None:
    """Only the first connection needs a thread to be started; later ones are made by that one."""
    cache = client(server, "one-worker")
    assert cache.get("key", "miss") == "miss"
    cache.close()
    outcomes: list[Any] = []
    ready = threading.Barrier(5)

    def ask() -> None:
        ready.wait()
        try:
            outcomes.append(cache.get("key", "miss"))
        except Unavailable as error:
            outcomes.append(error)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    with no_threads():
        ready.wait()
        for caller in callers:
            caller.join()
    assert outcomes == ["miss"] * 4
    cache.close()
