"""One run of a scenario: from its plan to its directory and exit code."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from timedblock.drill import history, junit, report
from timedblock.drill.engine import Engine, expected_seconds, variants
from timedblock.drill.errors import DrillError
from timedblock.drill.measure import Result
from timedblock.drill.scenario import Episode, Scenario
from timedblock.drill.store import VARIANTS, find
from timedblock.drill.verdict import Judgement, count, judge

#: What makes the report and its picture.
_PAGES = "timedblock.drill.outputs"
PASSED = 0
FAILED = 1
INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    results: list[Result]
    judgement: Judgement
    interrupted: bool

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return INTERRUPTED
        return PASSED if self.judgement.passed else FAILED


@dataclass(frozen=True)
class Run:
    """A scenario by an injector; what it finds goes to the directory ``out``, the document to
    ``file`` too if there is one, and all of it is told to ``console``."""

    scenario: Scenario
    injector: str
    out: Path
    console: Console
    file: Path | None = None

    @property
    def document(self) -> Path:
        """The JSON document in the directory."""
        return self.out / f"drill-{self.scenario.targets[0].store}.json"

    def check_files(self) -> None:
        """What can't be written is told before the drill, not after it. DrillError."""
        for path in (self.document, *([self.file] if self.file else [])):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DrillError(f"cannot write {str(path)!r}: {error.strerror}") from error
            if not os.access(path.parent, os.W_OK):
                raise DrillError(f"cannot write {str(path)!r}: permission denied")

    def run(self) -> Outcome:
        """Runs it, writes and shows what came of it. DrillError if it can't be run."""
        started = datetime.now(timezone.utc)
        begin = time.monotonic()
        engine, interrupted = self._play()
        results = sorted(engine.results, key=self._order)
        judgement = self._judge(results)
        about = {
            "drill": self.scenario.targets[0].store,
            "version": package_version(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - begin, 1),
            "server": engine.server,
            "interrupted": interrupted,
            **self._about(),
        }
        for file in (self.document, *([self.file] if self.file else [])):
            report.write_json(file, about, results, judgement)
        self._write_rest(engine, judgement)
        outcome = Outcome(results, judgement, interrupted)
        self._show(outcome)
        return outcome

    def _play(self) -> tuple[Engine, bool]:
        """The engine with what was finished, and whether the user interrupted it."""
        seconds = expected_seconds(self.scenario, self.injector)
        self.console.print(self._announcement(seconds), highlight=False)
        prefix = f"timedblock-drill-{secrets.token_hex(4)}"
        with self._progress() as progress:
            task = progress.add_task("start", total=seconds)

            def tell(passed: float, phase: str) -> None:
                progress.update(task, completed=passed, description=phase)

            engine = Engine(self.scenario, self.injector, prefix, tell)
            try:
                engine.run()
            except KeyboardInterrupt:
                return engine, True
        return engine, False

    def _announcement(self, seconds: float) -> str:
        faults = [episode for episode in self.scenario.plan if episode.timeline]
        without = " and a run without" if len(faults) < len(self.scenario.plan) else ""
        load = self.scenario.load
        pace = f"at {load.rate:g} requests/s" if load.scheduled else f"of {load.threads} threads"
        clients = len(variants(self.scenario, self.injector))
        return (
            f"{count(len(faults), 'fault')}{without}, each with {count(clients, 'client')} {pace}:"
            f" about {seconds:.0f} s."
        )

    def _judge(self, results: Sequence[Result]) -> Judgement:
        episodes, bounds = {}, {}
        for episode in self.scenario.plan:
            for label, target in self.scenario.labels(episode):
                episodes[label] = episode.on(target)
                bounds[label] = self.scenario.judged_by(episode)
        gone = frozenset.intersection(
            *(frozenset(find(target.store).gone) for target in self.scenario.targets)
        )
        return judge(results, episodes, bounds, gone)

    def _labels(self, episode: Episode) -> list[str]:
        return [label for label, _ in self.scenario.labels(episode)]

    def _about(self) -> dict[str, object]:
        scenario = self.scenario
        return {
            "inject": self.injector,
            "schedule": asdict(scenario.schedule(scenario.plan[0])),
            "schedules": {
                label: asdict(scenario.schedule(episode))
                for episode in scenario.plan
                for label in self._labels(episode)
            },
            "scenario": scenario.to_dict(),
            "timeline": [
                {"fault": label, "name": step.fault.name, "at": step.at, "until": step.until}
                for episode in scenario.plan
                for label, target in scenario.labels(episode)
                for step in episode.on(target).timeline
            ],
        }

    def _write_rest(self, engine: Engine, judgement: Judgement) -> None:
        history.write_calls(self.out / history.HISTORY, engine.calls)
        history.write_samples(self.out / history.SAMPLES, engine.samples)
        if engine.deliveries:
            history.write_deliveries(self.out / history.DELIVERIES, engine.deliveries)
        junit.write(self.out / history.JUNIT, self.scenario.name, judgement.verdicts)
        if engine.results:
            self._write_pages()

    def _write_pages(self) -> None:
        """The report. That it can't be made takes nothing from what was measured."""
        if find_spec(_PAGES) is None:
            return
        try:
            import_module(_PAGES).write_outputs(self.out)
        except (ImportError, DrillError) as error:
            self.console.print(f"No report: {error}", style="yellow", highlight=False)

    def _progress(self) -> Progress:
        columns = (BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"))
        return Progress(
            *columns,
            TextColumn("{task.description}"),
            console=self.console,
            refresh_per_second=4,
            transient=True,
        )

    def _show(self, outcome: Outcome) -> None:
        if outcome.results:
            report.show(self.console, outcome.results, outcome.judgement)
        where = {"Results": self.file or self.document, "Report": self.out / history.REPORT}
        for what, path in where.items():
            if path.exists():
                self.console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
        if outcome.interrupted:
            done = len({result.row.fault for result in outcome.results})
            planned = sum(len(self._labels(episode)) for episode in self.scenario.plan)
            self.console.print(f"INTERRUPTED  {done} of {planned} runs finished.", style="yellow")
        elif outcome.judgement.passed:
            self.console.print("PASSED", style="bold green")

    def _order(self, result: Result) -> tuple[int, int]:
        """As in the plan; the variants as everywhere."""
        labels = [label for episode in self.scenario.plan for label in self._labels(episode)]
        return labels.index(result.row.fault), VARIANTS.index(result.row.variant)


def package_version() -> str:
    """The installed version; "unknown" in a source tree that isn't installed."""
    try:
        return version("timedblock")
    except PackageNotFoundError:
        return "unknown"
