"""A load's process, seen from the drill: what it says when it can't, and when it doesn't."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from timedblock.drill import process
from timedblock.drill.errors import DrillError
from timedblock.drill.history import HUNG
from timedblock.drill.load import Schedule
from timedblock.drill.process import Worker
from timedblock.drill.worker import Task

pytestmark = pytest.mark.wall

SCHEDULE = Schedule(rate=50, steady=0.2, window=0.5, grace=0.2, recovery=0.2)
PATIENT = 30.0


@contextmanager
def _worker(port: int, variant: str = "raw-timeout") -> Iterator[Worker]:
    worker = Worker(Task("hang", variant, "memcache", (("127.0.0.1", port),), "p", SCHEDULE))
    try:
        yield worker
    finally:
        worker.end()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_client_without_a_server_is_told_with_its_error(no_leaks: None) -> None:
    """Nothing is measured before the client has been well."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with (
        _worker(port) as worker,
        pytest.raises(DrillError, match=r"raw-timeout: .*Refused"),
    ):
        worker.wait_ready(time.monotonic() + PATIENT)
        pytest.fail("it was ready without a server")


def test_process_that_is_gone_is_told_when_it_is_spoken_to(silent: int, no_leaks: None) -> None:
    """With its last words, instead of a broken pipe."""
    with _worker(silent) as worker:
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(DrillError, match="hang with raw-timeout: ended without a word"):
            worker.go(0.0, 1.0)


def test_client_that_hangs_before_any_fault_is_told(silent: int, no_leaks: None) -> None:
    """raw-default waits for ever; the drill doesn't."""
    with _worker(silent, "raw-default") as worker, pytest.raises(DrillError, match="no answer"):
        worker.wait_ready(time.monotonic() + 0.5)


def test_process_that_does_not_report_hung_through_its_fault(
    silent: int, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """Its process is ended: one call that lasted as long as the fault stands for it."""
    monkeypatch.setattr(process, "_READING", 0.1)
    with _worker(silent, "raw-default") as worker:
        assert worker.collect(time.monotonic()) is None
        call = worker.hung()
    assert (call.op, call.outcome) == ("get", HUNG)
    assert (call.began, call.ended) == (0.2, pytest.approx(0.9))
