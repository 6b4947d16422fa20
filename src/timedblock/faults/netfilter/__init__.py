"""Faults by packet rules, in network namespaces made for it: the kernel's own behaviour (L3).

Linux, root, and the programs ip and iptables::

    with Netfilter(upstream=("127.0.0.1", 11211)) as network:
        link = network.listen()                 # a namespace of its own for one client
        client = subprocess.Popen([*link.prefix, "my-client", *map(str, link.address)])
        link.inject(Blackhole(duration=10))     # of this client alone

    with Netfilter() as network:
        one, two, three = (network.node(name) for name in ("one", "two", "three"))
        ...                                     # start a server in each, by node.prefix
        network.between(one, three).inject(Partition(duration=30))

The tables of the host are never touched, but by `HostTables`, which does nothing else. What is made
is gone when the ``with`` block ends, and also when this process is killed: see `reaper`.
"""

from __future__ import annotations

from .host import HostTables
from .links import Netfilter, PacketLink
from .network import Node, sweep, why_not

__all__ = ["HostTables", "Netfilter", "Node", "PacketLink", "sweep", "why_not"]
