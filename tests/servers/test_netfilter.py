"""Netfilter: whom a fault meets, the traps, and that nothing stays behind, whoever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.memcached import Memcached, binary
from tests.servers.prober import SET, Prober
from timedblock import faults
from timedblock.faults import undoing
from timedblock.faults.injector import CannotInject
from timedblock.faults.netfilter import (
    HostTables,
    Netfilter,
    Node,
    PacketLink,
    names,
    network,
    sweep,
    why_not,
)
from timedblock.testing.memcached import EmbeddedMemcached

pytestmark = [pytest.mark.server, pytest.mark.wall]

HANGS = 0.7
# A reaper looks each 0.2 s; ending a namespace's processes and deleting it takes a second or two.
GONE_WITHIN = 15.0
PORT = 11211
IP = undoing.found("ip") or "ip"


@pytest.fixture(autouse=True, scope="module")
def _possible() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no netfilter: {reason}")


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, int]]:
    """An embedded server that holds the prober's key."""
    with EmbeddedMemcached() as server:
        assert isinstance(server.address, tuple)
        _store(server.address)
        yield server.address


@pytest.fixture(scope="module")
def net(store: tuple[str, int]) -> Iterator[Netfilter]:
    """One network for the tests that don't end it."""
    with Netfilter(store) as made:
        yield made


def _store(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(SET)
        assert connection.recv(100) == b"STORED\r\n"


def _becomes(true: Callable[[], bool], what: str, within: float = GONE_WITHIN) -> None:
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, f"{what}: not within {within} s"
        time.sleep(0.02)


def _devices() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


# Whom it meets


def test_fault_meets_one_client(net: Netfilter) -> None:
    """While one client's packets vanish, another is served."""
    one, other = net.listen(), net.listen()
    with Prober(one.address, one.prefix) as faulted, Prober(other.address, other.prefix) as spared:
        assert faulted.fresh().what == spared.fresh().what == "right"
        one.inject(faults.Blackhole())
        assert faulted.open(HANGS).what == "silent"
        assert spared.open().what == spared.fresh().what == "right"
        one.clear()
        assert faulted.rest().what == "right"


@pytest.fixture(scope="module")
def nodes(net: Netfilter) -> Iterator[list[Node]]:
    """Three nodes, each with a memcached in it, that holds the prober's key."""
    if binary() is None:
        pytest.skip("no memcached here to run in a namespace: install it")
    with contextlib.ExitStack() as stack:
        made = [net.node(name) for name in ("a", "b", "c")]
        for node in made:
            server = Memcached(("0.0.0.0", PORT), prefix=node.prefix, reachable=(node.host, PORT))
            stack.enter_context(server)
            _store((node.host, PORT))
        yield made


def _hears(one: Node, other: Node) -> bool:
    with Prober((other.host, PORT), one.prefix) as prober:
        return prober.fresh(HANGS).what == "right"


def test_partition_parts_two_nodes_and_no_third(net: Netfilter, nodes: list[Node]) -> None:
    """Neither of the two hears the other, both hear the third, and after the end each other."""
    a, b, c = nodes
    link = net.between(a, b)
    link.inject(faults.Partition())
    assert not _hears(a, b)
    assert not _hears(b, a)
    assert _hears(a, c) and _hears(c, a) and _hears(b, c) and _hears(c, b)
    link.clear()
    assert _hears(a, b) and _hears(b, a)


def test_fault_between_nodes_may_be_one_ways(net: Netfilter, nodes: list[Node]) -> None:
    """With a port it is the clients of one node that are refused at the other, not the reverse."""
    a, b, _ = nodes
    link = net.between(a, b, port=PORT)
    assert link.address == (b.host, PORT) and link.prefix == a.prefix
    link.inject(faults.Refuse())
    assert not _hears(a, b)
    assert _hears(b, a)
    link.clear()
    assert _hears(a, b)


def test_fault_of_a_peer_meets_all_its_clients(net: Netfilter, nodes: list[Node]) -> None:
    """Towards one node nobody comes through; the others are reached by it too."""
    a, b, c = nodes
    link = net.towards(b, port=PORT)
    link.inject(faults.Blackhole())
    assert not _hears(a, b) and not _hears(c, b)
    with pytest.raises(TimeoutError):  # the host is a client as well
        socket.create_connection((b.host, PORT), timeout=HANGS)
    assert _hears(b, a)
    link.clear()
    assert _hears(a, b) and _hears(c, b)


@pytest.mark.parametrize("fault", [faults.DnsFail(), faults.Partition()], ids=str)
def test_what_needs_a_client_says_so(net: Netfilter, fault: faults.Fault) -> None:
    """A fault of one client's names, or of two nodes, isn't made for everybody by mistake."""
    link = net.towards(net.node("lone" + fault.name[:3]))
    with pytest.raises(ValueError, match="one"):
        link.inject(fault)


# The traps


def test_first_request_after_the_fault_hangs_already(net: Netfilter) -> None:
    """Connection tracking is on before any client connects: ESTABLISHED knows an open one."""
    link = net.listen()
    with Prober(link.address, link.prefix) as prober:
        assert prober.fresh().what == "right"
        link.inject(faults.Hang("up"))
        assert prober.open(HANGS).what == "silent"
        link.clear()


def test_icmp_refuses_as_often_as_it_is_asked(net: Netfilter) -> None:
    """The kernel's limit of ICMP errors is off: the thirtieth connect is refused like the first."""
    link = net.listen()
    with Prober(link.address, link.prefix) as prober:
        link.inject(faults.Refuse(icmp=True))
        assert {prober.fresh(HANGS).what for _ in range(30)} == {"refused"}
        link.clear()


def test_names_of_others_go_to_the_name_server(store: tuple[str, int]) -> None:
    """A question that isn't about the store is answered by the server that was named."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        with Netfilter(store, nameserver=server.getsockname()) as made:
            link = made.listen()
            code = "import socket; print(socket.getaddrinfo('other.test', 1, socket.AF_INET))"
            asker = subprocess.Popen(
                [*link.prefix, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
            )
            question, client = server.recvfrom(4096)
            assert b"\x05other\x04test\0" in question
            reply = question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:28]
            server.sendto(reply + b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x0a\1\2\3", client)
            told, _ = asker.communicate(timeout=20)
    assert "10.1.2.3" in told


def _resolves(link: PacketLink, name: str) -> str:
    code = f"import socket; print(socket.gethostbyname({name!r}))"
    command = [*link.prefix, sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_without_a_name_server_the_store_has_its_name(
    store: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host that resolves nothing other names fail at once; garbage is no question."""
    monkeypatch.setattr(names, "host_nameserver", lambda: None)
    with Netfilter(store) as made:
        link = made.listen()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"?", (link.address[0], names.PORT))
        assert link.name is not None
        assert _resolves(link, link.name) == link.address[0]
        assert "gaierror" in _resolves(link, "other.test")


def test_flap_of_a_network_that_is_gone_is_told(
    store: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that takes the rules away and puts them back ends with a warning."""
    with Netfilter(store) as made:
        link = made.listen()
        link.inject(faults.Flap(down=0.05, up=0.05))
        assert made._network is not None
        undoing.do_all([undoing.to_remove_namespace(made._network._router)])
        _becomes(lambda: any("flap" in one for one in caplog.messages), "it is told")


# Nothing stays behind


def _names(pid: int) -> list[str]:
    return [name for name in undoing.namespaces() if name.startswith(f"timedblock-{pid}-")]


def _nothing_of(pid: int) -> bool:
    files = undoing.NETNS_FILES
    left = [one.name for one in files.iterdir()] if files.exists() else []
    return not (
        _names(pid)
        or any(name.startswith(f"tb{pid}.") for name in _devices())
        or any(name.startswith(f"timedblock-{pid}-") for name in left)
    )


SLEEPER = textwrap.dedent(
    """
    import subprocess, sys, time
    from timedblock import faults
    from timedblock.faults.netfilter import Netfilter
    with Netfilter(("127.0.0.1", 1)) as net:
        link = net.listen()
        link.inject(faults.Blackhole())
        stubborn = "trap '' TERM; echo on; while :; do sleep 1; done"
        inside = subprocess.Popen([*link.prefix, "sh", "-c", stubborn], stdout=subprocess.PIPE)
        inside.stdout.readline()
        print(inside.pid, net._reaper.pid, flush=True)
        time.sleep(600)
    """
)


@contextlib.contextmanager
def _process(code: str, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-c"])
def test_all_is_gone_when_the_process_is_killed(number: signal.Signals) -> None:
    """Namespaces, devices, files and what ran in them are gone seconds after the process."""
    with _process(SLEEPER) as process:
        assert process.stdout is not None
        inside, reaper = map(int, process.stdout.readline().split())
        assert len(_names(process.pid)) == 2 and not _ended(inside)
        process.send_signal(number)
        process.wait(20)
        _becomes(lambda: _nothing_of(process.pid), "the network is gone")
        _becomes(lambda: _ended(inside) and _ended(reaper), "what ran in it has ended")


def test_all_is_gone_when_the_reaper_is_killed() -> None:
    """Without its reaper a network makes no fault any more, and is taken away all the same."""
    before = set(_names(os.getpid()))
    with Netfilter(("127.0.0.1", 1)) as made:
        link = made.listen()
        link.inject(faults.Refuse())
        assert made._reaper is not None
        os.kill(made._reaper.pid, signal.SIGKILL)
        link.clear()
        with pytest.raises(RuntimeError, match="the reaper is gone"):
            link.inject(faults.Refuse())
        assert set(_names(os.getpid())) > before
    assert set(_names(os.getpid())) == before


def test_what_both_left_is_swept() -> None:
    """Process and reaper killed at once: the next network, or `sweep`, removes what they left."""
    with _process(SLEEPER) as process:
        assert process.stdout is not None
        inside, reaper = map(int, process.stdout.readline().split())
        os.kill(reaper, signal.SIGKILL)
        process.kill()
        process.wait(20)
        left = _names(process.pid)
        assert len(left) == 2
        assert set(left) <= set(sweep())
    _becomes(lambda: _nothing_of(process.pid), "the network is gone")
    _becomes(lambda: _ended(inside), "what ran in it has ended")


def test_reaper_is_not_the_terminals() -> None:
    """It has a session of its own: a Ctrl-C that ends us is not sent to it."""
    with Netfilter() as made:
        assert made._reaper is not None
        assert os.getsid(made._reaper.pid) == made._reaper.pid != os.getsid(0)


def test_use_outside_the_block_is_an_error() -> None:
    """A link is made of a network that is there, and to an upstream that was given."""
    made = Netfilter()
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        made.node("a")
    with made:
        with pytest.raises(ValueError, match="upstream is needed"):
            made.listen()
        made.node("a")
        for bad in ("a", "with space", "", "x" * 17):
            with pytest.raises(ValueError, match="node"):
                made.node(bad)


# The host's own tables


@pytest.fixture
def lone_host() -> Iterator[tuple[str, ...]]:
    """A namespace that stands for a host, so that no test touches this one's tables."""
    name = f"tbhost-{os.getpid()}"
    undoing.run(IP, "netns", "add", name)
    prefix = (IP, "netns", "exec", name)
    undoing.run(*prefix, IP, "link", "set", "lo", "up")
    undoing.run(*prefix, "iptables", "-A", "INPUT", "-s", "192.0.2.1", "-j", "DROP")
    try:
        yield prefix
    finally:
        undoing.do_all([undoing.to_remove_namespace(name)])


def test_taken_port_of_names_is_told(lone_host: tuple[str, ...]) -> None:
    """Somebody else answers names on every address of the host: a warning, and all else works."""
    code = textwrap.dedent(
        f"""
        import socket
        from timedblock.faults.netfilter import Netfilter
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        other.bind(("0.0.0.0", {names.PORT}))
        with Netfilter(("127.0.0.1", 1)) as net:
            print(net.listen().address[0])
        """
    )
    command = [*lone_host, sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "names don't resolve in the namespaces" in done.stderr
    assert done.stdout.startswith("10.213."), done.stderr


HOST_TABLES = textwrap.dedent(
    """
    import socket, sys, time
    from timedblock import faults
    from timedblock.faults.netfilter import HostTables
    server = socket.create_server(("127.0.0.1", 0))
    with HostTables(("localhost", server.getsockname()[1])) as tables:
        link = tables.listen()
        link.inject(faults.Refuse())
        try:
            socket.create_connection(link.address, timeout=5)
            print("served", flush=True)
        except ConnectionRefusedError:
            print("refused", flush=True)
        if sys.argv[1:] == ["wait"]:
            time.sleep(600)
        link.clear()
        socket.create_connection(link.address, timeout=5).close()
        link.inject(faults.Flap(down=0.01, up=0.01))
    time.sleep(0.1)
    print("over", flush=True)
    """
)


def _tables(prefix: tuple[str, ...]) -> str:
    return undoing.run(*prefix, "iptables", "-S")


def test_host_tables_are_as_before(lone_host: tuple[str, ...]) -> None:
    """The fault happens on the host, the host's own rule stays, and ours are gone at the end."""
    before = _tables(lone_host)
    assert "192.0.2.1" in before
    with _process(HOST_TABLES, *lone_host) as process:
        told, _ = process.communicate(timeout=60)
    assert told.split() == ["refused", "over"]
    assert _tables(lone_host) == before


def test_host_tables_are_as_before_after_kill_9(lone_host: tuple[str, ...]) -> None:
    """The reaper takes our rules away when their maker was killed."""
    before = _tables(lone_host)
    command = [*lone_host, sys.executable, "-c", HOST_TABLES, "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "refused\n"
        assert _tables(lone_host) != before
        process.kill()
    _becomes(lambda: _tables(lone_host) == before, "our rules are gone")


def test_host_tables_reach_a_store_elsewhere(net: Netfilter, nodes: list[Node]) -> None:
    """A store on another machine is faulted on the way out and back, for all of this host."""
    a, b, _ = nodes
    code = textwrap.dedent(
        f"""
        import socket
        from timedblock import faults
        from timedblock.faults.netfilter import HostTables
        def ask():
            with socket.create_connection(({b.host!r}, {PORT}), timeout=5) as one:
                one.settimeout({HANGS})
                one.sendall(b"version\\r\\n")
                return one.recv(7).decode()
        with HostTables(({b.host!r}, {PORT})) as tables:
            link = tables.listen()
            print(ask())
            link.inject(faults.Hang("down"))
            try:
                print(ask())
            except TimeoutError:
                print("hang")
            link.clear()
            print(ask())
        """
    )
    before = _tables(a.prefix)
    with _process(code, *a.prefix) as process:
        told, _ = process.communicate(timeout=60)
    assert told.split() == ["VERSION", "hang", "VERSION"]
    assert _tables(a.prefix) == before


def test_host_tables_outside_the_block_are_an_error() -> None:
    """Nothing is made before the block begins."""
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        HostTables(("127.0.0.1", 1)).listen()


# Where it can't be


@pytest.mark.parametrize("kind", [Netfilter, HostTables])
def test_other_systems_are_told(kind: type[Netfilter], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not Linux: one message, and what to use instead."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CannotInject, match=r"needs Linux, and this is darwin.*'proxy'"):
        kind(("127.0.0.1", 1)).__enter__()


def test_missing_program_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """iptables isn't installed: its name is in the message."""
    there = undoing.found
    monkeypatch.setattr(network, "found", lambda tool: None if tool == "iptables" else there(tool))
    with pytest.raises(CannotInject, match=r"the program iptables, which isn't installed.*'proxy'"):
        Netfilter().__enter__()


def test_refusing_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container without the right to make namespaces: what failed, what to use, nothing left."""
    monkeypatch.setattr(network, "_SETTINGS", ("ipv4/no_such_setting=1",))
    with pytest.raises(CannotInject, match=r"no_such_setting.*'proxy'"):
        Netfilter().__enter__()


def test_host_without_a_free_net_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every net that we would use has a route already."""
    monkeypatch.setattr(network, "_NETS", 0)
    with pytest.raises(CannotInject, match=r"10\.213\.0\.0/24 .* is taken"):
        Netfilter().__enter__()


def test_full_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network has as many nodes as addresses."""
    monkeypatch.setattr(network, "_LAST_NODE", network._FIRST_NODE)
    with Netfilter() as made:
        node = made.node("a")
        assert repr(node) == f"<Node a at {node.host}>"
        with pytest.raises(ValueError, match="at most 1 nodes"):
            made.node("b")


def test_what_cannot_be_swept_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A dead process's namespace that stays is a warning, and in nobody's way."""

    def refuse(steps: object) -> None:
        raise RuntimeError("it is busy")

    monkeypatch.setattr(undoing, "namespaces", lambda: [f"timedblock-{1 << 22}-1-router", "other"])
    monkeypatch.setattr(undoing, "do_all", refuse)
    assert sweep() == []
    assert "it is busy" in caplog.text
