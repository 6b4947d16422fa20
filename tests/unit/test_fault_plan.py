"""The fault vocabulary: values, validation, text and JSON forms."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import pytest

from timedblock import faults
from timedblock.faults import plan

NAMES = [
    "refuse", "blackhole", "hang", "silent", "latency", "drip", "bandwidth", "reset", "cut",
    "corrupt", "dns-fail", "dns-hang", "pause", "kill", "partition", "flap", "fail-first",
    "error-rate",
]  # fmt: skip


def test_the_registry_holds_every_fault_by_its_name() -> None:
    """Drills and reports can look each fault up by the name that it carries."""
    assert list(faults.FAULTS) == NAMES
    assert all(kind.name == name for name, kind in faults.FAULTS.items())
    assert all(kind.__name__ in faults.__all__ for kind in faults.FAULTS.values())


@pytest.mark.parametrize("name", NAMES)
def test_json_and_pickle_give_the_fault_back(name: str) -> None:
    """A fault survives its JSON form and a pickle unchanged, bounds and seed included."""
    fault = faults.FAULTS[name](duration=2.5, seed=7)
    assert plan.Fault.from_dict(json.loads(json.dumps(fault.to_dict()))) == fault
    assert pickle.loads(pickle.dumps(fault)) == fault
    assert fault.to_dict()["fault"] == name


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_cannot_be_changed(name: str) -> None:
    """A fault is a frozen value: an injector can share it between threads."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        faults.FAULTS[name]().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    [
        (faults.Latency, {"seconds": math.nan}, "seconds must be finite, not nan"),
        (faults.Latency, {"seconds": -0.1}, "seconds must be at least 0, not -0.1"),
        (faults.Latency, {"jitter": math.inf}, "jitter must be finite, not inf"),
        (faults.Latency, {"seconds": "1"}, "seconds must be a number, not '1'"),
        (faults.Drip, {"size": 0}, "size must be at least 1, not 0"),
        (faults.Drip, {"size": 1.5}, "size must be a whole number, not 1.5"),
        (faults.Drip, {"every": 0}, "every must be more than 0, not 0"),
        (faults.Reset, {"after": -1}, "after must be at least 0, not -1"),
        (faults.Cut, {"after": True}, "after must be a whole number, not True"),
        (faults.Corrupt, {"rate": 1.1}, "rate must be at least 0 and at most 1, not 1.1"),
        (faults.Corrupt, {"payload": 1}, "payload must be True or False, not 1"),
        (faults.ErrorRate, {"rate": math.nan}, "rate must be finite, not nan"),
        (faults.Bandwidth, {"rate": -1}, "rate must be at least 0, not -1"),
        (faults.Flap, {"down": 0}, "down must be more than 0, not 0"),
        (faults.FailFirst, {"count": 0}, "count must be at least 1, not 0"),
        (faults.Hang, {"direction": "left"}, "direction must be one of both, up, down"),
        (faults.Silent, {"duration": 0}, "duration must be more than 0, not 0"),
        (faults.Silent, {"duration": math.inf}, "duration must be finite, not inf"),
        (faults.Silent, {"seed": 0.5}, "seed must be a whole number, not 0.5"),
    ],
)
def test_a_bad_value_is_named(kind: Any, arguments: dict[str, Any], named: str) -> None:
    """A value that makes no sense is refused at construction, with its field and itself named."""
    with pytest.raises(ValueError, match=named.replace("(", r"\(")) as caught:
        kind(**arguments)
    assert kind.__name__ in str(caught.value)


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**5000], ids=["long", "less", "longer"])
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (faults.Latency, "seconds"),
        (faults.Latency, "jitter"),
        (faults.Drip, "size"),
        (faults.Drip, "every"),
        (faults.Bandwidth, "rate"),
        (faults.Cut, "after"),
        (faults.Flap, "up"),
        (faults.FailFirst, "count"),
        (faults.ErrorRate, "rate"),
        (faults.Hang, "duration"),
        (faults.Hang, "seed"),
    ],
)
def test_a_number_past_every_float_is_named(kind: Any, field: str, number: int) -> None:
    """A whole number that no float holds is refused like any other, in a line that can be read."""
    named = rf"{field} must be .*, not a number of \d+ bits"
    with pytest.raises(ValueError, match=named) as caught:
        kind(**{field: number})
    assert caught.value.__context__ is None
    assert len(str(caught.value)) < 200


def test_a_number_past_every_float_in_text_is_named() -> None:
    """The same as text, as the command line and the environment give it."""
    for text in ("cut:" + "9" * 400, "cut:" + "9" * 5000, "latency:" + "9" * 400, "hang@1e999"):
        with pytest.raises(ValueError, match=r"(?s)bad fault '.*'"):
            faults.parse(text)


def test_the_same_seed_repeats() -> None:
    """Two generators of one fault give one sequence; another seed gives another."""
    first, again = (faults.ErrorRate(seed=5).random() for _ in range(2))
    drawn = [first.random() for _ in range(20)]
    assert drawn == [again.random() for _ in range(20)]
    assert drawn != [faults.ErrorRate(seed=6).random().random() for _ in range(20)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hang", faults.Hang()),
        ("hang@10s", faults.Hang(duration=10)),
        ("hang:up@2m", faults.Hang("up", duration=120)),
        ("latency:0.2@10s", faults.Latency(0.2, duration=10)),
        ("latency:200ms,jitter=50ms,seed=4", faults.Latency(0.2, 0.05, seed=4)),
        ("drip:2,0.1@500ms", faults.Drip(2, 0.1, duration=0.5)),
        ("corrupt:payload=true", faults.Corrupt(payload=True)),
        (" dns-hang @ 3 ", faults.DnsHang(duration=3)),
    ],
)
def test_a_fault_is_read_from_text(text: str, fault: faults.Fault) -> None:
    """The short form says everything that the constructor can."""
    assert faults.parse(text) == fault


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "unknown fault ''"),
        ("hung@10s", "unknown fault 'hung'"),
        ("hang@soon", "'soon' is not a time"),
        ("hang@", "'' is not a time"),
        ("hang@-1s", "duration must be more than 0, not -1.0"),
        ("hang@nan", "duration must be finite, not nan"),
        ("latency:fast", "'fast' is not a time"),
        ("latency:1,2,3", "'3' is one too many"),
        ("latency:1,seconds=2", "'seconds' is given twice"),
        ("drip:x", "'x'"),
        ("hang:duration=5", "no argument 'duration'"),
        ("corrupt:payload=perhaps", "'perhaps' is neither true nor false"),
        ("error-rate:2", "rate must be at least 0 and at most 1, not 2.0"),
    ],
)
def test_bad_text_is_named(text: str, named: str) -> None:
    """Text that isn't a fault gives a ValueError with the whole text and the bad part."""
    with pytest.raises(ValueError) as caught:
        faults.parse(text)
    assert named in str(caught.value)
    assert repr(text) in str(caught.value)


def test_the_environment_names_a_target_for_each_fault() -> None:
    """Several faults are separated by semicolons, each bounded even if it doesn't say so."""
    assert faults.parse_env(
        "memcache=hang@10s; rabbitmq=refuse ;memcache.get=corrupt:rate=0.5;"
    ) == [
        ("memcache", faults.Hang(duration=10)),
        ("rabbitmq", faults.Refuse(duration=60)),
        ("memcache.get", faults.Corrupt(0.5, duration=60)),
    ]
    assert faults.parse_env("  ") == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hang@10s", "'hang@10s'"),
        ("=hang", "'=hang'"),
        ("memcache=hang;x=nothing", "'nothing'"),
        ("memcache=", "''"),
    ],
)
def test_a_bad_environment_setting_is_an_error(text: str, named: str) -> None:
    """A setting that can't be honoured is never ignored: the bad part is named."""
    with pytest.raises(ValueError) as caught:
        faults.parse_env(text)
    assert named in str(caught.value)
