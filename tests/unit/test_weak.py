"""The weak set of blocks, pools and endpoints stands threads."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from timedblock.weak import WeakMembers


class Member:
    """Something that can be referred to weakly."""


@pytest.fixture(autouse=True)
def _eager_switches(untraced: None) -> Iterator[None]:
    """Threads take turns every 10 µs, so that a race shows soon."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def _iterate_while_others_add(members: weakref.WeakSet[Member]) -> list[Exception]:
    done = threading.Event()
    kept = [Member() for _ in range(200)]
    for member in kept:
        members.add(member)

    def add() -> None:
        while not done.is_set():
            some = [Member() for _ in range(20)]
            for member in some:
                members.add(member)

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    errors: list[Exception] = []
    end = time.monotonic() + 5.0  # on a busy machine the adders leave little time to look
    for _ in range(500):
        if time.monotonic() > end:
            break
        try:
            found = set(members)
            assert found.issuperset(kept)
        except RuntimeError as error:
            errors.append(error)
            break
    done.set()
    for thread in threads:
        thread.join()
    return errors


def test_iterating_while_threads_add_raises_nothing() -> None:
    """A snapshot has all who stay, whatever comes and goes; a plain WeakSet raises."""
    assert _iterate_while_others_add(weakref.WeakSet()), "no race on this machine: proves nothing"
    assert _iterate_while_others_add(WeakMembers()) == []


def test_members_are_held_weakly() -> None:
    """Who is dropped is gone."""
    members: WeakMembers[Member] = WeakMembers()
    kept, dropped = Member(), Member()
    members.add(kept)
    members.add(dropped)
    del dropped
    assert list(members) == [kept]
    assert len(members) == 1


def test_a_stack_that_is_full_ends_the_iteration() -> None:
    """RecursionError is a RuntimeError, but looking again would never help."""
    members: WeakMembers[Member] = WeakMembers()

    def deeper() -> None:
        list(members)
        deeper()

    with pytest.raises(RecursionError):
        deeper()
