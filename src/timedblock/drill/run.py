"""One run of the memcached drill: from its plan to its report and exit code."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from timedblock.drill import memcache, report
from timedblock.drill.engine import Engine, expected_seconds
from timedblock.drill.errors import DrillError
from timedblock.drill.load import Schedule
from timedblock.drill.verdict import Judgement, Result, count, judge

PASSED = 0
FAILED = 1
INTERRUPTED = 130


@dataclass(frozen=True)
class Run:
    """``faults`` on every variant by ``schedule``; the results go to ``file`` and ``console``."""

    faults: Sequence[str]
    schedule: Schedule
    file: Path
    console: Console

    def check_file(self) -> None:
        """A file that can't be written is told before the drill, not after it. DrillError."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DrillError(f"cannot write {str(self.file)!r}: {error.strerror}") from error
        if not os.access(self.file.parent, os.W_OK):
            raise DrillError(f"cannot write {str(self.file)!r}: permission denied")

    def on(self, server: memcache.Address) -> int:
        """Runs it on ``server`` and gives the exit code. DrillError if it can't be run."""
        started = datetime.now(timezone.utc)
        begin = time.monotonic()
        results, interrupted = self._results(server)
        judgement = judge(results, memcache.OURS, memcache.REFERENCE, memcache.GONE)
        about = {
            "drill": "memcache",
            "version": package_version(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - begin, 1),
            "server": f"{server[0]}:{server[1]}",
            "schedule": asdict(self.schedule),
            "interrupted": interrupted,
        }
        report.write_json(self.file, about, results, judgement)
        self._show(results, judgement, interrupted)
        if interrupted:
            return INTERRUPTED
        return PASSED if judgement.passed else FAILED

    def _results(self, server: memcache.Address) -> tuple[list[Result], bool]:
        """What was finished, in the report's order, and whether the user interrupted it."""
        keys = memcache.Keys(f"timedblock-drill-{secrets.token_hex(4)}")
        plan = memcache.planned(self.faults)
        seconds = expected_seconds(plan, self.schedule)
        self.console.print(
            f"{count(len(self.faults), 'fault')} and a run without, each with"
            f" {len(memcache.VARIANTS)} clients at {self.schedule.rate:g} requests/s:"
            f" about {seconds:.0f} s.",
            highlight=False,
        )
        interrupted = False
        with self._progress() as progress:
            task = progress.add_task("start", total=seconds)

            def tell(passed: float, phase: str) -> None:
                progress.update(task, completed=passed, description=phase)

            engine = Engine(server, self.schedule, keys.prefix, tell)
            try:
                with memcache.stored(server, keys):
                    engine.run(plan)
            except KeyboardInterrupt:
                interrupted = True
        return sorted(engine.results, key=lambda result: _order(plan, result)), interrupted

    def _progress(self) -> Progress:
        columns = (BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"))
        return Progress(
            *columns,
            TextColumn("{task.description}"),
            console=self.console,
            refresh_per_second=4,
            transient=True,
        )

    def _show(self, results: Sequence[Result], judgement: Judgement, interrupted: bool) -> None:
        if results:
            report.show(self.console, results, memcache.OURS, judgement)
        self.console.print(f"Results: {self.file}", highlight=False, soft_wrap=True)
        if interrupted:
            done = len({result.row.fault for result in results})
            planned = len(self.faults) + 1
            self.console.print(f"INTERRUPTED  {done} of {planned} runs finished.", style="yellow")
        elif judgement.passed:
            self.console.print("PASSED", style="bold green")


def _order(plan: Sequence[str], result: Result) -> tuple[int, int]:
    return plan.index(result.row.fault), list(memcache.VARIANTS).index(result.row.variant)


def package_version() -> str:
    """The installed version; "unknown" in a source tree that isn't installed."""
    try:
        return version("timedblock")
    except PackageNotFoundError:
        return "unknown"
