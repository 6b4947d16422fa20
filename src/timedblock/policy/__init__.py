"""What a block decides by: frozen configuration and the decisions made from it (L2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..deadline import check_seconds
from .breaker import Breaker
from .retry import Retry
from .timeout import Fixed, Percentile

__all__ = ["UNSET", "Breaker", "Fixed", "Percentile", "Policy", "Retry", "Unset"]


class Unset:
    """No value was given (None is a value)."""

    def __repr__(self) -> str:
        return "<unset>"


UNSET = Unset()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a timed block is limited and guarded. Frozen; keyword-only; validated when made.

    Args:
        timeout: `Percentile`, `Fixed`, or None: the caller's deadline only (on our sockets, the
            default ceiling).
        breaker: `Breaker`, or None: never refuses.
        bulkhead: calls in flight and waiting together, or None; past it `Overloaded` at once.
        retry: `Retry`, or None. (The one repeat of a wrapper on a dead pooled connection stays.)
        hedge: not available yet; must be None.
        fallback: the value, or a callable without arguments that makes it, used instead of an
            answer when there is none.
        fallback_limit: seconds that a callable fallback has, inside the caller's deadline.
        isolation: ``"none"``, or ``"thread"``: the work runs on a bounded worker, and the caller
            is back on time from code that nothing can interrupt.
        ignore: exception types that are answers, not failures.

    Raises:
        ValueError, TypeError: naming the argument and the value.
    """

    timeout: Percentile | Fixed | None = field(default_factory=Percentile)
    breaker: Breaker | None = field(default_factory=Breaker)
    bulkhead: int | None = None
    retry: Retry | None = None
    hedge: None = None
    fallback: Any = UNSET
    fallback_limit: float = 0.1
    isolation: str = "none"
    ignore: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        self._check_type("timeout", (Percentile, Fixed), "Percentile, Fixed or None")
        self._check_type("breaker", (Breaker,), "Breaker or None")
        self._check_type("retry", (Retry,), "Retry or None")
        if self.hedge is not None:
            raise ValueError(f"Policy(hedge) is not available yet, not {self.hedge!r}")
        full = self.bulkhead
        if full is not None and (not isinstance(full, int) or isinstance(full, bool) or full < 1):
            raise ValueError(f"Policy(bulkhead) must be a whole number from 1, not {full!r}")
        if self.isolation not in ("none", "thread"):
            raise ValueError(
                f'Policy(isolation) must be "none" or "thread", not {self.isolation!r}'
            )
        check_seconds("Policy(fallback_limit)", self.fallback_limit)
        if isinstance(self.ignore, type):
            object.__setattr__(self, "ignore", (self.ignore,))
        if not isinstance(self.ignore, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.ignore
        ):
            raise TypeError(f"Policy(ignore) must be exception types, not {self.ignore!r}")

    def _check_type(self, name: str, kinds: tuple[type, ...], wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not isinstance(value, kinds):
            raise TypeError(f"Policy({name}) must be {wanted}, not {value!r}")

    @property
    def ceiling(self) -> float | None:
        """The call limit in seconds, or None."""
        return None if self.timeout is None else self.timeout.ceiling
