"""Whether a piece of work leaves threads or descriptors behind."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

# The one thread that is started once and lives as long as the process. Workers of ours may linger
# for the next job, waiting in this function. Every other thread must end with the work.
_WATCHDOG = "timedblock-watchdog"
_IDLE_WORKER = ("timedblock-", "_work")
_DESCRIPTORS = "/proc/self/fd"


@contextlib.contextmanager
def no_leaks(settle: float = 2.0) -> Iterator[None]:
    """AssertionError if a thread or a descriptor of the block is still there `settle` seconds
    after its end. Descriptors are looked at on Linux only."""
    gc.collect()
    threads, descriptors = _threads(), _descriptors()
    yield
    left = _settled(lambda: {repr(thread) for thread in _threads() - threads}, settle)
    assert not left, f"threads left behind: {sorted(left)}"
    left = _settled(lambda: _descriptors() - descriptors, settle)
    assert not left, f"descriptors left behind: {sorted(left)}"


def _is_idle_worker(thread: threading.Thread) -> bool:
    prefix, waits_in = _IDLE_WORKER
    frame = sys._current_frames().get(thread.ident or 0)
    idle = frame is not None and frame.f_code.co_name == waits_in
    return idle and thread.name.startswith(prefix)


def _threads() -> set[threading.Thread]:
    return {
        thread
        for thread in threading.enumerate()
        if thread.name != _WATCHDOG and not _is_idle_worker(thread)
    }


def _descriptors() -> set[str]:
    """Open descriptors with what they point to: a number used again is another descriptor."""
    found: set[str] = set()
    if not os.path.isdir(_DESCRIPTORS):  # pragma: no cover - not Linux
        return found
    for number in os.listdir(_DESCRIPTORS):
        try:
            found.add(f"{number} -> {os.readlink(f'{_DESCRIPTORS}/{number}')}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


def _settled(leaked: Callable[[], set[str]], seconds: float) -> set[str]:
    """What `leaked` still finds after the time that closing may take in the background."""
    end = time.monotonic() + seconds
    while (found := leaked()) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    return found
