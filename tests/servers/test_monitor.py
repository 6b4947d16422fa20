"""The monitor on a port of its own, over real HTTP: what it says in an outage, and its limits."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from pymemcache.client.base import Client as RawClient

from timedblock import Unavailable, faults, memcache, monitor
from timedblock.faults.proxy import Link, Relay
from timedblock.monitor import MonitorServer, pages, server
from timedblock.testing import EmbeddedMemcached

PATIENCE = 10.0


def get(one: MonitorServer, path: str, timeout: float = PATIENCE) -> tuple[int, bytes]:
    """Status and body of a page."""
    connection = http.client.HTTPConnection(one.host, one.port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """How long it took; fails when it takes longer."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen"
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture
def link() -> Iterator[Link]:
    """A memcached behind a relay that can lose it."""
    with EmbeddedMemcached() as store, Relay(store.address) as relay:
        yield relay.listen()


@pytest.fixture
def traffic(link: Link) -> Iterator[memcache.Client]:
    """A cache in use: its limit is learnt, and a thread goes on calling it."""
    cache = memcache.Client(link.address, name="pages")
    for _ in range(150):
        cache.get("key")
    cache.get("key")
    over = threading.Event()

    def load() -> None:
        while not over.wait(0.01):
            with contextlib.suppress(Unavailable):
                cache.get("key")

    thread = threading.Thread(target=load)
    thread.start()
    wait_until(lambda: monitor.report()["blocks"]["pages.get"]["limit_source"] == "learnt")
    yield cache
    over.set()
    thread.join()
    cache.close()


@pytest.mark.wall
def test_a_lost_cache_is_seen_within_two_seconds(
    no_leaks: None, link: Link, traffic: memcache.Client
) -> None:
    """Degraded and 200 where it is optional, 503 where it is critical; alive all along; then ok.

    Wall time: the issue's two seconds, and the usual quarter.
    """
    with monitor.serve() as optional, monitor.serve(critical=["pages.*"]) as critical:
        assert json.loads(get(optional, "/health")[1])["status"] == "ok"
        link.inject(faults.Blackhole())
        raw = RawClient(link.address, connect_timeout=0.5, timeout=0.5)
        with pytest.raises(TimeoutError):
            raw.get("key")
        raw.close()
        began = time.monotonic()

        def status(one: MonitorServer) -> str:
            return str(json.loads(get(one, "/health")[1])["status"])

        wait_until(lambda: status(optional) == "degraded", 2.0 + 0.25)
        assert get(optional, "/health")[0] == 200
        assert get(optional, "/ready")[0] == 200
        # between two probes; while one is under way it may be ready for a moment
        wait_until(lambda: get(critical, "/ready")[0] == 503)
        wait_until(lambda: get(critical, "/health")[0] == 503)
        assert get(critical, "/live")[0] == get(optional, "/live")[0] == 200
        told = json.loads(get(optional, "/health")[1])["blocks"]["pages.get"]
        assert "silent for" in told["reason"] or "probe" in told["reason"]
        assert told["since"] and told["limit_source"] == "learnt" and told["p99"] > 0
        assert time.monotonic() - began < PATIENCE
        link.clear()
        wait_until(lambda: status(optional) == "ok" and status(critical) == "ok")
        assert get(critical, "/ready")[0] == 200


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limits, sooner."""
    monkeypatch.setattr(server, "TOTAL", 0.6)
    monkeypatch.setattr(server, "_LOOK", 0.05)


def _connected(one: MonitorServer) -> socket.socket:
    return socket.create_connection((one.host, one.port), timeout=PATIENCE)


def test_slow_scrapers_do_not_keep_others_out(no_leaks: None) -> None:
    """Twice as many as are served at once say nothing, and /live is answered all the same."""
    with monitor.serve() as one, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(_connected(one)) for _ in range(2 * server.MOST)]
        for _ in range(5):
            assert get(one, "/live")[0] == 200
        # the oldest made room for the others
        assert slow[0].recv(1) == b""


def test_a_drip_is_cut_in_the_end(quick: None, no_leaks: None) -> None:
    """A byte now and then, each in time, does not hold a connection for ever."""
    with monitor.serve() as one, _connected(one) as slow:

        def is_cut() -> bool:
            try:
                slow.sendall(b"x")
                slow.setblocking(False)
                return slow.recv(1) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True
            finally:
                slow.setblocking(True)

        wait_until(is_cut)


def test_one_that_does_not_read_is_cut(quick: None, no_leaks: None) -> None:
    """A page that is larger than the sockets' buffers does not hold its thread."""
    registry = CollectorRegistry()
    gauge = Gauge("large", "x" * 100, ["name"], registry=registry)
    for number in range(6_000):
        gauge.labels("x" * 2000 + str(number)).set(1)
    with monitor.serve(registry=registry) as one, _connected(one) as slow:
        slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        wait_until(lambda: len(one._server._open) == 1)
        wait_until(lambda: not one._server._open, 30)
        received = b"".join(iter(lambda: slow.recv(1 << 20), b""))
        assert len(received) < 6_000 * 2000, "the page was not large enough"
        assert get(one, "/live")[0] == 200


class _Stuck(Collector):
    """A collector of a user's that hangs until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        self.let_go.wait(60)
        return []


def test_scrapes_that_hang_take_nothing_from_the_probes(no_leaks: None) -> None:
    """A few are waited for, more are told so at once, and /live is answered all along."""
    stuck, registry = _Stuck(), CollectorRegistry()
    registry.register(stuck)
    with monitor.serve(registry=registry) as one, contextlib.ExitStack() as stack:
        try:
            waiting = [stack.enter_context(_connected(one)) for _ in range(pages.MOST_SCRAPES)]
            for client in waiting:
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            wait_until(lambda: len(one._server._open) == len(waiting))
            wait_until(lambda: get(one, "/metrics", 1.0)[0] == 503)
            assert get(one, "/live")[0] == 200
            # they can't make room for others, however old they are
            for _ in range(2 * server.MOST):
                stack.enter_context(_connected(one))
            assert get(one, "/live")[0] == 200
        finally:
            stuck.let_go.set()
        wait_until(lambda: not one._server._cut)
        assert get(one, "/metrics")[0] == 200


def test_without_threads_it_goes_on(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection for which no thread can be started is closed; the next one is served."""
    with monitor.serve() as one:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", _no_thread)
            with _connected(one) as client:
                assert client.recv(1) == b""
        assert "lost a connection: RuntimeError" in caplog.text
        assert one._server._slots._value == server.MOST  # type: ignore[attr-defined]
        assert get(one, "/live")[0] == 200


def _no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x00\xff garbage\r\n\r\n", b"Error response"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n", b"414"),
        (b"DELETE /live HTTP/1.0\r\n\r\n", b"405"),
        (b"GET /live?a=b HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
    ],
)
def test_odd_requests(
    request_: bytes, status: bytes, no_leaks: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each gets its answer, nothing is printed, and the next one is served."""
    with monitor.serve() as one:
        with _connected(one) as client:
            client.sendall(request_)
            with contextlib.suppress(ConnectionResetError):
                assert status in client.recv(1000)
        assert get(one, "/live")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_client_that_goes_away(no_leaks: None, capfd: pytest.CaptureFixture[str]) -> None:
    """A reset in the middle of a request is nobody's concern."""
    with monitor.serve() as one:
        client = _connected(one)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sendall(b"GET /li")
        client.close()
        assert get(one, "/live")[0] == 200
    assert capfd.readouterr().err == ""


def test_it_ends_cleanly(no_leaks: None) -> None:
    """Closing cuts what is open, frees the port, returns soon, and twice is once."""
    one = monitor.serve()
    assert repr(one) == f"<MonitorServer http://127.0.0.1:{one.port}: serving>"
    with _connected(one) as slow:
        wait_until(lambda: len(one._server._open) == 1)
        began = time.monotonic()
        one.close()
        assert time.monotonic() - began < 5
        assert slow.recv(1) == b""
    one.close()
    assert "closed" in repr(one)
    with pytest.raises(ConnectionRefusedError):
        _connected(one)
    with monitor.serve(port=one.port) as again:
        assert get(again, "/live")[0] == 200


def test_a_port_in_use_is_named(no_leaks: None) -> None:
    """The error says where it can't listen."""
    with monitor.serve() as one:
        where = f"127.0.0.1:{one.port}: Address already in use"
        with pytest.raises(OSError, match=where):
            monitor.serve(port=one.port)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"port": -1}, "-1"),
        ({"port": 65536}, "65536"),
        ({"port": "80"}, "'80'"),
        ({"port": True}, "True"),
        ({"host": ""}, "''"),
        ({"host": None}, "None"),
    ],
)
def test_a_bad_address_is_named(arguments: dict[str, Any], wrong: str, no_leaks: None) -> None:
    """ValueError with the bad value."""
    with pytest.raises(ValueError, match=wrong):
        monitor.serve(**arguments)


def test_on_ipv6(no_leaks: None) -> None:
    """An IPv6 address is listened on, and shown in brackets."""
    try:
        one = monitor.serve("::1")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with one:
        assert one.url == f"http://[::1]:{one.port}"
        assert get(one, "/live")[0] == 200


def test_a_forked_child_holds_nothing(no_leaks: None) -> None:
    """The child serves nothing; when the parent ends, the port is free though the child lives."""
    one = monitor.serve()
    with _connected(one):
        wait_until(lambda: len(one._server._open) == 1)
        wake, waker = os.pipe()
        ready, readier = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(waker)
            os.write(readier, b"1" if "closed" in repr(one) else b"0")
            one.close()
            os.read(wake, 1)
            os._exit(0)
        try:
            os.close(wake)
            assert os.read(ready, 1) == b"1"
            assert get(one, "/live")[0] == 200
            one.close()
            with pytest.raises(ConnectionRefusedError):
                _connected(one)
        finally:
            for number in (waker, ready, readier):
                os.close(number)
            assert os.waitpid(child, 0)[1] == 0


DROPPED = """
import gc, os, sys, time
from timedblock import monitor
port = monitor.serve().port
gc.collect()
child = os.fork()
if not child:
    time.sleep(60)
    os._exit(0)
print(port, child, flush=True)
sys.stdin.readline()
"""


def test_a_server_that_nobody_kept_is_not_held_by_a_child() -> None:
    """It serves for as long as its process lives, and no longer than that."""
    process = subprocess.Popen(
        [sys.executable, "-c", DROPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        port, child = map(int, process.stdout.readline().split())
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


NO_DESCRIPTORS = """
import os, resource, sys, time
from timedblock import monitor
with monitor.serve() as one:
    print(one.port, flush=True)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    sys.stdin.readline()
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, most[1]))
    print("none left", flush=True)
    sys.stdin.readline()
    print(time.process_time(), flush=True)
    sys.stdin.readline()
    print(time.process_time(), flush=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
    sys.stdin.readline()
"""


def test_without_descriptors_it_waits_and_does_not_spin(no_leaks: None) -> None:
    """A connection that can't be accepted costs next to no time, and is served when it can."""
    process = subprocess.Popen(
        [sys.executable, "-c", NO_DESCRIPTORS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    told, tell = process.stdout, process.stdin
    with process:
        port = int(told.readline())
        tell.write("\n")
        tell.flush()
        assert told.readline() == "none left\n"
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"GET /live HTTP/1.0\r\n\r\n")
            tell.write("\n")
            tell.flush()
            before = float(told.readline())
            time.sleep(1.0)  # the time over which it is to be idle
            tell.write("\n")
            tell.flush()
            assert float(told.readline()) - before < 0.5
            assert b"200" in client.recv(1000)
        tell.close()
    assert process.returncode == 0
