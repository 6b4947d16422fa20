"""Scenarios: what a file says, and what is said of a file that is wrong."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from timedblock import cli, faults
from timedblock.drill import injection, toml
from timedblock.drill.engine import expected_seconds
from timedblock.drill.errors import ScenarioError
from timedblock.drill.scenario import Bounds, Episode, Load, Scenario, Step, Target
from timedblock.drill.store import find
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


HANG = Step(faults.Hang(), 1, 4)
STEP = '[[timeline]]\nfault = "hang"\nat = 1\nfor = 4\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = [", "mine.toml:1: not TOML"),
        ("title = 3\n" + STEP, "mine.toml:1: title: must be text, not 3"),
        ("\ncolour = 'red'\n" + STEP, "mine.toml:2: colour: unknown key; known: baseline, ep"),
        ("", "mine.toml:1: timeline: there is no fault in it"),
        ("\n\ntimeline = []", "mine.toml:3: timeline: there is no fault in it"),
        ("[[episodes]]\nname = 'x'", "mine.toml:1: episodes.timeline: there is no fault in it"),
        (
            STEP.replace("[[", "[[episodes]]\nname='a'\n[[episodes.") + "[[episodes]]\nname='b'",
            "mine.toml:7: episodes.timeline: there is no fault in it",
        ),
        ("\nname = ''\n" + STEP, "mine.toml:2: name: must not be empty"),
        ("name = 'none'\n" + STEP, "mine.toml:1: name: 'none' is the name of the run without"),
        ("inject = 'magic'\n" + STEP, "mine.toml:1: inject: unknown injector 'magic'; known: inp"),
        ("\ninject = 'process'\n" + STEP, "mine.toml:2: inject: process can't make 'hang'"),
        (f"a = 1\nb = {'1' * 5000}\n" + STEP, "mine.toml:2: cannot be read: Exceeds the limit"),
        (f"a = 1\nb = {'[' * 5000}\n" + STEP, "mine.toml:2: cannot be read: "),
        ("timeline = 3", "mine.toml:1: timeline: must be an array of tables, not 3"),
        ("timeline = [3]", "mine.toml:1: timeline: must be a table, not 3"),
        ("[[timeline]]\nat = 1\nfor = 4", "mine.toml:1: timeline.fault: is missing"),
        (STEP.replace("hang", "gang"), "mine.toml:2: timeline.fault: bad fault 'gang'"),
        (STEP.replace("hang", "hang:7"), "mine.toml:2: timeline.fault: bad fault 'hang:7'"),
        (STEP.replace("at = 1", "at = -1"), "mine.toml:3: timeline.at: must be a number from 0"),
        (STEP.replace("at = 1", "at = nan"), "mine.toml:3: timeline.at: must be a number"),
        (STEP.replace("at = 1", "at = true"), "mine.toml:3: timeline.at: must be a number"),
        (STEP.replace("for = 4", "for = '4s'"), "mine.toml:4: timeline.for: must be a number"),
        (STEP.replace("for = 4", "for = 1"), "mine.toml:4: timeline.for: mine: its faults have to"),
        (STEP + "times = 0", "mine.toml:5: timeline.times: must be from 1 to 1000, not 0"),
        (STEP + "times = 2", "mine.toml:1: timeline.every: is missing"),
        (STEP + "times = true", "mine.toml:5: timeline.times: must be from 1 to 1000, not True"),
        (STEP + "times = 2\nevery = 1", "mine.toml:3: timeline.at: hang at 2 begins before hang h"),
        (STEP + "times = 2\nevery = 'x'", "mine.toml:6: timeline.every: must be seconds"),
        (STEP + f"every = 1{'0' * 400}", "mine.toml:5: timeline.every: must be seconds from 0"),
        (STEP + "wobble = 1", "mine.toml:5: timeline.wobble: unknown key"),
        (STEP + "target = 'b'", "mine.toml:5: timeline.target: unknown target 'b'; known: cache"),
        (STEP + "target = ['b']", "mine.toml:5: timeline.target: must be a target's name, not ['b"),
        (
            STEP + STEP.replace("at = 1", "at = 6") + "target = 'b'",
            "mine.toml:9: timeline.target: unknown target 'b'",
        ),
        (
            STEP + STEP.replace("at = 1", "at = 2"),
            "mine.toml:7: timeline.at: hang at 2 begins before hang has ended at 5",
        ),
        (STEP + "[[episodes]]\nname = 'x'", "mine.toml:5: episodes: there is a timeline"),
        ("[[episodes]]\ntimeline = []", "mine.toml:1: episodes.name: is missing"),
        (STEP + "[load]\nrate = 0", "mine.toml:6: load.rate: must be a number from 1"),
        ("load.rate = 0\n" + STEP, "mine.toml:1: load.rate: must be a number from 1"),
        (STEP + "[load]\nkind = 'ajar'", "mine.toml:6: load.kind: must be open or closed"),
        (STEP + "[load]\nthreads = 1.5", "mine.toml:6: load.threads: 1.5 is not whole"),
        (STEP + "[load]\nspeed = 1", "mine.toml:6: load.speed: unknown key; known: kind, rate"),
        (STEP + "[[targets]]\nstore = 'disk'", "mine.toml:6: targets.store: unknown store 'disk'"),
        (STEP + "[[targets]]\nname = 5", "mine.toml:6: targets.name: must be text, not 5"),
        (STEP + "[[targets]]\nname = ['x']", "mine.toml:6: targets.name: must be text, not ['x']"),
        (STEP + "[[targets]]\nname = ''", "mine.toml:6: targets.name: must not be empty"),
        (STEP + "[[targets]]\nstore = []", "mine.toml:6: targets.store: unknown store []"),
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
    assert re.match(r"mine\.toml:\d+: ", str(caught.value))


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
    compared = {"raw-default", "raw-timeout", "timedblock"}
    store = find(scenario.targets[0].store)
    assert compared < set(scenario.variants) <= set(store.variants)
    assert expected_seconds(scenario, injector) <= 240


def test_every_fault_of_the_vocabulary_has_a_scenario() -> None:
    """And the five that are a story."""
    stories = {"seed", "rabbitmq-partition", "flaky", "brownout", "recovery-storm"}
    assert {*stories, *vocabulary.HOW} == set(toml.names())
    for name in vocabulary.HOW:
        assert toml.load(name).episodes[0].faults == (name,)


def test_partition_is_of_a_cluster_and_says_what_each_rule_is() -> None:
    """The seed's rule on the port between the nodes, then every packet; with a witness."""
    partition = toml.load("rabbitmq-partition")
    assert [episode.timeline[0].fault for episode in partition.episodes] == [
        faults.Hang(),
        faults.Partition(),
    ]
    assert all("-j DROP" in episode.title for episode in partition.episodes)
    assert "raw-fresh" in partition.variants
    assert (partition.bounds.way, partition.bounds.recovery) == (5.0, 5.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variants = ['raw-fresh', 'timedblock']", "variants: memcache has no variant 'raw-fresh'"),
        ("[verdicts]\nway = 5", "variants: the verdict 'way' needs raw-fresh"),
        ("inject = 'proxy'\n[[targets]]\nstore = 'rabbitmq-cluster'", "by netfilter, not proxy"),
    ],
)
def test_what_a_store_does_not_have_is_told(text: str, said: str) -> None:
    """A variant, a witness, an injector."""
    with pytest.raises(ScenarioError, match=re.escape(said)):
        toml.parse(f"{text}\n[[timeline]]\nfault = 'hang'\nat = 1\nfor = 3\n", "x.toml", "x")


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
        (lambda: Scenario("", (Episode("a"),)), "name: must not be empty"),
        (lambda: Scenario("x", (Episode("a"),)), "timeline: a: there is no fault in it"),
        (lambda: Scenario("x", (Episode("a"), Episode("a"))), "episodes: 'a' is there twice"),
        (lambda: Scenario("x", (Episode("none", (HANG,)),)), "none is the name of the run"),
        (lambda: Bounds(limit_kept=1), "limit_kept: must be true or false"),  # type: ignore[arg-type]
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
