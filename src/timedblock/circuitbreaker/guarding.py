"""One call under the breaker, and who is told of it (L5)."""

from __future__ import annotations

import inspect
import logging
import re
import threading
import weakref
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pybreaker
from pybreaker import CircuitBreakerListener, CircuitBreakerStorage, CircuitMemoryStorage

from .. import fork
from ..block import TimedBlock, announce_breaker
from ..call import ANSWER, CUT, UNWELL, Call
from ..coroutines import CancelAt
from ..errors import CircuitOpen
from ..policy import Policy
from ..policy.breaker import CLOSED, HALF_OPEN, OPEN
from .circuit import Exactly, PybreakerCircuit, breaker_config
from .errors import CircuitBreakerError
from .mirror import Mirror

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence

T = TypeVar("T")

logger = logging.getLogger("timedblock")

#: Timers may fire this much before their instant.
_EARLY = 0.002
_UNFIT = re.compile(r"[^A-Za-z0-9_.\-]")


def block_name(name: str | None) -> str:
    """A block's name from a breaker's, which may be any text."""
    return _UNFIT.sub("_", name or "").lstrip(".-")[:100] or "circuitbreaker"


class Guarding(pybreaker.CircuitBreaker):
    """What every call is made of: it begins, it ends, and its news are told.

    For the arguments see `timedblock.CircuitBreaker`.
    """

    def __init__(
        self,
        fail_max: int = 5,
        reset_timeout: float = 60,
        success_threshold: int = 1,
        exclude: Iterable[type[BaseException] | Callable[[Any], bool]] | None = None,
        listeners: Sequence[CircuitBreakerListener] | None = None,
        state_storage: CircuitBreakerStorage | None = None,
        name: str | None = None,
        throw_new_error_on_trip: bool = True,
    ) -> None:
        config = breaker_config(fail_max, reset_timeout, success_threshold)
        storage = CircuitMemoryStorage(CLOSED) if state_storage is None else state_storage
        self._changes = threading.local()
        self._circuit = PybreakerCircuit(config, on_change=self._changed, rng=Exactly())
        self._block = TimedBlock(
            block_name(name),
            Policy(timeout=None, breaker=None),
            errors={CircuitOpen: CircuitBreakerError},
        )
        self._block.circuit = self._circuit
        self._mirror = Mirror(storage, self._circuit, self._block.name, self._announce)
        if self._mirror.direct:
            self._mirror.step_now()
            self._own_changes().clear()  # how it was found is no change
        super().__init__(
            fail_max=fail_max,
            reset_timeout=reset_timeout,
            success_threshold=success_threshold,
            exclude=exclude,
            listeners=listeners,
            state_storage=storage,
            name=name,
            throw_new_error_on_trip=throw_new_error_on_trip,
        )
        if not self._mirror.direct:
            self._mirror.start()
        fork.register(self)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    # -- one call ---------------------------------------------------------------------------

    def _begin(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Call:
        news = self._mirror.before()
        try:
            # Not put in force: a breaker sets no limit, the caller's deadline stays the one.
            call = self._block.begin()
        except BaseException:
            self._spread()
            raise
        try:
            if news or self._circuit.shut:
                self._spread()
            if self._listeners:
                self._tell("before_call", func, *args, **kwargs)
        except BaseException:
            call.abandoned()
            raise
        return call

    def _succeeded(self, call: Call) -> None:
        news = self._circuit.attentive  # else a success changes nothing
        call.succeeded()
        if news:
            self._spread()
        if self._listeners:
            self._tell("success")

    def _failed(self, call: Call, error: BaseException) -> BaseException:
        """Count a call that raised `error`; returns what to raise."""
        if not isinstance(error, Exception):
            call.abandoned()
            return error
        if not self.is_system_error(error):
            call.failed(error, kind=ANSWER, repeatable=False)
            self._spread()
            self._tell("success")
            return error
        cut = isinstance(error, TimeoutError) and self._block.now() >= call.at - _EARLY
        raised = call.failed(error, kind=CUT if cut else UNWELL, repeatable=False).error
        trips = [old for old, new, _, _ in self._own_changes() if new == OPEN]
        self._mirror.after()
        self._tell("failure", error)
        self._announce()
        if trips and self._throw_new_error_on_trip:
            return self._trip(call, error, trips[-1])
        return raised

    def _trip(self, call: Call, error: Exception, old: str) -> CircuitBreakerError:
        why = "Trial call failed" if old == HALF_OPEN else "Failures threshold reached"
        call.sent = bool(getattr(error, "sent", True))
        after = self._circuit.retry_after(self._block.now())
        raised = call.unavailable(CircuitOpen, note=f"{why}, circuit breaker opened")
        assert isinstance(raised, CircuitBreakerError)
        raised.retry_after = after
        raised.message = (
            f"{self._block.name} failed with {type(error).__name__}: {raised.note}, "
            f"retry after {after:.3f} s"
        )
        raised.args = (raised.message,)
        return raised

    def _follow(self, call: Call, work: Any) -> Any:
        """`work` (a generator or a coroutine), which tells `call` how it ended."""
        if type(work) is CoroutineType:
            followed: Any = self._await_begun(call, work)
        else:
            followed = self._generate(call, work)
        # dropped before it was begun: nothing of it would run, so nothing would tell
        weakref.finalize(followed, call.abandoned).atexit = False
        return followed

    def _generate(self, call: Call, generator: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        try:
            result = yield from generator
        except BaseException as error:
            raised = self._failed(call, error)
            if raised is error:
                raise
            raise raised from error
        self._succeeded(call)
        return result

    async def _await_begun(self, call: Call, coroutine: Coroutine[Any, Any, T]) -> T:
        return cast("T", await self._await(call, lambda: coroutine, (), {}))

    async def _await(self, call: Call, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            async with CancelAt(self._block.clock, call.at):
                result = func(*args, **kwargs)
                if inspect.isawaitable(result):
                    result = await result
        except BaseException as error:
            raised = self._failed(call, error)
            if raised is error:
                raise
            raise raised from error
        self._succeeded(call)
        return result

    # -- telling ----------------------------------------------------------------------------

    def _own_changes(self) -> list[tuple[str, str, str, float]]:
        """Changes that this thread made and has not told yet."""
        changes: list[tuple[str, str, str, float]]
        try:
            changes = self._changes.made
        except AttributeError:
            changes = self._changes.made = []
        return changes

    def _changed(self, old: str, new: str, reason: str, now: float) -> None:
        self._own_changes().append((old, new, reason, now))

    def _spread(self) -> None:
        """To the storage, then to everybody."""
        self._mirror.after()
        self._announce()

    def _announce(self) -> None:
        """Tell everybody of this thread's changes, with no lock held."""
        changes = self._own_changes()
        while changes:
            old, new, reason, now = changes.pop(0)
            before = self._state if self._state.name == old else self._create_new_state(old)
            self._state = self._create_new_state(new, prev_state=before)
            announce_breaker(self._block.name, None, old, new, reason, now)
            self._tell("state_change", before, self._state)

    def _tell(self, what: str, *args: Any, **kwargs: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                getattr(listener, what)(self, *args, **kwargs)
            except Exception as error:
                logger.warning("%s of a listener raised %s; ignored", what, type(error).__name__)
