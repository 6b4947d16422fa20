"""Faults as iptables rules: the exact ones that a store's outage is simulated with by hand.

Two traps, which `network` and `host` take care of. A namespace tracks no connections until some
rule asks for their state, and one that was made before looks NEW: a rule about ESTABLISHED would
let its next packet through. And the kernel sends about six ICMP errors to an address before it
pauses, so that a REJECT soon is a DROP, unless ``net.ipv4.icmp_ratelimit`` is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..plan import Blackhole, DnsFail, DnsHang, Hang, Partition, Refuse, Reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..plan import Fault

#: The standing rule, without a target, that turns connection tracking on.
TRACK = ("-m", "state", "--state", "ESTABLISHED")
_ESTABLISHED = "-m state --state ESTABLISHED"
_RESET = "-j REJECT --reject-with tcp-reset"
_ICMP = "-j REJECT --reject-with icmp-port-unreachable"


@dataclass(frozen=True)
class Way:
    """Whose packets are meant: those from `client` to `server` and back; None is anybody.

    With a `port` only TCP to and from that port of the server."""

    client: str | None
    server: str | None
    port: int | None = None

    @property
    def up(self) -> str:
        """Matches packets to the server."""
        return self._match(self.client, self.server, "--dport")

    @property
    def down(self) -> str:
        """Matches packets from the server."""
        return self._match(self.server, self.client, "--sport")

    @property
    def any_tcp_up(self) -> str:
        """Matches TCP to the server: a reset can answer nothing else."""
        return self.up if self.port else f"{self.up} -p tcp".strip()

    @property
    def any_tcp_down(self) -> str:
        """Matches TCP from the server."""
        return self.down if self.port else f"{self.down} -p tcp".strip()

    def _match(self, source: str | None, target: str | None, side: str) -> str:
        parts = [f"-s {source}" if source else "", f"-d {target}" if target else ""]
        parts += [f"-p tcp {side} {self.port}" if self.port else ""]
        return " ".join(part for part in parts if part)


def _refuse(fault: Refuse, way: Way) -> list[str]:
    return [f"{way.up} {_ICMP}" if fault.icmp else f"{way.any_tcp_up} {_RESET}"]


def _drop(fault: Blackhole | Partition, way: Way) -> list[str]:
    return [f"{way.up} -j DROP", f"{way.down} -j DROP"]


def _hang(fault: Hang, way: Way) -> list[str]:
    up = f"{way.any_tcp_up} {_ESTABLISHED} -j DROP"
    # Of a new connection the server's SYN, ACK is ESTABLISHED already. It has to pass, or this
    # would be a blackhole.
    down = f"{way.any_tcp_down} ! --tcp-flags SYN SYN {_ESTABLISHED} -j DROP"
    return {"up": [up], "down": [down], "both": [up, down]}[fault.direction]


def _reset(fault: Reset, way: Way) -> list[str]:
    """The handshake passes, the first bytes of a request are answered by a reset."""
    return [f"{way.any_tcp_up} --tcp-flags PSH PSH {_ESTABLISHED} {_RESET}"]


def _names(fault: DnsFail | DnsHang, way: Way) -> list[str]:
    source = f"-s {way.client} " if way.client else ""
    target = _ICMP if isinstance(fault, DnsFail) else "-j DROP"
    return [f"{source}-p {protocol} --dport 53 {target}" for protocol in ("udp", "tcp")]


_RULES: dict[type[Fault], Callable[[Any, Way], list[str]]] = {
    Refuse: _refuse,
    Blackhole: _drop,
    Partition: _drop,
    Hang: _hang,
    Reset: _reset,
    DnsFail: _names,
    DnsHang: _names,
}


def rules(fault: Fault, way: Way) -> list[str]:
    """The rules of a fault, without the chain that they go to."""
    return _RULES[type(fault)](fault, way)
