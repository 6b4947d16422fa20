"""Metrics in prometheus-client's multiprocess mode, which a process is in from its start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from timedblock.metrics.prometheus import publish

START = """
import gc, glob, os, sys, threading, time
from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families
from timedblock import Fixed, Policy, TimedBlock
from timedblock.metrics import workers
from timedblock.metrics.exposition import exposition
from timedblock.metrics.prometheus import publish

def scrape(name, **labels):
    text = exposition(None)("")[0].decode()
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    return [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
"""


def run(shared: Path, code: str) -> str:
    """The output of a process whose workers' files are in `shared`."""
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(shared)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_outside_the_mode_it_says_so() -> None:
    """The variable must be there before prometheus-client is imported."""
    with pytest.raises(RuntimeError, match="PROMETHEUS_MULTIPROC_DIR must be set before"):
        publish()


def test_gauges_of_what_is_gone_are_zero(tmp_path: Path) -> None:
    """Counters stay, and go on when a block of that name comes back."""
    told = run(
        tmp_path,
        """
block = TimedBlock("a", Policy(timeout=Fixed(2.0)))
block.call(int)
print(scrape("timedblock_calls_total", outcome="ok"), scrape("timedblock_limit_seconds"))
del block
gc.collect()
print(scrape("timedblock_calls_total", outcome="ok"), scrape("timedblock_limit_seconds"))
block = TimedBlock("a", Policy(timeout=Fixed(3.0)))
block.call(int)
print(scrape("timedblock_calls_total", outcome="ok"), scrape("timedblock_limit_seconds"))
""",
    )
    assert told.splitlines() == ["[1.0] [2.0]", "[1.0] [0.0]", "[2.0] [3.0]"]


def test_the_applications_own_metrics_are_beside_ours(tmp_path: Path) -> None:
    """They share the directory, and a scrape shows both."""
    told = run(tmp_path, "Counter('theirs', 'x').inc(5); print(scrape('theirs_total'))")
    assert told == "[5.0]\n"


def test_it_writes_without_being_scraped(tmp_path: Path) -> None:
    """A worker that no scrape reaches is up to date within seconds."""
    told = run(
        tmp_path,
        """
publish()
publish()  # once is enough
block = TimedBlock("a")
block.call(int)
end = time.monotonic() + 20
mine = f"{workers.directory()}/counter_{os.getpid()}.db"
while not os.path.exists(mine) or b'"ok"' not in open(mine, "rb").read():
    assert time.monotonic() < end
    time.sleep(0.05)
print([t.name for t in threading.enumerate()].count("timedblock-metrics"))
""",
    )
    assert told == "1\n"


def test_a_directory_that_is_lost_is_logged(tmp_path: Path) -> None:
    """Metrics are lost, and say so once a second; calls go on."""
    shared = tmp_path / "shared"
    shared.mkdir()
    told = run(
        shared,
        """
publish()
with workers._state.lock:
    os.rename(workers.directory(), workers.directory() + "-lost")
    block = TimedBlock("a")
workers.write_now()
workers.write_now()
print(block.call(int))
""",
    )
    assert "0\n" in told
    assert told.count("could not be written: FileNotFoundError") == 1


def test_a_writer_that_is_stuck_holds_up_nobody(tmp_path: Path) -> None:
    """Its disk hangs, say: a second `publish`, a scrape and the process's end go on without it.

    A worker that was told to stop while it booted once hung here for ever: under a tracer, CPython
    3.11 enters no function in other threads until the main thread, which waited, took the signal.
    """
    told = run(
        tmp_path,
        """
publish()
block = TimedBlock("a")
block.call(int)
workers.write_now()
workers._state.lock.acquire()
began = time.monotonic()
publish()
print(time.monotonic() - began < 0.5)
print(scrape("timedblock_calls_total", block="a", outcome="ok"))
print(time.monotonic() - began < workers._PATIENCE + 1.0)
""",
    )
    assert told == "True\n[1.0]\nTrue\n"


def test_files_that_are_not_ours_are_left(tmp_path: Path) -> None:
    """Only live gauges of dead processes are removed."""
    kept = [tmp_path / "gauge_livesum_x.db", tmp_path / "counter_1.txt"]
    kept.append(tmp_path / f"gauge_livesum_{os.getpid()}.db")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = tmp_path / f"gauge_livesum_{dead.pid}.db"
    for path in [*kept, gone]:
        path.touch()
    run(tmp_path, "workers._bury_dead()")
    assert all(path.exists() for path in kept)
    assert not gone.exists()


def test_a_number_that_is_used_again(tmp_path: Path) -> None:
    """The counts of an earlier process of the same number stay: a sum that falls is a reset."""
    code = """
from prometheus_client import values
values.ValueClass = values.MultiProcessValue(lambda: 4242)
block = TimedBlock("a", Policy(timeout=Fixed(1.0)))
block.call(int)
print(scrape("timedblock_calls_total", outcome="ok"), scrape("timedblock_attempt_seconds_count"))
"""
    assert run(tmp_path, code) == "[1.0] [1.0]\n"
    assert run(tmp_path, code) == "[2.0] [2.0]\n"


def test_a_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    """Past a bound, new values are left out and said to be; known ones go on."""
    told = run(
        tmp_path,
        """
block = TimedBlock("known")
scrape("timedblock_calls_total")
workers.MOST_VALUES = len(workers._state.publisher._values)
more = TimedBlock("more", Policy(timeout=Fixed(1.0)))
block.call(int)
del more
print(scrape("timedblock_calls_total", outcome="ok"))
more = TimedBlock("more")
scrape("timedblock_calls_total")
del more
gc.collect()
print(scrape("timedblock_in_flight"))
""",
    )
    assert "[1.0]" in told and "[0.0]" in told
    assert "values in one process; new ones are left out" in told


def test_a_worker_that_was_killed_when_it_began(tmp_path: Path) -> None:
    """The empty file that it left does not break the scrapes of the others."""
    (tmp_path / "counter_1.db").touch()
    told = run(tmp_path, "block = TimedBlock('a'); print(scrape('timedblock_in_flight'))")
    assert told == "[0.0]\n"


def test_a_fork_while_it_writes(tmp_path: Path) -> None:
    """No lock of prometheus-client stays locked in a child, and each call is counted once."""
    told = run(
        tmp_path,
        """
theirs = Counter("theirs", "x")
blocks = [TimedBlock(f"b{number}") for number in range(20)]
blocks[0].call(int)
workers.INTERVAL = 0.0
publish()
for number in range(15):
    child = os.fork()
    if not child:
        theirs.inc()
        blocks[0].call(int)
        workers.write_now()
        os._exit(0)
    end = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, 9)
            print("a child hangs")
            break
        time.sleep(0.002)
print(scrape("theirs_total"), scrape("timedblock_calls_total", block="b0", outcome="ok"))
""",
    )
    assert "[15.0] [16.0]" in told
    assert "hangs" not in told
