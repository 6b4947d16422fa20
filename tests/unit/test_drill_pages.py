"""The drill's report, its picture and its trend, from records that were made up."""

from __future__ import annotations

import html as escaping
import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.drills.records import (
    SCHEDULE,
    VARIANTS,
    details,
    document,
    failed,
    fine,
    row,
    write_drill,
)
from timedblock.drill import html, picture, sentences, trend
from timedblock.drill.errors import DrillError
from timedblock.drill.html import asset, minutes, nines, write_report
from timedblock.drill.load import Schedule
from timedblock.drill.loads import read_drill
from timedblock.drill.nines import Cost
from timedblock.drill.outputs import write_outputs
from timedblock.drill.picture import write_picture
from timedblock.drill.sentences import percent
from timedblock.drill.trend import write_trend

ROOT = Path(__file__).parent.parent.parent
MEGABYTE = 1_000_000
STRANGE = '</script><script>alert("1")</script>'


class Page(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.json = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        inside, attributes = self.tags[-1] if self.tags else ("", {})
        if attributes.get("id") == "data":
            self.json += data
        elif inside not in ("script", "style"):
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> dict[str, Any]:
        """What the charts are drawn from."""
        found: dict[str, Any] = json.loads(self.json)
        return found


def fails(number: int) -> tuple[float, str, str | None]:
    """Answers, and from the fault on only failures that take a while."""
    return fine(number) if number < 100 else (0.3, "unavailable", "TimeoutError")


def test_the_report_has_the_verdict_the_table_and_a_section_a_fault(tmp_path: Path) -> None:
    """It begins with one sentence; each fault and variant has a row, and four charts of its own."""
    page = Page(write_report(write_drill(tmp_path, ["none", "hang", "drip"])))
    assert "timedblock kept its limit in all 2 faults (slowest call 3.0 ms);" in page.text
    parts = [a.get("data-part") for a in page.all("div") if a.get("role") == "img"]
    assert parts.count("dots") == parts.count("stack") == parts.count("flow") == 9
    assert parts.count("breaker") == 3
    assert page.text.count("no breaker") == 6
    assert [a["id"] for a in page.all("section")] == ["fault-1", "fault-2", "fault-3", "how"]
    # Every chart says in words what it shows.
    labels = [a["aria-label"] for a in page.all("div") if a.get("role") == "img"]
    assert all(labels)
    assert any("hang, timedblock: response times. Worst 3.0 ms" in str(label) for label in labels)


def test_the_report_is_whole_in_itself(tmp_path: Path) -> None:
    """Nothing in it is loaded from anywhere; it links only to what lies beside it."""
    page = Page(write_report(write_drill(tmp_path)))
    assert all("src" not in attributes for _, attributes in page.tags)
    assert {a.get("href") for a in page.all("link")} == {"data:,"}
    links = {str(a["href"]) for a in page.all("a")}
    beside = {link for link in links if not link.startswith("#")}
    assert beside == {"drill-memcache.json", "history.jsonl", "samples.jsonl"}
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'")


def test_strange_names_are_text(tmp_path: Path) -> None:
    """A fault, a variant and an error may be called anything: it is shown, never run."""

    def fate(number: int) -> tuple[float, str, str | None]:
        return 0.001, "unavailable", STRANGE

    write_drill(tmp_path, [STRANGE], [STRANGE], fate, notes=[STRANGE], server=STRANGE)
    path = write_report(tmp_path)
    assert "<script>alert" not in path.read_text()
    page = Page(path)
    assert len(page.all("script")) == 3
    assert page.text.count(STRANGE) > 5
    assert page.data["faults"][0]["name"] == STRANGE
    assert page.data["kinds"] == [[1, STRANGE]]


def test_a_big_drill_stays_under_three_megabytes(tmp_path: Path) -> None:
    """12 faults, 3 variants, 200 requests/s, 12 s: all calls are drawn, in less than 3 MB."""
    schedule = Schedule(rate=200.0, steady=1.5, window=8.0, grace=1.25, recovery=1.25)
    faults = [f"fault-{n}" for n in range(12)]
    path = write_report(write_drill(tmp_path, faults, VARIANTS, fails, schedule))
    assert path.stat().st_size <= 3 * MEGABYTE
    page = Page(path)
    drawn = sum(load["count"] for fault in page.data["faults"] for load in fault["loads"])
    assert drawn == 12 * 3 * 2400
    assert "successes are drawn" not in page.text


def test_too_many_successes_are_thinned_and_the_history_is_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caption says how many successes are drawn; the raw history lies beside the report."""
    monkeypatch.setattr("timedblock.drill.html.panels.__defaults__", (300, 10_000))
    page = Page(write_report(write_drill(tmp_path, ["hang"])))
    assert "successes are drawn, every failure and the slowest calls are." in page.text
    assert "of 700 successes" in page.text
    assert "history.jsonl" in {a.get("href") for a in page.all("a")}


def test_the_worst_are_in_words(tmp_path: Path) -> None:
    """Calls that hung, went past the limit or were wrong are in the fault's line, with the
    breaker's times, and raw clients have their marks."""
    write_drill(
        tmp_path,
        ["none", "hang"],
        results=[
            *(row("none", variant) for variant in VARIANTS),
            row("hang", "raw-default", worst=7.0, goodput=0.0, over_limit=32),
            row("hang", "raw-timeout", over_limit=2, wrong=1, goodput=0.5, worst=1.5),
            row("hang", "timedblock", worst=1.01, goodput=0.9996),
        ],
        details=[
            details("hang", "raw-default", hung=32, goodput_last_two_thirds=0.0),
            details("hang", "raw-timeout", goodput_last_two_thirds=0.5),
            details("hang", "timedblock", opened=0.42, closed=0.31),
        ],
    )
    drill = read_drill(tmp_path)
    assert sentences.fault_verdict(drill, "hang") == (
        "timedblock kept its limit of 1 s (worst 1.01 s), served 99.9% of its requests in time; its"
        " breaker opened after 0.4 s and closed 0.3 s after the fault. raw-default: 32 calls hung,"
        " 0% served in time. raw-timeout: 1 wrong answer, 2 calls past 1.25 s, worst 1.50 s, 50.0%"
        " served in time."
    )
    assert sentences.verdict(drill) == (
        "timedblock kept its limit in the one fault (slowest call 1.01 s); raw-default failed in 1,"
        " and hung in 1 of them; raw-timeout failed in 1."
    )
    cells = {v: sentences.cell(drill, "hang", v) for v in VARIANTS}
    assert {v: c and c.failed for v, c in cells.items()} == {
        "raw-default": "hung", "raw-timeout": "late", "timedblock": "",
    }  # fmt: skip
    assert cells["raw-default"] and cells["raw-default"].worst == "> 7.00 s"


def test_a_failed_drill_says_in_what(tmp_path: Path) -> None:
    """The verdict counts and names the faults that failed; the fault's own line says why."""
    verdicts = [failed("drip", "goodput 10.0%"), failed("hang", "worst 2 s", "timedblock-fixed")]
    write_drill(tmp_path, ["drip", "hang"], verdicts=verdicts, passed=False, problems=["drip: x"])
    drill = read_drill(tmp_path)
    assert "timedblock failed in 1 of 2 faults, drip (slowest" in sentences.verdict(drill)
    assert sentences.fault_verdict(drill, "drip").startswith("timedblock failed: goodput 10.0%.")
    page = Page(write_report(tmp_path))
    cell = sentences.cell(drill, "drip", "timedblock")
    assert cell and cell.failed == "failed"
    badges = [a["class"] for a in page.all("span") if "badge" in (a.get("class") or "")]
    assert badges == ["badge failed", "badge failed", "badge failed"]


def test_an_interrupted_drill_shows_what_there_is(tmp_path: Path) -> None:
    """Loads without a result are drawn, and the table says that they didn't run to their end."""
    write_drill(tmp_path, interrupted=True, results=[row("hang", "timedblock")], details=[])
    page = Page(write_report(tmp_path))
    assert "The drill was interrupted: what was finished is here." in page.text
    assert "not run" in page.text
    drill = read_drill(tmp_path)
    assert "raw-default was not run to its end." in sentences.fault_verdict(drill, "none")


def test_a_drill_that_was_interrupted_at_once_has_a_report(tmp_path: Path) -> None:
    """No call, no result: a page that says so."""
    write_drill(tmp_path, [], interrupted=True)
    assert "No fault was run to its end." in Page(write_report(tmp_path)).text


def test_the_timeline_says_what_was_on(tmp_path: Path) -> None:
    """An episode's own schedule and the faults of its timeline are drawn, not the first's."""
    own = {**SCHEDULE.__dict__, "recovery": 3.0}
    steps = [
        {"fault": "story", "name": "refuse", "at": 1.0, "until": 2.0},
        {"fault": "story", "name": "hang", "at": 3.0, "until": 4.0},
    ]
    write_drill(tmp_path, ["story"], timeline=steps, schedules={"story": own})
    fault = Page(write_report(tmp_path)).data["faults"][0]
    assert fault["spans"] == [["refuse", 1.0, 2.0], ["hang", 3.0, 4.0]]
    assert (fault["end"], fault["named"]) == (9.0, True)


def test_the_run_without_a_fault_comes_last(tmp_path: Path) -> None:
    """Of each target, with its own name; it has no window and costs nothing."""
    page = Page(write_report(write_drill(tmp_path, ["none@a", "hang@a", "none@b", "hang@b"])))
    assert [f["name"] for f in page.data["faults"]] == ["hang@a", "hang@b", "none@a", "none@b"]
    assert page.data["faults"][2]["spans"] == []
    assert "no fault@a" in page.text
    assert page.text.count("What it costs") == 2


def test_a_closed_loop_has_no_rate(tmp_path: Path) -> None:
    """Nothing is offered, and nothing could not begin."""
    schedule = {**SCHEDULE.__dict__, "rate": 0}
    write_drill(tmp_path, ["hang"])
    file = tmp_path / "drill-memcache.json"
    text = json.loads(file.read_text())
    file.write_text(json.dumps({**text, "schedule": schedule}))
    load = Page(write_report(tmp_path)).data["faults"][0]["loads"][0]
    assert load["bars"]["offered"] is None
    assert sum(load["bars"]["stack"][-1]) == 0


def test_a_burst_is_cut_and_its_label_says_so(tmp_path: Path) -> None:
    """What catches up after the fault doesn't squeeze the rest of the chart."""

    def fate(number: int) -> tuple[float, str, str | None]:
        due = SCHEDULE.due(number)
        return (max(0.001, 6.05 - due), "ok", None) if due >= 1 else (0.001, "ok", None)

    page = Page(write_report(write_drill(tmp_path, ["hang"], fate=fate)))
    assert "(cut off; highest: 2," in page.text
    assert page.data["faults"][0]["flow_top"] == pytest.approx(216)


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.99999, "99.9%"), (0.5, "50.0%"), (0.00001, "0.1%"), (0.0, "0%")],
)
def test_a_percentage_is_all_only_if_it_is_all(share: float, text: str) -> None:
    """Rounding turns neither a lost request into none, nor a served one."""
    assert percent(share) == text


def test_costs_say_what_so_few_requests_can_show() -> None:
    """Where all were served, the table says what one lost request would have been."""
    assert (nines(Cost(1000, 1000)), minutes(Cost(1000, 1000))) == ("> 3.0", "< 0.4")
    assert (nines(Cost(1000, 999)), minutes(Cost(1000, 999))) == ("3.0", "0.4")
    assert (nines(Cost(0, 0)), minutes(Cost(0, 0))) == ("–", "–")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no drill-*.json: not the directory of one drill"),
        ({"drill-a.json": "{}", "drill-b.json": "{}"}, "has 2 files drill-*.json"),
        ({"drill-a.json": "{"}, "drill-a.json'"),
        ({"drill-a.json": "[]"}, "is not a drill's document: it has no 'results'"),
        ({"drill-a.json": json.dumps(document([]))}, "history.jsonl"),
        ({"drill-a.json": json.dumps(document([])), "history.jsonl": "{}\n"}, "history.jsonl:1:"),
    ],
)
def test_a_directory_that_is_no_drill_is_told(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    """The error names the file, and the line that can't be read."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DrillError, match=re.escape(message)):
        write_report(tmp_path)


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The error names the file; nothing half-written is left."""
    write_drill(tmp_path, ["hang"])
    for name in ("report.html", "report.png"):
        (tmp_path / name).mkdir()
    with pytest.raises(DrillError, match=r"cannot write .*report\.html"):
        write_report(tmp_path)
    with pytest.raises(DrillError, match=r"cannot write .*report\.png"):
        write_picture(tmp_path)


@pytest.mark.parametrize("write", [write_report, write_picture])
def test_a_missing_extra_is_told_with_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    """Without jinja2 or matplotlib the error says what to install."""
    write_drill(tmp_path, ["hang"])
    html._templates.cache_clear()
    monkeypatch.setattr(html, "find_spec", lambda name: None)
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'timedblock\[drill\]'"):
        write(tmp_path)


def test_the_picture_is_a_png_of_every_load(tmp_path: Path) -> None:
    """A row a fault, a column a variant, and not blank."""
    from matplotlib import image

    def fate(number: int) -> tuple[float, str, str | None]:
        kinds: list[tuple[float, str, str | None]] = [
            (0.001, "ok", None), (1.0, "unavailable", "T"), (0.01, "wrong", None),
            (0.1, "dishonest", "KeyError"), (3.0, "hung", None),
        ]  # fmt: skip
        return kinds[number % 5]

    directory = write_drill(tmp_path, ["none", "hang"], fate=fate)
    figure = picture.draw(read_drill(directory))
    assert len(figure.axes) == 6
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles == list(VARIANTS)
    assert figure.axes[0].get_ylim() == figure.axes[5].get_ylim()
    pixels = image.imread(write_picture(directory))
    height, width = pixels.shape[:2]
    assert width > 1_000 and height > 400
    assert pixels[..., :3].std() > 0.05


def test_all_outputs_are_written_together(tmp_path: Path) -> None:
    """The picture is there before the report, which links to it; without calls there is none."""
    written = write_outputs(write_drill(tmp_path / "a", ["hang"]))
    assert [path.name for path in written] == ["report.png", "report.html"]
    assert "report.png" in {a.get("href") for a in Page(written[1]).all("a")}
    nothing = write_outputs(write_drill(tmp_path / "b", [], interrupted=True))
    assert [path.name for path in nothing] == ["report.html"]


def test_a_drill_without_samples_has_a_report(tmp_path: Path) -> None:
    """A drill of raw clients alone has none to draw: no learnt limit, no breaker."""
    (write_drill(tmp_path, ["hang"]) / "samples.jsonl").unlink()
    page = Page(write_report(tmp_path))
    assert page.text.count("no breaker") == 3
    assert page.data["faults"][0]["loads"][2]["learnt"] == [[], []]


def test_a_picture_needs_calls(tmp_path: Path) -> None:
    """A drill without any has nothing to draw."""
    with pytest.raises(DrillError, match="has no calls to draw"):
        write_picture(write_drill(tmp_path, []))


def runs_below(out: Path, statuses: Iterable[str]) -> None:
    """Runs an hour apart; the newest has the name that sorts first."""
    for number, status in enumerate(statuses):
        directory = out / f"run-{99 - number}"
        directory.mkdir(parents=True)
        given: dict[str, Any] = {"started": f"2026-11-23T{number:02}:30:00+00:00"}
        if status == "failed":
            given |= {"passed": False, "verdicts": [failed("hang", "goodput 10%")]}
        if status == "interrupted":
            given |= {"interrupted": True, "results": [row("none", "timedblock")]}
        text = document(["none", "hang"], **given)
        (directory / "drill-memcache.json").write_text(json.dumps(text))
        (directory / "report.html").write_text("a report")


def marks(page: Page) -> list[str]:
    """The verdicts of the table's cells, in order."""
    labels = [a.get("aria-label") or "" for a in page.all("a")]
    return [label.partition(",")[0] for label in labels if "," in label]


def test_the_trend_has_each_run_in_the_order_of_time(tmp_path: Path) -> None:
    """Verdicts, goodput and slowest calls, run by run, with a link to each report."""
    runs_below(tmp_path, ["passed", "failed", "interrupted"])
    (tmp_path / "run-0").mkdir()
    (tmp_path / "notes.txt").write_text("not a run")
    page = Page(write_trend(tmp_path))
    assert "1 of the last 3 runs passed." in page.text
    assert "1 directory without results" in page.text
    assert "latest interrupted" in page.text
    assert marks(page) == ["passed", "failed", "not run", "passed", "passed", "passed"]
    assert "run-99/report.html#top" in {a["href"] for a in page.all("a")}
    data = page.data
    assert data["at"] == sorted(data["at"])
    assert data["variants"] == ["timedblock", "raw-default", "raw-timeout"]
    assert data["faults"][0]["goodput"][1] == [1.0, 1.0, None]
    assert data["faults"][1]["worst"][0] == [0.003, 0.003, 0.003]


def test_the_trend_is_of_the_last_runs(tmp_path: Path) -> None:
    """Older ones are not on the page."""
    runs_below(tmp_path, ["failed", "passed", "passed"])
    assert "2 of the last 2 runs passed." in Page(write_trend(tmp_path, last=2)).text


def test_a_trend_of_nothing_is_told(tmp_path: Path) -> None:
    """Without a run there is no page, and none of no runs can be asked for."""
    with pytest.raises(DrillError, match="no run of a drill below"):
        write_trend(tmp_path)
    with pytest.raises(ValueError, match="last must be at least 1, not 0"):
        write_trend(tmp_path, last=0)


def test_a_run_that_does_not_say_when_is_not_on_the_trend(tmp_path: Path) -> None:
    """A time without a zone, or none, can't be put in order."""
    for name, started in (("run-1", "2026-11-23T01:00:00"), ("run-2", None)):
        (tmp_path / name).mkdir()
        text = json.dumps(document(["none"], started=started))
        (tmp_path / name / "drill-memcache.json").write_text(text)
    assert trend.read_runs(tmp_path) == ([], 2)


def test_names_of_directories_are_quoted(tmp_path: Path) -> None:
    """A link to a run's report survives any directory's name."""
    runs_below(tmp_path, ["passed"])
    (tmp_path / "run-99").rename(tmp_path / 'a "b"#c')
    links = {str(a["href"]) for a in Page(write_trend(tmp_path)).all("a")}
    assert "a%20%22b%22%23c/report.html#top" in links


def test_the_bundle_is_the_one_that_the_script_fetches() -> None:
    """The vendored library says the version that scripts/vendor-uplot pins, and has its licence."""
    script = (ROOT / "scripts" / "vendor-uplot").read_text()
    version = re.search(r"^version=(.+)$", script, re.MULTILINE)
    assert version
    bundle = asset("uplot/uPlot.iife.min.js")
    assert f"(v{version[1]})" in bundle[:100]
    assert "MIT License" in asset("uplot/LICENSE")
    assert len(bundle) < 60_000


@pytest.mark.parametrize("name", ["uplot/uPlot.iife.min.js", "charts.js", "report.js", "trend.js"])
def test_scripts_cannot_end_their_element(name: str) -> None:
    """Scripts stand in the page as they are: none may hold what would end it."""
    assert "</script" not in asset(name).lower()
    assert "<!--" not in asset(name)


def test_witness_is_no_client(tmp_path: Path) -> None:
    """It neither passes nor fails; the fault's sentence says when it had a way."""
    variants = ["raw-default", "raw-fresh", "timedblock"]
    again = {"raw-fresh": 6.8, "timedblock": 7.9}
    parts = [details("hang", v, again=again.get(v)) for v in variants]
    write_drill(tmp_path, ["hang"], variants, fails, details=parts)
    drill = read_drill(tmp_path)
    assert sentences.cell(drill, "hang", "raw-fresh").failed is None  # type: ignore[union-attr]
    assert "raw-fresh" not in sentences.verdict(drill)
    told = "A new raw connection was first answered 6.8 s after the fault began, timedblock 7.9 s."
    assert told in sentences.fault_verdict(drill, "hang")
    page = Page(write_report(tmp_path))
    assert "No client but a witness" in page.text


def test_consumer_is_told_with_its_silence(tmp_path: Path) -> None:
    """Beside the one who has none."""
    parts = [
        details("hang", "raw-default", delivered=31, silence=18.0),
        details("hang", "raw-fresh"),
    ]
    write_drill(tmp_path, ["hang"], ["raw-default", "raw-fresh"], details=parts)
    text = Page(write_report(tmp_path)).text
    assert "consumer: 31 messages, silent for 18.00 s" in text
    assert text.count("no consumer") == 1


def test_episode_says_what_happens_in_it(tmp_path: Path) -> None:
    """In its scenario's words; without any, in those of its fault."""
    told = {"title": "A story", "episodes": [{"name": "hang", "title": "The rule"}]}
    write_drill(tmp_path, ["none", "hang", "drip"], scenario=told)
    text = Page(write_report(tmp_path)).text
    assert "timedblock drill · memcache · A story" in text
    assert "The rule" in text
    assert sentences.about_fault("drip") in text
    assert sentences.about_fault("hang") not in text


def test_what_a_fault_is_comes_from_the_vocabulary() -> None:
    """A fault's own first sentence; an episode of another name has none."""
    assert sentences.about_fault("silent").startswith("The kernel accepts connections;")
    assert sentences.about_fault("story") == ""
    assert escaping.escape(sentences.about_fault("hang")).count("`") == 0
