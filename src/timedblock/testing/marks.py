"""The marker ``timedblock_faults`` of the pytest plugin: a test for each fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from ..faults import Fault, inject
from .fixtures import Proxy, as_fault, names_for

ALL = "all"


def faults_of(marker: pytest.Mark) -> dict[str, Fault]:
    """The faults that a marker asks for, by what they are called there; the test fails for what
    can't be made."""
    strange = set(marker.kwargs) - {"target", "proxy"}
    if strange:
        _fail(f"there is no argument {sorted(strange)[0]!r}; known: target, proxy")
    if "target" in marker.kwargs and "proxy" in marker.kwargs:
        _fail("target= and proxy= are two places: give one")
    possible = names_for(proxy="proxy" in marker.kwargs)
    asked = possible if marker.args == (ALL,) else marker.args
    if not asked:
        _fail(f"which faults? {ALL!r}, or some of: {', '.join(possible)}")
    found: dict[str, Fault] = {}
    for one in asked:
        fault = _fault(one)
        if fault.name not in possible:
            _fail(f"{fault.name!r} can't be made by a proxy; it can: {', '.join(possible)}")
        found[one if isinstance(one, str) else fault.name] = fault
    return found


def _fault(one: Any) -> Fault:
    try:
        return as_fault(one)
    except (ValueError, TypeError) as error:
        _fail(str(error))


def _fail(what: str) -> NoReturn:
    pytest.fail(f"the marker timedblock_faults: {what}", pytrace=False)


@contextlib.contextmanager
def in_force(item: pytest.Item, marker: pytest.Mark, parameter: str) -> Iterator[None]:
    """The fault of this one of the tests, for the time of a ``with`` block."""
    callspec = getattr(item, "callspec", None)
    fault = None if callspec is None else callspec.params.get(parameter)
    if fault is None:
        _fail("it makes several tests of one, which this kind of test (unittest's) can't be")
    fixture = marker.kwargs.get("proxy")
    if fixture is None:
        target = marker.kwargs.get("target", "memcache")
        with inject(target, fault) as injection:
            yield
        if not injection.met:  # misspelt, or the test makes no call
            _fail(f"the fault {fault.name!r} met no connection of {target!r}")
        return
    proxy = getattr(item, "funcargs", {}).get(fixture)
    if not isinstance(proxy, Proxy):
        _fail(f"the test uses no fixture {fixture!r} that gives a proxy of timedblock_proxy")
    with proxy.fault(fault):
        yield
