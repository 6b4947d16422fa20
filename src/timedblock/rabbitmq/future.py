"""A future that costs next to nothing while nobody waits for it (L4)."""

from __future__ import annotations

import threading
from concurrent.futures import Future, TimeoutError
from typing import Any

RUNNING, _FINISHED = "RUNNING", "FINISHED"
#: Seconds that the I/O thread waits for a lock of threads that wait for a future.
_PATIENCE = 0.1


class Confirmation(Future[None]):
    """The future in what `Client.publish_async` returns: done when RabbitMQ has said what became of
    the message.

    A future of the standard library, whose Condition and lists are made when somebody waits: those
    of a message would cost more than all the rest of publishing it. Whoever waits makes them before
    looking at the state; `settle` sets the state before looking for them: so neither misses the
    other. Touches what `Future` keeps private; tests/unit/test_rabbitmq_parts.py pins it.
    """

    _result = None
    _made: threading.Condition | None = None
    #: a lock of each thread in `result`, which only `settle` releases
    _bells: list[Any] | None = None

    def __init__(self) -> None:
        # not super().__init__(): it makes a Condition
        self._state = RUNNING
        self._exception: BaseException | None = None

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        if self._made is None:
            # of two threads that make one, both take the first
            make = self.__dict__.setdefault
            make("_waiters", [])
            make("_done_callbacks", [])
            make("_made", threading.Condition())
        made: Any = self._made
        return made  # type: ignore[no-any-return]

    def cancel(self) -> bool:
        """False: the message may have left."""
        return False

    def result(self, timeout: float | None = None) -> None:
        """None, when RabbitMQ has the message; raises what `Client.publish` raises, or TimeoutError
        after `timeout` seconds (there is no need for one: it ends within its limit)."""
        error = self._exception if self._state == _FINISHED else self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                del error, self  # no cycle with its traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None; TimeoutError after `timeout` seconds."""
        if self._state != _FINISHED:
            bell = threading.Lock()
            bell.acquire()
            # before the state is looked at again: see above
            self.__dict__.setdefault("_bells", []).append(bell)
            if self._state != _FINISHED and not bell.acquire(
                timeout=-1 if timeout is None else max(0.0, timeout)
            ):
                raise TimeoutError
        return self._exception

    def settle(self, error: BaseException | None) -> None:
        """Once, by the I/O thread."""
        self._exception = error
        self._state = _FINISHED
        if self._bells is not None:
            for bell in list(self._bells):
                bell.release()
        if self._made is not None:
            self._tell_others(error)
            self._invoke_callbacks()  # type: ignore[attr-defined]

    def _tell_others(self, error: BaseException | None) -> None:
        """`concurrent.futures.wait` and the like. An interrupt of such a thread may have left the
        lock taken for ever, and the I/O thread has others to serve."""
        condition = self._condition
        if not condition.acquire(timeout=_PATIENCE):
            return
        try:
            for waiter in self._waiters:
                if error is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            condition.notify_all()
        finally:
            condition.release()
