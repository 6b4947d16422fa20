"""Which injector can make which fault: one table, read by the injectors, the command line, the
tests and the docs (L2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .plan import Fault

#: Where faults are made: at our own sockets, in a TCP proxy, by packet rules, by signals.
INJECTORS: tuple[str, ...] = ("inprocess", "proxy", "netfilter", "process")

#: Fault → injector → how it makes it. A pair that isn't here can't be made.
HOW: Mapping[str, Mapping[str, str]] = {
    "refuse": {
        "inprocess": "connects raise, open connections are reset",
        "proxy": "nobody listens, open connections are reset",
        "netfilter": "REJECT --reject-with tcp-reset; REJECT with icmp=true",
    },
    "blackhole": {
        "inprocess": "connects end at their limit, bytes are swallowed",
        "proxy": "connects aren't answered, bytes are swallowed",
        "netfilter": "DROP of every packet, both ways",
    },
    "hang": {
        "inprocess": "bytes are held",
        "proxy": "bytes are held",
        "netfilter": "DROP of ESTABLISHED, one way or both",
    },
    "silent": {
        "inprocess": "bytes are held",
        "proxy": "nothing is accepted from the kernel or read",
    },
    "latency": {
        "inprocess": "replies wait",
        "proxy": "replies wait",
    },
    "drip": {
        "inprocess": "a few bytes at a time",
        "proxy": "a few bytes at a time",
    },
    "bandwidth": {
        "inprocess": "bytes a second",
        "proxy": "bytes a second",
    },
    "reset": {
        "inprocess": "at a request, or inside a reply",
        "proxy": "at a request, or inside a reply",
        "netfilter": "tcp-reset of what an open connection sends; after=0 only",
    },
    "cut": {
        "inprocess": "closed inside a reply",
        "proxy": "closed inside a reply",
    },
    "corrupt": {
        "inprocess": "bits of a reply are flipped",
        "proxy": "bits of a reply are flipped",
    },
    "dns-fail": {
        "inprocess": "look-ups fail",
        "netfilter": "REJECT of port 53",
    },
    "dns-hang": {
        "inprocess": "look-ups end at their limit",
        "netfilter": "DROP of port 53",
    },
    "pause": {"process": "SIGSTOP, and SIGCONT at the end"},
    "kill": {"process": "SIGKILL, and the start command at the end"},
    "partition": {"netfilter": "DROP of every packet between two nodes"},
    "flap": {
        "inprocess": "refuse, on and off",
        "proxy": "refuse, on and off",
        "netfilter": "tcp-reset, on and off",
    },
    "fail-first": {
        "inprocess": "the first requests are reset",
        "proxy": "the first requests are reset",
    },
    "error-rate": {
        "inprocess": "a share of the requests is reset",
        "proxy": "a share of the requests is reset",
    },
}


def injectors_of(fault: str) -> tuple[str, ...]:
    """The injectors that make a fault, by its name. ValueError lists the known faults."""
    if fault not in HOW:
        raise ValueError(f"unknown fault {fault!r}; known: {', '.join(HOW)}")
    return tuple(one for one in INJECTORS if one in HOW[fault])


def faults_of(injector: str) -> tuple[str, ...]:
    """The names of the faults that an injector makes. ValueError lists the known injectors."""
    if injector not in INJECTORS:
        raise ValueError(f"unknown injector {injector!r}; known: {', '.join(INJECTORS)}")
    return tuple(name for name in HOW if injector in HOW[name])


def pairs() -> tuple[tuple[str, str], ...]:
    """Every (fault, injector) that can be made."""
    return tuple((fault, injector) for fault in HOW for injector in injectors_of(fault))


def check(injector: str, fault: Fault) -> None:
    """Refuse a pair that isn't in the table, and values that the injector can't make.

    Raises:
        TypeError: `fault` isn't a Fault.
        ValueError: the injector can't make it; the message says which can.
    """
    if not isinstance(fault, plan.Fault):
        raise TypeError(f"fault must be a Fault such as Hang(), not {fault!r}")
    if fault.name not in faults_of(injector):
        able = ", ".join(injectors_of(fault.name))
        raise ValueError(f"{injector} can't make {fault.name!r}; it can be made by: {able}")
    if isinstance(fault, plan.Refuse) and fault.icmp and injector != "netfilter":
        raise ValueError(f"{injector} can't make 'refuse' with icmp=True; netfilter can")
    if isinstance(fault, plan.Reset) and fault.after and injector == "netfilter":
        raise ValueError("netfilter counts no bytes: 'reset' with after=0 only")


def parse(injector: str, text: str, *, default_duration: float | None = None) -> Fault:
    """`plan.parse`, and `check`: a fault in text that this injector can make.

    ValueError names the bad part."""
    fault = plan.parse(text, default_duration=default_duration)
    check(injector, fault)
    return fault
