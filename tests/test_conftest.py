"""The tests' own machinery: the rules for CI and for wall time, and the check for leaks."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = Path(__file__).with_name("conftest.py").read_text()


@pytest.fixture
def house(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory of tests that has this project's conftest.py and is run as CI would."""
    monkeypatch.setenv("CI", "true")
    pytester.makeini(
        f"""
        [pytest]
        markers =
            server: needs a real server
            wall: measures wall time
        pythonpath = {ROOT}
        """
    )
    pytester.makeconftest(CONFTEST)
    return pytester


def test_skip_of_a_real_server_is_a_failure_in_ci(house: pytest.Pytester) -> None:
    """With CI=true a test of a real server that skips has failed."""
    house.makepyfile(
        """
        import pytest
        @pytest.mark.server
        def test_server(): pytest.skip("no server here")
        """
    )
    result = house.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no server here*"])


def test_skip_in_a_fixture_of_a_real_server_is_a_failure_in_ci(house: pytest.Pytester) -> None:
    """With CI=true it makes no difference that the skip was decided in a fixture."""
    house.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.server
        @pytest.fixture
        def server(): pytest.skip("no server here")
        def test_server(server): pass
        """
    )
    house.runpytest_subprocess().assert_outcomes(errors=1)


def test_other_skips_stay_skips(house: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip without the marker stays a skip in CI, and one with it a skip elsewhere."""
    house.makepyfile(
        """
        import pytest
        def test_other(): pytest.skip("only on another platform")
        """
    )
    house.runpytest_subprocess().assert_outcomes(skipped=1)
    monkeypatch.delenv("CI")
    house.makepyfile(
        test_more="""
        import pytest
        @pytest.mark.server
        def test_server(): pytest.skip("no server here")
        """
    )
    house.runpytest_subprocess().assert_outcomes(skipped=2)


def test_module_that_skips_itself_is_a_failure_in_ci(house: pytest.Pytester) -> None:
    """With CI=true a module can't hide its tests by skipping itself."""
    house.makepyfile("import pytest\npytest.skip('nothing here', allow_module_level=True)")
    house.runpytest_subprocess().assert_outcomes(errors=1)


@pytest.mark.parametrize(
    ("leak", "named"),
    [
        ("threading.Thread(target=time.sleep, args=(5,), name='lost').start()", "lost"),
        ("kept.append(socket.socket())", "socket:"),
    ],
)
def test_no_leaks_finds_what_was_left(house: pytest.Pytester, leak: str, named: str) -> None:
    """`no_leaks` fails a test that leaves a thread or a descriptor, and names it."""
    house.makepyfile(
        f"""
        import socket, threading, time
        kept = []
        def test_leaks(no_leaks): {leak}
        """
    )
    result = house.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([f"*left behind*{named}*"])


def test_no_leaks_waits_for_what_is_closing(house: pytest.Pytester) -> None:
    """`no_leaks` lets go what ends a moment after the test."""
    house.makepyfile(
        """
        import threading, time
        def test_closes_late(no_leaks):
            threading.Thread(target=time.sleep, args=(0.3,)).start()
        """
    )
    house.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.parametrize(("work", "stuck"), [("int", 0), ("lambda: time.sleep(60)", 1)])
def test_no_leaks_knows_an_idle_worker_from_a_stuck_one(
    house: pytest.Pytester, work: str, stuck: int
) -> None:
    """A worker of ours that waits for its next job is no leak; one still at work is."""
    house.makepyfile(
        f"""
        import time
        from timedblock.net.workers import Workers
        def test_works(no_leaks):
            job = Workers("test", 1).submit({work})
            while not job.started:
                time.sleep(0.001)
        """
    )
    house.runpytest_subprocess().assert_outcomes(passed=1, errors=stuck)


STOPPED = """
    import os, signal, time
    import pytest
    from tests.stalls import STALL

    attempts = []

    def the_stalls(request):
        (found,) = [one for one in request.config.stash._storage.values()
                    if type(one).__name__ == "Stalls"]
        return found

    def no_stall(request):
        '''Whatever this machine does, nobody notes it.'''
        stalls = the_stalls(request)
        stalls._probe.kill()
        stalls._probe.wait()
        stalls.forget()

    def stall(request):
        '''The probe stands still, as it does when the whole machine does.'''
        stalls = the_stalls(request)
        os.kill(stalls._probe.pid, signal.SIGSTOP)
        time.sleep(4 * STALL)
        os.kill(stalls._probe.pid, signal.SIGCONT)
        while not stalls.seen():
            time.sleep(0.01)
"""


def test_a_test_of_wall_time_is_run_again_after_a_stall(house: pytest.Pytester) -> None:
    """It failed while the machine stood still: it is run again, and the summary names it."""
    house.makepyfile(
        STOPPED
        + """
    @pytest.mark.wall
    def test_time(request):
        attempts.append(1)
        if len(attempts) == 1:
            stall(request)
        assert len(attempts) == 2
    """
    )
    result = house.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*test_time was run again: the machine stood still*; it failed with assert 1 == 2"]
    )


@pytest.mark.parametrize(
    ("mark", "stalls"), [("wall", False), ("server", True)], ids=["no stall", "no wall time"]
)
def test_nothing_else_is_run_again(house: pytest.Pytester, mark: str, stalls: bool) -> None:
    """Without a stall, or without wall time, a failure is a failure."""
    house.makepyfile(
        STOPPED
        + f"""
    @pytest.mark.{mark}
    def test_something(request):
        attempts.append(1)
        {"stall" if stalls else "no_stall"}(request)
        assert len(attempts) == 2
    """
    )
    result = house.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*was run again*")


def test_a_failure_keeps_nothing_of_its_test(house: pytest.Pytester) -> None:
    """The next test may count the blocks of the process: none is left of the one that failed."""
    house.makepyfile(
        """
        from timedblock import TimedBlock
        from timedblock.registry import BLOCKS

        def test_fails():
            block = TimedBlock("left.over")
            assert not block.name

        def test_counts():
            assert "left.over" not in [block.name for block in BLOCKS]
        """
    )
    house.runpytest_subprocess().assert_outcomes(failed=1, passed=1)
