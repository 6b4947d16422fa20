"""The results of a repeated drill for Prometheus, and by prometheus-client's own bridge for
Graphite."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from timedblock.drill.errors import DrillError
from timedblock.drill.measure import Result
from timedblock.drill.store import Address
from timedblock.drill.verdict import Judgement

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import Gauge

_log = logging.getLogger("timedblock")
NEEDS = "--metrics and --graphite need: pip install 'timedblock[drill,prometheus]'"
_LOAD = ("fault", "variant")
_GAUGES = {
    "goodput": "Share of the requests due in the fault that were done in time",
    "p99_seconds": "99th percentile of the calls under the fault",
    "worst_seconds": "The longest call under the fault",
    "over_limit_calls": "Calls longer than their limit",
    "wrong_calls": "Calls with an answer that can't be right",
}


class Exporter:
    """Serves what the last run found while a ``with`` block lasts. Without addresses it does
    nothing, and needs nothing. DrillError at entry without prometheus-client, or if the address is
    taken."""

    def __init__(self, metrics: Address | None, graphite: Address | None) -> None:
        self._metrics = metrics
        self._graphite = graphite
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        self._gauges: dict[str, Gauge] = {}

    def __enter__(self) -> Exporter:
        if self._metrics or self._graphite:
            self._make()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()

    def _make(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
            from prometheus_client.bridge.graphite import GraphiteBridge
        except ImportError:
            raise DrillError(NEEDS) from None
        registry = CollectorRegistry()
        self._gauges = {
            name: Gauge(f"timedblock_drill_{name}", words, _LOAD, registry=registry)
            for name, words in _GAUGES.items()
        }
        self._passed = Gauge(
            "timedblock_drill_passed", "Whether the last run passed", registry=registry
        )
        self._ended = Gauge(
            "timedblock_drill_last_run_timestamp_seconds", "When it ended", registry=registry
        )
        self._runs = Counter(
            "timedblock_drill_runs", "Runs by outcome", ("outcome",), registry=registry
        )
        self._bridge: Any = None
        if self._graphite:
            self._bridge = GraphiteBridge(self._graphite, registry=registry)
        if self._metrics:
            host, port = self._metrics
            try:
                self._server = start_http_server(port, host, registry=registry)
            except OSError as error:
                raise DrillError(f"cannot serve metrics at {host}:{port}: {error}") from error

    def tell(self, results: Sequence[Result], judgement: Judgement) -> None:
        """What a run found. A Graphite that can't be reached is not the drill's failure."""
        if not self._gauges:
            return
        for result in results:
            row = result.row
            values = (row.goodput, row.p99, row.worst, row.over_limit, row.wrong)
            for gauge, value in zip(self._gauges.values(), values, strict=True):
                gauge.labels(row.fault, row.variant).set(value)
        self._passed.set(judgement.passed)
        self._finish("passed" if judgement.passed else "failed")

    def failed(self) -> None:
        """A run that couldn't be run."""
        if self._gauges:
            self._passed.set(0)
            self._finish("not-run")

    def _finish(self, outcome: str) -> None:
        self._ended.set_to_current_time()
        self._runs.labels(outcome).inc()
        if self._bridge is not None:
            try:
                self._bridge.push(prefix="timedblock")
            except OSError as error:
                _log.warning("the drill's results didn't reach Graphite: %s", type(error).__name__)
