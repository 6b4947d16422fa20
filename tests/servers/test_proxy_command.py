"""``timedblock faults proxy``: what it says, what it refuses, how it ends, and our own faults
through its API."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pymemcache.client.base import Client

from tests.servers import toxiproxy as servers
from tests.servers.toxiproxy import Running
from timedblock import cli, faults
from timedblock.testing.memcached import EmbeddedMemcached

PATIENCE = 10.0
WAIT = 0.3
REPLY = b"VALUE key 0 5\r\nvalue\r\nEND\r\n"


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with EmbeddedMemcached() as server:
        client = Client(server.address)
        client.set("key", b"value", noreply=False)
        client.close()
        host, port = server.address
        yield f"{host}:{port}"


@contextlib.contextmanager
def _started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "timedblock.cli", "faults", "proxy", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _said(process: subprocess.Popen[str], word: str) -> str:
    """The end of the line with this word, which it prints soon."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return line.split(word)[1].strip()
    raise AssertionError(f"it ended without {word!r}")


def _connect(address: str, timeout: float = PATIENCE) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=timeout)


def _get(address: str) -> bytes:
    with _connect(address) as connection:
        connection.sendall(b"get key\r\n")
        reply = b""
        while len(reply) < len(REPLY) and (piece := connection.recv(100)):
            reply += piece
        return reply


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_and_ends_by_a_signal(upstream: str, number: int) -> None:
    """It prints both addresses, relays, and leaves no port behind: exit code 0."""
    with _started("--upstream", upstream, "--api", "127.0.0.1:0") as process:
        listening = _said(process, "listening on ").split(",")[0]
        api = _said(process, "api on http://")
        with _connect(listening) as waiting:
            waiting.sendall(b"get key\r\n")
            assert waiting.recv(100) == REPLY
            process.send_signal(number)
            assert waiting.recv(1) == b""
        assert process.wait(PATIENCE) == 0
        assert process.communicate()[1] == ""
        for address in (listening, api):
            with pytest.raises(ConnectionRefusedError):
                _connect(address)


def test_it_listens_where_it_is_told(upstream: str) -> None:
    """--listen and --api are taken as they are, IPv6 included."""
    listen, api = f"[::1]:{servers.free_port()}", f"[::1]:{servers.free_port()}"
    with _started("--listen", listen, "--upstream", upstream, "--api", api) as process:
        assert _said(process, "listening on ") == f"{listen}, upstream {upstream}"
        assert _said(process, "api on http://") == api
        assert _get(listen) == REPLY


def test_it_begins_unchecked_and_finds_the_upstream_later() -> None:
    """With --unchecked clients are ended until the upstream is there."""
    port = servers.free_port()
    arguments = ("--upstream", f"127.0.0.1:{port}", "--unchecked", "--api", "127.0.0.1:0")
    with _started(*arguments) as process:
        listening = _said(process, "listening on ").split(",")[0]
        _said(process, "api on ")
        with contextlib.suppress(ConnectionError):
            assert _get(listening) == b""
        with EmbeddedMemcached(port=port):
            client = Client(listening, timeout=PATIENCE)
            assert client.set("key", b"there", noreply=False) and client.get("key") == b"there"
            client.close()


@pytest.fixture
def taken() -> Iterator[str]:
    """An address where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


API = ("--api", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "localhost", *API], "'localhost' is not HOST:PORT"),
        (["--listen", "localhost:99999", *API], "'localhost:99999' is not HOST:PORT"),
        (["--upstream", ":11211", *API], "':11211' is not HOST:PORT"),
        (["--listen", "127.0.0.1:0", *API], "--listen needs --upstream"),
        (["--upstream", "127.0.0.1:1", *API], "nobody answers at the upstream 127.0.0.1:1"),
        (["--upstream", "no.such.invalid:1", *API], "the upstream no.such.invalid:1"),
        (["--api", "nowhere"], "'nowhere' is not HOST:PORT"),
        (["--api", "no.such.invalid:1"], "--api no.such.invalid:1"),
        (["--api", "0.0.0.0:0"], "0.0.0.0:0 is not a loopback address"),
        (["--api", "[::]:0"], "[::]:0 is not a loopback address"),
        (["--api", "TAKEN"], "TAKEN: Address already in use"),
        (["--listen", "TAKEN", "--upstream", "TAKEN", *API], "--listen TAKEN"),
        (["--seed", "x"], "'x'"),
    ],
)
def test_bad_input_is_told(
    arguments: list[str], said: str, taken: str, capsys: pytest.CaptureFixture[str], no_leaks: None
) -> None:
    """One line that names the value, exit code 2, nothing left behind."""
    arguments = [one.replace("TAKEN", taken) for one in arguments]
    assert cli.main(["faults", "proxy", *arguments]) == 2
    captured = capsys.readouterr()
    assert said.replace("TAKEN", taken) in captured.err
    assert captured.err.startswith("timedblock: ") and captured.err.count("\n") == 1


def test_two_proxies_cannot_share_a_port(upstream: str) -> None:
    """A port that another proxy of ours listens on is in use, too."""
    with _started("--upstream", upstream, *API) as process:
        listening = _said(process, "listening on ").split(",")[0]
        with _started("--listen", listening, "--upstream", upstream, *API) as second:
            assert second.wait(PATIENCE) == 2
            assert f"--listen {listening}" in second.communicate()[1]


def test_the_control_port_may_be_opened_to_all(upstream: str) -> None:
    """--api-anywhere lets the API be reached from elsewhere, and says where it is."""
    with _started("--api", "0.0.0.0:0", "--api-anywhere") as process:
        port = int(_said(process, "api on http://0.0.0.0:"))
        assert Running("timedblock", port).ask("GET", "/version").status == 200


def test_without_its_library_the_pip_line_is_printed() -> None:
    """The API's library is in the extra; without it the command says so."""
    code = (
        "import sys\nsys.modules['werkzeug'] = None\nfrom timedblock import cli\n"
        "sys.exit(cli.main(['faults', 'proxy', '--api', '127.0.0.1:0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'timedblock[drill]'" in done.stderr


# Our own faults through the API


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with servers.running("timedblock") as one:
        yield one


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    shared.clean()
    yield shared
    shared.clean()


def _nothing_comes(connection: socket.socket, seconds: float = WAIT) -> bool:
    ready, _, _ = select.select([connection], [], [], seconds)
    return not ready


def _suffers(address: str) -> bool:
    """Whether a raw client doesn't get its reply at once, and whole."""
    began = time.monotonic()
    try:
        with _connect(address, timeout=2 * WAIT) as connection:
            connection.sendall(b"get key\r\n")
            reply = connection.recv(100)
    except OSError:
        return True
    return reply != REPLY or time.monotonic() - began >= WAIT


VOCABULARY: dict[str, dict[str, Any]] = {
    "refuse": {},
    "blackhole": {},
    "hang": {"direction": "up"},
    "silent": {},
    "drip": {"size": 2},
    "reset": {},
    "cut": {"after": 3},
    "corrupt": {},
    "flap": {"down": 30.0},
    "fail-first": {"count": 1},
    "error-rate": {"rate": 1.0},
}


@pytest.mark.parametrize("kind", VOCABULARY)
def test_our_own_faults_are_toxics(server: Running, upstream: str, kind: str) -> None:
    """A fault of the vocabulary is added by its name, with its fields as attributes; a raw client
    suffers it, and no longer once it is deleted."""
    address = "{}:{}".format(*server.proxy(upstream))
    assert _get(address) == REPLY
    body = {"type": kind, "name": "it", "attributes": VOCABULARY[kind]}
    answer = server.ask("POST", "/proxies/one/toxics", body)
    assert answer.status == 200, answer
    fields = faults.FAULTS[kind](**VOCABULARY[kind]).to_dict()
    assert {**answer.json["attributes"], "fault": kind, "duration": None} == fields
    assert _suffers(address)
    assert server.ask("DELETE", "/proxies/one/toxics/it").status == 204
    assert _get(address) == REPLY


def test_every_fault_of_the_wire_is_a_toxic() -> None:
    """None is forgotten above; latency and bandwidth are Toxiproxy's."""
    known = faults.vocabulary.faults_of("proxy")
    assert set(VOCABULARY) == set(known) - {"latency", "bandwidth"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"type": "hang", "attributes": {"direction": "left"}}, "direction must be one of both"),
        ({"type": "hang", "attributes": {"speed": 1}}, "no field 'speed'"),
        ({"type": "hang", "attributes": {"duration": 1}}, "a toxic has no duration"),
        ({"type": "dns-fail"}, "invalid toxic type"),
    ],
)
def test_a_fault_with_a_mistake_is_refused(
    server: Running, upstream: str, body: dict[str, Any], said: str
) -> None:
    """400, and the bad part is named."""
    server.proxy(upstream)
    answer = server.ask("POST", "/proxies/one/toxics", body)
    assert answer.status == 400 and said in answer.json["error"]


def test_several_faults_act_together(server: Running, upstream: str) -> None:
    """Toxics are a chain: what one lets go the next may hold; doors: the most closed one holds."""
    address = "{}:{}".format(*server.proxy(upstream))
    toxics = "/proxies/one/toxics"
    for body in (
        {"type": "latency", "attributes": {"latency": 200}},
        {"type": "hang", "attributes": {"direction": "down"}},
        {"type": "silent"},
        {"type": "refuse"},
    ):
        assert server.ask("POST", toxics, body).status == 200
    with pytest.raises(ConnectionRefusedError):
        _connect(address)
    assert server.ask("DELETE", f"{toxics}/refuse_downstream").status == 204
    with _connect(address) as connection:
        connection.sendall(b"get key\r\n")
        assert _nothing_comes(connection)
        assert server.ask("DELETE", f"{toxics}/silent_downstream").status == 204
        assert _nothing_comes(connection)
        assert server.ask("DELETE", f"{toxics}/hang_downstream").status == 204
        assert connection.recv(100) == REPLY


def test_a_hang_keeps_what_a_latency_lets_go(server: Running, upstream: str) -> None:
    """Bytes that are on their way when the hang begins are held by it, and come afterwards."""
    address = "{}:{}".format(*server.proxy(upstream))
    toxics = "/proxies/one/toxics"
    body = {"type": "latency", "attributes": {"latency": 1000}}
    assert server.ask("POST", toxics, body).status == 200
    with _connect(address) as connection:
        connection.sendall(b"get key\r\n")
        assert server.ask("POST", toxics, {"type": "hang"}).status == 200
        assert _nothing_comes(connection, 1.0 + WAIT)
        assert server.ask("DELETE", f"{toxics}/hang_downstream").status == 204
        assert connection.recv(100) == REPLY


def test_a_limit_waits_for_what_is_held_behind_it(server: Running, upstream: str) -> None:
    """limit_data before latency: the bytes within the limit come, late, and then the end."""
    address = "{}:{}".format(*server.proxy(upstream))
    for body in (
        {"type": "limit_data", "attributes": {"bytes": 10}},
        {"type": "latency", "attributes": {"latency": 100}},
    ):
        assert server.ask("POST", "/proxies/one/toxics", body).status == 200
    assert _get(address) == REPLY[:10]


def test_updating_a_limit_counts_on(server: Running, upstream: str) -> None:
    """limit_data that is raised counts the bytes from before; reset_peer that is changed strikes
    a connection that it waits for already."""
    address = "{}:{}".format(*server.proxy(upstream))
    toxics = "/proxies/one/toxics"
    body = {"type": "limit_data", "name": "it", "attributes": {"bytes": len(REPLY) + 5}}
    assert server.ask("POST", toxics, body).status == 200
    with _connect(address) as connection:
        connection.sendall(b"get key\r\n")
        assert connection.recv(100) == REPLY
        changed = {"attributes": {"bytes": len(REPLY) + 10}}
        assert server.ask("POST", f"{toxics}/it", changed).status == 200
        connection.sendall(b"get key\r\n")
        assert connection.recv(100) == REPLY[:10]
        assert connection.recv(100) == b""
    assert server.ask("DELETE", f"{toxics}/it").status == 204
    body = {"type": "reset_peer", "name": "it", "attributes": {"timeout": 60000}}
    assert server.ask("POST", toxics, body).status == 200
    with _connect(address) as connection:
        connection.sendall(b"get key\r\n")
        assert _nothing_comes(connection)
        assert server.ask("POST", f"{toxics}/it", {"attributes": {"timeout": 50}}).status == 200
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


@pytest.mark.parametrize("kind", ["reset_peer", "timeout", "slow_close", "bandwidth", "slicer"])
def test_taking_a_toxic_away_in_mid_call_ends_or_serves_the_client(
    server: Running, upstream: str, kind: str
) -> None:
    """Nobody waits for ever for what a toxic has eaten: served, or ended."""
    address = "{}:{}".format(*server.proxy(upstream))
    attributes = {"timeout": 60000, "delay": 60000, "rate": 0, "average_size": 1}
    body = {"type": kind, "name": "it", "attributes": attributes}
    assert server.ask("POST", "/proxies/one/toxics", body).status == 200
    with _connect(address) as connection:
        eaten = kind in ("reset_peer", "timeout")
        connection.sendall(b"get key\r\n" if eaten else b"get key\r\nquit\r\n")
        assert _nothing_comes(connection) or not eaten
        assert server.ask("DELETE", "/proxies/one/toxics/it").status == 204
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(100):
                got += piece
        assert got == (b"" if eaten else REPLY)


@pytest.mark.parametrize(
    ("kind", "attributes", "serves"),
    [
        ("slicer", {"average_size": 0}, True),
        ("slicer", {"average_size": 5, "size_variation": 9, "delay": -1}, True),
        ("latency", {"latency": -5, "jitter": -5}, True),
        ("slow_close", {"delay": -1}, True),
        ("bandwidth", {"rate": -1}, False),
        ("timeout", {"timeout": -1}, False),
        ("limit_data", {"bytes": -1}, False),
        ("reset_peer", {"timeout": -1}, False),
    ],
)
def test_attributes_that_make_no_sense_do_no_harm(
    server: Running, upstream: str, kind: str, attributes: dict[str, int], serves: bool
) -> None:
    """Nothing that an attribute can hold ends the proxy: bytes pass, or they don't."""
    address = "{}:{}".format(*server.proxy(upstream))
    body = {"type": kind, "name": "it", "attributes": attributes}
    assert server.ask("POST", "/proxies/one/toxics", body).status == 200
    assert serves or _suffers(address)
    assert not serves or _get(address) == REPLY
    assert server.ask("DELETE", "/proxies/one/toxics/it").status == 204
    assert _get(address) == REPLY


def _is_reset(address: str) -> bool:
    try:
        return _get(address) != REPLY
    except ConnectionResetError:
        return True


def test_the_same_seed_spares_the_same_connections(server: Running, upstream: str) -> None:
    """Toxicity is drawn from the seed: two proxies of one name see one sequence."""
    seen = []
    for _ in range(2):
        address = "{}:{}".format(*server.proxy(upstream))
        body = {"type": "reset_peer", "toxicity": 0.5}
        assert server.ask("POST", "/proxies/one/toxics", body).status == 200
        seen.append([_is_reset(address) for _ in range(30)])
        server.clean()
    assert seen[0] == seen[1]
    assert 5 < sum(seen[0]) < 25


def test_it_serves_on_when_a_client_is_killed(server: Running, upstream: str) -> None:
    """200 clients that vanish under a toxic leave no descriptor behind."""
    address = "{}:{}".format(*server.proxy(upstream))
    body = {"type": "latency", "attributes": {"latency": 50}}
    assert server.ask("POST", "/proxies/one/toxics", body).status == 200
    for _ in range(200):
        with _connect(address) as connection:
            connection.sendall(b"get key\r\n")
    assert server.ask("POST", "/reset").status == 204
    assert _get(address) == REPLY
