"""``timedblock drill rabbitmq`` and ``rabbitmq-partition`` as a user runs them, on real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from timedblock.drill.history import read_calls, read_deliveries
from timedblock.testing.rabbitmq import Cluster, why_not

#: Seconds after which a drill is taken for stuck.
STUCK = 150.0
pytestmark = [pytest.mark.wall, pytest.mark.server, pytest.mark.timeout(2 * STUCK)]

#: Verdicts that don't depend on how busy the machine is.
PROMISES = {"limit_kept", "no_wrong_answer", "honest_errors"}


def _drill(folder: Path, store: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """The document that it left, and what it said."""
    command = [sys.executable, "-m", "timedblock.cli", "drill", store, *arguments]
    own = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        command, cwd=folder, env=own, capture_output=True, text=True, timeout=STUCK
    )
    said = done.stdout + done.stderr
    assert done.returncode in (0, 1), said
    (file,) = (folder / "timedblock-drill").glob("drill-*.json")
    document: dict[str, Any] = json.loads(file.read_text())
    return document, said


def _row(document: dict[str, Any], part: str, fault: str, variant: str) -> dict[str, Any]:
    (row,) = [r for r in document[part] if (r["fault"], r["variant"]) == (fault, variant)]
    return dict(row)


def _broken(document: dict[str, Any]) -> list[str]:
    return [
        one["words"]
        for one in document["verdicts"]
        if not one["passed"] and one["name"] in PROMISES
    ]


SHORT = """
baseline = false
recovery = 2
[[targets]]
store = "rabbitmq"
[load]
rate = 20
[[episodes]]
name = "hang"
[[episodes.timeline]]
fault = "hang"
at = 2
for = 4
[[episodes]]
name = "refuse"
[[episodes.timeline]]
fault = "refuse"
at = 2.001  # a request is due at 2.000 and one at 2.050, neither races with the fault
for = 4
"""


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_broker_that_is_gone_hangs_raw_pika_and_not_ours(tmp_path: Path) -> None:
    """Every message that was confirmed is there, and the report is."""
    (tmp_path / "short.toml").write_text(SHORT)
    document, said = _drill(tmp_path, "rabbitmq", "--scenario", "short.toml")
    assert not _broken(document), said
    for variant in ("raw-default", "raw-timeout"):
        assert _row(document, "details", "hang", variant)["hung"] > 0
        assert _row(document, "results", "refuse", variant)["ok"] == 0
    ours = _row(document, "results", "hang", "timedblock")
    assert ours["worst"] <= ours["limit"] + 0.25
    out = tmp_path / "timedblock-drill"
    assert {call.op for call in read_calls(out / "history.jsonl")} == {"publish", "get"}
    taken = {call.value for call in read_calls(out / "history.jsonl") if call.op == "get"}
    given = {one.value for one in read_deliveries(out / "deliveries.jsonl")}
    assert given and taken - {None} <= given
    assert "timedblock drill · rabbitmq" in (out / "report.html").read_text()


PARTED = """
inject = "netfilter"
variants = ["raw-default", "raw-fresh", "timedblock"]
baseline = false
recovery = 5
[[targets]]
name = "cluster"
store = "rabbitmq-cluster"
[load]
rate = 10
[verdicts]
recovery = 5.0
way = 5.0
[[episodes]]
name = "drop-established"
[[episodes.timeline]]
fault = "hang"
at = 2
for = 14
"""


@pytest.mark.skipif(Cluster.why_not() is not None, reason=str(Cluster.why_not()))
def test_parted_cluster_hangs_raw_pika_and_not_ours(tmp_path: Path) -> None:
    """The seed's rule: raw pika hangs until it is lifted; ours keeps its limit, and every message
    that was confirmed is delivered."""
    (tmp_path / "parted.toml").write_text(PARTED)
    document, said = _drill(tmp_path, "rabbitmq-partition", "--scenario", "parted.toml")
    assert not _broken(document), said
    raw = _row(document, "results", "drop-established", "raw-default")
    assert raw["worst"] >= document["schedules"]["drop-established"]["window"]
    assert _row(document, "details", "drop-established", "raw-default")["hung"] > 0
    ours = _row(document, "details", "drop-established", "timedblock")
    assert ours["recovered"] is not None and ours["delivered"] > 0
    judged = {one["name"] for one in document["verdicts"]}
    assert judged == {*PROMISES, "goodput", "recovery", "way"}
    report = (tmp_path / "timedblock-drill" / "report.html").read_text()
    assert "consumer: " in report and "raw-fresh" in report


@pytest.mark.parametrize("store", ["rabbitmq", "rabbitmq-partition"])
def test_machine_without_rabbitmq_is_told_what_to_install(store: str, tmp_path: Path) -> None:
    """One line, and exit code 2; nothing is started."""
    hidden = (
        "import sys; from pathlib import Path; from timedblock.testing.rabbitmq import broker;"
        "broker.PROGRAMS = Path('/nowhere'); from timedblock import cli; sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden, "drill", store],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=STUCK,
    )
    assert done.returncode == 2
    assert "RabbitMQ isn't installed: apt-get install rabbitmq-server" in done.stderr
    assert done.stderr.count("\n") == 1
