"""The pytest plugin, in projects of a user's, by its entry point."""

from __future__ import annotations

import subprocess
import sys

import pytest

# pytester forgets what a run inside this process imported; the next one would have it twice.
import timedblock.memcache
import timedblock.testing.fixtures
import timedblock.testing.health
import timedblock.testing.leaks
import timedblock.testing.marks
import timedblock.testing.within

pytestmark = pytest.mark.usefixtures("user")


@pytest.fixture
def user(pytester: pytest.Pytester) -> pytest.Pytester:
    """A user's project: nothing of ours but what is installed."""
    pytester.makeini("[pytest]\naddopts = --strict-markers\n")
    return pytester


def test_collecting_imports_nothing_of_timedblock(pytester: pytest.Pytester) -> None:
    """In a project that doesn't use it the plugin costs one small module."""
    pytester.makepyfile(test_own="def test_own(): pass")
    code = (
        "import sys, pytest; code = pytest.main(['--co', '-q']); "
        "print('loaded', sorted(n for n in sys.modules if 'timedblock' in n)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    # a coverage run imports what it measures to find its files
    assert "loaded ['pytest_timedblock']" in done.stdout


def test_store_is_a_real_one_and_fresh_for_each_test(pytester: pytest.Pytester) -> None:
    """A test finds the store running and empty, whatever the one before did to it."""
    pytester.makepyfile(
        """
        import os, pytest, signal
        from contextlib import closing
        from pymemcache import Client

        @pytest.fixture
        def client(timedblock_store):
            with closing(Client(timedblock_store.address, connect_timeout=5, timeout=5)) as client:
                yield client

        def test_write(client):
            assert client.set("a", "1", noreply=False)

        def test_empty_then_killed(client, timedblock_store):
            assert client.get("a") is None
            timedblock_store.kill()

        def test_back_then_stopped(client, timedblock_store):
            assert client.set("a", "1", noreply=False)
            os.kill(timedblock_store.pid, signal.SIGSTOP)

        def test_back_again(client):
            assert client.get("a") is None
        """
    )
    pytester.runpytest().assert_outcomes(passed=4)


def test_proxy_makes_faults_which_end_with_the_test(pytester: pytest.Pytester) -> None:
    """The raw client meets the fault in the proxy; in the next test it doesn't."""
    pytester.makepyfile(
        """
        import pytest, socket
        from contextlib import closing
        from pymemcache import Client

        @pytest.fixture(scope="session")
        def cache(timedblock_store, timedblock_proxy):
            return timedblock_proxy(timedblock_store.address)

        def get(cache):
            with closing(Client(cache.address, connect_timeout=0.3, timeout=0.3)) as client:
                return client.get("a")

        def test_fault(cache):
            assert cache.url == "127.0.0.1:%d" % cache.address[1]
            assert get(cache) is None
            with cache.fault("refuse"), pytest.raises(ConnectionRefusedError):
                get(cache)
            assert get(cache) is None
            cache.inject("hang")
            assert cache.describe()["fault"]["fault"] == "hang"
            with pytest.raises(socket.timeout):
                get(cache)

        def test_no_fault(cache):
            assert cache.describe()["fault"] is None
            assert get(cache) is None

        def test_what_it_cannot_do(cache):
            with pytest.raises(ValueError, match="dns-hang"):
                cache.inject("dns-hang")
            with pytest.raises(ValueError, match="'bogus'"):
                cache.inject("bogus")
            with pytest.raises(TypeError, match="7"):
                cache.inject(7)
        """
    )
    pytester.runpytest().assert_outcomes(passed=3)


def test_proxy_before_any_address(pytester: pytest.Pytester) -> None:
    """The address behind a proxy is whatever listens, a UNIX socket too."""
    pytester.makepyfile(
        """
        import socket, threading

        def echo(listener):
            client, _ = listener.accept()
            client.sendall(client.recv(100))
            client.close()

        def test_unix(timedblock_proxy, tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("s")
                listener.listen()
                thread = threading.Thread(target=echo, args=[listener], daemon=True)
                thread.start()
                proxy = timedblock_proxy(str(tmp_path / "s"))
                with socket.create_connection(proxy.address, 5) as sock:
                    sock.sendall(b"x")
                    assert sock.recv(1) == b"x"
                thread.join()
        """
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_faults_by_name(pytester: pytest.Pytester) -> None:
    """A fault is made at our own sockets or in a proxy, until its block or the test ends."""
    pytester.makepyfile(
        """
        import pytest
        from contextlib import closing
        from timedblock import Unavailable, faults
        from timedblock.memcache import Client

        @pytest.fixture(scope="module")
        def cache(timedblock_store):
            with closing(Client(timedblock_store.address, name="mine")) as client:
                yield client

        def test_at_our_sockets(cache, timedblock_faults):
            with timedblock_faults("mine", "refuse"):
                with pytest.raises(Unavailable):
                    cache.get("a")
            assert cache.get("a") is None
            timedblock_faults("mine", faults.Refuse())
            with pytest.raises(Unavailable):
                cache.get("a")

        def test_ended_with_the_test(cache):
            assert cache.get("a") is None

        def test_in_a_proxy(timedblock_store, timedblock_proxy, timedblock_faults):
            proxy = timedblock_proxy(timedblock_store.address)
            with closing(Client(proxy.address, name="other")) as cache:
                assert cache.get("a") is None
                injected = timedblock_faults(proxy, "refuse")
                with pytest.raises(Unavailable):
                    cache.get("a")
                injected.end()
                injected.end()
                assert cache.get("a") is None

        def test_unknown(timedblock_faults):
            with pytest.raises(ValueError, match="'bogus'"):
                timedblock_faults("memcache", "bogus")
        """
    )
    pytester.runpytest().assert_outcomes(passed=4)


_UNDER = """
import pytest
from contextlib import closing
from timedblock import Unavailable
from timedblock.memcache import Client

@pytest.fixture
def proxied(timedblock_proxy, timedblock_store):
    return timedblock_proxy(timedblock_store.address)

SEEN = []
"""


def test_marker_runs_a_test_under_every_fault(pytester: pytest.Pytester) -> None:
    """'all' is every fault that our sockets can make; each is in force in its test, and only
    while the test itself runs."""
    pytester.makepyfile(
        _UNDER
        + """
from timedblock.net import seam

@pytest.fixture
def around():
    assert seam.injector is None
    yield
    assert seam.injector is None

@pytest.mark.timedblock_faults("all")
def test_all(around, timedblock_fault):
    from timedblock.net.seam import Site
    assert seam.injector is not None
    injection = seam.injector._injections[0]
    assert injection.fault is timedblock_fault
    assert injection.reaches(Site("memcache", "memcache", "127.0.0.1:11211"))
    SEEN.append(timedblock_fault.name)

def test_seen():
    from timedblock.testing.fixtures import names_for
    assert SEEN == list(names_for(proxy=False))
"""
    )
    faults = timedblock.testing.fixtures.names_for(proxy=False)
    assert {"refuse", "hang", "dns-hang", "error-rate"} < set(faults)
    pytester.runpytest("-v").assert_outcomes(passed=len(faults) + 1)


def test_marker_with_names_and_a_target(pytester: pytest.Pytester) -> None:
    """Names with values are the tests' ids, and a test needs no fixture of ours."""
    pytester.makepyfile(
        _UNDER
        + """
@pytest.mark.timedblock_faults("refuse", "error-rate:1.0", target="mine")
@pytest.mark.parametrize("key", ["a", "b"])
def test_named(timedblock_store, key):
    with closing(Client(timedblock_store.address, name="another")) as another:
        another.get(key)
    with closing(Client(timedblock_store.address, name="mine")) as mine:
        with pytest.raises(Unavailable):
            mine.get(key)
"""
    )
    result = pytester.runpytest("-v")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines_random(["*refuse*", "*error-rate:1.0*"])


def test_marker_whose_fault_meets_nobody_fails(pytester: pytest.Pytester) -> None:
    """A misspelt target would make a test that passes whatever the fault does."""
    pytester.makepyfile(
        _UNDER
        + """
@pytest.mark.timedblock_faults("hang", target="memcahce")
def test_misspelt(timedblock_store):
    with closing(Client(timedblock_store.address)) as client:
        assert client.set("k", "v")
"""
    )
    result = pytester.runpytest()
    result.stdout.fnmatch_lines(["*the fault 'hang' met no connection of 'memcahce'*"])
    assert result.ret == 1


def test_marker_in_a_proxy(pytester: pytest.Pytester) -> None:
    """'all' is then what a proxy can make; the fixture is named by the marker."""
    pytester.makepyfile(
        _UNDER
        + """
@pytest.mark.timedblock_faults("all", proxy="proxied")
def test_all(proxied, timedblock_fault):
    assert proxied.describe()["fault"] == timedblock_fault.to_dict()
    SEEN.append(timedblock_fault.name)

@pytest.mark.timedblock_faults("refuse", proxy="proxied")
def test_bites(proxied):
    with closing(Client(proxied.address)) as client, pytest.raises(Unavailable):
        client.get("a")

def test_seen():
    assert "dns-hang" not in SEEN and {"refuse", "hang", "silent"} < set(SEEN)
"""
    )
    result = pytester.runpytest("-v")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_all?blackhole? PASSED*"])


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("()", "*which faults? 'all', or some of: refuse,*"),
        ("('bogus')", "*unknown fault 'bogus'; known: refuse,*"),
        ("('hang', what=1)", "*no argument 'what'; known: target, proxy*"),
        ("('hang', target='memcache', proxy='p')", "*give one*"),
        ("('dns-fail', proxy='p')", "*'dns-fail' can't be made by a proxy*"),
        ("('hang', proxy='p')", "*no fixture 'p' that gives a proxy*"),
    ],
)
def test_marker_says_what_is_wrong_with_it(
    pytester: pytest.Pytester, marker: str, said: str
) -> None:
    """A marker that can't be obeyed is an error with the bad value, never a test without faults."""
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.timedblock_faults{marker}\ndef test_it(): pass\n"
    )
    result = pytester.runpytest()
    assert result.ret != 0
    result.stdout.fnmatch_lines([said])


def test_marker_on_a_unittest_is_an_error(pytester: pytest.Pytester) -> None:
    """pytest can't parametrise unittest's tests: better to fail than to run without the fault."""
    pytester.makepyfile(
        """
        import pytest, unittest

        class TestIt(unittest.TestCase):
            @pytest.mark.timedblock_faults("hang")
            def test_it(self): pass
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*unittest*"])


def test_health_of_this_process(pytester: pytest.Pytester) -> None:
    """`becomes` waits for the status, with the traffic that it needs, and tells what it saw."""
    pytester.makepyfile(
        """
        import pytest
        from timedblock import Breaker, Fixed, Policy, TimedBlock

        block = TimedBlock("mine", Policy(timeout=Fixed(1.0), breaker=Breaker(failures=2)))

        def fail():
            try:
                block.call(lambda: 1 / 0)
            except Exception:
                pass

        def test_it(timedblock_health):
            assert timedblock_health.becomes("ok", within=1) < 1
            assert timedblock_health.becomes("down", within=5, doing=fail) < 5
            with pytest.raises(AssertionError, match="not become 'ok' within 0.1 s: it was down"):
                timedblock_health.becomes("ok", within=0.1)
            with pytest.raises(ValueError, match="-1"):
                timedblock_health.becomes("ok", within=-1)
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_health_of_a_service(pytester: pytest.Pytester) -> None:
    """A service is looked at over HTTP; one that hangs or talks nonsense has no status."""
    pytester.makepyfile(
        """
        import http.server, json, pytest, socket, threading

        ANSWERS = {"/ok": (200, {"status": "ok"}), "/down": (503, {"status": "down"}),
                   "/odd": (200, [1]), "/turns": (200, None)}
        LOOKS = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                code, body = ANSWERS[self.path]
                if body is None:
                    LOOKS.append(1)
                    body = {"status": "ok" if len(LOOKS) < 3 else "degraded"}
                body = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            def log_message(self, *a): pass

        @pytest.fixture
        def url():
            with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
                thread = threading.Thread(target=server.serve_forever, args=[0.01])
                thread.start()
                yield "http://127.0.0.1:%d" % server.server_address[1]
                server.shutdown()
                thread.join()

        def test_it(url, timedblock_health, monkeypatch):
            monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
            timedblock_health(url + "/ok").becomes("ok", within=5)
            timedblock_health(url + "/down").becomes("down", within=5)
            timedblock_health(url + "/turns").becomes("degraded", within=5)
            with pytest.raises(AssertionError, match="no answer .ValueError.*has no status"):
                timedblock_health(url + "/odd").becomes("ok", within=0.1)
            with pytest.raises(ValueError, match="'ftp:x'"):
                timedblock_health("ftp:x")

        def test_hangs(timedblock_health, timedblock_within):
            with socket.create_server(("127.0.0.1", 0)) as silent:
                health = timedblock_health("http://127.0.0.1:%d/" % silent.getsockname()[1])
                with timedblock_within(10.0):
                    with pytest.raises(AssertionError, match="TimeoutError"):
                        health.becomes("ok", within=0.2)
        """
    )
    pytester.runpytest().assert_outcomes(passed=2)


def test_within_ends_what_takes_too_long(pytester: pytest.Pytester) -> None:
    """A block that hangs in the kernel fails at its limit, and the failure says where it hung."""
    pytester.makepyfile(
        """
        import signal, socket, threading, time, pytest

        def test_in_time(timedblock_within):
            with timedblock_within(30) as block:
                pass
            assert 0 <= block.elapsed < 30

        def test_hangs(timedblock_within):
            ours, theirs = socket.socketpair()
            with ours, theirs, timedblock_within(0.2):
                ours.recv(1)

        def test_swallowed(timedblock_within):
            with timedblock_within(0.1):
                try:
                    time.sleep(30)
                except BaseException:
                    pass

        def test_nested(timedblock_within):
            outer = timedblock_within(0.2)
            with pytest.raises(AssertionError, match="running after 0.2 s, at .*, in test_nested"):
                with outer, timedblock_within(30) as inner:
                    time.sleep(30)
            assert inner.elapsed < 30
            with pytest.raises(AssertionError, match="running after 0.2 s"):
                with timedblock_within(30), timedblock_within(0.2):
                    time.sleep(30)

        def test_others_may_use_the_signal(timedblock_within):
            got = []
            before = signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
            try:
                with timedblock_within(30):
                    signal.raise_signal(signal.SIGUSR2)
            finally:
                signal.signal(signal.SIGUSR2, before)
            assert got == [1]

        def test_other_failures_pass(timedblock_within):
            before = signal.getsignal(signal.SIGUSR2)
            with pytest.raises(ZeroDivisionError):
                with timedblock_within(30):
                    1 / 0
            assert signal.getsignal(signal.SIGUSR2) == before

        def test_in_a_thread_measured_only(timedblock_within):
            failed = []
            def work():
                try:
                    with timedblock_within(0.05):
                        time.sleep(0.1)
                except AssertionError as error:
                    failed.append(str(error))
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            assert "not 0.05 s" in failed[0]

        def test_bad(timedblock_within):
            with pytest.raises(ValueError, match="0"):
                timedblock_within(0)
        """
    )
    result = pytester.runpytest("-p", "no:timeout")
    result.assert_outcomes(passed=6, failed=2)
    result.stdout.fnmatch_lines(
        ["*still running after 0.2 s, at *.py:11, in test_hangs*", "*took 0.*not 0.1 s*"]
    )
    assert float(result.duration) < 25


def test_slack_is_added_on_slow_machines(pytester: pytest.Pytester) -> None:
    """`timedblock_slack` in the settings is added to each limit; nonsense there is an error."""
    pytester.makeini("[pytest]\ntimedblock_slack = 30\n")
    pytester.makepyfile(
        """
        import time
        def test_slow(timedblock_within):
            with timedblock_within(0.01):
                time.sleep(0.1)
        """
    )
    pytester.runpytest().assert_outcomes(passed=1)
    pytester.makeini("[pytest]\ntimedblock_slack = much\n")
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*timedblock_slack must be seconds, not 'much'*"])


def test_no_leaks(pytester: pytest.Pytester) -> None:
    """A thread or a descriptor that a test leaves behind is its error."""
    pytester.makepyfile(
        """
        import os, threading
        KEPT = []
        def test_clean(timedblock_no_leaks):
            os.close(os.open("/dev/null", os.O_RDONLY))
        def test_descriptor(timedblock_no_leaks):
            KEPT.append(os.open("/dev/null", os.O_RDONLY))
        def test_thread(timedblock_no_leaks):
            KEPT.append(threading.Event())
            threading.Thread(target=KEPT[-1].wait, name="left-alone").start()
        def test_end():
            os.close(KEPT[0])
            KEPT[-1].set()
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(
        ["*descriptors left behind*/dev/null*", "*threads left*left-alone*"]
    )
