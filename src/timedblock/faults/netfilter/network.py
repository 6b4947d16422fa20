"""A network of our own: namespaces around a router, where packets can be dropped and rejected.

Each node is a namespace with one address; all their packets pass the router, a namespace too, whose
FORWARD chain holds the rules. So any node, or any pair, can be faulted without touching the tables
of the host, which is a neighbour of the router like every node. Everything is promised to the
reaper before it is made.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from typing import TYPE_CHECKING

from .. import undoing
from ..injector import CannotInject
from ..undoing import found, run
from .rules import TRACK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..reaper import Reaper

#: Networks 10.213.0.0/24 to 10.213.249.0/24 are ours to use, if nobody else does.
_NETS = 250
_HOST, _FIRST_NODE, _LAST_NODE, _ROUTER = 1, 2, 250, 254
#: Nothing leaves the namespaces over IPv6, and REJECT goes on past six a second.
_SETTINGS = (
    "net.ipv4.ip_forward=1",
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv4.conf.all.rp_filter=0",
)
_NAME = re.compile(r"timedblock-(\d+)-\d+-\w+")
_NUMBERS = itertools.count(1)
_NODE_NAME = re.compile(r"[a-z0-9]{1,16}", re.IGNORECASE)
TOOLS = ("ip", "iptables", "iptables-restore", "sysctl")


def why_not(tools: tuple[str, ...] = TOOLS) -> str | None:
    """Why netfilter can't be used here, or None."""
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, and this is {sys.platform}"
    if os.geteuid() != 0:
        return f"it needs root, and this process has uid {os.geteuid()}"
    for tool in tools:
        if found(tool) is None:
            return f"it needs the program {tool}, which isn't installed"
    return None


def check(tools: tuple[str, ...] = TOOLS) -> None:
    """CannotInject says why netfilter can't be used here, and what can."""
    reason = why_not(tools)
    if reason is not None:
        raise CannotInject(
            f"netfilter can't be used here: {reason}. "
            "The injector 'proxy' makes most faults without any right"
        )


def sweep() -> list[str]:
    """Remove the namespaces of processes that are dead, and so is their reaper; their names."""
    gone = []
    for name in undoing.namespaces():
        match = _NAME.fullmatch(name)
        if match and not undoing.alive(int(match[1])):
            undoing.do_all([undoing.to_remove_namespace(name)])
            gone.append(name)
    return gone


class Tables:
    """The iptables of one namespace, or of the host (`prefix` ()). One chain of ours a link."""

    def __init__(self, prefix: tuple[str, ...]) -> None:
        self._prefix = prefix

    def command(self, *arguments: str) -> tuple[str, ...]:
        """A call of iptables there."""
        return (*self._prefix, found("iptables") or "iptables", "-w", "10", *arguments)

    def change(self, *arguments: str) -> None:
        """Call iptables. RuntimeError if it fails."""
        run(*self.command(*arguments))

    def fill(self, chain: str, rules: list[str]) -> None:
        """Make these the rules of a chain, all at once."""
        lines = ["*filter", f":{chain} - [0:0]", *(f"-A {chain} {rule}" for rule in rules)]
        restore = found("iptables-restore") or "iptables-restore"
        run(*self._prefix, restore, "-w", "10", "--noflush", text="\n".join([*lines, "COMMIT\n"]))


class Node:
    """A namespace with an address. Run a client or a server in it by `prefix`."""

    def __init__(self, name: str, host: str, namespace: str) -> None:
        self.name = name
        #: Its address, an IPv4 number.
        self.host = host
        self.namespace = namespace
        #: What to put before a command that is to run there.
        self.prefix: tuple[str, ...] = _inside(namespace)

    def __repr__(self) -> str:
        return f"<Node {self.name} at {self.host}>"


def _inside(namespace: str) -> tuple[str, ...]:
    return (found("ip") or "ip", "netns", "exec", namespace)


class Network:
    """The router, and the host's own leg to it. Made at once; the reaper takes it away."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._ip = found("ip") or "ip"
        number = next(_NUMBERS)
        self._stem = f"timedblock-{os.getpid()}-{number}"
        self._leg = f"tb{os.getpid()}.{number}"  # at most 15 characters: a device's name
        self._hosts = itertools.count(_FIRST_NODE)
        self._router = self._namespace("router")
        self.tables = Tables(_inside(self._router))
        for setting in _SETTINGS:
            run(*_inside(self._router), found("sysctl") or "sysctl", "-q", "-w", setting)
        self._net = self._connect_host()
        self.tables.change("-I", "FORWARD", *TRACK)

    @property
    def host(self) -> str:
        """The address of the host, as the nodes see it."""
        return f"{self._net}.{_HOST}"

    def node(self, name: str) -> Node:
        """A new namespace behind the router. ValueError for a bad or a taken name."""
        if not _NODE_NAME.fullmatch(name):
            raise ValueError(f"a node's name is 1 to 16 letters and digits, not {name!r}")
        number = next(self._hosts)
        if number > _LAST_NODE:
            raise ValueError(f"a network has at most {_LAST_NODE - _FIRST_NODE + 1} nodes")
        namespace = self._namespace(name)
        node = Node(name, f"{self._net}.{number}", namespace)
        self._cable(node, number)
        return node

    def _namespace(self, name: str) -> str:
        full = f"{self._stem}-{name}"
        if full in undoing.namespaces():
            raise ValueError(f"there is a node {name!r} already")
        self._reaper.hold(undoing.to_remove_namespace(full))
        run(self._ip, "netns", "add", full)
        self._batch("link set lo up", namespace=full)
        return full

    def _cable(self, node: Node, number: int) -> None:
        router = f"{self._net}.{_ROUTER}"
        self._batch(f"link add eth0 type veth peer name node{number} netns {self._router}",
                    f"addr add {node.host} peer {router} dev eth0",
                    "link set eth0 up",
                    f"route add default via {router}", namespace=node.namespace)  # fmt: skip
        self._batch(f"addr add {router} peer {node.host} dev node{number}",
                    f"link set node{number} up", namespace=self._router)  # fmt: skip

    def _connect_host(self) -> str:
        """A pair of devices, and a net that nothing here has a route to; its first numbers."""
        self._batch(f"link add {self._leg} type veth peer name host netns {self._router}",
                    f"link set {self._leg} up")  # fmt: skip
        net = self._free_net()
        own, router = f"{net}.{_HOST}", f"{net}.{_ROUTER}"
        self._batch(f"addr add {router} peer {own} dev host", "link set host up",
                    namespace=self._router)  # fmt: skip
        return net

    def _free_net(self) -> str:
        """Takes the first net whose route can be added: two processes never have the same."""
        for offset in range(_NETS):
            net = f"10.213.{(os.getpid() + offset) % _NETS}"
            if run(self._ip, "-4", "route", "show", "root", f"{net}.0/24").strip():
                continue
            with contextlib.suppress(RuntimeError):
                self._batch(f"addr add {net}.{_HOST} peer {net}.{_ROUTER} dev {self._leg}",
                            f"route add {net}.0/24 via {net}.{_ROUTER}")  # fmt: skip
                return net
            run(self._ip, "addr", "flush", "dev", self._leg)
        raise RuntimeError("every net from 10.213.0.0/24 to 10.213.249.0/24 is taken")

    def _batch(self, *lines: str, namespace: str | None = None) -> None:
        where = ("-n", namespace) if namespace else ()
        run(self._ip, *where, "-batch", "-", text="\n".join(lines) + "\n")


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Where the kernel or a tool refuses to make a network, CannotInject says so."""
    try:
        yield
    except RuntimeError as error:
        raise CannotInject(
            f"netfilter can't be used here: {error}. "
            "The injector 'proxy' makes most faults without any right"
        ) from error
