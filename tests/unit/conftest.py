"""What the unit tests of the core share: a clock that stands still, and an ear for events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from timedblock import Event, subscribe
from timedblock.testing import FakeClock


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    """Time stands still until the test advances it."""
    with FakeClock() as clock:
        yield clock


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    """The events since the test began."""
    events: list[Event] = []
    unsubscribe = subscribe(events.append)
    yield events
    unsubscribe()
