"""Timed blocks of coroutines: the same machine, driven by ``await`` (L3).

Loaded at the first use, because asyncio is half of what importing the library would cost.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from typing import TYPE_CHECKING, Any

from . import clock as _clock
from .call import Call
from .deadline import get, put, sooner, time_limit
from .errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from .block import TimedBlock
    from .clock import Clock, Handle


class CancelAt:
    """``async with CancelAt(clock, at):`` raises TimeoutError when the body is still at it then.

    After CPython's asyncio.timeout (3.11), for 3.10 too and on any clock of ours.

    Attributes:
        fired: whether the instant came before the body's end.
    """

    def __init__(self, clock: Clock, at: float) -> None:
        self._clock = clock
        self._at = at
        self.fired = False
        self._handle: Handle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0

    async def __aenter__(self) -> None:
        if math.isinf(self._at):
            return
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a timed coroutine needs a running task")
        self._task = task
        if hasattr(task, "cancelling"):
            self._cancelling = task.cancelling()
        self._handle = self._clock.timer(asyncio.get_running_loop(), self._at, self._fire)

    def _fire(self) -> None:
        if self._task is not None:
            self.fired = True
            self._task.cancel()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
        task, self._task = self._task, None
        if not self.fired or task is None:
            return
        # somebody else may have cancelled the task meanwhile: then theirs goes on
        foreign = hasattr(task, "uncancel") and task.uncancel() > self._cancelling
        if exc_type is asyncio.CancelledError and not foreign:
            raise TimeoutError("the coroutine did not return within the limit") from error


async def call(
    block: TimedBlock, fn: Callable[..., Coroutine[Any, Any, Any]], args: Any, kwargs: Any
) -> Any:
    """What `TimedBlock.acall` does."""
    if block.policy.isolation == "thread":
        raise TypeError(f'{block.name}: isolation="thread" is for functions, not for coroutines')
    try:
        call = block.begin()
    except Unavailable as error:
        return await _fall_back(block, error)
    while True:
        try:
            put(call)
            async with CancelAt(block.clock, call.at):
                result = await fn(*args, **kwargs)
            put(call.outer)
            call.succeeded()
            return result
        except BaseException as error:
            put(call.outer)
            pause, raised = call.failed(error)
        if pause is not None:
            try:
                await _pause(block, pause)
                call.again()
                continue
            except BaseException as error:
                call.abandoned()
                raised = error
        return await _fall_back(block, raised)


async def _pause(block: TimedBlock, seconds: float) -> None:
    if block.clock is _clock.SYSTEM:
        await asyncio.sleep(seconds)
    else:
        block.clock.sleep(seconds)


async def _fall_back(block: TimedBlock, error: BaseException) -> Any:
    value = block._fall_back(error)
    if not inspect.isawaitable(value):
        return value
    began = block.now()
    with time_limit(block.policy.fallback_limit, f"{block.name}'s fallback") as limit:
        timer = CancelAt(block.clock, sooner(limit, block.clock))
        try:
            async with timer:
                return await value
        except TimeoutError:
            if not timer.fired:
                raise
    raise block.errors.get(DeadlineExceeded, DeadlineExceeded)(
        block=block.name,
        endpoint=None if block.endpoint is None else block.endpoint.name,
        elapsed=block.now() - began,
        limit=block.policy.fallback_limit,
        sent=getattr(error, "sent", True),
        note="so long its fallback took",
    ) from error


async def enter(block: TimedBlock) -> Call:
    """What ``async with block`` does on the way in."""
    call = block.__enter__()
    call.timer = CancelAt(block.clock, call.at)
    await call.timer.__aenter__()
    return call


async def leave(
    block: TimedBlock,
    exc_type: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    """What ``async with block`` does on the way out."""
    call = get()
    if isinstance(call, Call) and call.timer is not None:
        try:
            await call.timer.__aexit__(exc_type, error, traceback)
        except TimeoutError as timeout:
            timeout.__cause__ = error
            error = timeout
    block.__exit__(exc_type, error, traceback)
    if isinstance(error, TimeoutError) and exc_type is asyncio.CancelledError:
        raise error
