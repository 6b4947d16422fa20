"""The types of toxics that the HTTP API knows: Toxiproxy's own, with its names, units and
defaults, and every fault of ours that a relay can make, under its name in the vocabulary.

Where both have the name (latency, bandwidth) it is Toxiproxy's.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .. import plan
from . import toxics
from .toxics import DOWN, UP, Toxic

_MS, _US, _KB = 0.001, 0.000001, 1000
_STREAMS = {"upstream": UP, "downstream": DOWN}
# The largest that Toxiproxy takes: an int64.
_LARGEST = (1 << 63) - 1


class Kind(Protocol):
    """One type of toxic."""

    def read(self, given: object, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """All its attributes: those given, the others as they were before (None: the defaults).
        ValueError names the bad one."""
        ...

    def make(self, attributes: Mapping[str, Any], draw: random.Random) -> Toxic:
        """A toxic with these attributes."""
        ...

    def place(self, toxic: Toxic, stream: str, toxicity: float) -> None:
        """Put it on a stream."""
        ...


def _object(given: object) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"attributes must be an object, not {given!r}")
    return given


@dataclass(frozen=True)
class _Toxiproxy:
    """A type of Toxiproxy's: its attributes are whole numbers, 0 by default; what it doesn't know
    is ignored."""

    names: tuple[str, ...]
    build: Callable[[Mapping[str, int], random.Random], Toxic]

    def read(self, given: object, before: Mapping[str, Any] | None) -> dict[str, Any]:
        known = dict(before) if before is not None else dict.fromkeys(self.names, 0)
        for name, value in _object(given).items():
            if name.lower() not in known or value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST:
                raise ValueError(f"{name} must be a whole number, not {value!r}")
            known[name.lower()] = value
        return known

    def make(self, attributes: Mapping[str, Any], draw: random.Random) -> Toxic:
        return self.build(attributes, draw)

    def place(self, toxic: Toxic, stream: str, toxicity: float) -> None:
        toxic.on(_STREAMS[stream.lower()], toxicity)


@dataclass(frozen=True)
class _Vocabulary:
    """A fault of ours: its attributes are the fault's fields. It acts on the streams that it
    always acts on, whatever stream it is filed under."""

    fault: type[plan.Fault]

    def read(self, given: object, before: Mapping[str, Any] | None) -> dict[str, Any]:
        name = {"fault": self.fault.name}
        fields = {**(before or {}), **_object(given)}
        if fields.get("duration") is not None:
            raise ValueError("a toxic has no duration: it ends when it is deleted")
        known = plan.Fault.from_dict({**fields, **name}).to_dict()
        return {key: value for key, value in known.items() if key not in ("fault", "duration")}

    def make(self, attributes: Mapping[str, Any], draw: random.Random) -> Toxic:
        return toxics.for_fault(self.fault(**attributes))

    def place(self, toxic: Toxic, stream: str, toxicity: float) -> None:
        toxic.on(toxic.stream, toxicity)


_OURS: dict[str, Kind] = {kind.name: _Vocabulary(kind) for kind in toxics.MAKES}
_THEIRS: dict[str, Kind] = {
    "noop": _Toxiproxy((), lambda at, draw: Toxic()),
    "latency": _Toxiproxy(
        ("latency", "jitter"),
        lambda at, draw: toxics.Latency(at["latency"] * _MS, max(0, at["jitter"]) * _MS, draw),
    ),
    "bandwidth": _Toxiproxy(("rate",), lambda at, draw: toxics.Bandwidth(at["rate"] * _KB)),
    "slow_close": _Toxiproxy(("delay",), lambda at, draw: toxics.SlowClose(at["delay"] * _MS)),
    "timeout": _Toxiproxy(("timeout",), lambda at, draw: toxics.Timeout(at["timeout"] * _MS)),
    "slicer": _Toxiproxy(
        ("average_size", "size_variation", "delay"),
        lambda at, draw: toxics.Sliced(
            at["average_size"], max(0, at["size_variation"]), at["delay"] * _US, draw
        ),
    ),
    "limit_data": _Toxiproxy(("bytes",), lambda at, draw: toxics.Cut(at["bytes"])),
    "reset_peer": _Toxiproxy(("timeout",), lambda at, draw: toxics.ResetPeer(at["timeout"] * _MS)),
}
KINDS: dict[str, Kind] = {**_OURS, **_THEIRS}


@dataclass
class Entry:
    """A toxic of a proxy, as the API shows it."""

    name: str
    type: str
    stream: str
    toxicity: float
    attributes: dict[str, Any]
    seed: str
    toxic: Toxic | None = dataclasses.field(default=None, compare=False)

    @property
    def upstream(self) -> bool:
        """Whether it acts on what goes to the server."""
        return self.stream.lower() == "upstream"

    def build(self) -> Toxic:
        """A new toxic as described; it takes the place of `toxic`."""
        kind = KINDS[self.type]
        self.toxic = kind.make(self.attributes, random.Random(self.seed))
        kind.place(self.toxic, self.stream, self.toxicity)
        return self.toxic

    def show(self) -> dict[str, Any]:
        """JSON-able, in Toxiproxy's form."""
        fields = ("attributes", "name", "type", "stream", "toxicity")
        return {field: getattr(self, field) for field in fields}


def is_stream(name: object) -> bool:
    """Whether it names a stream, in any case of letters."""
    return isinstance(name, str) and name.lower() in _STREAMS
