"""`Netfilter`: links and nodes in a network of its own, and the faults between them."""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import TYPE_CHECKING

from .. import undoing, vocabulary
from ..proxy import Relay
from ..reaper import Reaper
from . import network
from .rules import Way, rules

if TYPE_CHECKING:
    from types import TracebackType

    from ..plan import Fault
    from .network import Network, Node, Tables

#: The name of a chain of ours: a number follows. At most 28 characters.
CHAIN = "timedblock"


class PacketLink:
    """Packets between a client and a server, with one fault at a time. Thread-safe."""

    def __init__(
        self,
        reaper: Reaper,
        tables: Tables,
        chain: str,
        way: Way,
        *,
        address: tuple[str, int] = ("", 0),
        prefix: tuple[str, ...] = (),
    ) -> None:
        #: Where a client connects to; ("", 0) if the link isn't a client's.
        self.address = address
        #: What to put before the client's command.
        self.prefix = prefix
        self._reaper = reaper
        self._tables = tables
        self._chain = chain
        self._way = way
        self._key: str | None = None
        self._lock = threading.Lock()

    def inject(self, fault: Fault) -> None:
        """See `injector.Link.inject`. The rules of the fault before are replaced in one step."""
        vocabulary.check("netfilter", fault)
        wanted = rules(fault, self._way)
        with self._lock:
            self._clear()
            # Emptying a chain that is gone fails: then its namespace is, and the rules with it.
            empty = undoing.to_run(*self._tables.command("-F", self._chain), may_fail=True)
            self._key = self._reaper.hold(empty)
            self._tables.fill(self._chain, wanted)
            if fault.duration is not None:
                self._reaper.release_after(self._key, fault.duration)

    def clear(self) -> None:
        """See `injector.Link.clear`."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        key, self._key = self._key, None
        if key is not None:
            self._reaper.release(key)


class Netfilter:
    """Makes namespaces and faults between them, for the time of a ``with`` block.

    Args:
        upstream: the store that `listen` leads to: (host, port), as this host reaches it, or the
            path of a UNIX socket. Not needed for nodes.

    Raises:
        CannotInject: at entry, where there is no root, Linux or iptables.
    """

    name = "netfilter"

    def __init__(self, upstream: tuple[str, int] | str | None = None) -> None:
        self._upstream = upstream
        self._entered = contextlib.ExitStack()
        self._chains = itertools.count(1)
        self._clients = itertools.count(1)
        self._reaper: Reaper | None = None
        self._network: Network | None = None
        self._relay: Relay | None = None

    def __enter__(self) -> Netfilter:
        network.check()
        with contextlib.ExitStack() as undo, network.told():
            network.sweep()
            self._reaper = Reaper()
            undo.callback(self._reaper.stop)
            self._network = network.Network(self._reaper)
            self._entered = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._relay = self._network = None
        self._entered.close()

    def listen(self) -> PacketLink:
        """A namespace for one client: run it by ``prefix``, and let it connect to ``address``.

        ValueError if there is no upstream."""
        if self._upstream is None:
            raise ValueError("upstream is needed: give it to Netfilter")
        made = self._here()
        node = made.node(f"client{next(self._clients)}")
        if self._relay is None:
            self._relay = self._entered.enter_context(Relay(self._upstream))
        way = self._relay.listen(made.host)
        return self._link(
            Way(node.host, made.host, way.address[1]), address=way.address, prefix=node.prefix
        )

    def node(self, name: str) -> Node:
        """A namespace for a server or a client of yours. ValueError for a bad or a taken name."""
        return self._here().node(name)

    def between(self, one: Node, other: Node, *, port: int | None = None) -> PacketLink:
        """The packets between two nodes; with a `port` only TCP from `one` to that of `other`."""
        address = (other.host, port or 0)
        way = Way(one.host, other.host, port)
        return self._link(way, address=address, prefix=one.prefix)

    def towards(self, server: Node, *, port: int | None = None) -> PacketLink:
        """The packets between a node and everybody else."""
        return self._link(Way(None, server.host, port), address=(server.host, port or 0))

    def _link(
        self, way: Way, *, address: tuple[str, int], prefix: tuple[str, ...] = ()
    ) -> PacketLink:
        tables = self._here().tables
        assert self._reaper is not None
        chain = f"{CHAIN}{next(self._chains)}"
        tables.fill(chain, [])
        tables.change("-A", "FORWARD", "-j", chain)
        return PacketLink(self._reaper, tables, chain, way, address=address, prefix=prefix)

    def _here(self) -> Network:
        if self._network is None:
            raise RuntimeError("netfilter makes links and nodes inside its `with` block only")
        return self._network
