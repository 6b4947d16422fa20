"""What RabbitMQ's clients make of a user's policy (L4)."""

from __future__ import annotations

from dataclasses import replace

from ..policy import Breaker, Fixed, Percentile, Policy
from ..policy.clients import DEFAULT_CEILING, for_connecting

#: Seconds: pika has no default for declare, bind, purge and delete; nor for many messages at once.
ADMINISTRATIVE_LIMIT = 10.0
#: A second execution of these changes nothing.
REPEATABLE = frozenset(("declare_queue", "declare_exchange", "bind", "unbind", "purge"))
#: A cluster elects its leaders within seconds, and messages are to flow within five more; the usual
#: 5 s from probe to probe, a quarter more by chance, would be too long.
OPEN_MAX = 3.0
#: The least that a connection is waited for (seconds), whatever was learnt: a handshake of several
#: messages, of which a busy machine makes more than the 0.15 s of a plain connect.
CONNECT_FLOOR = 0.25
_LEARNING = frozenset(("publish", "get"))


def guarded(policy: Policy) -> Policy:
    """`policy` with RabbitMQ's breaker in the place of the usual one; a user's own stays."""
    if policy.breaker == Breaker():
        return replace(policy, breaker=Breaker(open_max=OPEN_MAX))
    return policy


def of(policy: Policy, operation: str, timeout: float | None) -> Policy:
    """What holds for one operation of a `Client`; `timeout`: the client's own, in seconds."""
    if operation == "connect":
        return _connecting(policy)
    if operation == "publish_async":
        # how long one takes depends on how many were handed over before it
        return replace(policy, timeout=Fixed(policy.ceiling or DEFAULT_CEILING))
    if operation in _LEARNING:
        return policy
    return replace(policy, timeout=Fixed(ADMINISTRATIVE_LIMIT if timeout is None else timeout))


def _connecting(policy: Policy) -> Policy:
    """A client has two connections for hours: what one connect took has to do."""
    policy = for_connecting(policy)
    timeout = policy.timeout
    if not isinstance(timeout, Percentile):
        return policy
    floor = min(max(timeout.floor, CONNECT_FLOOR), timeout.ceiling)
    return replace(policy, timeout=replace(timeout, min_samples=1, floor=floor))
