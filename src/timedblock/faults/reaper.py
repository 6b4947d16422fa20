"""Rolls faults back when nobody else does: a small process that outlives whoever made them (L3).

Each fault that would stay behind is *held* with its undoing **before** it is made. The reaper does
it when it is told to, when the fault's time is over, and when its parent is gone: ended, or killed
by SIGKILL. It is the only one who undoes, one after the other, so nothing is undone twice or too
late. It has a session of its own, so that Ctrl-C in a terminal isn't for it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from ..child import Child, Gone
from . import undoing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .undoing import Undo

#: Seconds between two looks whether the parent is still there, if its pipe doesn't tell.
_LOOK = 0.2


class _Gone(RuntimeError):
    """The reaper's process has ended, or doesn't answer and is ended."""


class Reaper:
    """The front: starts the process at once, and ends it by `stop`. Thread-safe.

    RuntimeError if it is gone: then no fault may be made."""

    ANSWER_LIMIT = 60.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = itertools.count(1)
        self._held: dict[str, Sequence[Undo]] = {}
        self._child = Child("timedblock.faults.reaper", start_new_session=True)

    @property
    def pid(self) -> int:
        """The process."""
        return self._child.pid

    def hold(self, *undo: Undo) -> str:
        """Promise to undo something; the promise's key. Make the fault after this returns."""
        key = str(next(self._keys))
        with self._lock:
            self._held[key] = undo
            self._ask({"do": "hold", "key": key, "undo": undo})
        return key

    def release_after(self, key: str, seconds: float) -> None:
        """Undo it when so much time has passed, if it isn't undone before."""
        with self._lock:
            self._ask({"do": "after", "key": key, "seconds": seconds})

    def release(self, key: str) -> dict[str, Any]:
        """Undo it now, unless it is undone already; what the undoing told, such as a ``pid``.

        RuntimeError if it can't be undone."""
        with self._lock:
            undo = self._held.pop(key, ())
            try:
                return self._ask({"do": "release", "key": key})
            except _Gone:
                return undoing.do_all(undo)  # there is nobody but us

    def stop(self) -> None:
        """Undo everything that is held, the newest first, and end. RuntimeError tells what
        couldn't be undone."""
        with self._lock:
            try:
                self._ask({"do": "stop"})
            except _Gone:
                undoing.do_all([one for undo in reversed(self._held.values()) for one in undo])
            finally:
                self._held.clear()
                self._child.end(self.ANSWER_LIMIT)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._child.ask(request, self.ANSWER_LIMIT)
        except Gone as error:
            self._child.kill()
            what = "the reaper is gone, or didn't answer: no fault is made without it"
            raise _Gone(what) from error
        if "error" in answer:
            raise RuntimeError(f"a fault couldn't be undone: {answer['error']}")
        return answer


class _Held:
    """What one key stands for, and when it is due."""

    def __init__(self, undo: Sequence[Undo]) -> None:
        self.undo = undo
        self.due: float | None = None


class _Process:
    """The reaper itself: JSON lines in, one answer for each, until stop or the parent's end."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._held: dict[str, _Held] = {}
        self._due: dict[str, dict[str, Any]] = {}  # what was undone when its time was over
        self._late: dict[str, str] = {}  # and what couldn't be
        self._input = b""
        self._running = True

    def run(self) -> None:
        """Obey until the end, then undo what is left."""
        try:
            while self._running and os.getppid() == self._parent:
                ready, _, _ = select.select([0], [], [], self._patience())
                if ready:
                    self._read()
                self._release_due()
        finally:
            self._release_all()

    def end(self, number: int, frame: object) -> None:
        """SIGTERM: undo everything and end."""
        raise SystemExit(0)

    def _patience(self) -> float:
        due = [one.due for one in self._held.values() if one.due is not None]
        return min(_LOOK, max(0.0, min(due) - time.monotonic())) if due else _LOOK

    def _read(self) -> None:
        data = os.read(0, 1 << 16)
        self._running = bool(data)
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self._answer(json.loads(line))

    def _answer(self, request: dict[str, Any]) -> None:
        answer: dict[str, Any]
        try:
            answer = self._do(request)
        except Exception as error:  # the others still have to be undone
            answer = {"error": str(error)}
        with contextlib.suppress(OSError):  # the parent died meanwhile
            os.write(1, json.dumps(answer).encode() + b"\n")

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        what, key = request["do"], request.get("key", "")
        if what == "hold":
            self._held[key] = _Held(request["undo"])
        elif what == "after" and key in self._held:
            self._held[key].due = time.monotonic() + request["seconds"]
        elif what == "release":
            return self._release(key)
        elif what == "stop":
            self._running = False
            failed = self._release_all()
            return {"error": "; ".join(failed)} if failed else {}
        return {}

    def _release(self, key: str) -> dict[str, Any]:
        if key in self._late:
            raise RuntimeError(self._late.pop(key))
        if key in self._due:
            return self._due.pop(key)
        held = self._held.pop(key, None)
        return undoing.do_all(held.undo) if held else {}

    def _release_due(self) -> None:
        now = time.monotonic()
        for key, held in list(self._held.items()):
            if held.due is not None and held.due <= now:
                try:
                    self._due[key] = self._release(key)
                except Exception as error:
                    self._late[key] = str(error)

    def _release_all(self) -> list[str]:
        failed = list(self._late.values())
        for key in reversed(list(self._held)):
            try:
                self._release(key)
            except Exception as error:
                failed.append(str(error))
        return failed


def main() -> int:
    """Undo what is held, at the latest when the parent is gone."""
    process = _Process()
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, process.end)
    process.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
