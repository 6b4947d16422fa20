"""`CircuitBreaker`: pybreaker's, without its lock around the call (L5)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
from dataclasses import replace
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

import pybreaker

from ..policy.breaker import CLOSED, HALF_OPEN, OPEN
from ..registry import check_name
from .circuit import STATES, breaker_config
from .guarding import Guarding, block_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from ..policy import Breaker

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("timedblock")


class CircuitBreaker(Guarding):
    """pybreaker's breaker, without its lock around the call.

    Args:
        fail_max: consecutive failures that open the circuit. Calls in flight together are one
            piece of evidence: a failure counts if its call began after the last counted one ended.
        reset_timeout: seconds open before the next call is let through as a trial.
        success_threshold: trials let through half-open, all of which must succeed to close it.
        exclude: exception types, and functions of an exception, that tell no failure.
        listeners: objects with the methods of `CircuitBreakerListener`. What they raise is logged.
        state_storage: a `CircuitBreakerStorage`. A `CircuitMemoryStorage` is used directly; any
            other is read and written in the background, and what is known of it is at most 1 s old.
        name: any text; in `timedblock.stats()` and in errors with its unfit characters as ``_``.
        throw_new_error_on_trip: whether the failure that opens the circuit raises
            `CircuitBreakerError` in place of its own error.

    Raises:
        ValueError, TypeError: naming the argument and the value.

    Calls raise `CircuitBreakerError` while the circuit is open. The breaker sets no limit; inside
    a `time_limit`, a call that is cut by it is no failure, and none begins after it.
    """

    # -- settings ---------------------------------------------------------------------------

    @property
    def fail_max(self) -> int:
        """Consecutive failures that open the circuit."""
        return self._fail_max

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        self._reconfigure(breaker_config(number, self._reset_timeout, self._success_threshold))
        self._fail_max = number

    @property
    def reset_timeout(self) -> float:
        """Seconds open before a trial; a change applies to an open circuit at once."""
        return self._reset_timeout

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        self._reconfigure(breaker_config(self._fail_max, timeout, self._success_threshold))
        self._reset_timeout = timeout

    @property
    def success_threshold(self) -> int:
        """Successful trials that close a half-open circuit."""
        return self._success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._reconfigure(breaker_config(self._fail_max, self._reset_timeout, threshold))
        self._success_threshold = threshold

    def _reconfigure(self, config: Breaker) -> None:
        self._circuit.reconfigure(replace(config))

    @property
    def throw_new_error_on_trip(self) -> bool:
        """Whether the failure that opens the circuit raises `CircuitBreakerError`."""
        return self._throw_new_error_on_trip

    @property
    def name(self) -> str | None:
        """The breaker's name, or None."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        self._name = name
        self._block.name = check_name(block_name(name))

    def is_system_error(self, exception: BaseException) -> bool:
        """Whether `exception` tells a failure: no exclusion applies. A broken one doesn't."""
        return not any(_excludes(exclusion, exception) for exclusion in self._excluded_exceptions)

    # -- state ------------------------------------------------------------------------------

    @property
    def fail_counter(self) -> int:
        """Consecutive failures so far."""
        self._look()
        return self._circuit.failures

    @property
    def success_counter(self) -> int:
        """Successful trials so far, half-open."""
        self._look()
        return self._circuit.standing().successes

    @property
    def current_state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        self._look()
        return self._circuit.state

    @property
    def state(self) -> pybreaker.CBStateType:
        """pybreaker's object for the present state; its `name` is `current_state`."""
        name = self.current_state
        if self._state.name != name:
            return self._create_new_state(name)
        return self._state

    @state.setter
    def state(self, state_str: str) -> None:
        self._go(state_str)

    def open(self) -> bool:
        """Open the circuit for `reset_timeout` seconds; returns `throw_new_error_on_trip`."""
        self._go(OPEN)
        return self._throw_new_error_on_trip

    def half_open(self) -> None:
        """Let the next `success_threshold` calls through as trials."""
        self._go(HALF_OPEN)

    def close(self) -> None:
        """Close the circuit and forget its failures."""
        self._go(CLOSED)

    def _go(self, state: str) -> None:
        if state not in STATES:
            raise ValueError(f"Unknown state {state!r}, valid states: {', '.join(STATES)}")
        self._circuit.go(state, "by hand", self._block.now())
        self._spread()

    def _look(self) -> None:
        told = not self._own_changes()  # else a listener reads: changes are told in their order
        if self._mirror.before() and told:
            self._announce()

    # -- calls ------------------------------------------------------------------------------

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return ``func(*args, **kwargs)``, guarded.

        Of a generator or a coroutine, the outcome is known, and counted, when it ends.
        """
        call = self._begin(func, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            raised = self._failed(call, error)
            if raised is error:
                raise
            raise raised from error
        if type(result) is GeneratorType or type(result) is CoroutineType:
            return cast("T", self._follow(call, result))
        self._succeeded(call)
        return result

    async def acall(
        self, func: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any
    ) -> T:
        """Return ``await func(*args, **kwargs)``, guarded; cancelled at the caller's deadline."""
        call = self._begin(func, args, kwargs)
        return cast("T", await self._await(call, func, args, kwargs))

    def call_async(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """`acall` in a task of the running loop: to be awaited, or yielded to Tornado."""
        return asyncio.ensure_future(self.acall(func, *args, **kwargs))

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """``with breaker.calling():`` guards the code inside."""
        call = self._begin(self.calling, (), {})
        try:
            yield
        except BaseException as error:
            raised = self._failed(call, error)
            if raised is error:
                raise
            raise raised from error
        else:
            self._succeeded(call)

    @overload  # type: ignore[override]  # pybreaker's says Any; a decorator keeps the type
    def __call__(self, func: Callable[P, T], /, **flags: bool) -> Callable[P, T]: ...

    @overload
    def __call__(self, /, **flags: bool) -> Callable[[Callable[P, T]], Callable[P, T]]: ...

    def __call__(self, func: Callable[..., Any] | None = None, /, **flags: bool) -> Any:
        """Decorate a function, generator function or coroutine function.

        The keyword argument ``__pybreaker_call_async=True`` says that it returns an awaitable.
        """
        as_task = flags.pop("__pybreaker_call_async", False)
        decorate = self._decorate_async if as_task else self._decorate
        return decorate if func is None else decorate(func)

    def _decorate(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(func):

            @functools.wraps(func)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                return await self.acall(func, *args, **kwargs)

            return awaited

        @functools.wraps(func)
        def called(*args: Any, **kwargs: Any) -> Any:
            return self.call(func, *args, **kwargs)

        return called

    def _decorate_async(self, func: Callable[..., Any]) -> Callable[..., asyncio.Task[Any]]:
        @functools.wraps(func)
        def called(*args: Any, **kwargs: Any) -> asyncio.Task[Any]:
            return self.call_async(func, *args, **kwargs)

        return called

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self._block.name}: {self._circuit.state}>"


def _excludes(exclusion: Any, exception: BaseException) -> bool:
    if isinstance(exclusion, type):
        return isinstance(exception, exclusion)
    try:
        return bool(exclusion(exception))
    except Exception as error:
        logger.warning("an exclusion raised %s; ignored", type(error).__name__)
        return False
