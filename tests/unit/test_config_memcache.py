"""Live configuration and observe mode at a real socket: a memcached that is stopped for a while."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymemcache
import pytest

from timedblock import events, memcache, registry, stats
from timedblock.config import Configuration
from timedblock.testing import EmbeddedMemcached

pytestmark = pytest.mark.wall

#: A limit is held to this on a busy machine.
SLACK = 0.25


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks obey what the test installs, and nothing of it outlives the test."""
    gc.collect()
    monkeypatch.setattr(registry, "source", None)
    listeners = list(events.listeners)
    yield
    events.listeners[:] = listeners


@pytest.fixture
def server() -> Iterator[EmbeddedMemcached]:
    """A memcached of the test's own."""
    with EmbeddedMemcached() as server:
        yield server


@pytest.fixture
def closing() -> Iterator[Any]:
    """`closing(client)` is the client, closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda client: stack.enter_context(contextlib.closing(client))


@contextlib.contextmanager
def stopped(server: EmbeddedMemcached, seconds: float | None = None) -> Iterator[None]:
    """The server's process doesn't run, for `seconds` or to the end of the block."""
    os.kill(server.pid, signal.SIGSTOP)
    timer = threading.Timer(seconds or 60, os.kill, (server.pid, signal.SIGCONT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        os.kill(server.pid, signal.SIGCONT)


def timed(client: Any) -> tuple[float, Any]:
    """Seconds and outcome of one get."""
    began = time.monotonic()
    try:
        outcome = client.get("key")
    except Exception as error:
        outcome = error
    return time.monotonic() - began, outcome


def test_ceiling_in_the_file_cuts_the_next_call(
    server: EmbeddedMemcached, closing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a client that is in use, without a new connection; the raw client waits on."""
    file = tmp_path / "a.toml"
    file.write_text('[block."memcache.get"]\nceiling = 0.3\n')
    configuration = Configuration({}, file)
    monkeypatch.setattr(registry, "source", configuration)
    client = closing(memcache.Client(server.address))
    raw = closing(pymemcache.Client(server.address, timeout=1.2))
    assert client.get("key") is raw.get("key") is None
    with stopped(server):
        assert timed(raw)[0] >= 1.2
        seconds, error = timed(client)
        assert isinstance(error, memcache.DeadlineExceeded)
        assert 0.25 <= seconds <= 0.3 + SLACK
    file.write_text('[block."memcache.get"]\nceiling = 0.8\n')
    configuration.poll()
    configuration.poll()
    assert client.get("key") is None
    with stopped(server):
        seconds, error = timed(client)
        assert isinstance(error, memcache.DeadlineExceeded)
        assert 0.75 <= seconds <= 0.8 + SLACK


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_observing_client_waits_where_an_enforcing_one_cuts(
    server: EmbeddedMemcached, closing: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The same hiccup of 0.4 s: an answer and a count, or an honest error."""
    monkeypatch.setattr(registry, "source", Configuration({"TIMEDBLOCK_MODE": mode}))
    client = closing(memcache.Client(server.address))
    client.set("key", b"value")
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        client.get("key")
        time.sleep(0.003)
    before = stats()["blocks"]["memcache.get"]
    with stopped(server, 0.4):
        seconds, outcome = timed(client)
    after = stats()["blocks"]["memcache.get"]
    if mode == "enforce":
        assert isinstance(outcome, memcache.DeadlineExceeded)
        assert seconds < 0.3
        assert after["would_cut"] == 0
    else:
        assert outcome == b"value"
        assert seconds >= 0.35
        assert before["would_limit"] < 0.3
        assert after["would_cut"] == before["would_cut"] + 1
        assert after["unavailable"] == 0
