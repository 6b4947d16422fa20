"""Toxiproxy 2.5.0 and our proxy, each in a process of its own, driven by the same HTTP API."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 15.0
KINDS = ("toxiproxy", "timedblock")
CLIENT = Path(__file__).parent / "toxiproxy_client"


def installed() -> Path | None:
    """The real Toxiproxy that scripts/install-test-servers has built."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    servers = os.environ.get("TIMEDBLOCK_TEST_SERVERS") or Path(cache) / "timedblock-test-servers"
    found = Path(servers) / "toxiproxy-2.5.0" / "server"
    return found if found.exists() else None


def why_not(kind: str) -> str | None:
    """Why this one can't be started here."""
    if kind == "toxiproxy" and installed() is None:
        return "no Toxiproxy here: run scripts/install-test-servers"
    return None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Answer:
    """What the API said."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Running:
    """A server of the API."""

    kind: str
    port: int

    def ask(self, method: str, path: str, body: object = None, *, agent: str = "tests") -> Answer:
        """One request; a body that is no text is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        text = body if isinstance(body, (str, type(None))) else json.dumps(body)
        with contextlib.closing(connection):
            connection.request(method, path, text, {"User-Agent": agent})
            response = connection.getresponse()
            return Answer(response.status, response.read().decode())

    def clean(self) -> None:
        """No proxy is left."""
        for name in self.ask("GET", "/proxies").json:
            assert self.ask("DELETE", f"/proxies/{name}").status == 204

    def proxy(self, upstream: str, name: str = "one") -> tuple[str, int]:
        """Where a new proxy listens."""
        body = {"name": name, "listen": "127.0.0.1:0", "upstream": upstream}
        answer = self.ask("POST", "/proxies", body)
        assert answer.status == 201, answer
        host, _, port = answer.json["listen"].rpartition(":")
        return host, int(port)


@contextlib.contextmanager
def running(kind: str) -> Iterator[Running]:
    """One of `KINDS`, on a port of its own, for the time of the block."""
    port = free_port()
    if kind == "toxiproxy":
        command = [str(installed()), "-host", "127.0.0.1", "-port", str(port)]
    else:
        ours = [sys.executable, "-m", "timedblock.cli", "faults", "proxy"]
        command = [*ours, "--api", f"127.0.0.1:{port}"]
    environment = {**os.environ, "LOG_LEVEL": "error"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        wait_for(port, process)
        yield Running(kind, port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def wait_for(port: int, process: subprocess.Popen[Any]) -> None:
    """Until somebody listens there."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            assert process.poll() is None, f"it ended with {process.returncode}"
            assert time.monotonic() < end, "it does not listen"
            time.sleep(0.02)


def go_client(folder: Path) -> Path:
    """The Go program of `CLIENT`, built into the folder; its modules are pinned by go.sum."""
    program = folder / "toxiproxy_client"
    subprocess.run(["go", "build", "-o", str(program), "."], cwd=CLIENT, check=True, timeout=100)
    return program


def has_go() -> bool:
    return shutil.which("go") is not None
