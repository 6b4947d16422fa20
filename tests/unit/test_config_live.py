"""The configuration of a process: when it is read, who follows it, and the command line."""

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

from timedblock import TimedBlock, cli, config, registry
from timedblock.config import Configuration
from timedblock.testing import FakeClock


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has read nothing yet."""
    gc.collect()
    for name in list(os.environ):
        if name.startswith("TIMEDBLOCK_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(registry, "source", None)
    monkeypatch.setattr(config, "_configuration", None)
    monkeypatch.setattr(config, "_keeper", None)
    yield


def run(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own."""
    environ = {**os.environ, **{f"TIMEDBLOCK_{name}": text for name, text in variables.items()}}
    return subprocess.run(
        [sys.executable, "-W", "ignore:This process", "-c", code, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


# -- the keeper: one thread, driven here by hand -----------------------------------------------


def test_file_is_looked_at_each_second(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a moment later once more, when it has changed."""
    file = tmp_path / "a.toml"
    file.write_text("")
    configuration = Configuration({}, file)
    monkeypatch.setattr(registry, "source", configuration)
    block = TimedBlock("a")
    keeper = config._Keeper(configuration, clock)
    file.write_text("[block.a]\nbulkhead = 3\n")
    assert keeper.tick() == pytest.approx(1.0)
    clock.advance(0.9)
    assert keeper.tick() == pytest.approx(0.1)
    clock.advance(0.1)
    assert keeper.tick() == pytest.approx(0.1)
    assert block.bulkhead == float("inf")
    clock.advance(0.1)
    assert keeper.tick() == pytest.approx(1.0)
    assert block.bulkhead == 3


def test_learnt_limits_are_saved_each_minute(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written before, and only the file that is named."""
    target = tmp_path / "learnt.json"
    keeper = config._Keeper(Configuration({"TIMEDBLOCK_SNAPSHOT": str(target)}), clock)
    for _ in range(59):
        clock.advance(1.0)
        keeper.tick()
    assert not target.exists()
    clock.advance(1.0)
    keeper.tick()
    assert json.loads(target.read_text())["format"] == "timedblock-learnt"
    assert os.listdir(tmp_path) == ["learnt.json"]


def test_snapshot_that_cannot_be_written_is_logged_once(
    clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk must not fill the log too."""
    target = tmp_path / "nowhere" / "learnt.json"
    keeper = config._Keeper(Configuration({"TIMEDBLOCK_SNAPSHOT": str(target)}), clock)
    keeper.save()
    keeper.save()
    assert [one.levelno for one in caplog.records] == [logging.ERROR]
    assert str(target) in caplog.text


# -- a process -----------------------------------------------------------------------------------


def test_process_without_settings_starts_no_thread_and_reads_no_toml() -> None:
    """What isn't used costs nothing."""
    done = run(
        "import sys, threading, timedblock\n"
        "timedblock.TimedBlock('a').call(int)\n"
        # coverage, where it is measured, reads its own settings
        "read = 'tomllib' in sys.modules and 'coverage' not in sys.modules\n"
        "print(threading.active_count(), read)"
    )
    assert (done.stdout.split(), done.stderr) == (["1", "False"], "")


def test_bad_configuration_is_told_to_who_makes_the_first_block(tmp_path: Path) -> None:
    """At the start, where somebody looks; importing alone is no use and raises nothing."""
    done = run("import timedblock\nprint('imported')\ntimedblock.TimedBlock('a')", A__CEILLING="2")
    assert done.stdout == "imported\n"
    assert done.returncode == 1
    assert "ConfigError: TIMEDBLOCK_A__CEILLING" in done.stderr


def test_stray_variable_is_warned_of(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A single underscore is the mistake to make; it is no error, for it may be another's."""
    monkeypatch.setenv("TIMEDBLOCK_A_CEILING", "2")
    TimedBlock("a")
    assert "TIMEDBLOCK_A_CEILING is no setting" in caplog.text


LIVE = """
import os, sys, time
from timedblock import TimedBlock
block = TimedBlock("a")
def follow(bulkhead):
    with open(sys.argv[1], "w") as file:
        file.write(f"[block.a]\\nbulkhead = {bulkhead}\\n")
    began = time.monotonic()
    while block.bulkhead != bulkhead and time.monotonic() - began < 10:
        time.sleep(0.02)
    return time.monotonic() - began
print(follow(3))
child = os.fork()
if not child:
    print(follow(4), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(follow(5))
"""


@pytest.mark.wall
def test_running_process_and_its_fork_follow_the_file(tmp_path: Path) -> None:
    """Within a look, a second look, and what a busy machine adds to two wake-ups."""
    file = tmp_path / "a.toml"
    file.write_text("")
    done = run(LIVE, str(file), CONFIG=str(file))
    assert (done.returncode, done.stderr) == (0, "")
    waits = [float(line) for line in done.stdout.split()]
    assert len(waits) == 3
    assert max(waits) < 1.0 + 0.1 + 1.0


FORKED_WHILE_SAVING = """
import os, signal, sys, timedblock
from timedblock import config, snapshot
block = timedblock.TimedBlock("a")
with snapshot._guard.lock, config._beginning.lock, config._configuration._lock:
    child = os.fork()
    if not child:
        signal.alarm(10)
        config._keeper.save()
        config._configuration.obey(open(sys.argv[1], "rb").read())
        print(len(config.effective()), flush=True)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def test_fork_while_settings_are_saved_leaves_the_child_free(tmp_path: Path) -> None:
    """A lock that another thread of the parent held is nobody's in the child."""
    file = tmp_path / "a.toml"
    file.write_text("")
    done = run(
        FORKED_WHILE_SAVING, str(file), CONFIG=str(file), SNAPSHOT=str(tmp_path / "learnt.json")
    )
    assert (done.stdout.split(), done.stderr) == (["1", "0"], "")


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user's with two blocks; its name."""
    (tmp_path / "shop_service.py").write_text(
        "from timedblock import Percentile, Policy, TimedBlock\n"
        'pay = TimedBlock("shop.pay", Policy(timeout=Percentile(99)))\n'
        'look = TimedBlock("shop.look")\n'
    )
    monkeypatch.chdir(tmp_path)
    yield "shop_service"
    sys.modules.pop("shop_service", None)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What the command prints as JSON."""
    assert cli.main(["config", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_command_shows_each_value_with_its_origin(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """For the blocks of a user's module."""
    (tmp_path / "a.toml").write_text('[block."shop.pay"]\nmargin = 3\n[block.other]\nq = 98\n')
    monkeypatch.setenv("TIMEDBLOCK_CONFIG", "a.toml")
    monkeypatch.setenv("TIMEDBLOCK_SHOP_PAY__CEILING", "2")
    shown = printed(capsys, "--import", service)
    blocks = {one["block"]: one["settings"] for one in shown["blocks"]}
    assert {"shop.pay", "shop.look"} <= set(blocks)
    pay = blocks["shop.pay"]
    assert pay["ceiling"] == {"value": 2, "from": "TIMEDBLOCK_SHOP_PAY__CEILING"}
    assert pay["margin"] == {"value": 3, "from": 'a.toml: [block."shop.pay"]'}
    assert pay["q"] == {"value": 99, "from": "code"}
    assert blocks["shop.look"]["ceiling"] == {"value": 1.0, "from": "default"}
    assert cli.main(["config", "--import", service]) == 0
    text = capsys.readouterr().out
    for said in (
        "shop.pay",
        "TIMEDBLOCK_SHOP_PAY__CEILING",
        '[block."shop.pay"]',
        "other: no block",
    ):
        assert said in text


def test_command_shows_what_file_and_environment_say_without_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Per table; blocks live in the service's process."""
    (tmp_path / "b.toml").write_text('mode = "observe"\n[block."shop.pay"]\nmargin = 3\n')
    monkeypatch.setenv("TIMEDBLOCK_SHOP_PAY__CEILING", "2")
    shown = printed(capsys, "--file", str(tmp_path / "b.toml"))
    assert shown["general"]["mode"]["value"] == "observe"
    assert shown["tables"] == {
        "shop.pay": {
            "margin": {"value": 3, "from": f'{tmp_path / "b.toml"}: [block."shop.pay"]'},
            "ceiling": {"value": 2, "from": "TIMEDBLOCK_SHOP_PAY__CEILING"},
        }
    }


def test_the_command_refuses_a_variable_that_is_nobodys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A running process only warns of it; who asks what is in force is told by the exit code."""
    monkeypatch.setenv("TIMEDBLOCK_MODEE", "observe")
    assert cli.main(["config"]) == 2
    assert "TIMEDBLOCK_MODEE is no setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[block.a]\nceilling = 1\n", "did you mean ceiling?"),
        ("[block.a]\nq = = 1\n", "line 2"),
    ],
)
def test_command_refuses_a_bad_file_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    """So that a file can be checked before it is put in place."""
    (tmp_path / "a.toml").write_text(text)
    assert cli.main(["config", "--file", str(tmp_path / "a.toml")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"timedblock: {tmp_path / 'a.toml'}: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_command_finds_what_does_not_go_with_the_code(
    service: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A floor above a block's own ceiling shows only beside the block."""
    (tmp_path / "a.toml").write_text('[block."shop.pay"]\nfloor = 3\n')
    assert cli.main(["config", "--file", "a.toml"]) == 0
    registry.source = config._configuration = None
    assert cli.main(["config", "--file", "a.toml", "--import", service]) == 2
    assert "shop.pay: a.toml" in capsys.readouterr().err


def test_command_names_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason, in one line."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "--import", "no_such_module"]) == 2
    err = capsys.readouterr().err
    assert "no_such_module can't be imported: ModuleNotFoundError" in err
    assert err.count("\n") == 1
