"""Faults on purpose: the vocabulary that every injector shares, and `inject`, which makes them at
our own sockets.

The relay that makes them on the wire is ``timedblock.faults.proxy.Relay``; it is not imported
here, because a process that only names faults needs none of it.
"""

from __future__ import annotations

from .inprocess import inject
from .plan import (
    FAULTS,
    Bandwidth,
    Blackhole,
    Corrupt,
    Cut,
    DnsFail,
    DnsHang,
    Drip,
    ErrorRate,
    FailFirst,
    Fault,
    Flap,
    Hang,
    Kill,
    Latency,
    Partition,
    Pause,
    Refuse,
    Reset,
    Silent,
    parse,
    parse_env,
)

__all__ = [
    "FAULTS",
    "Bandwidth",
    "Blackhole",
    "Corrupt",
    "Cut",
    "DnsFail",
    "DnsHang",
    "Drip",
    "ErrorRate",
    "FailFirst",
    "Fault",
    "Flap",
    "Hang",
    "Kill",
    "Latency",
    "Partition",
    "Pause",
    "Refuse",
    "Reset",
    "Silent",
    "inject",
    "parse",
    "parse_env",
]
