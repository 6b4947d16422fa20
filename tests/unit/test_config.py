"""Settings from the environment and a file: what they say, and who wins."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from timedblock import Breaker, Fixed, Percentile, Policy, Retry, TimedBlock, events, registry
from timedblock.config import ConfigError, Configuration
from timedblock.endpoint import endpoint
from timedblock.testing import FakeClock

DEFAULT = Percentile()


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks obey what the test installs, and nothing of it outlives the test."""
    gc.collect()  # blocks of other tests would obey too
    monkeypatch.setattr(registry, "source", None)
    monkeypatch.setattr(registry, "find_source", None)
    listeners = list(events.listeners)
    yield
    events.listeners[:] = listeners


class Settings:
    """A file, and the configuration in force that it makes with variables."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = file
        self._monkeypatch = monkeypatch
        self.configuration = Configuration({})

    def begin(self, text: str | None = None, **variables: str) -> None:
        """Put in force what the file says (None: there is none), and the variables."""
        if text is not None:
            self.file.write_text(text)
        environ = {f"TIMEDBLOCK_{name}": value for name, value in variables.items()}
        self.configuration = Configuration(environ, None if text is None else self.file)
        self._monkeypatch.setattr(registry, "source", self.configuration)

    def change(self, text: str) -> None:
        """Write the file anew, and `look`."""
        self.file.write_text(text)
        self.look()

    def look(self) -> None:
        """Both looks that it takes to believe a changed file."""
        self.configuration.poll()
        self.configuration.poll()


@pytest.fixture
def settings(clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """None in force yet; blocks made now are on the test's clock."""
    return Settings(tmp_path / "a.toml", monkeypatch)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error."""
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]


# -- who wins ---------------------------------------------------------------------------------


def test_environment_wins_over_file_over_code(settings: Settings) -> None:
    """Each field by itself comes from the strongest that names it."""
    settings.begin(
        '[block."shop.pay"]\nceiling = 3\nq = 99\nmargin = 4\n',
        SHOP_PAY__CEILING="2",
        SHOP_PAY__Q="98.5",
    )
    block = TimedBlock("shop.pay", Policy(timeout=Percentile(90, floor=0.2)))
    assert block.policy.timeout == Percentile(98.5, margin=4, floor=0.2, ceiling=2)
    assert block.limit == 2
    assert TimedBlock("shop.look").policy == Policy()


def test_every_field_can_be_set(settings: Settings) -> None:
    """Those of the timeout, the breaker, the retry and the block itself."""
    text = """
    [block."a.b"]
    q = 95
    margin = 3
    floor = 0.01
    ceiling = 5
    initial = 0.5
    min_samples = 7
    bulkhead = 9
    fallback_limit = 0.3
    isolation = "thread"
    [block."a.b".breaker]
    failures = 2
    failure_rate = false
    slow_rate = 0.9
    window = 20
    minimum_calls = 4
    open_for = 1
    open_max = 2
    probes = 3
    [block."a.b".retry]
    attempts = 4
    backoff = 0.1
    backoff_max = 0.5
    """
    settings.begin(text)
    block = TimedBlock("a.b")
    assert block.policy == Policy(
        timeout=Percentile(95, 3, 0.01, 5, 0.5, 7),
        breaker=Breaker(2, None, 0.9, 20, 4, 1, 2, 3),
        bulkhead=9,
        fallback_limit=0.3,
        isolation="thread",
        retry=Retry(attempts=4, backoff=0.1, backoff_max=0.5),
    )
    assert block.bulkhead == 9
    assert block.call(lambda: 5) == 5


@pytest.mark.parametrize(
    ("variables", "policy"),
    [
        ({"A__TIMEOUT": "0.3"}, Policy(timeout=Fixed(0.3))),
        ({"A__TIMEOUT": "false"}, Policy(timeout=None)),
        ({"A__BREAKER": "false"}, Policy(breaker=None)),
        ({"A__BREAKER__FAILURES": "2"}, Policy(breaker=Breaker(failures=2))),
        ({"A__RETRY": "true"}, Policy(retry=Retry())),
        ({"A__RETRY__ATTEMPTS": "5"}, Policy(retry=Retry(attempts=5))),
        ({"A__ISOLATION": "thread"}, Policy(isolation="thread")),
        ({"A__BULKHEAD": " 3 "}, Policy(bulkhead=3)),
        ({"A__CEILING": "0.02"}, Policy(timeout=Percentile(floor=0.02, ceiling=0.02))),
    ],
)
def test_variable_says_it_in_its_text(
    settings: Settings, variables: dict[str, str], policy: Policy
) -> None:
    """Numbers, words, on and off; a ceiling takes a floor of less weight down with it."""
    settings.begin(**variables)
    assert TimedBlock("a").policy == policy


def test_ceiling_of_a_fixed_limit_is_that_limit(settings: Settings) -> None:
    """A fixed limit stays fixed, unless a field of learning is set."""
    settings.begin(A__CEILING="2", B__Q="99")
    assert TimedBlock("a", Policy(timeout=Fixed(9))).policy.timeout == Fixed(2)
    assert TimedBlock("b", Policy(timeout=Fixed(9))).policy.timeout == Percentile(99, ceiling=9)


def test_dots_and_hyphens_are_underscores_in_a_variable(settings: Settings) -> None:
    """`pay-in.charge` is PAY_IN_CHARGE."""
    settings.begin(PAY_IN_CHARGE__BULKHEAD="4")
    assert TimedBlock("pay-in.charge").policy.bulkhead == 4


# -- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[block.a]\nceilling = 1", '[block."a"] ceilling: unknown key; did you mean ceiling?'),
        ("[block.a]\nzebra = 1", '[block."a"] zebra: unknown key; known: timeout'),
        ("[blocks.a]\nq = 1", "blocks: unknown key; did you mean block?"),
        ("[block.a.breaker]\nfails = 1", '[block."a".breaker] fails: unknown key'),
        ("[block.a]\nq = 200", '[block."a"] q: Percentile(q) must be from 50'),
        ("[block.a]\nceiling = -1", '[block."a"] ceiling: Percentile(ceiling) must be over 0'),
        ('[block.a]\nceiling = "2"', '[block."a"] ceiling: Percentile(ceiling) must be a number'),
        ("[block.a]\nfloor = 2\nceiling = 1", '[block."a"] floor: Percentile(floor=2) is above'),
        ("[block.a]\ntimeout = 0", '[block."a"] timeout: Fixed(seconds) must be over 0'),
        ("[block.a]\ntimeout = 1\nq = 99", '[block."a"] q: there is nothing to learn'),
        ("[block.a]\nbulkhead = true", '[block."a"] bulkhead: true is no value for it'),
        ("[block.a]\nfloor = false", '[block."a"] floor: false is no value for it'),
        ("[block.a]\nbreaker = 3", '[block."a"] breaker: must be a table'),
        ("[block.a.breaker]\nfailures = 0", '[block."a".breaker] failures: Breaker(failures)'),
        ("[block.a.breaker]\nopen_for = 9\nopen_max = 1", "open_for: Breaker(open_for=9)"),
        ("[block.a.retry]\nattempts = 1", '[block."a".retry] attempts: Retry(attempts)'),
        ("[block.a]\nfallback = 1", "fallback: only code can set it"),
        ("[block.memcache.get]\nq = 99", "unknown key"),
        ("[block.a.q]\nx = 99", "a table is not a value"),
        ("block = 3", "block must be tables"),
        ("[block]\na = 3", "a must be a table"),
        ('mode = "watch"', "mode must be enforce or observe, not 'watch'"),
        ("snapshot = 3", "snapshot must be a file's name"),
        ("[block.a]\nq = = 3", "line 2"),
    ],
)
def test_mistake_in_a_file_names_file_table_and_key(tmp_path: Path, text: str, said: str) -> None:
    """One sentence, with the policy's own words about a value."""
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Configuration({}, file)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("TIMEDBLOCK_A__CEILLING", "1", "unknown key; did you mean ceiling?"),
        ("TIMEDBLOCK_A__CEILING", "soon", "Percentile(ceiling) must be a number"),
        ("TIMEDBLOCK_A__CEILING", "", "Percentile(ceiling) must be a number"),
        ("TIMEDBLOCK_A__CEILING", "nan", "Percentile(ceiling) must be over 0"),
        ("TIMEDBLOCK_A__CEILING", "1\nfloor = 3", "Percentile(ceiling) must be a number"),
        ("TIMEDBLOCK_A__BREAKER__FAILS", "1", "unknown key"),
        ("TIMEDBLOCK___CEILING", "1", "no block is named"),
        ("TIMEDBLOCK_MODE", "watch", "must be enforce or observe"),
    ],
)
def test_mistake_in_a_variable_names_it(variable: str, text: str, said: str) -> None:
    """The variable, and what is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        Configuration({variable: text})
    assert str(caught.value).startswith(variable)
    assert said in str(caught.value)


def test_variables_of_others_are_left_alone() -> None:
    """Kubernetes makes such variables for a service of our name."""
    made = Configuration({"TIMEDBLOCK_SERVICE_HOST": "10.0.0.1", "TIMEDBLOCK_PORT": "tcp://x"})
    assert made.tables() == {}


def test_file_that_is_missing_or_no_text_is_an_error_at_the_start(tmp_path: Path) -> None:
    """Who names a file wants it read."""
    with pytest.raises(ConfigError, match=r"gone\.toml: No such file"):
        Configuration({"TIMEDBLOCK_CONFIG": str(tmp_path / "gone.toml")})
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.toml: .*codec"):
        Configuration({}, tmp_path / "bytes.toml")


def test_setting_that_does_not_go_with_the_code_is_logged_and_left_out(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A block made in the middle of a request must not fail of a file."""
    settings.begin(A__FLOOR="3")
    block = TimedBlock("a", Policy(timeout=Percentile(ceiling=2)))
    assert block.policy == block.given
    assert errors(caplog) == [
        "a: TIMEDBLOCK_A__FLOOR: Percentile(floor=3) is above its ceiling 2; "
        "the code's policy stands"
    ]
    assert settings.configuration.effective()[0].settings["floor"].value == 0.05


# -- a running process --------------------------------------------------------------------------


def test_changed_file_reaches_running_blocks(settings: Settings) -> None:
    """Limit, ceiling, bulkhead and breaker follow the file, and back to the code without it."""
    settings.begin("")
    block = TimedBlock("a")
    circuit = block.circuit
    settings.change("[block.a]\nceiling = 0.4\nbulkhead = 1\n[block.a.breaker]\nfailures = 2\n")
    assert (block.limit, block.ceiling, block.bulkhead) == (0.4, 0.4, 1)
    assert block.circuit is circuit is not None
    assert circuit.config == Breaker(failures=2)
    settings.change("[block.a]\nbreaker = false\n")
    assert (block.limit, block.bulkhead, block.circuit) == (1.0, float("inf"), None)
    settings.change("")
    assert block.circuit is not None
    assert block.circuit.config == Breaker()
    assert block.policy == block.given == Policy()


def test_breaker_that_is_reconfigured_acts_by_its_new_settings(
    clock: FakeClock, settings: Settings
) -> None:
    """It counts on from what it has seen."""
    settings.begin("")
    block = TimedBlock("a")

    def fail() -> None:
        with pytest.raises(OSError, match="x"):
            block.call(broken)
        clock.advance(0.1)

    def broken() -> None:
        raise OSError("x")

    fail()
    assert block.circuit is not None
    settings.change("[block.a.breaker]\nfailures = 2\nopen_for = 3\n")
    assert block.circuit.state == "closed"
    fail()
    assert block.circuit.state == "open"
    assert 2.9 <= block.circuit.retry_after(clock.now()) <= 3.75


def test_call_in_flight_keeps_its_limit(clock: FakeClock, settings: Settings) -> None:
    """It ends when it was to end; the next one obeys the file."""
    settings.begin("")
    block = TimedBlock("a")
    with block as call:
        ends = call.at
        settings.change("[block.a]\nceiling = 0.1\n")
        assert call.at == ends == clock.now() + 1.0
        with block as inner:
            assert inner.at == pytest.approx(clock.now() + 0.1)
    assert not block.in_flight


def test_learnt_limit_survives_a_change_and_is_clipped(
    clock: FakeClock, settings: Settings
) -> None:
    """Nothing is learnt anew because a file changed."""
    settings.begin("")
    block = TimedBlock("a")
    for _ in range(200):
        block.call(clock.advance, 0.1)
    learnt = block.limit
    assert block.learnt.source == "learnt"
    assert 0.15 < learnt < 0.25
    settings.change("[block.a]\nbulkhead = 3\n")
    assert (block.limit, block.learnt.source) == (learnt, "learnt")
    settings.change("[block.a]\nceiling = 0.12\n")
    assert (block.limit, block.learnt.source) == (0.12, "learnt")


def test_bad_reload_keeps_everything_and_is_logged_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """All blocks follow a file or none does; the next good file is obeyed."""
    settings.begin("[block.a]\nbulkhead = 2\n")
    one, other = TimedBlock("a"), TimedBlock("b", Policy(timeout=Percentile(ceiling=0.5)))
    for bad in (
        "[block.a",
        "[block.a]\nbulkheat = 3",
        # right by itself, but not with b's own ceiling
        "[block.a]\nbulkhead = 3\n[block.b]\nfloor = 0.7\n",
    ):
        caplog.clear()
        settings.file.write_text(bad)
        for _ in range(4):
            settings.look()
        (said,) = errors(caplog)
        assert str(settings.file) in said
        assert "stay in force" in said
        assert one.bulkhead == 2
        assert other.policy == other.given
    caplog.clear()
    settings.file.unlink()
    for _ in range(4):
        settings.look()
    assert errors(caplog) == [
        f"{settings.file}: No such file or directory; the settings before stay in force"
    ]
    settings.change("[block.a]\nbulkhead = 5\n")
    assert one.bulkhead == 5


def test_file_is_believed_once_it_has_stopped_changing(settings: Settings) -> None:
    """Who writes it in place empties it first: that is no wish to have no settings."""
    settings.begin("[block.a]\nbulkhead = 2\n")
    block = TimedBlock("a")
    settings.file.write_text("")
    assert settings.configuration.poll() < 0.5
    settings.file.write_text("[block.a]\nbulkhead = 3\n")
    assert settings.configuration.poll() < 0.5
    assert block.bulkhead == 2
    assert settings.configuration.poll() == 1.0
    assert block.bulkhead == 3


# -- a store's endpoint -----------------------------------------------------------------------


def test_endpoint_has_one_breaker_which_any_of_its_blocks_sets(settings: Settings) -> None:
    """The setting of one block reaches the breaker that all share, and says so."""
    settings.begin('[block."s.get".breaker]\nfailures = 2\n')
    place = endpoint("store:1", Breaker())
    get, put = (TimedBlock(name, endpoint=place) for name in ("s.get", "s.put"))
    assert get.circuit is put.circuit is place.circuit is not None
    assert place.circuit.config == Breaker(failures=2)
    for one in settings.configuration.effective():
        if one.endpoint != "store:1":
            continue
        setting = one.settings["breaker.failures"]
        assert (setting.value, setting.origin) == (2, f'{settings.file}: [block."s.get".breaker]')
    settings.change("")
    assert place.circuit.config == Breaker()


def test_blocks_that_set_their_breaker_differently_are_told(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The first stands; a reload with such a contradiction is refused."""
    text = '[block."s.get".breaker]\nfailures = 2\n[block."s.put".breaker]\nfailures = 3\n'
    settings.begin(text)
    place = endpoint("store:2", Breaker())
    blocks = [TimedBlock(name, endpoint=place) for name in ("s.get", "s.put")]
    assert place.circuit is not None
    assert place.circuit.config.failures == 2
    assert "differently" in errors(caplog)[0]
    settings.change(text.replace("2", "4"))
    assert "stay in force" in errors(caplog)[1]
    assert [block.circuit and block.circuit.config.failures for block in blocks] == [2, 2]


# -- where it came from -----------------------------------------------------------------------


def test_effective_says_where_each_value_came_from(settings: Settings) -> None:
    """The variable, the file with its table, the code, or the default."""
    settings.begin("[block.a]\nmargin = 3\n", A__CEILING="0.04")
    block = TimedBlock("a", Policy(timeout=Percentile(99), breaker=None))
    (one,) = (one for one in settings.configuration.effective() if one.block == block.name)
    told = {key: (setting.value, setting.origin) for key, setting in one.settings.items()}
    assert told["q"] == (99, "code")
    assert told["margin"] == (3, f'{settings.file}: [block."a"]')
    assert told["ceiling"] == (0.04, "TIMEDBLOCK_A__CEILING")
    assert told["floor"] == (0.04, "TIMEDBLOCK_A__CEILING")
    assert told["min_samples"] == (100, "default")
    assert told["breaker"] == (None, "code")
    assert told["retry"] == (None, "default")
