"""Reading what the blocks and endpoints of this process know (L3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .endpoint import endpoints
from .latency import pooled
from .policy.breaker import CLOSED, OPEN
from .registry import BLOCKS, observing

if TYPE_CHECKING:
    from .block import TimedBlock
    from .endpoint import Endpoint
    from .operation import Operation


def stats() -> dict[str, dict[str, Any]]:
    """Counts, limits (seconds) and states, by block and by endpoint.

    ``{"blocks": {name: {"calls", "ok", "unwell", "unavailable", "late", "stalled", "limit",
    "limit_source", "p50", "p95", "p99", "in_flight", "breaker", "would_cut", "would_reject",
    "would_limit", "keys"}}, "endpoints": {"host:port":
    {"breaker", "in_flight", "pool", "budget", "connects", "limits"}}}``. Blocks of one name on
    several endpoints are added up; limits and percentiles are those of the slowest. The three of
    ``would_`` are of observe mode: calls that the learnt limit would have cut, that it or the
    breaker would not have started, and that limit (None: not observing). "keys" has, for each tag
    and size class, the ``{"ok", "limit", "limit_source", "p50", "p95", "p99"}`` of its calls; they
    are in the block's counts and percentiles too, while its limit is that of calls without a key.
    """
    by_name: dict[str, list[TimedBlock]] = {}
    for block in list(BLOCKS):
        by_name.setdefault(block.name, []).append(block)
    return {
        "blocks": {name: _block(blocks) for name, blocks in sorted(by_name.items())},
        "endpoints": {one.name: _endpoint(one) for one in endpoints()},
    }


def _block(blocks: list[TimedBlock]) -> dict[str, Any]:
    operations: set[Operation] = {block._operation for block in blocks}
    tally = [operation.tally for operation in operations]
    ok = sum(one.answered_total for operation in operations for one in operation.histograms())
    unwell = sum(one.unwell for one in tally)
    unavailable = sum(one.unavailable for one in tally)
    slowest = max(blocks, key=lambda block: block.limit)
    paper = [block.learnt.limit for block in blocks if block.observing]
    p50, p95, p99 = _percentiles(slowest._operation)
    return {
        "calls": ok + unwell + unavailable,
        "ok": ok,
        "unwell": unwell,
        "unavailable": unavailable,
        "late": sum(one.late for one in tally),
        "stalled": sum(one.stalled for one in tally),
        "limit": slowest.limit,
        "limit_source": slowest.limit_source,
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "in_flight": _in_flight(blocks),
        "breaker": _worst([block.circuit.state for block in blocks if block.circuit is not None]),
        "would_cut": sum(one.would_cut for one in tally),
        "would_reject": sum(one.would_reject for one in tally),
        "would_limit": max(paper, default=None),
        "keys": _keys(blocks),
    }


def _percentiles(operation: Operation) -> list[float | None]:
    histograms = operation.histograms()
    if len(histograms) == 1:
        return histograms[0].quantiles(0.5, 0.95, 0.99)
    return pooled(histograms, 0.5, 0.95, 0.99)[1]


def _keys(blocks: list[TimedBlock]) -> dict[str, dict[str, Any]]:
    by_key: dict[str, list[TimedBlock]] = {}
    for block in blocks:
        for key, part in block.parts().items():
            by_key.setdefault(key, []).append(part)
    return {key: _key(parts) for key, parts in sorted(by_key.items())}


def _key(parts: list[TimedBlock]) -> dict[str, Any]:
    slowest = max(parts, key=lambda part: part.limit)
    p50, p95, p99 = _percentiles(slowest._operation)
    return {
        "ok": sum(one.histogram.answered_total for one in {part._operation for part in parts}),
        "limit": slowest.limit,
        "limit_source": slowest.limit_source,
        "p50": p50,
        "p95": p95,
        "p99": p99,
    }


def _in_flight(blocks: list[TimedBlock]) -> int:
    for block in blocks:
        block.sweep()  # calls that an interrupt lost aren't in flight
    return sum(len(block.in_flight) for block in blocks)


def _worst(states: list[str]) -> str | None:
    if not states:
        return None
    return max(states, key=lambda state: (state != CLOSED, state == OPEN))


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    mine = [block for block in list(BLOCKS) if block.endpoint is endpoint]
    return {
        "breaker": None if endpoint.circuit is None else endpoint.circuit.state,
        "in_flight": _in_flight(mine),
        "pool": endpoint.connections(),
        "budget": endpoint.budget.allowed(endpoint.clock.monotonic()),
        "connects": endpoint.connects,
        "limits": {block.name: block.limit for block in mine},
    }


def health() -> dict[str, Any]:
    """``{"status": "ok" | "degraded" | "down", "blocks": {name: …}}``.

    A block is down while its breaker is open and degraded while it is half-open; the whole is down
    when every block with a breaker is, and degraded when any is not ok. In observe mode a breaker
    is on paper, and tells nothing.
    """
    on_paper = observing()
    blocks: dict[str, str] = {}
    guarded: list[str] = []
    for name, found in stats()["blocks"].items():
        state = found["breaker"]
        well = on_paper or state in (None, CLOSED)
        blocks[name] = "ok" if well else "down" if state == OPEN else "degraded"
        if state is not None:
            guarded.append(blocks[name])
    if guarded and all(status == "down" for status in guarded):
        status = "down"
    else:
        status = "ok" if all(one == "ok" for one in guarded) else "degraded"
    return {"status": status, "blocks": blocks}
