"""A future that costs next to nothing while nobody waits for it (L4)."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

_RUNNING, _FINISHED = "RUNNING", "FINISHED"


class Confirmation(Future[None]):
    """What `Client.publish_async` returns: done when RabbitMQ has said what became of the message.

    A future of the standard library, whose Condition is made when somebody waits: one a message
    would cost more than all the rest of publishing it. Whoever waits makes the Condition before
    looking at the state; `settle` sets the state before looking for a Condition: so neither misses
    the other. Touches what `Future` keeps private; tests/unit/test_rabbitmq_parts.py pins it.
    """

    def __init__(self) -> None:
        # not super().__init__(): it makes a Condition
        self._state = _RUNNING
        self._result = None
        self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made: threading.Condition | None = self.__dict__.get("_made")
        if made is None:
            # of two threads that make one, both take the first
            made = self.__dict__.setdefault("_made", threading.Condition())
        return made

    def cancel(self) -> bool:
        """False: the message may have left."""
        return False

    def result(self, timeout: float | None = None) -> None:
        """None, when RabbitMQ has the message; raises what `Client.publish` raises, or TimeoutError
        after `timeout` seconds (there is no need for one: it ends within its limit)."""
        if self._state != _FINISHED or self._exception is not None:
            super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None; TimeoutError after `timeout` seconds."""
        if self._state == _FINISHED:
            return self._exception
        return super().exception(timeout)

    def settle(self, error: BaseException | None) -> None:
        """Once, by the I/O thread."""
        self._exception = error
        self._state = _FINISHED
        if "_made" in self.__dict__:
            with self._condition:
                for waiter in self._waiters:
                    if error is None:
                        waiter.add_result(self)
                    else:
                        waiter.add_exception(self)
                self._condition.notify_all()
            self._invoke_callbacks()  # type: ignore[attr-defined]
