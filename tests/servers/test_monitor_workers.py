"""The monitor and the middleware under gunicorn with two workers, and under uvicorn."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.servers.memcached import free_port

ROOT = Path(__file__).parent.parent.parent
#: As in monitored.py, which isn't imported here: its block would be one of this process, too.
AT_IMPORT = 3
PATIENCE = 30.0


class Service:
    """A server process of our own on a free port; ended by its pid."""

    def __init__(self, *command: str, environment: dict[str, str]) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *(part.replace("PORT", str(self.port)) for part in command)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Service:
        try:
            wait_until(self._is_up)
        except BaseException:
            self.process.kill()
            print(self.process.communicate()[1].decode())
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        try:
            self.errors = self.process.communicate(timeout=PATIENCE)[1].decode()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise

    def _is_up(self) -> bool:
        assert self.process.poll() is None, "the server did not start"
        try:
            return self.get("/-/live")[0] == 200
        except OSError:
            return False

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """On a connection of its own, which any worker may take."""
        connection = self.connect()
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def tell(self, path: str, **headers: str) -> dict[str, Any]:
        status, body = self.get(path, **headers)
        assert status == 200
        return dict(json.loads(body))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with that name and those labels."""
        text = self.get("/-/metrics")[1].decode()
        samples = [
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(sample.value for sample in samples)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def gunicorn(shared: Path | None, *options: str) -> Service:
    environment = {} if shared is None else {"PROMETHEUS_MULTIPROC_DIR": str(shared)}
    command = ("gunicorn", "-w", "2", "-b", "127.0.0.1:PORT", "--log-level", "warning")
    command += ("--graceful-timeout", "5")  # of a worker that was told to end while it booted
    return Service(*command, *options, "tests.servers.monitored:app", environment=environment)


def work(service: Service, at_least: int) -> tuple[int, set[int]]:
    """Calls until each of two workers made `at_least`; how many in all, and by whom."""
    made: dict[int, int] = {}

    def enough() -> bool:
        pid = service.tell("/work")["pid"]
        made[pid] = made.get(pid, 0) + 1
        return len(made) == 2 and min(made.values()) >= at_least

    end = time.monotonic() + PATIENCE
    while not enough():
        assert time.monotonic() < end, f"the workers took turns badly: {made}"
    return sum(made.values()), set(made)


@pytest.fixture(params=[(), ("--preload",)], ids=["each-imports", "preload"])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return tuple(request.param)


def test_one_worker_alone_tells_too_little(tmp_path: Path) -> None:
    """The fault that the mode is against: a collector has only its own worker's part."""
    with gunicorn(None) as service:
        made, _ = work(service, 5)
        alone = {float(service.get("/alone")[1]) for _ in range(30)}
        assert max(alone) < made + AT_IMPORT


def test_all_workers_are_in_every_scrape(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Calls of both workers are added up, each once, whoever made them and answers the scrape."""
    with gunicorn(tmp_path, *options) as service:
        made, pids = work(service, 5)
        expected = made + AT_IMPORT * (1 if options else 2)

        def calls() -> float:
            return service.metric("timedblock_calls_total", block="work", outcome="ok")

        wait_until(lambda: calls() == expected)
        assert {calls() for _ in range(20)} == {expected}
        name = "timedblock_attempt_seconds"
        assert service.metric(f"{name}_count", block="work") == expected
        assert service.metric(f"{name}_bucket", block="work", le="+Inf") == expected
        assert service.metric(f"{name}_sum", block="work") > 0
        assert service.metric("timedblock_limit_seconds", block="work") == 1.0
        state = {"breaker": "work", "state": "closed"}
        processes = 2 + len(options)
        wait_until(lambda: service.metric("timedblock_breaker_state", **state) == processes)
        _check_a_lost_worker(service, pids, calls, processes)
    assert "Traceback" not in service.errors


def _check_a_lost_worker(
    service: Service, pids: set[int], calls: Callable[[], float], processes: int
) -> None:
    """Its counts stay, its gauges go, and its successor's are added."""
    before = calls()
    lost = pids.pop()
    os.kill(lost, signal.SIGKILL)
    wait_until(lambda: service.tell("/work")["pid"] not in {lost, *pids})
    wait_until(lambda: calls() > before)
    state = {"breaker": "work", "state": "closed"}
    wait_until(lambda: service.metric("timedblock_breaker_state", **state) == processes)


def test_what_a_worker_counted_last_is_not_lost(tmp_path: Path) -> None:
    """A worker that is replaced after so many requests writes its last calls when it ends."""
    with gunicorn(tmp_path, "--max-requests", "7") as service:
        for _ in range(20):
            service.tell("/work")
        name = "timedblock_calls_total"

        def expected() -> int:
            return 20 + AT_IMPORT * len(list(tmp_path.glob("counter_*.db")))

        wait_until(lambda: service.metric(name, outcome="ok") == expected())
        assert expected() > 20 + 2 * AT_IMPORT, "no worker was replaced"


def test_the_other_pages_under_gunicorn(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Each worker judges for itself, and says who it is."""
    with gunicorn(tmp_path, *options) as service:
        assert service.get("/-/ready")[0] == 200
        told = service.tell("/-/health")
        assert told["status"] == "ok" and told["pid"] != service.process.pid
        assert told["blocks"]["work"]["critical"] is True


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    """The service doesn't start with metrics that nobody would ever see."""
    done = subprocess.run(
        [sys.executable, "-c", "from timedblock.monitor import wsgi_app; wsgi_app()"],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "missing")},
        capture_output=True,
        text=True,
    )
    assert "RuntimeError" in done.stderr and "missing" in done.stderr


@pytest.fixture(scope="module")
def uvicorn() -> Iterator[Service]:
    command = ("uvicorn", "--port", "PORT", "--log-level", "warning")
    with Service(*command, "tests.servers.monitored:asgi", environment={}) as service:
        yield service
    assert "Traceback" not in service.errors


def test_every_page_under_uvicorn(uvicorn: Service) -> None:
    """The ASGI application, mounted below a prefix."""
    made = 5
    before = uvicorn.metric("timedblock_calls_total", block="work")
    for _ in range(made):
        uvicorn.tell("/work")
    assert uvicorn.metric("timedblock_calls_total", block="work") == before + made
    for path in ("/-/live", "/-/ready", "/-/health"):
        assert json.loads(uvicorn.get(path)[1])["status"] == "ok"
    assert uvicorn.get("/-/nothing")[0] == 404


def _check_headers(service: Service) -> None:
    """On one connection, so that threads and tasks are used again."""
    connection = service.connect()

    def left(header: str | None) -> float | None:
        headers = {} if header is None else {"Timedblock-Deadline-Ms": header}
        connection.request("GET", "/", headers=headers)
        found = json.loads(connection.getresponse().read())["left"]
        return None if found is None else float(found)

    for header in ("60000", "60000, 900000", "900000,60000"):
        assert left(None) is None
        value = left(header)
        assert value is not None and 60.0 - PATIENCE < value <= 60.0
    assert left("soon") is None
    assert left("0") == 0.0
    assert left(None) is None
    connection.close()


def test_a_deadline_by_header_under_uvicorn(uvicorn: Service) -> None:
    """Taken for its request, and gone for the next on the same connection."""
    _check_headers(uvicorn)


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_a_deadline_by_header_under_gunicorn(tmp_path: Path, worker: str) -> None:
    """The same on a worker's one thread, and on threads of a pool; a streamed body has it."""
    with gunicorn(tmp_path, "-k", worker, "--threads", "1" if worker == "sync" else "2") as service:
        _check_headers(service)
        _, body = service.get("/streamed", **{"Timedblock-Deadline-Ms": "60000"})
        lines = [json.loads(line)["left"] for line in body.splitlines()]
        assert len(lines) == 3 and all(0 < left <= 60 for left in lines)
        lines = [json.loads(line)["left"] for line in service.get("/streamed")[1].splitlines()]
        assert lines == [None] * 3
