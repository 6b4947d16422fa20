"""The vocabulary of faults: what can go wrong, said once, for every injector.

A fault is a small frozen value. It does nothing by itself; an injector (in-process, relay,
netfilter, process) makes it happen. Whatever is random in a fault comes from its own ``seed``,
so that a run can be repeated, and ``duration`` bounds it in time.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

#: Seconds that a fault from the environment lasts when it doesn't say.
DEFAULT_ENV_DURATION = 60.0

_TIME = re.compile(r"(?P<number>[0-9.+\-eE]+|nan|inf)\s*(?P<unit>ms|s|m)?", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


def read_time(text: str) -> float:
    """Seconds in ``"0.2"``, ``"10s"``, ``"200ms"`` or ``"2m"``; ValueError for anything else."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time (such as 10s or 200ms)")
    return float(match["number"]) * _UNITS[(match["unit"] or "s").lower()]


@dataclass(frozen=True)
class _Number:
    """What a numeric field may hold, and how its text is read."""

    low: float = 0.0
    high: float = math.inf
    positive: bool = False
    whole: bool = False
    time: bool = False
    optional: bool = False

    def problem(self, value: object) -> str | None:
        if value is None and self.optional:
            return None
        kinds = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return "must be a whole number" if self.whole else "must be a number"
        if isinstance(value, int) and value.bit_length() > 1023:  # no float, which sleeps need
            return "must be within the range of a float"
        if not math.isfinite(value):
            return "must be finite"
        if self.positive and value <= 0:
            return "must be more than 0"
        if not self.low <= value <= self.high:
            upper = "" if math.isinf(self.high) else f" and at most {self.high:g}"
            return f"must be at least {self.low:g}{upper}"
        return None

    def read(self, text: str) -> object:
        if self.time:
            return read_time(text)
        return int(text) if self.whole else float(text)


def _shown(value: object) -> str:
    """`value` for an error. Python doesn't write out a whole number of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 1023:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


@dataclass(frozen=True)
class _Choice:
    """A field that is one of a few words."""

    options: tuple[str, ...]

    def problem(self, value: object) -> str | None:
        return None if value in self.options else f"must be one of {', '.join(self.options)}"

    def read(self, text: str) -> object:
        return text.strip()


class _Flag:
    """A field that is True or False."""

    _WORDS: ClassVar[dict[str, bool]] = {
        "true": True, "1": True, "yes": True, "false": False, "0": False, "no": False,
    }  # fmt: skip

    def problem(self, value: object) -> str | None:
        return None if isinstance(value, bool) else "must be True or False"

    def read(self, text: str) -> object:
        try:
            return self._WORDS[text.strip().lower()]
        except KeyError:
            raise ValueError(f"{text!r} is neither true nor false") from None


def _as(kind: _Number | _Choice | _Flag) -> dict[str, Any]:
    return {"kind": kind}


_SECONDS = _as(_Number(time=True))
_SOME_SECONDS = _as(_Number(time=True, positive=True))
_COUNT = _as(_Number(whole=True))
_SOME = _as(_Number(whole=True, low=1))
_SHARE = _as(_Number(high=1.0))


@dataclass(frozen=True)
class Fault:
    """What every fault has. ``duration`` in seconds (None: until it is cleared); ``seed`` of its
    randomness. ValueError at construction names a bad field and its value."""

    name: ClassVar[str] = ""

    duration: float | None = field(
        default=None, kw_only=True, metadata=_as(_Number(time=True, positive=True, optional=True))
    )
    seed: int = field(default=0, kw_only=True, metadata=_as(_Number(whole=True, low=-math.inf)))

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            problem = one.metadata["kind"].problem(value)
            if problem:
                kind = type(self).__name__
                raise ValueError(f"{kind}: {one.name} {problem}, not {_shown(value)}")

    def random(self) -> random.Random:
        """A new generator, always at the start of this fault's own sequence."""
        return random.Random(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: ``{"fault": "hang", "direction": "both", "duration": None, "seed": 0}``."""
        return {"fault": self.name, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Fault:
        """The fault that ``to_dict`` wrote. ValueError for an unknown fault, field or value."""
        fields = dict(data)
        kind = _kind(fields.pop("fault", None))
        known = {one.name for one in dataclasses.fields(kind)}
        for key in fields:
            if key not in known:
                raise ValueError(f"{kind.__name__} has no field {key!r}")
        return kind(**fields)


@dataclass(frozen=True)
class Refuse(Fault):
    """Nobody listens: connects are refused, open connections are reset.

    With ``icmp`` a router refuses, by an ICMP error: connects are refused after a while, and open
    connections hang, because TCP takes such an error for a passing one."""

    name: ClassVar[str] = "refuse"
    icmp: bool = field(default=False, metadata=_as(_Flag()))


@dataclass(frozen=True)
class Blackhole(Fault):
    """Packets vanish: connects are never answered, bytes on open connections are swallowed.

    A connection that lost bytes can't go on: it is reset when the fault ends."""

    name: ClassVar[str] = "blackhole"


@dataclass(frozen=True)
class Hang(Fault):
    """Connections are accepted and kept, bytes are held back (``up``: to the server, ``down``:
    from it) and delivered in order once the fault ends."""

    name: ClassVar[str] = "hang"
    direction: str = field(default="both", metadata=_as(_Choice(("both", "up", "down"))))


@dataclass(frozen=True)
class Silent(Fault):
    """The kernel accepts connections; nothing is ever read or answered."""

    name: ClassVar[str] = "silent"


@dataclass(frozen=True)
class Latency(Fault):
    """Each chunk of a reply arrives ``seconds`` ± ``jitter`` (seconds) later, order kept."""

    name: ClassVar[str] = "latency"
    seconds: float = field(default=0.1, metadata=_SECONDS)
    jitter: float = field(default=0.0, metadata=_SECONDS)


@dataclass(frozen=True)
class Drip(Fault):
    """Replies trickle: ``size`` bytes each ``every`` seconds."""

    name: ClassVar[str] = "drip"
    size: int = field(default=1, metadata=_SOME)
    every: float = field(default=0.3, metadata=_SOME_SECONDS)


@dataclass(frozen=True)
class Bandwidth(Fault):
    """Replies come at ``rate`` bytes a second at most (0: none comes)."""

    name: ClassVar[str] = "bandwidth"
    rate: float = field(default=1000.0, metadata=_as(_Number()))


@dataclass(frozen=True)
class Reset(Fault):
    """The connection is reset: at the first bytes of a request (``after=0``), or once ``after``
    bytes of reply were delivered."""

    name: ClassVar[str] = "reset"
    after: int = field(default=0, metadata=_COUNT)


@dataclass(frozen=True)
class Cut(Fault):
    """The connection is closed in an orderly way once ``after`` bytes of reply were delivered."""

    name: ClassVar[str] = "cut"
    after: int = field(default=10, metadata=_COUNT)


@dataclass(frozen=True)
class Corrupt(Fault):
    """A share ``rate`` of replies has bits flipped: in the protocol's framing (a reply's first
    line), or in the data that follows it if ``payload``."""

    name: ClassVar[str] = "corrupt"
    rate: float = field(default=1.0, metadata=_SHARE)
    payload: bool = field(default=False, metadata=_as(_Flag()))


@dataclass(frozen=True)
class DnsFail(Fault):
    """Names don't resolve."""

    name: ClassVar[str] = "dns-fail"


@dataclass(frozen=True)
class DnsHang(Fault):
    """The resolver doesn't answer."""

    name: ClassVar[str] = "dns-hang"


@dataclass(frozen=True)
class Flap(Fault):
    """The server goes and comes: ``down`` seconds as in `Refuse`, ``up`` seconds of work, and so
    on, beginning with the first."""

    name: ClassVar[str] = "flap"
    down: float = field(default=0.5, metadata=_SOME_SECONDS)
    up: float = field(default=0.5, metadata=_SOME_SECONDS)


@dataclass(frozen=True)
class FailFirst(Fault):
    """The first ``count`` requests have their connection reset; those after them are served."""

    name: ClassVar[str] = "fail-first"
    count: int = field(default=1, metadata=_SOME)


@dataclass(frozen=True)
class ErrorRate(Fault):
    """A share ``rate`` of requests has its connection reset."""

    name: ClassVar[str] = "error-rate"
    rate: float = field(default=0.5, metadata=_SHARE)


@dataclass(frozen=True)
class Pause(Fault):
    """The server's process is stopped: its kernel takes connections and bytes, nobody reads them.
    It goes on where it was when the fault ends."""

    name: ClassVar[str] = "pause"


@dataclass(frozen=True)
class Kill(Fault):
    """The server's process is killed, and started again when the fault ends."""

    name: ClassVar[str] = "kill"


@dataclass(frozen=True)
class Partition(Fault):
    """Two nodes don't hear each other: every packet between them vanishes. Others hear both."""

    name: ClassVar[str] = "partition"


#: Every fault by its name, the same in every injector, drill and report.
FAULTS: dict[str, type[Fault]] = {
    kind.name: kind
    for kind in (
        Refuse, Blackhole, Hang, Silent, Latency, Drip, Bandwidth, Reset, Cut, Corrupt, DnsFail,
        DnsHang, Pause, Kill, Partition, Flap, FailFirst, ErrorRate,
    )
}  # fmt: skip


def _kind(name: object) -> type[Fault]:
    if not isinstance(name, str) or name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; known: {', '.join(FAULTS)}")
    return FAULTS[name]


def _own_fields(kind: type[Fault]) -> list[str]:
    """A fault's own fields in the order they may be given without their names."""
    return [one.name for one in dataclasses.fields(kind) if not one.kw_only]


def _argument(kind: type[Fault], position: int, text: str) -> tuple[str, object]:
    """One of ``latency:0.2,jitter=0.1`` as a field's name and value."""
    key, equals, value = text.partition("=")
    own = _own_fields(kind)
    if not equals:
        if position >= len(own):
            raise ValueError(f"{kind.name!r} takes {len(own)} arguments, {text!r} is one too many")
        key, value = own[position], text
    key = key.strip()
    for one in dataclasses.fields(kind):
        if one.name == key and key != "duration":
            return key, one.metadata["kind"].read(value)
    raise ValueError(f"{kind.name!r} has no argument {key!r}")


def _build(text: str, default_duration: float | None) -> Fault:
    spec, at, duration = text.partition("@")
    name, colon, listed = spec.partition(":")
    kind = _kind(name.strip())
    values: dict[str, Any] = {"duration": read_time(duration) if at else default_duration}
    for position, part in enumerate(listed.split(",") if colon else ()):
        key, value = _argument(kind, position, part)
        if key in values:
            raise ValueError(f"{key!r} is given twice")
        values[key] = value
    return kind(**values)


def parse(text: str, *, default_duration: float | None = None) -> Fault:
    """A fault from ``NAME[:VALUE|FIELD=VALUE,...][@DURATION]``: ``hang@10s``,
    ``latency:0.2,jitter=50ms@1m``. Without ``@`` it lasts ``default_duration`` seconds.

    ValueError names the bad part."""
    try:
        return _build(text, default_duration)
    except ValueError as error:
        raise ValueError(f"bad fault {text!r}: {error}") from None


def parse_env(text: str) -> list[tuple[str, Fault]]:
    """The ``(target, fault)`` pairs of ``"memcache=hang@10s;rabbitmq=refuse@5s"``.

    Always bounded: 60 s where no duration is given. ValueError names the bad part."""
    pairs = []
    for part in filter(None, (one.strip() for one in text.split(";"))):
        target, equals, spec = part.partition("=")
        if not equals or not target.strip():
            raise ValueError(f"bad fault setting {part!r}: it must be TARGET=FAULT[@DURATION]")
        pairs.append((target.strip(), parse(spec.strip(), default_duration=DEFAULT_ENV_DURATION)))
    return pairs
