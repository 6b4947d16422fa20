"""A drill again and again: its directories, and what Prometheus and Graphite are told."""

from __future__ import annotations

import io
import json
import socket
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from timedblock import faults
from timedblock.drill.errors import DrillError
from timedblock.drill.exporter import Exporter
from timedblock.drill.measure import Result, Row
from timedblock.drill.repeat import Repeat, seconds
from timedblock.drill.run import Run
from timedblock.drill.scenario import Bounds, Episode, Load, Scenario, Step, Target
from timedblock.drill.verdict import Judgement
from timedblock.testing.memcached import EmbeddedMemcached

RESULT = Result(
    Row("hang", "timedblock", 100, 90, 10, 0, 2, 1.0, 0.001, 0.2, 0.9, 0.97), 0, 0, 1.0, 1.0, {}
)
PASSED = Judgement([], [], [])


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5 h", 5400)]
)
def test_period_is_read(text: str, value: float) -> None:
    """Seconds, minutes or hours."""
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "0", "-1m", "nan", "1d", "1000h"])
def test_period_that_is_none_is_named(text: str) -> None:
    """With what it could be."""
    with pytest.raises(ValueError, match="is not a time"):
        seconds(text)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        found: int = one.getsockname()[1]
        return found


def _samples(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_the_last_run(port: int, no_leaks: None) -> None:
    """By fault and variant, and whether it passed; the port is free again afterwards."""
    with Exporter(("127.0.0.1", port), None) as exporter:
        exporter.tell([RESULT], PASSED)
        found = _samples(port)
        load = (("fault", "hang"), ("variant", "timedblock"))
        assert found["timedblock_drill_goodput", load] == 0.97
        assert found["timedblock_drill_p99_seconds", load] == 0.2
        assert found["timedblock_drill_over_limit_calls", load] == 2
        assert found["timedblock_drill_passed", ()] == 1
        exporter.failed()
        found = _samples(port)
        assert found["timedblock_drill_passed", ()] == 0
        assert found["timedblock_drill_runs_total", (("outcome", "not-run"),)] == 1
    socket.create_server(("127.0.0.1", port)).close()


def test_graphite_is_sent_the_last_run(no_leaks: None) -> None:
    """By prometheus-client's own bridge, in Graphite's plaintext protocol."""
    with socket.create_server(("127.0.0.1", 0)) as graphite:
        with Exporter(None, graphite.getsockname()) as exporter:
            exporter.tell([RESULT], PASSED)
        connection, _ = graphite.accept()
        with connection, connection.makefile() as lines:
            text = lines.read()
    name = "timedblock.timedblock_drill_goodput.fault.hang.variant.timedblock"
    assert f"{name} 0.97 " in text


def test_graphite_that_is_gone_is_no_failure(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """The drill goes on; the log says so."""
    with Exporter(None, ("127.0.0.1", port)) as exporter:
        exporter.tell([RESULT], PASSED)
    assert "didn't reach Graphite: ConnectionRefusedError" in caplog.text


def test_port_in_use_is_told_before_the_first_run() -> None:
    """With the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = taken.getsockname()
        with pytest.raises(DrillError, match=f"cannot serve metrics at 127.0.0.1:{where[1]}"):
            Exporter(where, None).__enter__()


def test_without_prometheus_client_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for neither needs nothing."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(DrillError, match=r"pip install 'timedblock\[drill,prometheus\]'"):
        Exporter(("127.0.0.1", 1), None).__enter__()
    with Exporter(None, None) as idle:
        idle.tell([RESULT], PASSED)
        idle.failed()


SCENARIO = Scenario(
    "short",
    (Episode("refuse", (Step(faults.Refuse(), 0.2, 1.75),)),),
    load=Load("closed", threads=2, think=0.02),
    variants=("timedblock",),
    bounds=Bounds(goodput=None),
    recovery=0.2,
    baseline=False,
)


class _Enough(Exception):
    pass


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    with io.StringIO() as text:
        yield text


def test_runs_have_directories_of_their_own_and_the_last_ones_stay(
    tmp_path: Path, said: io.StringIO
) -> None:
    """Two real runs, of which the last is kept; between them it waits for what is left of the
    period."""
    waits: list[float] = []

    def sleep(left: float) -> None:
        waits.append(left)
        if len(waits) == 2:
            raise _Enough

    run = Run(SCENARIO, "inprocess", tmp_path, Console(file=said))
    repeat = Repeat(run, 600.0, keep=1, sleep=sleep)
    with pytest.raises(_Enough):
        repeat.run()
    (kept,) = repeat.runs()
    document = json.loads((kept / "drill-memcache.json").read_text())
    assert document["passed"] is True
    assert (kept / "history.jsonl").stat().st_size > 0
    assert 0 < waits[0] < 600
    assert "Next run in" in said.getvalue()


def test_first_run_that_cannot_be_run_ends_it_and_a_later_one_does_not(
    tmp_path: Path, said: io.StringIO
) -> None:
    """A typing error is told at once; a store that is away for a night isn't the end."""
    waits: list[float] = []

    def sleep(left: float) -> None:
        waits.append(left)
        server.stop()
        if len(waits) == 2:
            raise _Enough

    with EmbeddedMemcached() as server:
        assert isinstance(server.address, tuple)
        target = Target(server=server.address)
        run = Run(replace(SCENARIO, targets=(target,)), "inprocess", tmp_path, Console(file=said))
        repeat = Repeat(run, 600.0, keep=2, sleep=sleep)
        with pytest.raises(_Enough):
            repeat.run()
        assert "could not be run: no memcached at" in said.getvalue()
        with pytest.raises(DrillError, match="no memcached at"):
            repeat.run()
    assert len(repeat.runs()) == 1  # those that couldn't be run left nothing
