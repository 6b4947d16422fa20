"""OpenTelemetry: observable instruments, read at each export, and spans from events (L5).

Needs opentelemetry-api: ``pip install timedblock[otel]``; the application brings the SDK.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from ..events import CallAbandoned, CallFailed, CallRejected, CallSucceeded, subscribe
from .readings import Reading, Readings, breakers

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import Observation
    from opentelemetry.trace import SpanKind, StatusCode
except ImportError as error:
    raise ImportError(
        "OpenTelemetry metrics and spans need opentelemetry-api: pip install 'timedblock[otel]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider
    from opentelemetry.trace import TracerProvider

    from ..events import Event

    Callback = Callable[[CallbackOptions], Iterable[Observation]]

__all__ = ["instrument", "trace_calls"]

_SCOPE = "timedblock"
#: Seconds.
_FRESH = 0.05
_OUTCOMES = ("ok", "unwell", "unavailable")
_QUANTILES = (0.5, 0.95, 0.99)
_COUNTED = {
    "late": "Answers past the limit, returned all the same.",
    "stalled": "Attempts that this process itself held up.",
    "cut": "Attempts that ran into their limit.",
}


def instrument(meter_provider: MeterProvider | None = None) -> Callable[[], None]:
    """Report every block; read at each export, so that calls pay nothing.

    ``timedblock.calls`` (by ``outcome``), ``timedblock.late``, ``.stalled``, ``.cut``, ``.limit``
    (s), ``.latency`` (s, by ``quantile``: an observable instrument can't be a histogram),
    ``.in_flight``, ``.breakers`` (by ``state``), ``.connections`` (by ``state``), ``.connects``
    and ``.retry_budget``; attributes ``block`` and ``endpoint``.

    Args:
        meter_provider: None: the global one.

    Returns the function that ends it.
    """
    source = _Source()
    source.attach(metrics.get_meter(_SCOPE, meter_provider=meter_provider))
    return source.stop


def _where(one: Reading) -> dict[str, str]:
    return {"block": one.block, "endpoint": one.endpoint} if one.endpoint else {"block": one.block}


class _Source:
    """The instruments' callbacks."""

    def __init__(self) -> None:
        self._readings = Readings()
        self._stopped = False
        self._read: tuple[float, list[Reading]] = (-math.inf, [])

    def _blocks(self) -> list[Reading]:
        """Every block; the instruments of one export share one reading."""
        now = time.monotonic()
        if now - self._read[0] > _FRESH:
            self._read = now, self._readings.blocks()
        return self._read[1]

    def stop(self) -> None:
        """Tell nothing any more: OpenTelemetry has no way to take an instrument away."""
        self._stopped = True

    def attach(self, meter: Meter) -> None:
        """Make the instruments."""
        count, level = meter.create_observable_counter, meter.create_observable_up_down_counter
        gauge = meter.create_observable_gauge
        count("timedblock.calls", [self._of(self._calls)], "{call}", "Calls by outcome.")
        for name, text in _COUNTED.items():
            count(f"timedblock.{name}", [self._of(self._counted(name))], "{call}", text)
        gauge("timedblock.limit", [self._of(self._limits)], "s", "Limit of one attempt now.")
        text = "What attempts took in the last half minute."
        gauge("timedblock.latency", [self._of(self._latency)], "s", text)
        level("timedblock.in_flight", [self._of(self._in_flight)], "{call}", "Calls in flight.")
        text = "Breakers in this state."
        level("timedblock.breakers", [self._of(self._breakers)], "{breaker}", text)
        text = "Connections of the pools."
        level("timedblock.connections", [self._of(self._connections)], "{connection}", text)
        count(
            "timedblock.connects", [self._of(self._connects)], "{connection}", "Connections made."
        )
        text = "Repeats that are allowed now."
        gauge("timedblock.retry_budget", [self._of(self._budget)], "{call}", text)

    def _of(self, read: Callable[[], Iterator[Observation]]) -> Callback:
        return lambda options: [] if self._stopped else list(read())

    def _calls(self) -> Iterator[Observation]:
        for one in self._blocks():
            for outcome in _OUTCOMES:
                yield Observation(one.counted[outcome], {**_where(one), "outcome": outcome})

    def _counted(self, name: str) -> Callable[[], Iterator[Observation]]:
        return lambda: (Observation(one.counted[name], _where(one)) for one in self._blocks())

    def _limits(self) -> Iterator[Observation]:
        for one in self._blocks():
            if not math.isinf(one.limit):
                yield Observation(one.limit, _where(one))

    def _latency(self) -> Iterator[Observation]:
        for one in self._blocks():
            for quantile, seconds in zip(
                _QUANTILES, one.histogram.quantiles(*_QUANTILES), strict=True
            ):
                if seconds is not None:
                    yield Observation(seconds, {**_where(one), "quantile": quantile})

    def _in_flight(self) -> Iterator[Observation]:
        for one in self._blocks():
            yield Observation(one.in_flight, _where(one))

    def _breakers(self) -> Iterator[Observation]:
        for name, states in breakers().items():
            for state, count in states.items():
                yield Observation(count, {"breaker": name, "state": state})

    def _connections(self) -> Iterator[Observation]:
        for one in self._readings.endpoints():
            for state, count in one.connections.items():
                yield Observation(count, {"endpoint": one.endpoint, "state": state})

    def _connects(self) -> Iterator[Observation]:
        for one in self._readings.endpoints():
            yield Observation(one.connects, {"endpoint": one.endpoint})

    def _budget(self) -> Iterator[Observation]:
        for one in self._readings.endpoints():
            yield Observation(one.budget, {"endpoint": one.endpoint})


def trace_calls(tracer_provider: TracerProvider | None = None) -> Callable[[], None]:
    """Make a span of each attempt of every block, below the span that is current in its thread.

    A span is made when its attempt has ended, so what the attempt itself traced is beside it, not
    below. While it is on, every call pays for its span and its event; it is off unless asked for.

    Args:
        tracer_provider: None: the global one.

    Returns the function that ends it.
    """
    return subscribe(_Spans(trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)))


class _Spans:
    """A listener that makes spans."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def __call__(self, event: Event) -> None:
        if not isinstance(event, (CallSucceeded, CallFailed, CallRejected, CallAbandoned)):
            return
        ended = time.time_ns()
        elapsed = 0.0 if isinstance(event, CallRejected) else event.elapsed
        attributes: dict[str, str | bool] = {"timedblock.block": event.block}
        if event.endpoint is not None:
            attributes["timedblock.endpoint"] = event.endpoint
        failure = _tell(event, attributes)
        span = self._tracer.start_span(
            event.block,
            kind=SpanKind.INTERNAL if event.endpoint is None else SpanKind.CLIENT,
            attributes=attributes,
            start_time=ended - round(elapsed * 1e9),
        )
        if failure:
            span.set_status(StatusCode.ERROR, failure)
        span.end(ended)


def _tell(event: Event, attributes: dict[str, str | bool]) -> str | None:
    """Put what happened into `attributes`; returns what went wrong."""
    if isinstance(event, CallSucceeded):
        attributes["timedblock.outcome"] = "ok"
        if event.late:
            attributes["timedblock.late"] = True
        return None
    if isinstance(event, CallFailed):
        attributes["timedblock.outcome"] = event.kind
        attributes["error.type"] = event.error
        return None if event.kind == "answer" else event.error
    if isinstance(event, CallRejected):
        attributes["timedblock.outcome"] = f"rejected: {event.reason}"
        return f"not started: {event.reason}"
    attributes["timedblock.outcome"] = "abandoned"
    return None
