"""Processes that stop, die and come back: the server's, and our own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymemcache
import pytest

import timedblock
from tests.servers.limits import LIMIT, TOLERANCE, failed, recovered, timed
from tests.servers.memcached import Memcached
from tests.servers.raw_call import KEY, VALUE, RawCall
from timedblock import ConnectFailed, DeadlineExceeded, memcache

pytestmark = [pytest.mark.server, pytest.mark.wall]

RAW_HANGS_FOR = LIMIT + TOLERANCE + 0.5
STOPPED_SECONDS = 3.0
CALLS = 16


@pytest.fixture
def client(own_memcached: Memcached) -> Iterator[memcache.Client]:
    made = memcache.Client(own_memcached.address, timeout=LIMIT)
    with contextlib.closing(made):
        yield made


def _fill_pool(client: memcache.Client, connections: int = 8) -> None:
    """As many connections as calls at the same time need, all of them back in the pool."""
    together = threading.Barrier(connections)

    def work() -> None:
        for _ in range(20):
            together.wait(5)
            client.get(KEY)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_paused_server_costs_no_more_than_the_limit(
    own_memcached: Memcached, client: memcache.Client, warm: bool
) -> None:
    """SIGSTOP: the get is cut at its limit, as sent; after SIGCONT the next ones are right."""
    if warm:
        assert client.set(KEY, VALUE) is True
    with RawCall(own_memcached.address, warm=warm) as raw:
        own_memcached.pause()
        raw.begin()
        error = failed(lambda: client.get(KEY))
        assert raw.outcome(RAW_HANGS_FOR) is None, "plain pymemcache doesn't hang: no fault here"
    assert isinstance(error, DeadlineExceeded) and error.sent, repr(error)
    own_memcached.resume()
    assert recovered(lambda: client.set(KEY, VALUE)) is True
    assert recovered(lambda: client.get(KEY)) == VALUE


def test_a_write_to_a_paused_server_is_never_called_stored(
    own_memcached: Memcached, client: memcache.Client
) -> None:
    """A set that nobody read raises, where pymemcache's default says True."""
    assert client.set(KEY, b"before") is True
    raw = pymemcache.Client(own_memcached.address)
    raw.set(KEY, b"before", noreply=False)
    own_memcached.pause()
    assert raw.set(KEY, b"lost") is True, "pymemcache told the truth: no fault here"
    error = failed(lambda: client.set(KEY, b"after"))
    assert isinstance(error, DeadlineExceeded) and error.sent, repr(error)
    raw.close()
    own_memcached.resume()
    assert recovered(lambda: client.get(KEY)) in (b"before", b"lost", b"after")


def test_a_long_limit_is_kept_as_exactly_as_a_short_one(own_memcached: Memcached) -> None:
    """5 s against a paused server end 5 s later, and it is the server that is blamed, not a stall
    of our own. (The kernel's timer for SO_RCVTIMEO would be late by up to an eighth.)"""
    patient = memcache.Client(own_memcached.address, timeout=5.0, name="patient")
    with contextlib.closing(patient):
        assert patient.set(KEY, VALUE) is True
        own_memcached.pause()
        error = failed(lambda: patient.get(KEY), limit=5.0)
        assert isinstance(error, DeadlineExceeded)
        assert 5.0 <= error.elapsed <= 5.0 + TOLERANCE, f"{error.elapsed:.3f} s"
        assert timedblock.stats()["blocks"]["patient.get"]["stalled"] == 0
        assert "1 of 5 failures" in str(error)


def test_a_flood_of_writes_that_nobody_reads_ends_at_the_limit(
    own_memcached: Memcached, client: memcache.Client
) -> None:
    """noreply writes to a paused server fill the buffers: then one is cut at its limit."""
    assert client.set(KEY, VALUE) is True
    own_memcached.pause()
    error = None
    for _ in range(100_000):
        ended = timed(lambda: client.set(KEY, b"x" * 2000, noreply=True))
        if ended.error is not None:
            error = ended.error
            break
    assert isinstance(error, DeadlineExceeded), repr(error)
    assert error.elapsed >= LIMIT * 0.95
    own_memcached.resume()
    assert recovered(lambda: client.set(KEY, VALUE)) is True
    assert recovered(lambda: client.get(KEY)) in (VALUE, b"x" * 2000)


def test_a_dead_server_is_refused_at_once(
    own_memcached: Memcached, client: memcache.Client
) -> None:
    """Killed and not restarted: each call fails far sooner than its limit."""
    assert client.set(KEY, VALUE) is True
    own_memcached.kill()
    with RawCall(own_memcached.address, warm=False) as raw:
        raw.begin()
        outcome = raw.outcome(5.0)
    assert outcome is not None and outcome.error == "ConnectionRefusedError"
    failed(lambda: client.get(KEY))  # finds the connection that died with the server
    error = failed(lambda: client.get(KEY))
    assert isinstance(error, ConnectFailed) and not error.sent, repr(error)
    assert error.elapsed < LIMIT / 2
    own_memcached.start()
    assert recovered(lambda: client.set(KEY, VALUE)) is True
    assert recovered(lambda: client.get(KEY)) == VALUE


@pytest.mark.parametrize("idle", [0.0, 1.2], ids=["at-once", "after-a-pause"])
def test_the_first_get_after_kill_and_restart_succeeds(
    own_memcached: Memcached, client: memcache.Client, idle: float
) -> None:
    """Eight pooled connections died with the server: the first get notices and answers."""
    for round_ in range(5):
        assert client.set(KEY, VALUE) is True
        _fill_pool(client)
        raw = pymemcache.Client(own_memcached.address, timeout=1.0)
        raw.get(KEY)
        own_memcached.restart()
        time.sleep(idle if round_ == 0 else 0.0)
        with pytest.raises((OSError, pymemcache.MemcacheUnexpectedCloseError)):
            raw.get(KEY)  # the fault bites: the raw client's connection is dead
        raw.close()
        ended = timed(lambda: client.get(KEY))
        assert ended.error is None, repr(ended.error)
        assert ended.value is None  # the new server is empty
        # The connections that died with the first one are gone: a write finds none of them.
        assert timed(lambda: client.set(KEY, VALUE)).error is None


def test_the_first_incr_after_an_idle_restart_succeeds(
    own_memcached: Memcached, client: memcache.Client
) -> None:
    """What can't be repeated finds its idle connection dead before it sends, and counts once."""
    assert client.set(KEY, b"1") is True
    own_memcached.restart()
    with contextlib.closing(pymemcache.Client(own_memcached.address)) as raw:
        raw.set(KEY, b"5", noreply=False)
    time.sleep(1.2)
    ended = timed(lambda: client.incr(KEY, 1))
    assert ended.error is None and ended.value == 6, repr(ended)


def _stopped_client(server: Memcached, *, resume_first: bool) -> dict[str, Any]:
    """Run `paused_client`, leave it stopped for 3 s, and return what it printed.

    `resume_first`: the server answers while the client is stopped; else only after it.
    """
    host, port = server.address
    command = [sys.executable, "-m", "tests.servers.paused_client", host, str(port)]
    command.append(str(server.pid))
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"the client did not stop itself: {status}"
            if resume_first:
                server.resume()
            time.sleep(STOPPED_SECONDS)
            process.send_signal(signal.SIGCONT)
            printed, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            server.resume()
    found: dict[str, Any] = json.loads(printed)
    return found


def _assert_nobody_is_blamed(server: Memcached, found: dict[str, Any]) -> None:
    before, after = found["before"], found["after"]
    endpoint = f"{server.address[0]}:{server.address[1]}"
    assert after["endpoints"][endpoint]["breaker"] == "closed"
    get_before, get_after = before["blocks"]["memcache.get"], after["blocks"]["memcache.get"]
    assert get_after["limit"] == pytest.approx(get_before["limit"], rel=0.05)
    assert get_after["limit_source"] == get_before["limit_source"]
    assert get_after["in_flight"] == 0
    # The fault bites: the calls were in flight while the process was stopped.
    assert len(found["results"]) == CALLS
    assert min(one["elapsed"] for one in found["results"]) > STOPPED_SECONDS * 0.9


def test_a_stop_of_our_own_process_loses_no_answer_that_came(own_memcached: Memcached) -> None:
    """SIGSTOP of the client for 3 s with 16 gets in flight whose answers arrive meanwhile: all
    16 are answered, no breaker opens, no limit moves."""
    found = _stopped_client(own_memcached, resume_first=True)
    _assert_nobody_is_blamed(own_memcached, found)
    assert [one["outcome"] for one in found["results"]] == ["right"] * CALLS


def test_a_stop_of_our_own_process_is_not_the_servers_fault(own_memcached: Memcached) -> None:
    """SIGSTOP of the client for 3 s with 16 gets in flight and no answer: they end at once when
    it goes on, counted as stalled; no breaker opens, no limit moves."""
    found = _stopped_client(own_memcached, resume_first=False)
    _assert_nobody_is_blamed(own_memcached, found)
    assert {one["outcome"] for one in found["results"]} == {"DeadlineExceeded"}
    stalled = [found[when]["blocks"]["memcache.get"]["stalled"] for when in ("before", "after")]
    assert stalled[1] - stalled[0] == CALLS
