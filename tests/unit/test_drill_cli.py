"""The command line: what it refuses, and what it says without its extra."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from timedblock import cli
from timedblock.drill import injection, toml


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "nan"], "nan"),
        (["--rate", "-3"], "-3"),
        (["--rate", "1e9"], "1000000000"),
        (["--rate", "fast"], "'fast'"),
        (["--window", "0"], "0"),
        (["--window", "inf"], "inf"),
        (["--faults", "hang,bogus"], "'bogus'"),
        (["--faults", ""], "''"),
        (["--server", "localhost"], "'localhost'"),
        (["--server", "localhost:0"], "'localhost:0'"),
        (["--server", "localhost:99999"], "'localhost:99999'"),
        (["--server", ":11211"], "':11211'"),
        (["--full", "--quick"], "--full and --quick"),
        (["--inject", "magic"], "'magic'"),
        (["--inject", "netfilter", "--faults", "drip"], "netfilter can't make 'drip'"),
        (["--inject", "process", "--server", "localhost:1"], "that the drill started"),
        (["--scenario", "sead"], "no scenario 'sead'"),
        (["--scenario", "hang", "--quick"], "--quick doesn't go with --scenario"),
        (["--scenario", "hang", "--rate", "100"], "--rate doesn't go with --scenario"),
        (["--scenario", "pause", "--inject", "proxy"], "proxy can't make 'pause'"),
        (["--repeat", "soon"], "'soon'"),
        (["--keep", "0"], "0"),
        (["--metrics", "9100"], "'9100'"),
        (["--metrics", "localhost:9100"], "--metrics goes with --repeat"),
        (["--graphite", "localhost:2003"], "--graphite goes with --repeat"),
        (["--nonsense"], "--nonsense"),
        (["surplus"], "surplus"),
    ],
)
def test_bad_input_is_one_line_that_names_the_value(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and a sentence, no traceback and no screen of usage."""
    assert cli.main(["drill", "memcache", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("timedblock: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("injector", ["proxy", "inprocess"])
def test_server_whose_name_does_not_resolve_is_told_with_why(
    injector: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_leaks: None,
) -> None:
    """Before any injector is started: which server, and the resolver's own words."""

    def unknown(host: str, *rest: object, **more: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known ({host})")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(injection, "_injector", None)
    arguments = ["--server", "no.such.invalid:11211", "--quick", "--inject", injector]
    assert cli.main(["drill", "memcache", *arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "no memcached at no.such.invalid:11211: " in error
    assert "Name or service not known (no.such.invalid)" in error


def test_file_that_cannot_be_written_is_told_before_the_drill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody waits a minute for a result that has nowhere to go."""
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" / "results.json"
    assert cli.main(["drill", "memcache", "--json", str(where)]) == 2
    assert str(where) in capsys.readouterr().err


def test_help_names_the_options_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """What a user needs to know is one --help away."""
    assert cli.main(["drill", "memcache", "--help"]) == 0
    out = capsys.readouterr().out
    options = ("--server", "--faults", "--rate", "--window", "--full", "--quick", "--scenario")
    assert all(word in out for word in (*options, "--inject", "--repeat", "--metrics", "130"))


def test_scenarios_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, the names that --scenario takes."""
    assert cli.main(["drill", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == toml.names()
    assert any(line.startswith("seed ") and "story" in line for line in lines)


def test_scenario_of_several_targets_takes_no_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody knows which of them it would be."""
    file = tmp_path / "two.toml"
    step = '[[timeline]]\nfault = "hang"\nat = 1\nfor = 4\n'
    file.write_text(step + '[[targets]]\nname = "a"\n[[targets]]\nname = "b"\n')
    arguments = ["--scenario", str(file), "--server", "localhost:1"]
    assert cli.main(["drill", "memcache", *arguments]) == 2
    assert "several targets" in capsys.readouterr().err


def test_no_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """``timedblock`` alone lists its commands."""
    cli.main([])
    captured = capsys.readouterr()
    assert "drill" in captured.out + captured.err


def test_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """``timedblock --version`` names the installed version."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("timedblock, version ")


@pytest.mark.parametrize("missing", ["click", "rich", "pymemcache", "junitparser"])
def test_without_its_extra_the_pip_line_is_printed(missing: str) -> None:
    """Importing the command line needs nothing; running it says exactly what to install."""
    code = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "import timedblock.cli\n"
        "sys.exit(timedblock.cli.main(['--version']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pip install 'timedblock[drill]'")
    assert "Traceback" not in done.stderr
