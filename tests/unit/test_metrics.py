"""Metrics for Prometheus and OpenTelemetry: right, bounded, and never falling."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from timedblock import Breaker, Fixed, Percentile, Policy, TimedBlock
from timedblock.call import CUT
from timedblock.endpoint import endpoint
from timedblock.events import listeners
from timedblock.metrics import otel, readings
from timedblock.metrics.prometheus import Collector, register
from timedblock.metrics.readings import BOUNDS, Readings, breakers
from timedblock.policy.breaker import OPEN
from timedblock.registry import BLOCKS
from timedblock.testing import FakeClock

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """No blocks of other tests."""
    gc.collect()
    before = list(BLOCKS)
    for block in before:
        BLOCKS.discard(block)
    yield
    for block in before:
        BLOCKS.add(block)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    register(registry)
    return registry


def scrape(registry: CollectorRegistry) -> Samples:
    """Every sample that Prometheus' own parser reads."""
    return {
        (sample.name.removeprefix("timedblock_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def labels(**given: str) -> frozenset[tuple[str, str]]:
    return frozenset(given.items())


def test_every_metric_of_a_known_history(registry: CollectorRegistry, clock: FakeClock) -> None:
    """Counts, histogram, limit, breaker, in flight, budget and pool, as the blocks have them."""
    where = endpoint("10.0.0.1:1", Breaker(failures=1))
    block = TimedBlock("s.get", Policy(timeout=Fixed(0.5)), endpoint=where)
    for seconds in (0.004, 0.2, 0.2):
        block.call(clock.advance, seconds)
    block.call(clock.advance, 0.54)  # late
    late = block.begin()
    clock.advance(0.5)
    late.failed(TimeoutError(), kind=CUT)
    where.connected()
    pool = _Pool()
    where.pools.add(pool)
    own = TimedBlock("own")
    held = own.begin()

    found = scrape(registry)
    at = {"block": "s.get", "endpoint": "10.0.0.1:1"}
    assert found["calls_total", labels(**at, outcome="ok")] == 4
    assert found["calls_total", labels(**at, outcome="unwell")] == 0
    assert found["calls_total", labels(**at, outcome="unavailable")] == 1
    assert found["late_total", labels(**at)] == 1
    assert found["stalled_total", labels(**at)] == 0
    assert found["attempts_cut_total", labels(**at)] == 1
    assert found["limit_seconds", labels(**at)] == 0.5
    assert found["limit_learnt", labels(**at)] == 0
    for bound, count in (("0.0025", 0), ("0.005", 1), ("0.1", 1), ("0.25", 3), ("1.0", 4)):
        assert found["attempt_seconds_bucket", labels(**at, le=bound)] == count
    assert found["attempt_seconds_bucket", labels(**at, le="+Inf")] == 4
    assert found["attempt_seconds_count", labels(**at)] == 4
    assert found["attempt_seconds_sum", labels(**at)] == pytest.approx(0.944, rel=0.02)
    assert found["breaker_state", labels(breaker="10.0.0.1:1", state="open")] == 1
    assert found["breaker_state", labels(breaker="10.0.0.1:1", state="closed")] == 0
    assert found["breaker_state", labels(breaker="own", state="closed")] == 1
    assert found["in_flight", labels(block="own", endpoint="")] == 1
    assert found["connections", labels(endpoint="10.0.0.1:1", state="idle")] == 2
    assert found["connects_total", labels(endpoint="10.0.0.1:1")] == 1
    assert found["retry_budget", labels(endpoint="10.0.0.1:1")] == 1
    held.abandoned()


class _Pool:
    def count(self) -> dict[str, int]:
        return {"idle": 2}


def test_observe_mode_tells_what_would_be(registry: CollectorRegistry, clock: FakeClock) -> None:
    """Two more counters, only while a block observes; without a limit it is infinite."""
    block = TimedBlock("o", Policy(timeout=None))
    assert ("would_cut_total", labels(block="o", endpoint="")) not in scrape(registry)
    block.reconfigure(block.policy, observing=True)
    block.tally.would_cut, block.tally.would_reject = 3, 4
    found = scrape(registry)
    assert found["would_cut_total", labels(block="o", endpoint="")] == 3
    assert found["would_reject_total", labels(block="o", endpoint="")] == 4
    assert found["limit_seconds", labels(block="o", endpoint="")] == math.inf


def test_openmetrics_too(registry: CollectorRegistry, clock: FakeClock) -> None:
    """The strict parser of OpenMetrics takes every name, type and value."""
    block = TimedBlock("a")
    block.call(clock.advance, 0.1)
    families = {one.name: one for one in openmetrics_families(openmetrics(registry).decode())}
    assert families["timedblock_attempt_seconds"].type == "histogram"
    assert families["timedblock_calls"].type == "counter"
    assert families["timedblock_limit_seconds"].type == "gauge"


def test_a_bucket_holds_what_is_within_its_bound(clock: FakeClock) -> None:
    """An answer 3 % away from a bound is on its side of it."""
    block = TimedBlock("a", Policy(timeout=None))
    for bound in BOUNDS:
        block.histogram.record(bound * 0.97)
        block.histogram.record(bound * 1.03)
    [one] = Readings().blocks()
    assert one.buckets == (1, *[2] * (len(BOUNDS) - 1), 1)


def test_counters_do_not_fall_when_blocks_go(clock: FakeClock) -> None:
    """A block made for each call, all of one name: what the gone ones counted stays."""
    source = Readings()
    keeper = TimedBlock("same")
    for number in range(1, 6):
        block = TimedBlock("same")
        block.call(int)
        assert source.blocks()[0].counted["ok"] == number
        del block
        gc.collect()
    keeper.call(int)
    assert source.blocks()[0].counted["ok"] == 6


def test_a_series_ends_with_its_last_block(clock: FakeClock) -> None:
    """Nothing is kept of a name that nobody has any more."""
    source = Readings()
    block = TimedBlock("gone")
    block.call(int)
    assert [one.block for one in source.blocks()] == ["gone"]
    del block
    gc.collect()
    assert source.blocks() == []
    again = TimedBlock("gone")
    assert source.blocks()[0].counted["ok"] == 0
    assert again


def test_two_clients_of_one_endpoint_are_counted_once(clock: FakeClock) -> None:
    """They share their data."""
    where = endpoint("twice:1", None)
    blocks = [TimedBlock("s.get", endpoint=where) for _ in range(2)]
    blocks[0].call(int)
    assert [one.counted["ok"] for one in Readings().blocks()] == [1]


def test_past_the_most_series_are_folded(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a program names, a scrape stays small; known series stay themselves."""
    monkeypatch.setattr(readings, "MOST_SERIES", 3)
    source = Readings()
    ends = [endpoint(f"{number}:1", Breaker()) for number in range(6)]
    blocks = [TimedBlock("s.get", endpoint=end) for end in ends[:3]]
    before = {one.endpoint for one in source.blocks()}
    blocks += [TimedBlock("s.get", endpoint=end) for end in ends[3:]]
    for block in blocks:
        block.call(int)
    found = {one.endpoint: one.counted["ok"] for one in source.blocks()}
    assert found == {**dict.fromkeys(before, 1), "other": 3}
    assert {one.endpoint for one in source.endpoints()} >= {"other"}
    assert len(source.endpoints()) == 4
    assert sum(breakers()["other"].values()) == 3


def test_counting_starts_anew_in_a_child(clock: FakeClock) -> None:
    """What the parent counted is not counted by its children again."""
    source = Readings(keep=True)
    where = endpoint("e:1", None)
    where.connected()
    block = TimedBlock("a", endpoint=where)
    block.call(int)
    gone = TimedBlock("gone")
    gone.call(int)
    assert len(source.blocks()) == 2
    del gone
    gc.collect()
    assert len(source.blocks()) == 1
    source.start_here()
    source.after_fork()
    gone = TimedBlock("gone")
    assert [one.counted["ok"] for one in source.blocks()] == [0, 0]
    assert [one.connects for one in source.endpoints()] == [0]
    block.call(int)
    where.connected()
    assert [one.counted["ok"] for one in source.blocks()] == [1, 0]
    assert [one.connects for one in source.endpoints()] == [1]
    assert gone


def test_connects_do_not_fall_when_an_endpoint_comes_back(clock: FakeClock) -> None:
    """Where what was counted is kept, a new endpoint of the name goes on from there."""
    for keep, expected in ((True, 2), (False, 1)):
        source = Readings(keep=keep)
        for _ in range(2):
            where = endpoint("e:1", None)
            where.connected()
            found = source.endpoints()
            del where
            gc.collect()
            assert source.endpoints() == []
        assert [one.connects for one in found] == [expected]


def test_registering_reads_nothing(clock: FakeClock) -> None:
    """A registry can take the collector up before there is any block, and let it go."""
    registry = CollectorRegistry()
    collector = register(registry)
    assert collector.describe() == []
    registry.unregister(collector)
    assert scrape(registry) == {}
    assert list(Collector().collect()) == []


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("otel", "opentelemetry", "otel")],
)
def test_a_missing_library_is_named(module: str, missing: str, extra: str) -> None:
    """The error has the line that installs it."""
    code = f"import sys; sys.modules['{missing}'] = None; import timedblock.metrics.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: " in done.stderr
    assert f"pip install 'timedblock[{extra}]'" in done.stderr


# -- OpenTelemetry ---------------------------------------------------------------------------


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stop = otel.instrument(provider)
    reader.stop_observing = stop  # type: ignore[attr-defined]
    yield reader
    provider.shutdown()


def observed(reader: InMemoryMetricReader) -> dict[tuple[str, frozenset[Any]], Any]:
    data = reader.get_metrics_data()
    return {
        (metric.name.removeprefix("timedblock."), frozenset((point.attributes or {}).items())): (
            point.value  # type: ignore[union-attr]
        )
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def test_instruments(reader: InMemoryMetricReader, clock: FakeClock) -> None:
    """The SDK's reader sees the counts, limits, quantiles and states of every block."""
    where = endpoint("10.0.0.1:1", Breaker(failures=1))
    block = TimedBlock("s.get", Policy(timeout=Fixed(0.5)), endpoint=where)
    for _ in range(10):
        block.call(clock.advance, 0.1)
    block.refresh(clock.now() + 1)
    where.connected()
    pool = _Pool()
    where.pools.add(pool)
    free = TimedBlock("free", Policy(timeout=None, breaker=None))
    held = free.begin()
    assert where.circuit is not None
    where.circuit.force(OPEN, "test", clock.now())
    found = observed(reader)
    at = {"block": "s.get", "endpoint": "10.0.0.1:1"}
    assert found["calls", labels(**at, outcome="ok")] == 10
    assert found["cut", labels(**at)] == 0
    assert found["limit", labels(**at)] == 0.5
    assert ("limit", labels(block="free")) not in found  # it has none
    assert found["latency", frozenset({**at, "quantile": 0.5}.items())] == pytest.approx(
        0.1, rel=0.02
    )
    assert found["in_flight", labels(block="free")] == 1
    assert found["breakers", labels(breaker="10.0.0.1:1", state="open")] == 1
    assert found["connections", labels(endpoint="10.0.0.1:1", state="idle")] == 2
    assert found["connects", labels(endpoint="10.0.0.1:1")] == 1
    assert found["retry_budget", labels(endpoint="10.0.0.1:1")] == 1
    held.abandoned()


def test_instruments_can_be_ended(reader: InMemoryMetricReader, clock: FakeClock) -> None:
    """After that nothing is observed."""
    block = TimedBlock("a")
    assert observed(reader)
    reader.stop_observing()  # type: ignore[attr-defined]
    assert observed(reader) == {}
    assert block


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    stop = otel.trace_calls(provider)
    exporter.tracer = provider.get_tracer("test")  # type: ignore[attr-defined]
    yield exporter
    stop()
    provider.shutdown()
    assert not listeners


def _finished(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    return list(spans.get_finished_spans())


def test_a_span_of_each_attempt(spans: InMemorySpanExporter, clock: FakeClock) -> None:
    """Below the caller's span, as long as the attempt, with where and how it ended."""
    block = TimedBlock("s.get", Policy(timeout=Fixed(0.5)), endpoint=endpoint("e:1", None))
    with spans.tracer.start_as_current_span("request") as outer:  # type: ignore[attr-defined]
        block.call(clock.advance, 0.25)
        block.call(clock.advance, 0.52)
    inner, late, _ = _finished(spans)
    assert inner.name == "s.get" and inner.kind is SpanKind.CLIENT
    assert inner.parent is not None and inner.parent.span_id == outer.context.span_id
    assert inner.end_time - inner.start_time == pytest.approx(0.25e9, rel=1e-6)  # type: ignore[operator]
    assert dict(inner.attributes or {}) == {
        "timedblock.block": "s.get",
        "timedblock.endpoint": "e:1",
        "timedblock.outcome": "ok",
    }
    assert (late.attributes or {})["timedblock.late"] is True


def test_spans_of_what_went_wrong(spans: InMemorySpanExporter, clock: FakeClock) -> None:
    """Failures, logical errors, calls that were not started, and abandoned ones."""
    policy = Policy(timeout=Fixed(0.5), breaker=Breaker(failures=1), ignore=KeyError)
    block = TimedBlock("own", policy)
    block.begin().failed(KeyError("secret"))
    block.begin().abandoned()
    block.begin().failed(ConnectionResetError("secret"))
    with pytest.raises(Exception, match="own"):
        block.begin()
    answer, abandoned, failed, rejected = _finished(spans)
    outcome = [dict(one.attributes or {})["timedblock.outcome"] for one in _finished(spans)]
    assert outcome == ["answer", "abandoned", "unwell", "rejected: circuit"]
    unset, error = StatusCode.UNSET, StatusCode.ERROR
    assert [one.status.status_code for one in _finished(spans)] == [unset, unset, error, error]
    assert dict(failed.attributes or {})["error.type"] == "ConnectionResetError"
    assert failed.kind is SpanKind.INTERNAL
    assert all("secret" not in one.to_json() for one in (answer, abandoned, failed, rejected))


def test_other_events_make_no_span(spans: InMemorySpanExporter, clock: FakeClock) -> None:
    """A changed limit is no call."""
    block = TimedBlock("a", Policy(timeout=Percentile(99, ceiling=2.0)))
    block.adopt(block.learnt)
    assert block.circuit is not None
    block.circuit.force(OPEN, "test", clock.now())
    assert _finished(spans) == []
