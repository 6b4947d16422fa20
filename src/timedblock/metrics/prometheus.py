"""Prometheus: a collector that reads everything at scrape time (L5).

Needs prometheus-client: ``pip install timedblock[prometheus]``.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from .readings import BOUNDS, Reading, Readings, breakers

try:
    from prometheus_client import REGISTRY
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector as _Collector
    from prometheus_client.utils import floatToGoString
except ImportError as error:  # pragma: no cover - covered in a process without it
    raise ImportError(
        "Prometheus metrics need prometheus-client: pip install 'timedblock[prometheus]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.registry import CollectorRegistry

__all__ = ["Collector", "publish", "register"]

PREFIX = "timedblock_"
BUCKETS = [*map(floatToGoString, BOUNDS), "+Inf"]


class Family(NamedTuple):
    """A metric: its name without prefix, type, help text, labels, and how workers are merged."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]
    merge: str = ""


class Sample(NamedTuple):
    """One value of a family; a histogram's is its buckets (not cumulative) and the sum."""

    family: Family
    labels: tuple[str, ...]
    value: float = 0.0
    buckets: tuple[float, ...] = ()


_ON = ("block", "endpoint")
CALLS = Family("calls", "counter", "Calls by outcome.", (*_ON, "outcome"))
LATE = Family("late", "counter", "Answers past the limit, returned all the same.", _ON)
STALLED = Family("stalled", "counter", "Attempts that this process itself held up.", _ON)
CUT = Family("attempts_cut", "counter", "Attempts that ran into their limit.", _ON)
WOULD_CUT = Family("would_cut", "counter", "Observe mode: calls that would be cut.", _ON)
WOULD_REJECT = Family("would_reject", "counter", "Observe mode: calls not to be started.", _ON)
LATENCY = Family("attempt_seconds", "histogram", "What answered attempts took.", _ON)
LIMIT = Family("limit_seconds", "gauge", "Limit of one attempt now.", _ON, "livemax")
LEARNT = Family("limit_learnt", "gauge", "1: the limit is learnt from data.", _ON, "livemin")
IN_FLIGHT = Family("in_flight", "gauge", "Calls in flight.", _ON, "livesum")
BREAKER = Family(
    "breaker_state", "gauge", "Breakers in this state.", ("breaker", "state"), "livesum"
)
CONNECTIONS = Family(
    "connections", "gauge", "Connections of the pools.", ("endpoint", "state"), "livesum"
)
CONNECTS = Family("connects", "counter", "Connections made.", ("endpoint",))
BUDGET = Family("retry_budget", "gauge", "Repeats that are allowed now.", ("endpoint",), "livesum")


def samples(readings: Readings) -> Iterator[Sample]:
    """Everything there is to tell."""
    for one in readings.blocks():
        yield from _of_block(one)
    for name, states in breakers().items():
        for state, count in states.items():
            yield Sample(BREAKER, (name, state), count)
    for where in readings.endpoints():
        yield Sample(CONNECTS, (where.endpoint,), where.connects)
        yield Sample(BUDGET, (where.endpoint,), where.budget)
        for state, count in where.connections.items():
            yield Sample(CONNECTIONS, (where.endpoint, state), count)


def _of_block(one: Reading) -> Iterator[Sample]:
    labels = one.block, one.endpoint
    yield Sample(CALLS, (*labels, "ok"), one.counted["ok"])
    yield Sample(CALLS, (*labels, "unwell"), one.counted["unwell"])
    yield Sample(CALLS, (*labels, "unavailable"), one.counted["unavailable"])
    yield Sample(LATE, labels, one.counted["late"])
    yield Sample(STALLED, labels, one.counted["stalled"])
    yield Sample(CUT, labels, one.counted["cut"])
    yield Sample(LATENCY, labels, one.counted["seconds"], one.buckets)
    yield Sample(LIMIT, labels, one.limit)
    yield Sample(LEARNT, labels, one.learnt)
    yield Sample(IN_FLIGHT, labels, one.in_flight)
    if one.observing:
        yield Sample(WOULD_CUT, labels, one.counted["would_cut"])
        yield Sample(WOULD_REJECT, labels, one.counted["would_reject"])


class Collector(_Collector):
    """For a `CollectorRegistry`: the metrics of every block of this process.

    Reads when it is scraped, so that calls pay nothing; see the reference for the metrics.
    """

    def __init__(self) -> None:
        self._readings = Readings()

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        families: dict[str, Metric] = {}
        for sample in samples(self._readings):
            name = sample.family.name
            _add(families.setdefault(name, _family(sample.family)), sample)
        yield from families.values()

    def describe(self) -> list[Metric]:
        """Nothing: a registry needn't read everything when it takes us up."""
        return []


def _family(family: Family) -> Metric:
    name = PREFIX + family.name
    if family.kind == "histogram":
        return HistogramMetricFamily(name, family.text, labels=family.labels)
    if family.kind == "counter":
        return CounterMetricFamily(name, family.text, labels=family.labels)
    return GaugeMetricFamily(name, family.text, labels=family.labels)


def _add(metric: Metric, sample: Sample) -> None:
    if isinstance(metric, HistogramMetricFamily):
        counted = zip(BUCKETS, accumulate(sample.buckets), strict=True)
        metric.add_metric(sample.labels, [*counted], sum_value=sample.value)
    elif isinstance(metric, CounterMetricFamily | GaugeMetricFamily):
        metric.add_metric(sample.labels, sample.value)


def register(registry: CollectorRegistry = REGISTRY) -> Collector:
    """Add the metrics of this process's blocks to `registry`; returns what `unregister` takes.

    For one process. Under a pre-fork server use `publish`.
    """
    collector = Collector()
    registry.register(collector)
    return collector


def publish() -> None:
    """Under a pre-fork server: let every worker's metrics be merged into each scrape.

    For prometheus-client's multiprocess mode, where ``PROMETHEUS_MULTIPROC_DIR`` names a directory
    that is empty at the start: each worker writes its own there once a second, and its forked
    children theirs. `timedblock.monitor` calls it by itself.

    Raises:
        RuntimeError: prometheus-client isn't in that mode.
    """
    from . import workers

    workers.publish()
