"""When a call is tried again (L2). tenacity decides the waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..deadline import check_seconds

if TYPE_CHECKING:
    from tenacity.wait import wait_base


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Repeat an attempt that failed, within the call limit and the endpoint's budget.

    Wrappers repeat only what is idempotent or was not sent. A block of the application's own
    repeats whatever raises one of `on`: by giving a Retry you say that the work may be repeated.

    Args:
        attempts: tries in all, the first included, 2 to 10.
        wait: a tenacity wait; None: full jitter, doubling from `backoff` to `backoff_max` seconds
            (M. Brooker: Exponential Backoff and Jitter, 2015).
        on: the exceptions worth another try.

    Raises:
        ValueError, TypeError: naming the argument and the value.
    """

    attempts: int = 3
    wait: wait_base | None = None
    backoff: float = 0.05
    backoff_max: float = 1.0
    on: tuple[type[Exception], ...] = (Exception,)
    _wait: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or not 2 <= self.attempts <= 10:
            raise ValueError(f"Retry(attempts) must be from 2 to 10, not {self.attempts!r}")
        check_seconds("Retry(backoff)", self.backoff)
        check_seconds("Retry(backoff_max)", self.backoff_max)
        if not isinstance(self.on, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, Exception) for kind in self.on
        ):
            raise TypeError(f"Retry(on) must be a tuple of exception types, not {self.on!r}")
        if self.wait is not None and not callable(self.wait):
            raise TypeError(f"Retry(wait) must be a tenacity wait, not {self.wait!r}")
        # imported here: a program without a Retry never pays for it
        from tenacity import wait_random_exponential

        wait = self.wait or wait_random_exponential(multiplier=self.backoff, max=self.backoff_max)
        object.__setattr__(self, "_wait", wait)

    def wants(self, error: BaseException, attempt: int) -> bool:
        """Whether a try follows the `attempt`-th one, which ended with `error`."""
        return attempt < self.attempts and isinstance(error, self.on)

    def pause(self, attempt: int, error: BaseException) -> float:
        """Seconds to wait after the `attempt`-th try, which ended with `error`."""
        from tenacity import RetryCallState

        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = attempt
        state.set_exception((type(error), error, error.__traceback__))
        return check_seconds("the pause of Retry(wait)", self._wait(state), zero=True)
