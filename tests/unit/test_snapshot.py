"""Learnt limits outlive their process, and a bad file never breaks a start."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from timedblock import (
    Fixed,
    Percentile,
    Policy,
    TimedBlock,
    load_learnt,
    registry,
    save_learnt,
    tag,
)
from timedblock import snapshot as snapshot_module
from timedblock.endpoint import endpoint
from timedblock.testing import FakeClock

NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def wall(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The wall clock stands still, and nothing that was loaded outlives the test."""
    gc.collect()
    monkeypatch.setattr(snapshot_module, "_wall", lambda: NOW)
    monkeypatch.setattr(registry, "warm", {})
    monkeypatch.setattr("timedblock.block.warm", registry.warm)
    monkeypatch.setattr(snapshot_module, "_learnt_at", {})
    yield


def taught(name: str, clock: FakeClock, seconds: float, **more: Any) -> TimedBlock:
    """A block that has learnt from answers of `seconds`."""
    block = TimedBlock(name, **more)
    for _ in range(200):
        block.call(clock.advance, seconds)
    assert block.learnt.source == "learnt"
    return block


def entry(**changes: Any) -> dict[str, Any]:
    """A right entry, changed."""
    right = {"block": "a", "endpoint": None, "limit": 0.2, "median": 0.05, "at": NOW}
    return {**right, **changes}


def write(path: Path, *entries: Any, **changes: Any) -> Path:
    """A snapshot of these entries."""
    document = {"format": "timedblock-learnt", "version": 1, "limits": list(entries), **changes}
    path.write_text(json.dumps(document))
    return path


def test_keys_start_warm_too(clock: FakeClock, tmp_path: Path) -> None:
    """A tag's limit is saved beside its block's, and taken up by the same tag."""
    block = taught("keyed", clock, 0.05)
    with tag("report"):
        for _ in range(200):
            block.call(clock.advance, 0.3)
    assert save_learnt(tmp_path / "x") == 2
    saved = json.loads((tmp_path / "x").read_text())["limits"]
    assert sorted(one.get("key", "") for one in saved) == ["", "report"]
    del block
    gc.collect()
    early = TimedBlock("keyed")
    with tag("report"):
        early.call(int)
    assert load_learnt(tmp_path / "x") == 2
    late = TimedBlock("keyed")
    with tag("report"):
        late.call(int)
        for block in (early, late):
            assert block.begin().limit == pytest.approx(0.6, rel=0.03)
    assert late.begin().limit == pytest.approx(0.1, rel=0.03)


def test_new_process_starts_warm(clock: FakeClock, tmp_path: Path) -> None:
    """The limit and the median of before, from the first call, per endpoint."""
    place, other = endpoint("one:1", None), endpoint("two:2", None)
    old = taught("s.get", clock, 0.1, endpoint=place)
    slow = taught("s.get", clock, 0.3, endpoint=other)
    assert save_learnt(tmp_path / "learnt.json") == 2
    limits = old.limit, slow.limit
    del old, slow
    gc.collect()
    assert load_learnt(tmp_path / "learnt.json") == 2
    new, slow = (TimedBlock("s.get", endpoint=where) for where in (place, other))
    assert (new.limit, slow.limit) == limits
    assert new.learnt.source == slow.learnt.source == "learnt"
    assert 0.09 < new.median < 0.11


def test_block_that_exists_takes_its_limit_up_unless_it_knows_better(
    clock: FakeClock, tmp_path: Path
) -> None:
    """What was learnt here and now counts for more."""
    fresh = TimedBlock("a")
    knows = taught("b", clock, 0.1)
    limit = knows.limit
    load_learnt(write(tmp_path / "x", entry(), entry(block="b", limit=0.9)))
    assert (fresh.limit, fresh.learnt.source) == (0.2, "learnt")
    assert knows.limit == limit


@pytest.mark.parametrize(("saved", "limit"), [(0.001, 0.05), (0.3, 0.3), (50.0, 1.0)])
def test_limit_is_clipped_to_floor_and_ceiling(
    clock: FakeClock, tmp_path: Path, saved: float, limit: float
) -> None:
    """Today's policy holds, whatever yesterday's was."""
    load_learnt(write(tmp_path / "x", entry(limit=saved)))
    assert TimedBlock("a").limit == limit


def test_only_blocks_that_learn_take_limits_up(clock: FakeClock, tmp_path: Path) -> None:
    """A fixed limit stays fixed, and no limit none."""
    load_learnt(write(tmp_path / "x", entry()))
    assert TimedBlock("a", Policy(timeout=Fixed(3))).limit == 3
    assert TimedBlock("a", Policy(timeout=None)).limit == float("inf")


def test_old_limits_are_left_out(clock: FakeClock, tmp_path: Path) -> None:
    """A day old says nothing any more; neither does one from the future."""
    file = write(
        tmp_path / "x",
        entry(block="old", at=NOW - 25 * 3600),
        entry(block="young", at=NOW - 23 * 3600),
        entry(block="future", at=NOW + 25 * 3600),
    )
    assert load_learnt(file) == 1
    assert TimedBlock("young").limit == 0.2
    assert TimedBlock("old").limit == TimedBlock("future").limit == 1.0
    assert load_learnt(file, max_age=60) == 0


def test_limit_that_was_not_learnt_anew_keeps_its_age(clock: FakeClock, tmp_path: Path) -> None:
    """Saved again and again by processes without traffic, it still grows old."""
    load_learnt(write(tmp_path / "x", entry(at=NOW - 3600), entry(block="gone", at=NOW - 7200)))
    idle = TimedBlock("a")
    idle.call(clock.advance, 0.01)
    assert save_learnt(tmp_path / "y") == 2
    saved = json.loads((tmp_path / "y").read_text())["limits"]
    assert {one["block"]: one["at"] for one in saved} == {"a": NOW - 3600, "gone": NOW - 7200}
    taught("a", clock, 0.1)
    save_learnt(tmp_path / "y")
    saved = json.loads((tmp_path / "y").read_text())["limits"]
    assert {one["block"]: one["at"] for one in saved} == {"a": NOW, "gone": NOW - 7200}


def test_process_that_learnt_nothing_saves_nothing_new(clock: FakeClock, tmp_path: Path) -> None:
    """A short-lived one does not wipe out what the others know, once it has loaded it."""
    file = write(tmp_path / "x", entry())
    load_learnt(file)
    save_learnt(file)
    assert json.loads(file.read_text())["limits"] == [entry()]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"limits": []}',
        b"[" * 100_000,
        json.dumps({"format": "timedblock-learnt", "version": 2, "limits": []}).encode(),
        json.dumps({"format": "timedblock-learnt", "version": 1, "limits": {}}).encode(),
        *(
            json.dumps(
                {"format": "timedblock-learnt", "version": 1, "limits": [entry(), bad]}
            ).encode()
            for bad in (
                3,
                {},
                entry(block=3),
                entry(endpoint=[]),
                entry(limit=None),
                entry(limit=-1),
                entry(limit=float("nan")),
                entry(limit=1e300),
                entry(median="fast"),
                entry(at="now"),
                entry(at=float("inf")),
            )
        ),
    ],
)
def test_foreign_or_broken_file_is_logged_and_changes_nothing(
    clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """All of a file or nothing: half of a broken one is no better."""
    file = tmp_path / "x"
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_learnt(file) == 0
    (said,) = caplog.messages
    assert said.startswith(f"{file}: no snapshot of ours: ")
    assert TimedBlock("a").learnt.source == "initial"


def test_file_that_is_missing_or_unreadable_changes_nothing(
    clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first start has none, which is worth no warning."""
    with caplog.at_level(logging.WARNING):
        assert load_learnt(tmp_path / "x") == 0
        assert not caplog.messages
        assert load_learnt(tmp_path) == 0
    assert caplog.messages == [f"{tmp_path}: Is a directory; limits are learnt anew"]


def test_failed_save_leaves_the_file_before(clock: FakeClock, tmp_path: Path) -> None:
    """It is written beside and moved: never half a file, and no litter."""
    taught("a", clock, 0.1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        save_learnt(tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        save_learnt(tmp_path / "nowhere" / "x")
    assert os.listdir(tmp_path) == ["folder"]


def test_first_calls_of_a_warm_process_learn_on_from_there(
    clock: FakeClock, tmp_path: Path
) -> None:
    """Too few answers forget nothing; enough of them count for more."""
    load_learnt(write(tmp_path / "x", entry(limit=0.8)))
    block = TimedBlock("a", Policy(timeout=Percentile(min_samples=50)))
    for _ in range(30):
        block.call(clock.advance, 0.1)
    assert block.limit == 0.8
    for _ in range(100):
        block.call(clock.advance, 0.1)
    assert 0.15 < block.limit < 0.25


SERVICE = """
import sys, time
from timedblock import TimedBlock, Percentile, Policy, stats
block = TimedBlock("work", Policy(timeout=Percentile(min_samples=20)))
print(stats()["blocks"]["work"]["limit_source"])
if sys.argv[1] == "learn":
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        block.call(time.sleep, 0.005)
"""


@pytest.mark.wall
def test_environment_keeps_limits_from_one_process_to_the_next(tmp_path: Path) -> None:
    """TIMEDBLOCK_SNAPSHOT is all it takes: saved at exit, taken up at the start."""
    environ = {**os.environ, "TIMEDBLOCK_SNAPSHOT": str(tmp_path / "learnt.json")}

    def run(what: str) -> str:
        command = [sys.executable, "-W", "error", "-c", SERVICE, what]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    assert run("learn") == "initial"
    assert run("look") == "learnt"
    assert run("look") == "learnt"
    (saved,) = json.loads((tmp_path / "learnt.json").read_text())["limits"]
    assert saved["block"] == "work"
    assert 0.05 <= saved["limit"] <= 1.0
