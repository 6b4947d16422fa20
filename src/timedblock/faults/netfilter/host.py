"""`HostTables`: faults in the iptables of this host. For those who insist."""

from __future__ import annotations

import itertools
import os
import socket
from typing import TYPE_CHECKING

from .. import undoing
from ..reaper import Reaper
from . import network
from .links import CHAIN, PacketLink
from .network import Tables
from .rules import TRACK, Way

if TYPE_CHECKING:
    from types import TracebackType

_TOOLS = ("iptables", "iptables-restore")
_NUMBERS = itertools.count(1)


class HostTables:
    """Faults between **every** client on this host and one store, in the host's own tables.

    They hit whoever uses the store from here, not a client alone; prefer `Netfilter`. Only a
    chain of our own is made, and removed at the end; other rules stay as they are, and settings
    too: a REJECT with icmp becomes a DROP after about six replies, if the host limits them.
    Connections that were made before `listen` may pass one packet more.

    Args:
        upstream: the store, (host, port). Its first IPv4 address is meant.

    Raises:
        CannotInject: at entry, where there is no root, Linux or iptables.
        OSError: at entry, when the name has no IPv4 address.
    """

    name = "netfilter"

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._server = ""
        self._reaper: Reaper | None = None
        self._tables = Tables(())

    def __enter__(self) -> HostTables:
        network.check(_TOOLS)
        self._server = str(socket.getaddrinfo(*self._upstream, family=socket.AF_INET)[0][4][0])
        self._reaper = Reaper()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.stop()

    def listen(self) -> PacketLink:
        """The way from this host to the store: every client's."""
        if self._reaper is None:
            raise RuntimeError("HostTables makes links inside its `with` block only")
        chain = f"{CHAIN}-{os.getpid()}-{next(_NUMBERS)}"
        port = self._upstream[1]
        way = Way(None, self._server, port)
        jumps = [("INPUT", "-j", chain), ("INPUT", *way.down.split(), *TRACK)]
        if not self._is_ours():  # a packet to ourselves meets INPUT too, and once is enough
            jumps.append(("OUTPUT", "-j", chain))
        tables = self._tables
        remove = [tables.command("-D", *jump) for jump in jumps]
        remove += [tables.command(what, chain) for what in ("-F", "-X")]
        self._reaper.hold(*(undoing.to_run(*command, may_fail=True) for command in remove))
        with network.told():
            tables.fill(chain, [])
            for jump in jumps:
                tables.change("-I", *jump)
        return PacketLink(self._reaper, tables, chain, way, address=(self._server, port))

    def _is_ours(self) -> bool:
        """Whether the store runs on this host: then its address can be bound."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((self._server, 0))
            except OSError:
                return False
        return True
