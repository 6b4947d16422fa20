"""Toxiproxy's clients drive our proxy as they drive the real one: the same assertions for both."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymemcache.client.base import Client
from toxiproxy import Proxy, Toxiproxy
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

from tests.servers import toxiproxy as servers
from tests.servers.toxiproxy import Running
from timedblock.testing.memcached import EmbeddedMemcached

pytestmark = pytest.mark.server

WAIT = 0.3
QUICK = 0.8  # without a toxic it takes a millisecond, on a machine that isn't busy
GO_CHECKS = re.findall(r'\{"([a-z-]+)", \w+\}', (servers.CLIENT / "main.go").read_text())


@pytest.fixture(scope="module")
def memcached() -> Iterator[str]:
    with EmbeddedMemcached() as server:
        client = Client(server.address)
        client.set("key", b"value", noreply=False)
        client.close()
        host, port = server.address
        yield f"{host}:{port}"


@pytest.fixture(scope="module", params=servers.KINDS)
def shared(request: pytest.FixtureRequest) -> Iterator[Running]:
    reason = servers.why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    with servers.running(request.param) as one:
        yield one


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    """The server, without a proxy."""
    shared.clean()
    yield shared
    shared.clean()


# With the Go client


@pytest.fixture(scope="module")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not servers.has_go():
        pytest.skip("no Go here: run scripts/install-test-servers")
    return servers.go_client(tmp_path_factory.mktemp("go"))


def test_the_go_client_makes_every_call_and_every_toxic(server: Running, go_client: Path) -> None:
    """Each check of the Go program holds: a toxic bites its connection, and is gone afterwards."""
    done = subprocess.run(
        [go_client, f"127.0.0.1:{server.port}"], capture_output=True, text=True, timeout=100
    )
    assert done.stdout.splitlines() == [f"ok {name}" for name in GO_CHECKS], done.stderr
    assert len(GO_CHECKS) == 30


# With toxiproxy-python


@pytest.fixture
def toxiproxy(server: Running) -> Toxiproxy:
    client = Toxiproxy()
    client.update_api_consumer("127.0.0.1", server.port)
    return client


@pytest.fixture
def proxy(toxiproxy: Toxiproxy, memcached: str) -> Proxy:
    return toxiproxy.create(upstream=memcached, name="cache")


def _client(proxy: Proxy) -> Client:
    host, _, port = proxy.listen.rpartition(":")
    return Client((host, int(port)), timeout=WAIT, connect_timeout=WAIT)


def _seconds(proxy: Proxy) -> float:
    """How long a raw client's get takes; it must give the value."""
    client = Client(_client(proxy).server, timeout=5)
    try:
        began = time.monotonic()
        assert client.get("key") == b"value"
        return time.monotonic() - began
    finally:
        client.close()


def _fails(proxy: Proxy) -> bool:
    """Whether a raw client's get gets no answer."""
    client = _client(proxy)
    try:
        return client.get("key") != b"value"
    except Exception:
        return True
    finally:
        client.close()


@pytest.mark.wall
def test_the_python_client_makes_proxies(toxiproxy: Toxiproxy, memcached: str) -> None:
    """create, get_proxy, proxies, populate, destroy, destroy_all, version and running."""
    assert toxiproxy.running() and toxiproxy.version()
    assert toxiproxy.proxies() == {}
    one = toxiproxy.create(upstream=memcached, name="one")
    assert one.enabled and _seconds(one) < QUICK
    two = toxiproxy.create(memcached, "two", listen="127.0.0.1:0", enabled=False)
    assert not two.enabled
    assert set(toxiproxy.proxies()) == {"one", "two"}
    assert toxiproxy.get_proxy("one").listen == one.listen
    assert toxiproxy.get_proxy("three") is None
    with pytest.raises(ProxyExists):
        toxiproxy.create(memcached, "one")
    made = toxiproxy.populate([
        {"name": "one", "upstream": memcached, "listen": one.listen},
        {"name": "two", "upstream": memcached, "listen": "localhost:0"},
    ])  # fmt: skip
    assert [proxy.name for proxy in made] == ["two"]
    assert toxiproxy.destroy(one) and _fails(one)
    with pytest.raises(NotFound):
        one.destroy()
    toxiproxy.destroy_all()
    assert toxiproxy.proxies() == {}


@pytest.mark.wall
def test_the_python_client_takes_a_proxy_down(toxiproxy: Toxiproxy, proxy: Proxy) -> None:
    """down, disable, enable and reset: nobody answers, then somebody does, at the same port."""
    with proxy.down():
        assert _fails(proxy)
        assert toxiproxy.get_proxy("cache").enabled is False
    assert _seconds(proxy) < QUICK
    proxy.disable()
    assert _fails(proxy)
    proxy.enable()
    assert _seconds(proxy) < QUICK
    proxy.disable()
    proxy.add_toxic(type="timeout")
    assert toxiproxy.reset()
    assert proxy.toxics() == {} and _seconds(proxy) < QUICK


@pytest.mark.wall
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("latency", {"latency": 2000, "jitter": 10}),
        ("bandwidth", {"rate": 0}),
        ("timeout", {"timeout": 0}),
        ("timeout", {"timeout": 100}),
        ("limit_data", {"bytes": 5}),
        ("reset_peer", {"timeout": 0}),
    ],
)
def test_the_python_client_poisons(proxy: Proxy, kind: str, attributes: dict[str, int]) -> None:
    """add_toxic, toxics, get_toxic, destroy_toxic: the raw client gets no answer, then it does."""
    assert _seconds(proxy) < QUICK
    proxy.add_toxic(type=kind, attributes=attributes)
    assert _fails(proxy)
    toxic = proxy.get_toxic(f"{kind}_downstream")
    assert (toxic.type, toxic.stream, toxic.toxicity) == (kind, "downstream", 1)
    assert toxic.attributes == attributes
    assert proxy.destroy_toxic(toxic.name) and proxy.get_toxic(toxic.name) is None
    assert _seconds(proxy) < QUICK


@pytest.mark.wall
def test_the_python_client_slices(proxy: Proxy) -> None:
    """slicer: a reply of 27 bytes comes in 6 pieces or more, and takes so much longer."""
    attributes = {"average_size": 4, "size_variation": 1, "delay": 50000}
    proxy.add_toxic(type="slicer", attributes=attributes)
    assert _seconds(proxy) >= 5 * 0.05
    proxy.destroy_toxic("slicer_downstream")
    assert _seconds(proxy) < QUICK


@pytest.mark.wall
def test_the_python_client_delays_the_end(proxy: Proxy) -> None:
    """slow_close: answers come at once, the end of the stream comes later."""
    proxy.add_toxic(type="slow_close", attributes={"delay": 1000})
    assert _seconds(proxy) < QUICK
    with socket.create_connection(_client(proxy).server, timeout=5) as connection:
        began = time.monotonic()
        connection.sendall(b"quit\r\n")
        assert connection.recv(1) == b""
        assert time.monotonic() - began >= 0.95
    proxy.destroy_toxic("slow_close_downstream")


@pytest.mark.wall
def test_the_python_client_spares_some(proxy: Proxy) -> None:
    """toxicity: 0 spares every connection, 1 none."""
    proxy.add_toxic(type="timeout", name="never", toxicity=0.0)
    assert _seconds(proxy) < QUICK
    proxy.add_toxic(type="timeout", name="always", stream="upstream", toxicity=1.0)
    assert _fails(proxy)


def test_the_python_client_hears_of_mistakes(proxy: Proxy) -> None:
    """An unknown type, a bad stream and what isn't there are told apart."""
    with pytest.raises(InvalidToxic, match="invalid toxic type"):
        proxy.add_toxic(type="poison")
    with pytest.raises(InvalidToxic, match="stream was invalid"):
        proxy.add_toxic(type="latency", stream="sideways")
    with pytest.raises(NotFound, match="toxic not found"):
        proxy.destroy_toxic("none")


# The API itself

BAD = "bad request body"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "/proxies", "{", 400, BAD),
        ("POST", "/proxies", "", 400, BAD),
        ("POST", "/proxies", [], 400, BAD),
        ("POST", "/proxies", {"name": 5, "upstream": "x:1"}, 400, BAD),
        ("POST", "/proxies", {"upstream": "x:1"}, 400, "missing required field: name"),
        ("POST", "/proxies", {"name": "x"}, 400, "missing required field: upstream"),
        ("POST", "/proxies", {"name": "one", "upstream": "x:1"}, 409, "proxy already exists"),
        ("POST", "/proxies", {"name": "x", "listen": "x", "upstream": "x:1"}, 500, "listen tcp"),
        ("GET", "/proxies/none", None, 404, "proxy not found"),
        ("POST", "/proxies/none", {}, 404, "proxy not found"),
        ("DELETE", "/proxies/none", None, 404, "proxy not found"),
        ("POST", "/proxies/one", "{", 400, BAD),
        ("POST", "/proxies/one", {"enabled": "yes"}, 400, BAD),
        ("GET", "/proxies/none/toxics", None, 404, "proxy not found"),
        ("POST", "/proxies/none/toxics", {}, 404, "proxy not found"),
        ("POST", "/proxies/one/toxics", {"type": "none"}, 400, "invalid toxic type"),
        ("POST", "/proxies/one/toxics", {"type": 5}, 400, BAD),
        ("POST", "/proxies/one/toxics", {"type": "latency", "toxicity": "x"}, 400, BAD),
        ("POST", "/proxies/one/toxics", '{"type": "latency", "toxicity": NaN}', 400, BAD),
        ("POST", "/proxies/one/toxics", '{"type": "latency", "toxicity": 1e400}', 400, BAD),
        ("POST", "/proxies/one/toxics", '{"a":' * 20000, 400, BAD),
        ("POST", "/proxies/one/toxics", {"type": "latency", "attributes": 5}, 400, BAD),
        ("POST", "/proxies/one/toxics",
         {"type": "latency", "attributes": {"latency": 0.5}}, 400, BAD),
        ("POST", "/proxies/one/toxics",
         {"type": "latency", "attributes": {"latency": True}}, 400, BAD),
        ("POST", "/proxies/one/toxics",
         {"type": "latency", "stream": "x"}, 400, "stream was invalid"),
        ("POST", "/proxies/one/toxics", {"type": "noop", "name": "it"}, 409,
         "toxic already exists"),
        ("GET", "/proxies/one/toxics/none", None, 404, "toxic not found"),
        ("POST", "/proxies/one/toxics/none", {}, 404, "toxic not found"),
        ("POST", "/proxies/one/toxics/it", "{", 400, BAD),
        ("POST", "/proxies/one/toxics/it", {"toxicity": "x"}, 400, BAD),
        ("DELETE", "/proxies/one/toxics/none", None, 404, "toxic not found"),
        ("POST", "/populate", "{", 400, BAD),
        ("POST", "/populate", {}, 400, BAD),
        ("POST", "/populate", [5], 400, BAD),
        ("POST", "/populate", [{"upstream": "x:1"}], 400,
         "missing required field: name at proxy 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_its_status(
    server: Running, memcached: str, method: str, path: str, body: Any, status: int, error: str
) -> None:
    """The status and the message are Toxiproxy's, in its JSON."""
    server.proxy(memcached)
    assert server.ask("POST", "/proxies/one/toxics", {"type": "noop", "name": "it"}).status == 200
    answer = server.ask(method, path, body)
    assert (answer.status, answer.json["status"]) == (status, status)
    assert answer.json["error"].startswith(error)


def _shown(proxy: dict[str, Any]) -> dict[str, Any]:
    """Without what 2.5.0 lets slip out by mistake."""
    return {key: value for key, value in proxy.items() if key != "Logger"}


def test_answers_have_toxiproxys_form(server: Running, memcached: str) -> None:
    """Fields, defaults and statuses of what goes well."""
    host, port = server.proxy(memcached)
    shown = {"name": "one", "listen": f"{host}:{port}", "upstream": memcached, "enabled": True}
    toxic = {"name": "latency_downstream", "type": "latency", "stream": "downstream",
             "toxicity": 1, "attributes": {"latency": 0, "jitter": 0}}  # fmt: skip
    answer = server.ask("POST", "/proxies/one/toxics", {"Type": "latency", "attributes": None})
    assert (answer.status, answer.json) == (200, toxic)
    assert _shown(server.ask("GET", "/proxies/one").json) == {**shown, "toxics": [toxic]}
    everything = server.ask("GET", "/proxies").json
    assert list(everything) == ["one"]
    assert _shown(everything["one"]) == {**shown, "toxics": [toxic]}
    assert server.ask("GET", "/proxies/one/toxics").json == [toxic]
    path = "/proxies/one/toxics/latency_downstream"
    assert server.ask("GET", path).json == toxic
    changed = {**toxic, "toxicity": 0.5, "attributes": {"latency": 0, "jitter": 7}}
    body = {"attributes": {"jitter": 7, "unknown": 1}, "toxicity": 0.5}
    answer = server.ask("POST", path, body)
    assert (answer.status, answer.json) == (200, changed)
    assert server.ask("DELETE", path).status == 204
    answer = server.ask("POST", "/proxies/one", {"enabled": False})
    assert answer.status == 200
    assert _shown(answer.json) == {**shown, "enabled": False, "toxics": []}
    answer = server.ask("POST", "/populate", [{"name": "two", "upstream": "x:1", "enabled": False}])
    assert answer.status == 201 and answer.json["proxies"][0]["name"] == "two"
    assert server.ask("POST", "/reset").status == 204
    assert server.ask("DELETE", "/proxies/one").status == 204
    assert server.ask("GET", "/version").status == 200


DEFAULTS = {
    "noop": {},
    "latency": {"latency": 0, "jitter": 0},
    "bandwidth": {"rate": 0},
    "slow_close": {"delay": 0},
    "timeout": {"timeout": 0},
    "slicer": {"average_size": 0, "size_variation": 0, "delay": 0},
    "limit_data": {"bytes": 0},
    "reset_peer": {"timeout": 0},
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_toxics_have_toxiproxys_defaults(server: Running, memcached: str, kind: str) -> None:
    """A toxic that says nothing has these attributes, on either stream."""
    server.proxy(memcached)
    for stream in ("upstream", "Downstream"):
        answer = server.ask("POST", "/proxies/one/toxics", {"type": kind, "stream": stream})
        assert (answer.status, answer.json["attributes"]) == (200, DEFAULTS[kind])
        assert answer.json["name"] == f"{kind}_{stream}"


def test_browsers_are_turned_away(server: Running) -> None:
    """No web page drives the proxy: a browser's user agent is refused."""
    answer = server.ask("GET", "/proxies", agent="Mozilla/5.0 (X11)")
    assert (answer.status, answer.text.strip()) == (403, "User agent not allowed")


def test_what_is_no_route_is_told(server: Running) -> None:
    """An unknown path is 404, a path with another method 405."""
    assert server.ask("GET", "/nothing").status == 404
    assert server.ask("DELETE", "/version").status == 405


def test_an_upstream_that_does_not_answer_ends_the_client(server: Running) -> None:
    """The client is taken and its connection ended: for a closed port, for no such name, and for
    what is no address at all."""
    closed = f"127.0.0.1:{servers.free_port()}"
    for at, upstream in enumerate((closed, "no.such.invalid:1", "nowhere", "x" * 300 + ":1")):
        with (
            pytest.raises(ConnectionError),
            socket.create_connection(
                server.proxy(upstream, f"p{at}"), timeout=servers.PATIENCE
            ) as connection,
        ):
            if not connection.recv(1):
                raise ConnectionError("the end of the stream")
