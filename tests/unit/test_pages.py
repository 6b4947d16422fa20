"""The monitor's pages as WSGI and ASGI applications, without a server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import MutableMapping
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from timedblock import Breaker, Policy, TimedBlock
from timedblock.monitor import asgi_app, wsgi_app
from timedblock.monitor.pages import MOST_SCRAPES
from timedblock.testing import FakeClock

Answer = tuple[int, dict[str, str], bytes]


def by_wsgi(app: Any, path: str, method: str = "GET", accept: str = "", root: str = "") -> Answer:
    """A request, with both sides held to PEP 3333."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": root}
    environ |= {"HTTP_ACCEPT": accept, "QUERY_STRING": "a=b"}
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc: Any = None) -> Any:
        started[:] = [int(status.split()[0]), {k.lower(): v for k, v in headers}]
        return lambda data: None

    result = validator(app)(environ, start_response)
    try:
        body = b"".join(result)
    finally:
        result.close()  # type: ignore[attr-defined]
    return started[0], started[1], body


def by_asgi(app: Any, path: str, method: str = "GET", accept: str = "", root: str = "") -> Answer:
    """A request as an ASGI server makes it: the path includes the mount's."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"x"), (b"accept", accept.encode())]
    scope = {"type": "http", "method": method, "path": root + path, "root_path": root}
    scope |= {"query_string": b"", "http_version": "1.1", "asgi": {"version": "3.0"}}
    asyncio.run(app({**scope, "headers": headers}, receive, send))
    start, *pieces = sent
    assert start["type"] == "http.response.start"
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, b"".join(piece["body"] for piece in pieces)


SERVERS = pytest.mark.parametrize(
    ("make", "ask"), [(wsgi_app, by_wsgi), (asgi_app, by_asgi)], ids=["wsgi", "asgi"]
)


def _down(name: str) -> TimedBlock:
    block = TimedBlock(name, Policy(breaker=Breaker(failures=1, open_for=5.0)))
    block.begin().failed(OSError())
    return block


@SERVERS
def test_live_needs_nothing(make: Any, ask: Any, clock: FakeClock) -> None:
    """200 while the process works, whatever the stores do."""
    held = _down("lost.get")
    status, headers, body = ask(make(critical=["lost.*"]), "/live")
    assert (status, json.loads(body)) == (200, {"status": "ok"})
    assert headers["cache-control"] == "no-store"
    assert held


@SERVERS
def test_critical_decides(make: Any, ask: Any, clock: FakeClock) -> None:
    """The same lost block: 503 where it is critical, 200 and degraded where it isn't."""
    held = _down("lost.get")
    for path in ("/ready", "/health"):
        status, headers, body = ask(make(critical=["lost.*"]), path)
        assert (status, json.loads(body)["status"]) == (503, "down")
        assert headers["content-type"] == "application/json"
        assert int(headers["content-length"]) == len(body)
    assert json.loads(ask(make(critical=["lost.*"]), "/ready")[2])["down"] == {
        "lost.get": "OSError, 1 in a row"
    }
    optional = make()
    assert ask(optional, "/ready")[0] == 200
    status, _, body = ask(optional, "/health")
    assert (status, json.loads(body)["status"]) == (200, "degraded")
    assert held


@SERVERS
def test_metrics_are_prometheus_text(make: Any, ask: Any, clock: FakeClock) -> None:
    """Prometheus' parser reads it; OpenMetrics for those that ask for it."""
    block = TimedBlock("pages.get")
    block.call(int)
    app = make()
    status, headers, body = ask(app, "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=")
    families = {one.name: one for one in text_string_to_metric_families(body.decode())}
    assert "timedblock_calls" in families
    accept = "application/openmetrics-text; version=1.0.0"
    _, headers, body = ask(app, "/metrics", accept=accept)
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@SERVERS
def test_a_registry_of_the_users(make: Any, ask: Any) -> None:
    """What it has is what is shown."""
    registry = CollectorRegistry()
    Gauge("their_own", "Theirs.", registry=registry).set(7)
    body = ask(make(registry=registry), "/metrics")[2]
    assert b"their_own 7.0" in body and b"timedblock" not in body


@SERVERS
@pytest.mark.parametrize("path", ["/", "", "/healthz", "/live/", "//live"])
def test_other_paths_are_not_found(make: Any, ask: Any, path: str) -> None:
    """404 says what there is."""
    status, _, body = ask(make(), path)
    assert status == 404 and b"/health" in body


@SERVERS
def test_only_reading(make: Any, ask: Any) -> None:
    """HEAD is GET without the body; anything else is 405."""
    status, headers, body = ask(make(), "/live", method="HEAD")
    assert (status, body) == (200, b"") and int(headers["content-length"]) > 0
    status, headers, _ = ask(make(), "/live", method="POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@SERVERS
def test_mounted_under_a_prefix(make: Any, ask: Any) -> None:
    """What a framework mounts at /-/monitor answers there."""
    assert ask(make(), "/live", root="/-/monitor")[0] == 200


@SERVERS
def test_a_page_that_fails_is_a_500(make: Any, ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A broken collector of the user's breaks its page only, and the log has the type only."""

    class Broken:
        def collect(self) -> Any:
            raise RuntimeError("secret")

        def describe(self) -> Any:
            return []

    registry = CollectorRegistry()
    registry.register(Broken())  # type: ignore[arg-type]
    app = make(registry=registry)
    status, _, body = ask(app, "/metrics")
    assert (status, body) == (500, b"RuntimeError\n")
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text
    assert ask(app, "/live")[0] == 200


@SERVERS
def test_bad_names_are_found_when_it_is_made(make: Any, ask: Any) -> None:
    """Not at the first request."""
    with pytest.raises(TypeError, match="critical"):
        make(critical="db.*")


def test_without_prometheus_client() -> None:
    """/metrics says what to install; the other pages need nothing."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from timedblock.monitor.pages import Pages\n"
        "pages = Pages((), None)\n"
        "for path in ('/live', '/ready', '/health', '/metrics'):\n"
        "    page = pages.page('GET', path); print(page.status, page.body)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["200", "200", "200", "501"]
    assert "pip install 'timedblock[prometheus]'" in lines[3]


FRAMEWORKS = """
from tests.test_docs import script_of
from tests.unit.test_pages import by_asgi, by_wsgi

exec(script_of("docs/how-to/monitor.md"))
for ask, where in ((by_wsgi, application), (by_wsgi, app), (by_asgi, api)):
    print(*(ask(where, path)[0] for path in ("/-/live", "/-/health", "/-/nothing", "/")))
"""


def test_mounted_in_frameworks() -> None:
    """In Django, Flask and FastAPI, as the how-to shows it, the pages answer below their prefix."""
    done = subprocess.run([sys.executable, "-c", FRAMEWORKS], capture_output=True, text=True)
    assert done.stdout.splitlines()[-3:] == ["200 200 404 404"] * 3, done.stderr


class _Stuck(Collector):
    """A collector of a user's that hangs until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.entered = 0

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        self.entered += 1
        self.let_go.wait(60)
        return []


def test_a_scrape_that_hangs_does_not_hold_the_event_loop() -> None:
    """Others are answered meanwhile, past a few scrapes with 503; a cancelled one harms nobody."""
    stuck, registry = _Stuck(), CollectorRegistry()
    registry.register(stuck)
    app = asgi_app(registry=registry)

    async def ask(path: str) -> int:
        sent: list[MutableMapping[str, Any]] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        await app(scope, send, send)  # type: ignore[arg-type]
        return int(sent[0]["status"])

    async def main() -> None:
        scrapes = [asyncio.create_task(ask("/metrics")) for _ in range(MOST_SCRAPES)]
        while stuck.entered < MOST_SCRAPES:
            await asyncio.sleep(0.01)
        assert await ask("/metrics") == 503
        assert [await ask(path) for path in ("/live", "/ready", "/health")] == [200] * 3
        scrapes[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await scrapes[0]
        stuck.let_go.set()
        assert await asyncio.gather(*scrapes[1:]) == [200] * (MOST_SCRAPES - 1)
        while await ask("/metrics") != 200:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("path", ["/live", "/health"])
def test_on_another_event_loop(path: str) -> None:
    """Where the loop isn't asyncio's, each page is made in place."""
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    step = asgi_app()(scope, send, send)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        step.send(None)  # type: ignore[attr-defined]
    assert sent[0]["status"] == 200


def test_a_page_whose_making_is_interrupted() -> None:
    """What isn't an Exception reaches the server."""

    class Interrupted(BaseException):
        pass

    class Broken(_Stuck):
        def collect(self) -> list[Metric]:
            raise Interrupted

    registry = CollectorRegistry()
    registry.register(Broken())
    with pytest.raises(Interrupted):
        by_asgi(asgi_app(registry=registry), "/metrics")


def test_lifespan_and_websockets() -> None:
    """Served alone it starts and stops in order; a websocket is refused."""
    sent: list[str] = []
    messages = ["lifespan.startup", "lifespan.shutdown"]

    async def receive() -> MutableMapping[str, Any]:
        return {"type": messages.pop(0)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message["type"])

    app = asgi_app()
    asyncio.run(app({"type": "lifespan"}, receive, send))  # type: ignore[arg-type]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    asyncio.run(app({"type": "websocket", "path": "/live"}, receive, send))  # type: ignore[arg-type]
    assert sent[2] == "websocket.close"
