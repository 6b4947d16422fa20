"""Three nodes of the real RabbitMQ, in network namespaces, and partitions between them (L5)."""

from __future__ import annotations

import collections
import contextlib
import itertools
import re
import secrets
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from ...faults.netfilter import Netfilter
from ...faults.netfilter import why_not as why_no_netfilter
from ...faults.plan import Blackhole, Hang
from ...faults.reaper import Reaper
from . import broker
from .broker import Server

if TYPE_CHECKING:
    from types import TracebackType

    from ...faults.netfilter import Node, PacketLink

PORT, BETWEEN, NAMES = 5672, 25672, 4369
_MODES = ("ignore", "pause_minority", "autoheal")
_RECOVERY_LIMIT = 60.0
_LOOK = 0.2
#: Seconds after which a node that hasn't come back by itself, or that others take for parted, is
#: started again.
_PATIENCE = 8.0

Handling = Literal["ignore", "pause_minority", "autoheal"]


class _State(NamedTuple):
    """What a node knows: how many nodes run, and from which ones it was parted."""

    running: int
    parted: frozenset[int]


_WELL = _State(3, frozenset())


class Cluster:
    """Three nodes, each with a network namespace to itself, for the time of a ``with`` block.

    Clients run outside, at `addresses`. A partition drops what passes the nodes' port for each
    other, 25672, so that clients reach every side of it.

    Args:
        partition_handling: RabbitMQ's ``cluster_partition_handling``.
        ticktime: Erlang's ``net_ticktime``, in seconds: a partition is seen after that time, give
            or take a quarter. RabbitMQ's default is 60.

    Raises:
        RuntimeError: at entry, where RabbitMQ isn't installed, or doesn't start; where there is no
            root, Linux or iptables (`timedblock.faults.injector.CannotInject`).
        ValueError: naming the bad value.
    """

    def __init__(self, *, partition_handling: Handling = "ignore", ticktime: int = 5) -> None:
        _check_mode(partition_handling)
        self._handling: Handling = partition_handling
        self._ticktime = ticktime
        self._servers: list[Server] = []
        self._links: dict[frozenset[int], list[PacketLink]] = {}
        self._entered = contextlib.ExitStack()

    @staticmethod
    def why_not() -> str | None:
        """Why there can be no cluster here, or None."""
        return broker.why_not() or why_no_netfilter()

    def __enter__(self) -> Cluster:
        broker.check()
        with contextlib.ExitStack() as undo:
            network = undo.enter_context(Netfilter())
            reaper = Reaper()
            undo.callback(reaper.stop)
            nodes = [network.node(f"rabbit{number}") for number in range(3)]
            for one, other in itertools.combinations(range(3), 2):
                ways = ((one, other), (other, one))
                self._links[frozenset((one, other))] = [
                    network.between(nodes[client], nodes[server], port=BETWEEN)
                    for client, server in ways
                ]
            cookie = secrets.token_hex(16)
            for node in nodes:
                server = self._server(reaper, node, cookie)
                undo.callback(server.end)
                self._servers.append(server)
            self._start()
            self._entered = undo.pop_all()
        return self

    def _server(self, reaper: Reaper, node: Node, cookie: str) -> Server:
        return Server(
            reaper,
            (node.host, PORT),
            stem="rabbit",
            cookie=cookie,
            ports=(BETWEEN, NAMES),
            prefix=node.prefix,
            config=f"cluster_partition_handling = {self._handling}\n",
            arguments=f"-kernel net_ticktime {self._ticktime}",
        )

    def _start(self) -> None:
        """All at once, and then one joins after the other. Left to discover each other they would
        wait for each other's locks, for up to eight seconds at a time."""
        for server in self._servers:
            server.begin()
        for server in self._servers:
            server.wait_until_up()
        first, *others = self._servers
        for server in others:
            server.evaluate(
                f"rabbit:stop(), ok = rabbit_mnesia:join_cluster('{first.name}', disc), "
                "rabbit:start()"
            )
        # A node whose start said "ok" was once found not running here, for a minute.
        self._await_recovery(_RECOVERY_LIMIT, mend=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._servers, self._links = [], {}
        self._entered.close()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where clients connect to, of each node."""
        return [server.address for server in self._servers]

    def node(self, number: int) -> Server:
        """The node of this number: 0, 1 or 2."""
        return self._servers[number]

    # -- faults -------------------------------------------------------------------------------

    def partition(self, number: int, how: Literal["full", "established"] = "full") -> None:
        """Part a node from the two others, until `heal`.

        ``full`` drops every packet of the port between nodes; ``established`` only those of
        connections that are established (``-m state --state ESTABLISHED -j DROP``): new ones
        seem to open, and then nothing comes."""
        fault = {"full": Blackhole(), "established": Hang("both")}[how]
        for pair, links in self._links.items():
            if number in pair:
                for link in links:
                    link.inject(fault)

    def heal(self) -> None:
        """Let every packet pass again."""
        for links in self._links.values():
            for link in links:
                link.clear()

    def kill(self, number: int) -> None:
        """SIGKILL to a node."""
        self.node(number).kill()

    def start(self, number: int) -> None:
        """Start a killed node again; returns once it answers."""
        self.node(number).start()

    # -- its state ----------------------------------------------------------------------------

    def set_partition_handling(self, mode: Handling) -> None:
        """Change ``cluster_partition_handling`` on every node that runs."""
        _check_mode(mode)
        for server in self._running():
            server.evaluate(f"application:set_env(rabbit, cluster_partition_handling, {mode})")
        self._handling = mode

    def leader(self, queue: str) -> int | None:
        """The node that leads a quorum queue, by what most nodes say; None: nobody knows."""
        expression = (
            "case rabbit_amqqueue:lookup("
            f'rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)) of '
            "{ok, Q} -> ra_leaderboard:lookup_leader(element(1, amqqueue:get_pid(Q))); "
            "_ -> undefined end"
        )
        votes: collections.Counter[int] = collections.Counter()
        for server in self._running():
            with contextlib.suppress(RuntimeError):
                told = server.evaluate(expression)
                votes.update(number for number, one in enumerate(self._servers) if one.name in told)
        return votes.most_common(1)[0][0] if votes else None

    def recovered(self, within: float = _RECOVERY_LIMIT) -> None:
        """Wait until every node runs, sees the others, and remembers no partition. RuntimeError
        if that takes too long."""
        self._await_recovery(within, mend=False)

    def rejoin(self, number: int) -> None:
        """Kill a node and start it again, so that it forgets a partition that it remembers, as
        with `ignore`. What only it has confirmed to classic queues is lost.

        Stopping and starting RabbitMQ within the process is quicker, but now and then it waits for
        ever: Erlang's locks don't always survive a partition."""
        self.kill(number)
        self.start(number)

    def restore(self, within: float = _RECOVERY_LIMIT) -> None:
        """Undo whatever was done: heal, start who was killed, let who was alone rejoin, and wait
        until the cluster has recovered. RuntimeError if that takes too long."""
        self.heal()
        dead = [server for server in self._servers if server not in self._running()]
        for server in dead:
            server.begin()
        for server in dead:
            server.wait_until_up()
        self._await_recovery(within, mend=True)

    def _await_recovery(self, within: float, *, mend: bool) -> None:
        began = time.monotonic()
        patient_until = [began + _PATIENCE] * len(self._servers)
        while (states := [self._state(server) for server in self._servers]) != [_WELL] * 3:
            now = time.monotonic()
            if now - began > within:
                down = [one for one, state in zip(self._servers, states, strict=True) if not state]
                words = [f"\n{one.name} said last: {one.last_words()}" for one in down]
                raise RuntimeError(
                    f"the cluster did not recover in {within:g} s: {states}{''.join(words)}"
                )
            # One node alone may remember a partition, for ever: when it was healed just as the node
            # behind it paused. It is forgotten when that node goes, not when it comes.
            remembered = frozenset[int]().union(*(state.parted for state in states if state))
            for number, state in enumerate(states):
                was_parted = state is not None and len(state.parted) > 1
                alone = state is None or state.running == 1
                stuck = now > patient_until[number] and (alone or number in remembered)
                if mend and (was_parted or stuck):
                    self.rejoin(number)
                    patient_until[number] = time.monotonic() + _PATIENCE
                    break
            time.sleep(_LOOK)

    def _running(self) -> list[Server]:
        running = []
        for server in self._servers:
            with contextlib.suppress(RuntimeError):
                if server.pid:
                    running.append(server)
        return running

    def _state(self, server: Server) -> _State | None:
        """None: RabbitMQ isn't up there; its process may be, if `pause_minority` paused it."""
        with contextlib.suppress(RuntimeError):
            told = server.evaluate(
                "{rabbit:is_running(), length(rabbit_mnesia:cluster_nodes(running)), "
                "rabbit_node_monitor:partitions()}"
            )
            match = re.fullmatch(r"\{true,(\d),(\[.*\])\}", told, re.DOTALL)
            if match:
                named = [f"'{one.name}'" in match[2] for one in self._servers]
                return _State(int(match[1]), frozenset(itertools.compress(range(3), named)))
        return None


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise ValueError(f"partition_handling must be one of {', '.join(_MODES)}, not {mode!r}")
