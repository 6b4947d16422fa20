"""What each block's state means for the service (L5).

A block is *down* while its breaker is open on all its endpoints, and *degraded* while it is on
some, or while a probe is due or under way. The whole is *down* only when a critical block is; a
service that lost what is optional is *degraded*, and serves.

A breaker is only moved by calls. An orchestrator that takes all traffic away from a process that
is down would never see it come back; so a block whose next call is let through as a probe counts
as degraded, not as down.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from ..policy.breaker import CLOSED, OPEN
from ..registry import BLOCKS
from ..stats import stats

if TYPE_CHECKING:
    from ..block import TimedBlock

OK, DEGRADED, DOWN = "ok", "degraded", "down"
_FIGURES = (
    "calls",
    "ok",
    "unwell",
    "unavailable",
    "late",
    "stalled",
    "limit",
    "limit_source",
    "p50",
    "p95",
    "p99",
    "in_flight",
    "breaker",
    "would_cut",
    "would_reject",
)


def check_critical(critical: Iterable[str]) -> tuple[str, ...]:
    """`critical` as a tuple of patterns; TypeError or ValueError naming what is none."""
    if isinstance(critical, (str, bytes)) or not isinstance(critical, Iterable):
        raise TypeError(f"critical must be a list of block names, not {critical!r}")
    patterns = tuple(critical)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"critical must be a list of block names, not {patterns!r}")
        if not pattern:
            raise ValueError(f"critical has an empty name: {patterns!r}")
    return patterns


class _Standing(NamedTuple):
    """How one block stands on one endpoint; `since` in seconds since the epoch."""

    status: str
    reason: str | None = None
    since: float | None = None
    retry_after: float | None = None


def _standing(block: TimedBlock) -> _Standing:
    circuit = block.circuit
    if circuit is None:
        return _Standing(OK)
    now = block.now()
    since = None if math.isinf(circuit.turned) else time.time() - (now - circuit.turned)
    state = circuit.state
    if state == CLOSED:
        return _Standing(OK, None, since)
    if block.observing:
        return _Standing(OK, f"observe mode: its breaker is {state}, on paper", since)
    wait = circuit.retry_after(now)
    if state == OPEN and wait > 0:
        return _Standing(DOWN, circuit.reason, since, wait)
    what = "a probe is due" if state == OPEN else "a probe is under way"
    return _Standing(DEGRADED, f"{circuit.reason}; {what}", since, 0.0)


def _together(standings: list[_Standing]) -> _Standing:
    """Of all endpoints: the longest trouble, and down only where all are."""
    bad = [one for one in standings if one.status != OK]
    if not bad:
        return max(standings, key=lambda one: one.since or 0.0)
    status = DOWN if all(one.status == DOWN for one in standings) else DEGRADED
    longest = min(bad, key=lambda one: one.since or 0.0)
    return longest._replace(status=status)


def report(critical: Iterable[str] = ()) -> dict[str, Any]:
    """How the service stands, as `/health` tells it.

    ``{"status": "ok" | "degraded" | "down", "pid", "critical", "unmatched", "blocks": {name:
    {"status", "critical", "reason", "since", "retry_after", "endpoints", …}}}`` with the figures
    of `timedblock.stats` for each block. `since` is UTC in ISO 8601, None while it always was ok;
    durations are seconds, and None where there is no limit.

    Args:
        critical: names of the blocks without which the service can't work, as shell patterns
            (``mysql.*``). `unmatched` has those that no block has.

    Raises:
        TypeError, ValueError: `critical` is no list of names.
    """
    patterns = check_critical(critical)
    standings = _standings()
    figures = stats()["blocks"]
    blocks = {
        name: _block(name, standings[name], figures.get(name, {}), patterns)
        for name in sorted(standings)
    }
    return {
        "status": _whole(blocks),
        "pid": os.getpid(),
        "critical": list(patterns),
        "unmatched": [one for one in patterns if not any(fnmatchcase(n, one) for n in blocks)],
        "blocks": blocks,
    }


def _standings() -> dict[str, dict[str, list[_Standing]]]:
    """By block and endpoint; "" is a block of the application's own."""
    found: dict[str, dict[str, list[_Standing]]] = {}
    for block in list(BLOCKS):
        where = "" if block.endpoint is None else block.endpoint.name
        found.setdefault(block.name, {}).setdefault(where, []).append(_standing(block))
    return found


def _block(
    name: str,
    standings: dict[str, list[_Standing]],
    figures: dict[str, Any],
    critical: tuple[str, ...],
) -> dict[str, Any]:
    whole = _together([one for group in standings.values() for one in group])
    found = _told(whole)
    found["critical"] = any(fnmatchcase(name, pattern) for pattern in critical)
    for key in _FIGURES:
        found[key] = _finite(figures.get(key))
    found["endpoints"] = {
        where: _told(_together(group)) for where, group in sorted(standings.items()) if where
    }
    return found


def _told(one: _Standing) -> dict[str, Any]:
    since = None if one.since is None else datetime.fromtimestamp(one.since, timezone.utc)
    return {
        "status": one.status,
        "reason": one.reason,
        "since": None if since is None else since.isoformat(timespec="milliseconds"),
        "retry_after": None if one.retry_after is None else round(one.retry_after, 3),
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value


def _whole(blocks: dict[str, dict[str, Any]]) -> str:
    if any(block["critical"] and block["status"] == DOWN for block in blocks.values()):
        return DOWN
    return OK if all(block["status"] == OK for block in blocks.values()) else DEGRADED


def lost(critical: tuple[str, ...]) -> dict[str, str]:
    """The critical blocks that are down, and why."""
    found: dict[str, str] = {}
    for name, standings in _standings().items():
        if any(fnmatchcase(name, pattern) for pattern in critical):
            whole = _together([one for group in standings.values() for one in group])
            if whole.status == DOWN:
                found[name] = whole.reason or ""
    return dict(sorted(found.items()))
