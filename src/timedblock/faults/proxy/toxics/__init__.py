"""The toxics, a few to a file, and which of them makes which fault of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import plan
from .base import BOTH, DOWN, UP, Toxic
from .corrupt import Corrupt
from .delay import Bandwidth, Latency, Sliced
from .hold import Hang, Silent, SlowClose, Timeout
from .meet import Blackhole, Flap, Refuse
from .strike import Cut, ErrorRate, FailFirst, Reset, ResetPeer

_STREAMS = {"both": BOTH, "up": UP, "down": DOWN}

#: The faults that a relay can make, and how.
MAKES: dict[type[plan.Fault], Callable[[Any], Toxic]] = {
    plan.Refuse: lambda fault: Refuse(),
    plan.Blackhole: lambda fault: Blackhole(),
    plan.Hang: lambda fault: Hang().on(_STREAMS[fault.direction]),
    plan.Silent: lambda fault: Silent(),
    plan.Latency: lambda fault: Latency(fault.seconds, fault.jitter, fault.random()),
    plan.Drip: lambda fault: Sliced(fault.size, 0, fault.every, fault.random()),
    plan.Bandwidth: lambda fault: Bandwidth(fault.rate),
    plan.Reset: lambda fault: Reset(fault.after),
    plan.Cut: lambda fault: Cut(fault.after),
    plan.Corrupt: lambda fault: Corrupt(fault.rate, fault.payload, fault.random()),
    plan.Flap: lambda fault: Flap(fault.down, fault.up),
    plan.FailFirst: lambda fault: FailFirst(fault.count),
    plan.ErrorRate: lambda fault: ErrorRate(fault.rate, fault.random()),
}


def check(fault: plan.Fault) -> None:
    """ValueError if no relay can make it."""
    if type(fault) not in MAKES:
        raise ValueError(f"{fault.name} can't be made on the wire by a relay")


def for_fault(fault: plan.Fault) -> Toxic:
    """A new toxic that makes this fault; ValueError if there is none."""
    check(fault)
    return MAKES[type(fault)](fault)


__all__ = [
    "BOTH",
    "DOWN",
    "MAKES",
    "UP",
    "Bandwidth",
    "Blackhole",
    "Corrupt",
    "Cut",
    "ErrorRate",
    "FailFirst",
    "Flap",
    "Hang",
    "Latency",
    "Refuse",
    "Reset",
    "ResetPeer",
    "Silent",
    "Sliced",
    "SlowClose",
    "Timeout",
    "Toxic",
    "check",
    "for_fault",
]
