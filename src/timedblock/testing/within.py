"""A block that must end in time, and is ended if it doesn't."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from ..deadline import check_seconds


class TooLate(AssertionError):
    """The block took longer than it may."""


class _Stop(BaseException):
    """Ends the block where it stands: no `except Exception` of the code in it stops this."""

    def __init__(self, of: Within) -> None:
        super().__init__(f"still running after {of.limit:g} s")
        self.of = of


class Within:
    """``with Within(0.3):`` raises `TooLate` if the block takes more than 0.3 + `slack` seconds.

    A block that runs in the main thread is ended then, even if it waits for a socket without a
    timeout (by the signal SIGUSR2, whose handler is put back afterwards); elsewhere, and in C code
    that doesn't return, the verdict comes at its end. It sets no deadline: what the block calls
    has to keep the limit by itself.
    """

    def __init__(self, seconds: float, slack: float = 0.0) -> None:
        self.limit = check_seconds("within", seconds)
        self._patience = self.limit + check_seconds("slack", slack, zero=True)
        self._timer: threading.Timer | None = None
        self._before: Any = None
        self._over = self._rang = False
        #: seconds that it took, once it has ended
        self.elapsed: float | None = None

    def __enter__(self) -> Within:
        self._over, self._rang, self.elapsed = False, False, None
        self._began = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR2, self._stop)
            self._timer = threading.Timer(self._patience, self._ring, [threading.get_ident()])
            self._timer.daemon = True
            self._timer.start()
        return self

    def _ring(self, thread: int) -> None:
        if not self._over:
            self._rang = True
            signal.pthread_kill(thread, signal.SIGUSR2)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._rang:  # a block around this one rang, or it is the program's own signal
            if callable(self._before):
                self._before(number, frame)
            return
        # Not in our own code, where nobody would turn it into a verdict.
        if not self._over and (frame is None or frame.f_code.co_filename != __file__):
            raise _Stop(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        self.elapsed = time.monotonic() - self._began
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            signal.signal(signal.SIGUSR2, self._before)
            self._timer = None
        if isinstance(error, _Stop) and error.of is self:
            raise TooLate(f"still running after {self.limit:g} s{_where(traceback)}") from None
        late = self._rang or self.elapsed > self._patience
        if late and (error is None or isinstance(error, Exception)):
            raise TooLate(f"took {self.elapsed:.3f} s, not {self.limit:g} s") from error


def _where(traceback: TracebackType | None) -> str:
    """The call of the block that was running, and the innermost one."""
    frames = []
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    frames = [one for one in frames if one[0].f_code.co_filename != __file__]
    (first, line), (last, _) = frames[0], frames[-1]
    return f", at {first.f_code.co_filename}:{line}, in {last.f_code.co_name}"
