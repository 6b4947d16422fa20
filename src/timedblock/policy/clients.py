"""What the clients of a store make of a user's policy (L2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..deadline import check_seconds
from . import UNSET, Fixed, Percentile, Policy

#: What a call may take (seconds) where neither policy nor `timeout` says.
DEFAULT_CEILING = 1.0
#: The least that a connection is waited for (seconds), whatever was learnt.
CONNECT_FLOOR = 0.15


def with_ceiling(policy: Policy, ceiling: float | None) -> Policy:
    """`policy` with no limit above `ceiling` seconds."""
    timeout = policy.timeout
    if ceiling is None:
        return policy
    if isinstance(timeout, Percentile):
        initial = None if timeout.initial is None else min(timeout.initial, ceiling)
        floor = min(timeout.floor, ceiling)
        return replace(
            policy, timeout=replace(timeout, ceiling=ceiling, floor=floor, initial=initial)
        )
    if isinstance(timeout, Fixed):
        return replace(policy, timeout=Fixed(min(timeout.seconds, ceiling)))
    return replace(policy, timeout=Fixed(ceiling))


def for_connecting(policy: Policy) -> Policy:
    """`policy` as it holds for making a connection."""
    timeout = policy.timeout
    if isinstance(timeout, Percentile):
        # A pool makes few connections, and a connect that is waited for too shortly isn't lost:
        # it goes on in the background. So little evidence will do.
        # But a worker has to be woken first: on a busy machine that alone may take 50 ms.
        floor = min(max(timeout.floor, CONNECT_FLOOR), timeout.ceiling)
        timeout = replace(timeout, min_samples=min(timeout.min_samples, 5), floor=floor)
    return replace(policy, timeout=timeout, breaker=None, retry=None, fallback=UNSET)


def effective(policy: Policy | None, timeout: float | None, on_unavailable: Any) -> Policy:
    """The policy of a client: the user's, with `timeout` as its ceiling.

    Raises TypeError where `policy` is none.
    """
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, not {policy!r}")
    policy = Policy() if policy is None else policy
    if policy.timeout is None and timeout is None:
        timeout = DEFAULT_CEILING  # no limit of its own still isn't "for ever" on our sockets
    if timeout is not None:
        policy = with_ceiling(policy, check_seconds("timeout", timeout))
    if on_unavailable is not UNSET:
        policy = replace(policy, fallback=on_unavailable)
    return policy
