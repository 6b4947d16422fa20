"""``timedblock drill memcache`` as a user runs it: a process, real TCP, real faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml
from pymemcache.client.base import Client

from timedblock.drill.history import read_calls, read_samples
from timedblock.faults.netfilter import why_not
from timedblock.faults.undoing import namespaces
from timedblock.testing.memcached import EmbeddedMemcached

pytestmark = pytest.mark.wall

ROW = {
    "fault", "variant", "calls", "ok", "unavailable", "wrong", "over_limit", "limit", "p50", "p99",
    "worst", "goodput",
}  # fmt: skip
VARIANTS = ["raw-default", "raw-timeout", "timedblock"]
#: Goodput is judged in its last two thirds: there has to be time to notice the fault before them.
WINDOW = 6.0
RATE = 100.0
#: A wave takes 10 s and its start; there are two at most here, and the machine may be busy.
TIME_LIMIT = 60.0


#: The command's own JSON beside ``--out``.
_OTHER = "r.json"


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "timedblock.cli", "drill", "memcache", *arguments]


def _drill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments), cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT
    )


def _scenario(folder: Path, text: str) -> list[str]:
    """Arguments for a scenario of one short episode: about five seconds."""
    file = folder / "mine.toml"
    file.write_text(f"baseline = false\n{text}")
    return ["--scenario", str(file)]


def _left(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "drill-memcache.json").read_text())
    return document


def _children(pid: int) -> set[int]:
    """All descendants of a process."""
    found: set[int] = set()
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        own = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return found
    for child in own:
        found |= {child} | _children(child)
    return found


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Three faults, run once for the tests that look at what came of it.

    Again (twice at most) where the machine is known to have taken calls' time in the run without a
    fault: such a run says nothing, and the drill's own document tells it.
    """
    load = ["--window", str(WINDOW), "--rate", str(RATE)]
    for _ in range(3):
        folder = tmp_path_factory.mktemp("drill")
        other = ["--json", str(folder / _OTHER)]
        done = _drill(folder, *load, "--faults", "refuse,hang,dns-hang", *other)
        if not _starved(folder / _OTHER):
            break
    return done


def _starved(file: Path) -> bool:
    details = json.loads(file.read_text())["details"] if file.exists() else []
    return any(one["stalled"] for one in details if one["fault"] == "none")


@pytest.fixture(scope="module")
def document(short_run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(short_run.args[-1]).read_text())
    return document


def _row(document: dict[str, Any], fault: str, variant: str) -> dict[str, Any]:
    (row,) = [
        row for row in document["results"] if (row["fault"], row["variant"]) == (fault, variant)
    ]
    return dict(row)


def test_drill_passes_and_says_so(short_run: subprocess.CompletedProcess[str]) -> None:
    """Exit code 0, the table, the sentences and where the results are."""
    assert short_run.returncode == 0, short_run.stdout + short_run.stderr
    assert "PASSED" in short_run.stdout
    assert "raw-default: hung in 2 of 3 faults" in short_run.stdout
    assert short_run.args[-1] in short_run.stdout
    assert not short_run.stderr


def test_file_has_every_fault_on_every_variant(document: dict[str, Any]) -> None:
    """Exactly the agreed fields, the fault-free run first."""
    assert [(row["fault"], row["variant"]) for row in document["results"]] == [
        (fault, variant) for fault in ("none", "refuse", "hang", "dns-hang") for variant in VARIANTS
    ]
    assert all(set(row) == ROW for row in document["results"])
    assert all(row["calls"] == RATE * WINDOW for row in document["results"])


def test_without_a_fault_every_variant_is_right(document: dict[str, Any]) -> None:
    """The load itself does no harm: every call is answered."""
    for variant in VARIANTS:
        row = _row(document, "none", variant)
        assert (row["ok"], row["unavailable"], row["wrong"]) == (row["calls"], 0, 0)
        assert row["goodput"] > 0.9


@pytest.mark.parametrize(
    ("fault", "hung"),
    [
        ("refuse", []),
        ("hang", ["raw-default"]),
        ("dns-hang", ["raw-default", "raw-timeout"]),
    ],
)
def test_faults_bite_the_raw_clients(document: dict[str, Any], fault: str, hung: list[str]) -> None:
    """Raw with its defaults hangs; 1 s timeouts don't help where names don't resolve."""
    for variant in VARIANTS[:2]:
        row = _row(document, fault, variant)
        assert row["ok"] < 0.2 * row["calls"]
        assert (row["worst"] >= WINDOW) == (variant in hung)


@pytest.mark.parametrize("fault", ["refuse", "hang", "dns-hang"])
def test_our_calls_hold_their_limit(document: dict[str, Any], fault: str) -> None:
    """No call of ours went past its limit, and none answered wrongly."""
    row = _row(document, fault, "timedblock")
    assert row["worst"] <= row["limit"] + 0.25
    assert (row["over_limit"], row["wrong"]) == (0, 0)


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    with EmbeddedMemcached() as embedded:
        assert isinstance(embedded.address, tuple)
        yield embedded.address


def test_every_call_and_what_timedblock_knew_is_kept(
    short_run: subprocess.CompletedProcess[str],
) -> None:
    """The records of every load, to the last request, beside the document."""
    out = Path(short_run.args[-1]).parent / "timedblock-drill"
    assert (out / "drill-memcache.json").read_text() == Path(short_run.args[-1]).read_text()
    document = _left(out)
    calls = list(read_calls(out / "history.jsonl"))
    made = Counter((call.fault, call.variant) for call in calls)
    assert set(made) == {(row["fault"], row["variant"]) for row in document["results"]}
    schedule = document["schedule"]
    seconds = sum(schedule[part] for part in ("steady", "window", "grace", "recovery"))
    assert made["refuse", "timedblock"] == RATE * seconds
    assert {call.op for call in calls} == {"get", "set"}
    samples = list(read_samples(out / "samples.jsonl"))
    assert {sample.variant for sample in samples} == {"timedblock"}
    hang = [sample for sample in samples if sample.fault == "hang"]
    assert {"closed", "open"} <= {sample.breaker for sample in hang}
    assert "learnt" in {sample.limit_source for sample in hang}
    assert {sample.health for sample in hang} == {"ok", "degraded"}


def test_document_says_what_was_done_and_judged(document: dict[str, Any]) -> None:
    """Which fault was on when, and each verdict with its bound."""
    timeline = {one["fault"]: one for one in document["timeline"]}
    assert set(timeline) == {"refuse", "hang", "dns-hang"}
    assert timeline["hang"]["name"] == "hang"
    assert timeline["hang"]["at"] == document["schedule"]["steady"]
    assert document["inject"] == "proxy"
    assert document["scenario"]["load"]["rate"] == RATE
    named = {(one["fault"], one["name"]) for one in document["verdicts"]}
    assert {("none", "limit_kept"), ("hang", "goodput"), ("hang", "no_wrong_answer")} <= named


REFUSED = """
[load]
rate = 100
[[timeline]]
fault = "refuse"
at = 0.5
for = 2.5
"""


def test_server_of_the_user_is_left_as_it_was(tmp_path: Path, server: tuple[str, int]) -> None:
    """``--server`` takes a server that is there; the drill's keys are gone afterwards."""
    with closing(Client(server)) as client:
        client.set("mine", b"1", noreply=False)
        where = f"{server[0]}:{server[1]}"
        done = _drill(tmp_path, *_scenario(tmp_path, REFUSED), "--server", where, "--out", "here")
        assert done.returncode == 0, done.stdout + done.stderr
        assert client.get("mine") == b"1"
        assert client.stats()[b"curr_items"] == 1
    assert _left(tmp_path / "here")["server"] == where


IN_PROCESS = """
inject = "inprocess"
variants = ["timedblock-fixed", "timedblock"]
recovery = 1
[load]
kind = "closed"
threads = 4
think = 0.01
[[timeline]]
fault = "reset"
at = 0.5
for = 2
[verdicts]
goodput = 0.5
breaker_opened = 1.75
seen = 0.001
"""


def test_verdict_that_fails_is_exit_code_1_and_in_the_junit_file(tmp_path: Path) -> None:
    """A closed loop and faults at our own sockets; nobody sees a fault within a millisecond."""
    done = _drill(tmp_path, *_scenario(tmp_path, IN_PROCESS))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED  mine: /health not ok" in done.stdout
    cases = {
        case.name: case
        for suite in JUnitXml.fromfile(str(tmp_path / "timedblock-drill" / "junit.xml"))
        for case in suite
    }
    failed = {name for name, case in cases.items() if not case.is_passed}
    assert failed == {"timedblock-fixed: seen", "timedblock: seen"}
    assert {"timedblock: limit_kept", "timedblock: breaker_opened"} <= set(cases)


BY_PACKETS = """
inject = "netfilter"
variants = ["raw-timeout", "timedblock"]
[load]
rate = 100
[[timeline]]
fault = "hang"
at = 1.5
for = 3.5
"""


@pytest.mark.server
@pytest.mark.skipif(why_not() is not None, reason=f"packet rules can't be made: {why_not()}")
def test_packet_rules_bite_the_raw_client_and_ours_goes_on(tmp_path: Path) -> None:
    """The loads run in namespaces of the drill's, which are gone afterwards."""
    drill = subprocess.Popen(
        _command(*_scenario(tmp_path, BY_PACKETS)), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    said, _ = drill.communicate(timeout=TIME_LIMIT)
    assert drill.returncode == 0, said
    document = _left(tmp_path / "timedblock-drill")
    raw, ours = _row(document, "mine", "raw-timeout"), _row(document, "mine", "timedblock")
    assert raw["goodput"] < 0.5
    assert raw["p50"] >= 1.0
    assert ours["goodput"] > raw["goodput"]
    assert (ours["over_limit"], ours["wrong"]) == (0, 0)
    assert not [name for name in namespaces() if name.startswith(f"timedblock-{drill.pid}-")]


KILLED = """
inject = "process"
recovery = 5
variants = ["raw-timeout", "timedblock"]
[load]
rate = 50
[[timeline]]
fault = "kill"
at = 1
for = 2
[verdicts]
recovery = 4.5
"""


@pytest.mark.server
@pytest.mark.skipif(shutil.which("memcached") is None, reason="memcached is not installed")
def test_server_is_killed_and_comes_back_empty(tmp_path: Path) -> None:
    """Its keys are lost: a miss is no wrong answer then. No server is left behind."""
    done = _drill(tmp_path, *_scenario(tmp_path, KILLED))
    assert done.returncode == 0, done.stdout + done.stderr
    document = _left(tmp_path / "timedblock-drill")
    assert all(row["wrong"] == 0 for row in document["results"])
    assert _row(document, "mine", "raw-timeout")["unavailable"] > 0
    host, port = document["server"].split(":")
    with socket.socket() as one:
        assert one.connect_ex((host, int(port))) != 0


def test_server_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    """Nothing is measured where there is no server: exit code 2, and which server it was."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        done = _drill(tmp_path, "--server", f"127.0.0.1:{port}")
    assert done.returncode == 2
    assert f"no memcached at 127.0.0.1:{port}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_interrupt_ends_everything_and_writes_what_there_is(tmp_path: Path) -> None:
    """Ctrl-C in the second wave: exit code 130, the first wave's results, no process left."""
    drill = subprocess.Popen(
        _command("--faults", "hang", "--window", "2"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        started = _interrupt_in_second_wave(drill.pid)
        out, err = drill.communicate(timeout=10)
    finally:
        drill.kill()
        drill.wait()
    assert drill.returncode == 130, out + err
    assert "INTERRUPTED  1 of 2 runs finished." in out
    assert "Traceback" not in err
    assert not [pid for pid in started if _alive(pid)]
    document = _left(tmp_path / "timedblock-drill")
    assert document["interrupted"] is True
    assert {row["fault"] for row in document["results"]} == {"none"}
    calls = read_calls(tmp_path / "timedblock-drill" / "history.jsonl")
    assert {call.fault for call in calls} == {"none"}


def _interrupt_in_second_wave(pid: int) -> set[int]:
    """Ctrl-C as a terminal sends it: to the whole foreground group. Gives all processes seen."""
    seen: set[int] = set()
    first: set[int] = set()
    end = time.monotonic() + TIME_LIMIT
    while time.monotonic() < end:
        now = _children(pid)
        seen |= now
        workers = {child for child in now if _is_worker(child)}
        first = first or (workers if len(workers) == len(VARIANTS) else set())
        if first and workers and not workers & first:
            break
        time.sleep(0.05)
    os.killpg(pid, signal.SIGINT)
    return seen


def _is_worker(pid: int) -> bool:
    try:
        return b"timedblock.drill.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
