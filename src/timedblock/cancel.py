"""Cancel a coroutine at an instant, and say so with a TimeoutError (L3).

After CPython's asyncio.timeout (3.11), for 3.10 too and on any clock of ours.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from .clock import Clock, Handle


class CancelAt:
    """``async with CancelAt(clock, at):`` raises TimeoutError when the body is still at it then.

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
