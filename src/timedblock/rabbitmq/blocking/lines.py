"""The blocks of one RabbitMQ, which its connections share, one after the other (L4).

A program that lost its connection makes a new one: what was learnt, and the breaker, have to be
there still. So the last few lines are kept though no connection is there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ... import clock as _clock
from ... import fork
from ...block import TimedBlock
from ...endpoint import endpoint
from ...policy import UNSET, Fixed, Percentile, Policy
from .. import hosts as _hosts
from .. import policies
from .errors import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds that an operation may take where no policy says: pika has no limit.
CEILING = 10.0
#: The least that is learnt, in seconds: a cut costs the connection and all that is on it.
FLOOR = 1.0
#: What learns its limit.
LEARNING = frozenset(("publish", "get"))
#: What ends something, or only hands something over, is never refused and proves nothing.
UNGUARDED = frozenset(
    (
        "basic_ack",
        "basic_cancel",
        "basic_nack",
        "basic_reject",
        "close",
        "close_channel",
        "publish_unconfirmed",
    )
)
_MOST = 64


def check(policy: Any) -> Policy | None:
    """`policy`, where it makes sense on one connection that is used by one thread.

    Raises:
        TypeError: it is none.
        ValueError: it wants what can't be had: an operation is never repeated, and its result is
            the driver's.
    """
    if policy is None:
        return None
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, not {policy!r}")
    for name, usual in (("retry", None), ("fallback", UNSET), ("isolation", "none")):
        if getattr(policy, name) is not usual and getattr(policy, name) != usual:
            raise ValueError(f"a BlockingConnection can't have Policy({name}=...)")
    return policy


class Line:
    """One RabbitMQ as connections with the same name, policy and limits see it."""

    def __init__(self, where: str, name: str, policy: Policy | None, connect: float) -> None:
        """`connect`: seconds that making a connection may take."""
        timeout = Percentile(floor=FLOOR, ceiling=CEILING)
        policy = policies.guarded(Policy(timeout=timeout) if policy is None else policy)
        if policy.timeout is None:
            policy = replace(policy, timeout=Fixed(CEILING))
        self._policy = policy
        self._ceiling = policy.ceiling or CEILING
        self._connect = connect
        self.name = name
        self.where = where
        self.endpoint = endpoint(
            where if name == "rabbitmq" else f"{name}@{where}", self._policy.breaker
        )
        self._blocks: dict[str, TimedBlock] = {}

    def block(self, operation: str) -> TimedBlock:
        """The block of `operation`, made when it is first used."""
        block = self._blocks.get(operation)
        if block is None:
            made = TimedBlock(
                f"{self.name}.{operation}",
                self._policy_of(operation),
                endpoint=self.endpoint,
                errors=KINDS,
            )
            block = self._blocks.setdefault(operation, made)
        return block

    def _policy_of(self, operation: str) -> Policy:
        policy = self._policy
        if operation == "connect":
            policy = replace(policy, timeout=Fixed(self._connect))
        elif operation not in LEARNING:
            policy = replace(policy, timeout=Fixed(self._ceiling))
        return replace(policy, breaker=None) if operation in UNGUARDED else policy


class _Lines(fork.Guard):
    """Lock: `lock` guards the table, which has the line used last at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._table: dict[Any, Line] = {}

    def get(self, hosts: Sequence[Any], name: str, policy: Policy | None, connect: float) -> Line:
        """The line to `hosts` (pika's parameters).

        Raises:
            ValueError: another client of it has different breaker settings.
        """
        where = ",".join(sorted({_hosts.show(one) for one in hosts}))
        clock = _clock.current()
        key = (where, name, _Same(policy), connect, id(clock))
        with self.lock:
            line = self._table.pop(key, None)
            if line is None or line.endpoint.clock is not clock:
                line = Line(where, name, policy, connect)
            self._table[key] = line
            while len(self._table) > _MOST:
                del self._table[next(iter(self._table))]
        return line

    def forget(self) -> None:
        """Drop what no connection uses any more (tests)."""
        with self.lock:
            self._table.clear()


class _Same:
    """A policy as a part of a key; what its fields hold need not be hashable."""

    def __init__(self, policy: Policy | None) -> None:
        self._policy = policy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._policy == self._policy

    def __hash__(self) -> int:
        return hash(type(self._policy))


LINES = _Lines()
