"""Scenarios: what a file says, and what is said of a file that is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from timedblock import cli, faults
from timedblock.drill import injection, toml
from timedblock.drill.engine import expected_seconds
from timedblock.drill.errors import ScenarioError
from timedblock.drill.scenario import Bounds, Episode, Load, Scenario, Step, Target
from timedblock.faults import vocabulary

GOOD = """\
title = "Two caches, one of them ill"
variants = ["raw-timeout", "timedblock"]
recovery = 3

[[targets]]
name = "near"

[[targets]]
name = "far"
server = "[::1]:11211"

[load]
kind = "closed"
threads = 4
think = 0.01

[[episodes]]
name = "shaken"

[[episodes.timeline]]
fault = "hang:up"
at = 1.5
for = 0.5
times = 3
every = 2

[[episodes.timeline]]
fault = "latency:50ms,jitter=0.01"
at = 10
for = 1
target = "far"

[episodes.verdicts]
p99 = 0.5

[verdicts]
goodput = 0.8
"""


def _parse(text: str) -> Scenario:
    return toml.parse(text, "mine.toml", "mine")


def test_file_says_what_python_says() -> None:
    """Every key has its place in the dataclasses, and nothing else has."""
    hang = faults.Hang("up")
    steps = [Step(hang, at, 0.5) for at in (1.5, 3.5, 5.5)]
    latency = Step(faults.Latency(0.05, 0.01), 10, 1, "far")
    assert _parse(GOOD) == Scenario(
        name="mine",
        title="Two caches, one of them ill",
        variants=("raw-timeout", "timedblock"),
        recovery=3,
        targets=(Target("near"), Target("far", server=("::1", 11211))),
        load=Load("closed", threads=4, think=0.01),
        episodes=(Episode("shaken", (*steps, latency), Bounds(p99=0.5)),),
        bounds=Bounds(goodput=0.8),
    )


def test_timeline_without_episodes_is_one_of_the_scenarios_name() -> None:
    """The short form, for one fault."""
    scenario = _parse('[[timeline]]\nfault = "hang"\nat = 1\nfor = 4\n')
    (episode,) = scenario.episodes
    assert (episode.name, episode.faults) == ("mine", ("hang",))
    schedule = scenario.schedule(episode)
    assert (schedule.fault_at, schedule.clear_at, schedule.end) == (1, 5, 6)
    assert schedule.grace == scenario.grace == 1.25


def test_targets_are_told_apart_in_the_results() -> None:
    """An episode has a label for each; with one target its own name does."""
    scenario = _parse(GOOD)
    assert [label for label, _ in scenario.labels(scenario.episodes[0])] == [
        "shaken@near",
        "shaken@far",
    ]


STEP = '[[timeline]]\nfault = "hang"\nat = 1\nfor = 4\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = [", "mine.toml:1: not TOML"),
        ("title = 3\n" + STEP, "mine.toml:1: title: must be text, not 3"),
        ("\ncolour = 'red'\n" + STEP, "mine.toml:2: colour: unknown key; known: baseline, ep"),
        ("", "mine.toml: timeline: there is no fault in it"),
        ("timeline = 3", "mine.toml:1: timeline: must be an array of tables, not 3"),
        ("timeline = [3]", "mine.toml:1: timeline: must be a table, not 3"),
        ("[[timeline]]\nat = 1\nfor = 4", "mine.toml:1: timeline.fault: is missing"),
        (STEP.replace("hang", "gang"), "mine.toml:2: timeline.fault: bad fault 'gang'"),
        (STEP.replace("hang", "hang:7"), "mine.toml:2: timeline.fault: bad fault 'hang:7'"),
        (STEP.replace("at = 1", "at = -1"), "mine.toml:3: timeline.at: must be a number from 0"),
        (STEP.replace("at = 1", "at = nan"), "mine.toml:3: timeline.at: must be a number"),
        (STEP.replace("at = 1", "at = true"), "mine.toml:3: timeline.at: must be a number"),
        (STEP.replace("for = 4", "for = '4s'"), "mine.toml:4: timeline.for: must be a number"),
        (STEP.replace("for = 4", "for = 1"), "mine: its faults have to last 1.75 s"),
        (STEP + "times = 0", "mine.toml:5: timeline.times: must be from 1 to 1000, not 0"),
        (STEP + "times = 2", "mine.toml:1: timeline.every: is missing"),
        (STEP + "times = 2\nevery = 1", "hang at 2 begins before hang has ended at 5"),
        (STEP + "times = 2\nevery = 'x'", "mine.toml:6: timeline.every: must be seconds"),
        (STEP + "wobble = 1", "mine.toml:5: timeline.wobble: unknown key"),
        (STEP + "target = 'b'", "target: unknown target 'b'; known: cache"),
        (STEP + STEP.replace("at = 1", "at = 2"), "hang at 2 begins before hang has ended at 5"),
        (STEP + "[[episodes]]\nname = 'x'", "mine.toml:5: episodes: there is a timeline"),
        ("[[episodes]]\ntimeline = []", "mine.toml:1: episodes.name: is missing"),
        (STEP + "[load]\nrate = 0", "mine.toml:6: load.rate: must be a number from 1"),
        (STEP + "[load]\nkind = 'ajar'", "mine.toml:6: load.kind: must be open or closed"),
        (STEP + "[load]\nthreads = 1.5", "mine.toml:6: load.threads: 1.5 is not whole"),
        (STEP + "[load]\nspeed = 1", "mine.toml:6: load.speed: unknown key; known: kind, rate"),
        (STEP + "[[targets]]\nstore = 'disk'", "mine.toml:6: targets.store: unknown store 'disk'"),
        (STEP + "[[targets]]\nserver = 'x'", "mine.toml:6: targets.server: 'x' is not HOST:PORT"),
        (STEP + "[[targets]]\n[[targets]]", "mine.toml:5: targets: 'cache' is there twice"),
        (STEP + "[verdicts]\np99 = -1", "mine.toml:6: verdicts.p99: must be a number from 0"),
        (STEP + "[verdicts]\nlimit_kept = 1.5", "mine.toml:6: verdicts.limit_kept: must be true"),
        ("variants = ['x']\n" + STEP, "mine.toml:1: variants: unknown variant 'x'; known: raw-d"),
        ("variants = []\n" + STEP, "mine.toml:1: variants: there is none"),
        ("recovery = -1\n" + STEP, "mine.toml:1: recovery: must be a number from 0"),
    ],
)
def test_malformed_file_names_the_line_and_the_key(text: str, said: str) -> None:
    """One sentence: where it stands, which key, what is wrong."""
    with pytest.raises(ScenarioError) as caught:
        _parse(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("mine.toml")


def test_line_is_that_of_the_right_table() -> None:
    """Of three timelines in two episodes the one that is meant."""
    text = (
        "[[episodes]]\nname = 'a'\n[[episodes.timeline]]\nat = 1\n[[episodes.timeline]]\nat = 2\n"
        "[[episodes]]\nname = 'b'\n[[episodes.timeline]]\nat = 3\n"
    )
    assert toml.line_of(text, ("episodes", 0, "timeline", 1, "at")) == 6
    assert toml.line_of(text, ("episodes", 1, "timeline", 0, "at")) == 10
    assert toml.line_of(text, ("episodes", 1, "timeline", 0, "for")) == 9
    assert toml.line_of(text, ("load", "rate")) is None


@pytest.mark.parametrize("name", toml.names())
def test_scenarios_that_ship_can_be_run(name: str) -> None:
    """Each by the injector that it names, with a title, in four minutes at most."""
    scenario = toml.load(name)
    injector = scenario.inject or "proxy"
    injection.check(scenario, injector)
    assert scenario.title
    assert scenario.variants == ("raw-default", "raw-timeout", "timedblock-fixed", "timedblock")
    assert expected_seconds(scenario, injector) <= 240


def test_every_fault_of_the_vocabulary_has_a_scenario() -> None:
    """And the four that are a story."""
    assert {"seed", "flaky", "brownout", "recovery-storm", *vocabulary.HOW} == set(toml.names())
    for name in vocabulary.HOW:
        assert toml.load(name).episodes[0].faults == (name,)


def test_seed_tells_its_story_in_order() -> None:
    """The four rules, one after the other, by packet rules."""
    seed = toml.load("seed")
    assert seed.in_order and seed.inject == "netfilter"
    assert [episode.timeline[0].fault for episode in seed.episodes] == [
        faults.Refuse(icmp=True),
        faults.Refuse(),
        faults.Blackhole(),
        faults.Hang(),
    ]


def test_file_that_is_not_there_is_told_with_those_that_ship(tmp_path: Path) -> None:
    """A typing error in a name ends in the list of names."""
    with pytest.raises(ScenarioError, match=r"no scenario 'sead'.*those that ship: .*seed"):
        toml.load("sead")
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="not UTF-8"):
        toml.load(str(binary))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Target(""), "name: must not be empty"),
        (lambda: Load(rate=math.inf), "rate: must be a number"),
        (lambda: Load(writes=1.5), "writes: must be a number from 0 to 1"),
        (lambda: Step(faults.Hang(), 0, 0), "for: must be a number from 0.05"),
        (lambda: Episode(""), "name: must not be empty"),
        (lambda: Scenario("x", ()), "timeline: there is no fault"),
        (lambda: Scenario("x", (Episode("a"), Episode("a"))), "episodes: 'a' is there twice"),
    ],
)
def test_python_is_checked_as_files_are(make: object, said: str) -> None:
    """Where it is made, with the key that is wrong."""
    with pytest.raises(ScenarioError, match=said):
        make()  # type: ignore[operator]


def test_bad_scenario_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line: the file, the line, the key."""
    file = tmp_path / "mine.toml"
    file.write_text(STEP.replace("hang", "gang"))
    assert cli.main(["drill", "memcache", "--scenario", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"{file}:2: timeline.fault: bad fault 'gang'" in error
    assert error.count("\n") == 1
