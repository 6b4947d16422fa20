"""Every error is honest, complete and survives a trip between processes."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import timedblock.memcache.errors
import timedblock.rabbitmq
from timedblock import (
    CircuitOpen,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    PartialResult,
    Unavailable,
)
from timedblock.memcache.errors import KINDS

FIELDS: dict[str, Any] = {
    "block": "memcache.get",
    "endpoint": "10.0.0.3:11211",
    "elapsed": 0.1004,
    "limit": 1.0,
    "attempt_limit": 0.1,
    "limit_source": "learnt: p99.5 × 2",
    "sent": True,
    "spent": {"pool": 0.0, "connect": 0.002, "waiting": 0.098},
    "note": "3 of 5 failures",
}
OWN = {
    CircuitOpen: {"retry_after": 0.75},
    PartialResult: {"result": {"a": 1}, "missing": ("b", "c")},
}


def _walk(kind: type[Unavailable]) -> Iterator[type[Unavailable]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from _walk(sub)


# Only ours: other test modules may define errors of their own.
KIND_LIST = sorted(
    {kind for kind in _walk(Unavailable) if kind.__module__.startswith("timedblock.")},
    key=lambda kind: (kind.__module__, kind.__name__),
)
every_kind = pytest.mark.parametrize(
    "kind", KIND_LIST, ids=lambda kind: f"{kind.__module__}.{kind.__name__}"
)


def _make(kind: type[Unavailable], message: str = "") -> Unavailable:
    own: dict[str, Any] = {}
    for base, fields in OWN.items():
        if issubclass(kind, base):
            own.update(fields)
    return kind(message, **FIELDS, **own)


def _through_pickle(error: Unavailable) -> Unavailable:
    found: Unavailable = pickle.loads(pickle.dumps(error))
    return found


TRIPS: list[Callable[[Any], Any]] = [_through_pickle, copy.copy, copy.deepcopy]


def test_the_walk_finds_the_core_and_the_stores() -> None:
    """The walk isn't empty: the six of the core and memcached's own are in it."""
    assert {DeadlineExceeded, ConnectFailed, ConnectionLost, CircuitOpen, Overloaded} < set(
        KIND_LIST
    )
    assert timedblock.memcache.errors.GarbledReply in KIND_LIST


@every_kind
@pytest.mark.parametrize("trip", TRIPS, ids=["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("message", ["", "a text of its own"])
def test_an_error_survives_a_trip_whole(
    kind: type[Unavailable], trip: Callable[[Any], Any], message: str
) -> None:
    """Pickle, copy and deepcopy keep the type, the text and every attribute of both parents."""
    error = _make(kind, message)
    again = trip(error)
    assert type(again) is kind
    assert (str(again), repr(again)) == (str(error), repr(error))
    names = set(vars(error)) - {"message"}
    assert {name: getattr(again, name) for name in names} == {
        name: getattr(error, name) for name in names
    }
    if isinstance(error, OSError):
        assert isinstance(again, OSError)
        for name in ("errno", "strerror", "filename", "filename2"):
            assert getattr(again, name) == getattr(error, name)
    # and a second trip changes nothing
    assert str(trip(again)) == str(error)


@every_kind
def test_an_error_names_its_block_and_its_endpoint(kind: type[Unavailable]) -> None:
    """The text says which block on which endpoint; the repr is the type and the text."""
    error = _make(kind)
    assert "memcache.get on 10.0.0.3:11211" in str(error)
    assert repr(error) == f"{kind.__name__}({str(error)!r})"


@every_kind
def test_an_error_without_details_can_be_shown(kind: type[Unavailable]) -> None:
    """An error made with nothing at all has a text too."""
    assert str(kind())
    assert repr(kind())


@every_kind
def test_a_text_of_its_own_is_the_text(kind: type[Unavailable]) -> None:
    """A message that was given is shown as it is."""
    assert str(kind("so it is")) == "so it is"


@every_kind
def test_details_of_one_error_are_its_own(kind: type[Unavailable]) -> None:
    """Two errors made without details share no dict."""
    first, second = kind(), kind()
    first.spent["pool"] = 1.0
    assert second.spent == {}


@pytest.mark.parametrize(
    ("kind", "builtin", "number"),
    [
        (DeadlineExceeded, TimeoutError, errno.ETIMEDOUT),
        (ConnectFailed, ConnectionError, errno.ECONNREFUSED),
        (ConnectionLost, ConnectionError, errno.ECONNRESET),
    ],
)
def test_an_error_is_the_builtin_one_too(
    kind: type[Unavailable], builtin: type[OSError], number: int
) -> None:
    """An except written for the builtin catches ours, and finds an errno."""
    error = kind()
    assert isinstance(error, builtin)
    assert error.errno == number


def test_the_message_says_where_the_time_went() -> None:
    """The message of a cut call reads as the documentation promises."""
    assert str(_make(DeadlineExceeded)) == (
        "memcache.get on 10.0.0.3:11211 gave up after 0.100 s (attempt limit 0.100, "
        "learnt: p99.5 × 2; call limit 1): pool 0.000, connect 0.002, sent, waiting 0.098; "
        "3 of 5 failures"
    )


def test_the_message_names_the_cause_by_its_type_only() -> None:
    """A cause's text may hold a secret: only its type is shown."""
    error = DeadlineExceeded(block="b")
    error.__cause__ = ValueError("password=hunter2")
    assert "ValueError" in str(error)
    assert "hunter2" not in str(error)
    assert "hunter2" not in str(pickle.loads(pickle.dumps(error)))


def test_notes_travel_with_the_error() -> None:
    """What add_note put there is there after a pickle too (3.11 and later)."""
    error = Unavailable("x")
    error.__dict__["__notes__"] = ["seen"]
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen"]


def test_an_open_circuit_says_when_to_come_back() -> None:
    """CircuitOpen's text holds its retry_after."""
    assert "retry after 0.750 s" in str(_make(CircuitOpen))


def test_a_partial_result_counts_what_is_missing() -> None:
    """PartialResult's text holds how many keys are missing, and none of the keys."""
    error = PartialResult(result={}, missing=("secret-key",), block="b")
    assert "1 of its keys" in str(error)
    assert "secret-key" not in str(error)


@pytest.mark.parametrize("core", list(KINDS))
def test_a_stores_error_is_the_cores(core: type[Unavailable]) -> None:
    """What memcached's client raises in place of the core's error is a subclass of it."""
    assert issubclass(KINDS[core], core)
