"""The shop's system tests: make a failure, see the monitor tell it, see the page work."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from timedblock.testing.fixtures import EmbeddedMemcached, Health, Proxies, Proxy, Within

HERE = Path(__file__).parent
#: The shop's own limit for a page, and what a machine with other work may add to it.
PAGE_LIMIT, NOISE = 0.5, 0.25
#: Visits after which the shop knows how long its stores take: limits are learnt from 100.
WARM = 150


class Shop:
    """The shop as its visitors see it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str = "/") -> tuple[int, Any]:
        """The status and the JSON of a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.load(response)
        finally:
            connection.close()


@contextmanager
def visitors(shop: Shop, number: int = 4) -> Iterator[None]:
    """Visitors come and go: only calls show a breaker that something is wrong."""
    over = threading.Event()

    def visit() -> None:
        while not over.wait(0.02):
            shop.get()

    with ThreadPoolExecutor(number) as threads:
        visits = [threads.submit(visit) for _ in range(number)]
        try:
            yield
        finally:
            over.set()
    for one in visits:
        one.result()


@contextmanager
def serving(app: str, **settings: str) -> Iterator[int]:
    """An app in gunicorn, and its port; the listener is open before gunicorn starts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{number}", "--threads", "8"]
        command += ["--log-level", "warning", "--no-control-socket", app]
        environment = {**os.environ, **settings}
        process = subprocess.Popen(command, cwd=HERE, env=environment, pass_fds=[number])
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture(scope="module")
def cache(timedblock_store: EmbeddedMemcached, timedblock_proxy: Proxies) -> Proxy:
    """The way to the cache, where faults are made."""
    return timedblock_proxy(timedblock_store.address)


@pytest.fixture(scope="module")
def catalogue(timedblock_proxy: Proxies) -> Iterator[Proxy]:
    """The way to the catalogue."""
    with serving("catalogue") as port:
        yield timedblock_proxy(("127.0.0.1", port))


@pytest.fixture(scope="module")
def running(cache: Proxy, catalogue: Proxy) -> Iterator[Shop]:
    """The shop, open for a while."""
    url = f"http://{catalogue.url}"
    with serving("app", SHOP_CACHE=cache.url, SHOP_CATALOGUE=url) as port:
        shop = Shop(port)
        for _ in range(WARM):
            shop.get()
        yield shop


@pytest.fixture
def health(timedblock_health: Health, running: Shop) -> Health:
    """What the shop's monitor says."""
    return timedblock_health(running.url + "/health")


@pytest.fixture
def shop(running: Shop, health: Health) -> Shop:
    """The shop, recovered from the test before."""
    health.becomes("ok", within=20, doing=running.get)
    return running


Limit = Callable[[float], Within]


@pytest.mark.wall
def test_the_cache_is_optional(
    shop: Shop, cache: Proxy, health: Health, timedblock_within: Limit
) -> None:
    """Without its cache the shop is degraded within 2 s, and sells as fast as ever."""
    cache.inject("blackhole")
    with visitors(shop):
        health.becomes("degraded", within=2)
    with timedblock_within(PAGE_LIMIT + NOISE):
        status, page = shop.get()
    assert status == 200
    assert page == {"goods": ["tea", "biscuits", "umbrellas"], "visits": None}
    assert shop.get("/ready")[0] == 200
    cache.clear()
    health.becomes("ok", within=20, doing=shop.get)
    assert shop.get()[1]["visits"] > 0


@pytest.mark.wall
def test_the_catalogue_is_critical(
    shop: Shop, catalogue: Proxy, health: Health, timedblock_within: Limit
) -> None:
    """Without its catalogue the shop is down within 2 s: it says so at once, and stays alive."""
    catalogue.inject("hang")
    with visitors(shop):
        health.becomes("down", within=2)
    with timedblock_within(PAGE_LIMIT + NOISE):
        status, page = shop.get()
    assert status == 503
    assert "error" in page
    assert shop.get("/live")[0] == 200


@pytest.mark.wall
@pytest.mark.timedblock_faults("all", proxy="cache")
def test_whatever_the_cache_does(shop: Shop, cache: Proxy, timedblock_within: Limit) -> None:
    """Under every fault of the cache each page is whole and in time."""
    for _ in range(3):
        with timedblock_within(PAGE_LIMIT + NOISE):
            status, page = shop.get()
        assert (status, page["goods"]) == (200, ["tea", "biscuits", "umbrellas"])


@pytest.mark.wall
@pytest.mark.timedblock_faults("all", proxy="catalogue")
def test_whatever_the_catalogue_does(
    shop: Shop, catalogue: Proxy, timedblock_within: Limit
) -> None:
    """Under every fault of the catalogue a visitor gets the page or an apology, in time."""
    for _ in range(3):
        with timedblock_within(PAGE_LIMIT + NOISE):
            status, page = shop.get()
        assert status in (200, 503)
        assert ("goods" in page) == (status == 200)
