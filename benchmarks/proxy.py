"""Our proxy beside Toxiproxy 2.5.0: requests a second, and what each adds to a request's time.

python -m benchmarks.proxy [--rounds N] [--first] [--json FILE]

Both stand between the same client and the same echo server (`proxyload/`, in Go), are driven by
the same HTTP API, and take turns. It needs Go and what scripts/install-test-servers builds.

The p99 at 1,000 requests/s is judged by the median of the ratios of turns of a second each, one
after the other; beside it stands the p99 of all requests of all turns together.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import _harness as harness
from benchmarks._servers import LOOPBACK, free_port, wait_for

LOAD = Path(__file__).parent / "proxyload"
CONNECTIONS = 64
SECONDS = 0.7
OPEN_CONNECTIONS = 8
OPEN_SECONDS = 1.0
OPEN_RATE = 1000
OURS, THEIRS, DIRECT = "timedblock", "toxiproxy", "direct"


def toxiproxy() -> Path:
    """Where scripts/install-test-servers puts it."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    servers = os.environ.get("TIMEDBLOCK_TEST_SERVERS") or Path(cache) / "timedblock-test-servers"
    return Path(servers) / "toxiproxy-2.5.0" / "server"


@dataclass(frozen=True)
class Target:
    """What the load is sent to; `api` is where it is driven."""

    address: str
    api: int = 0

    def post(self, path: str, body: object) -> dict[str, str]:
        """One request to the API."""
        url = f"http://{LOOPBACK}:{self.api}{path}"
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=10) as answer:
            document: dict[str, str] = json.load(answer)
            return document


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "LOG_LEVEL": "error"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def _proxied(command: list[str], api: int, upstream: str) -> Iterator[Target]:
    """A proxy to the upstream, by a server of the API."""
    with _process(command):
        wait_for((LOOPBACK, api), 15.0)
        body = {"name": "load", "listen": f"{LOOPBACK}:0", "upstream": upstream}
        made = Target("", api).post("/proxies", body)
        yield Target(made["listen"], api)


@contextlib.contextmanager
def _targets(load: Path) -> Iterator[dict[str, Target]]:
    ours, theirs = free_port(), free_port()
    command = [sys.executable, "-m", "timedblock.cli", "faults", "proxy"]
    with contextlib.ExitStack() as stack:
        echo = stack.enter_context(_process([str(load), "echo"]))
        assert echo.stdout is not None
        upstream = echo.stdout.readline().strip()
        yield {
            DIRECT: Target(upstream),
            THEIRS: stack.enter_context(
                _proxied(
                    [str(toxiproxy()), "-host", LOOPBACK, "-port", str(theirs)], theirs, upstream
                )
            ),
            OURS: stack.enter_context(
                _proxied([*command, "--api", f"{LOOPBACK}:{ours}"], ours, upstream)
            ),
        }


def _ask(load: Path, *arguments: object) -> list[float]:
    command = [str(load), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return [float(word) for word in done.stdout.split()]


def _closed(load: Path, target: Target) -> Callable[[], float]:
    return lambda: _ask(load, "closed", target.address, CONNECTIONS, SECONDS)[0]


def _p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]


def _open(load: Path, target: Target, kept: list[float]) -> Callable[[], float]:
    """p99 of a turn; each request's seconds are kept."""

    def turn() -> float:
        took = _ask(load, "open", target.address, OPEN_CONNECTIONS, OPEN_SECONDS, OPEN_RATE)
        kept.extend(took)
        return _p99(took)

    return turn


def throughput(load: Path, targets: dict[str, Target], what: str, rounds: int) -> harness.Figure:
    """Requests a second through ours over those through theirs."""
    samples = harness.interleave(
        {name: _closed(load, targets[name]) for name in (THEIRS, OURS)}, repeat=rounds
    )
    note = ", ".join(f"{name} {statistics.median(samples[name]):.0f}/s" for name in samples)
    name = f"{CONNECTIONS} connections, {what}: ours / Toxiproxy"
    return harness.ratio(name, harness.paired(samples[OURS], samples[THEIRS]), at_least=0.8,
                         note=note)  # fmt: skip


def added(load: Path, targets: dict[str, Target], rounds: int) -> list[harness.Figure]:
    """p99 through each, less that without a proxy, and how the two compare turn by turn."""
    names = (DIRECT, THEIRS, OURS)
    kept: dict[str, list[float]] = {name: [] for name in names}
    samples = harness.interleave(
        {name: _open(load, targets[name], kept[name]) for name in names}, repeat=rounds
    )
    whole = {name: _p99(kept[name]) * 1e3 for name in names}
    middle = {name: statistics.median(samples[name]) * 1e3 for name in names}
    figures = [
        harness.shown(
            f"p99 added at {OPEN_RATE}/s, {name}",
            middle[name] - middle[DIRECT],
            "ms",
            note=(
                f"median p99 of {rounds} turns {middle[name]:.3g} ms, without a proxy"
                f" {middle[DIRECT]:.3g} ms; of all {len(kept[name])} requests {whole[name]:.3g} and"
                f" {whole[DIRECT]:.3g} ms"
            ),
        )
        for name in (THEIRS, OURS)
    ]
    # Both had the same without a proxy: the one adds no more than the other if it takes no longer.
    name = f"p99 at {OPEN_RATE}/s: Toxiproxy / ours"
    note = f"of all requests {whole[THEIRS] / whole[OURS]:.3g}"
    ratios = harness.paired(samples[THEIRS], samples[OURS])
    return [*figures, harness.ratio(name, ratios, at_least=1.0, note=note)]


def _build(folder: Path) -> Path:
    load = folder / "proxyload"
    subprocess.run(["go", "build", "-o", str(load), "."], cwd=LOAD, check=True, timeout=100)
    return load


def measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    """Everything, or one line that says why not."""
    if arguments.first:
        os.nice(-19)  # what is started here inherits it, both proxies and the load alike
    if shutil.which("go") is None or not toxiproxy().exists():
        note = "not measured: no Go or no Toxiproxy here, run scripts/install-test-servers"
        return [harness.shown("proxy", 0, "", note=note)]
    rounds: int = arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        load = _build(Path(folder))
        with _targets(load) as targets:
            figures = [throughput(load, targets, "no toxic", rounds)]
            figures += added(load, targets, rounds)
            body = {"type": "latency", "attributes": {"latency": 0}}
            for name in (THEIRS, OURS):
                targets[name].post("/proxies/load/toxics", body)
            figures.append(throughput(load, targets, "latency of 0 ms", rounds))
    return figures


def options() -> argparse.ArgumentParser:
    """And the number of rounds, and how to measure beside other work."""
    made = harness.parser(__doc__)
    made.add_argument(
        "--first", action="store_true", help="run it all before the machine's other work (root)"
    )
    made.add_argument("--rounds", type=int, default=12, help="turns of each (default: 12)")
    return made


if __name__ == "__main__":
    sys.exit(harness.main("proxy", __doc__, measure, options()))
