"""What the tests with interrupts share."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator

import pytest


@pytest.fixture
def eager_switches(monkeypatch: pytest.MonkeyPatch, untraced: None) -> Iterator[None]:
    """Threads take turns every 20 µs.

    An interrupt may hit a thread of the test's own, or a finaliser, where nobody catches it. The
    hooks for that are in C here, so that they can't be interrupted themselves. And nothing is
    logged: `logging` takes its one lock outside of its `try`, so an interrupt there leaves it
    taken, and every later test that logs would wait for it.
    """
    monkeypatch.setattr(logging.getLogger("timedblock"), "disabled", True)
    monkeypatch.setattr(threading, "excepthook", id)
    monkeypatch.setattr(sys, "unraisablehook", id)
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(before)
