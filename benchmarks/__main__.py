"""Run every question, each in a fresh process, and print one table.

python -m benchmarks [--json FILE] [QUESTION ...]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import _harness as harness

QUESTIONS = (
    "overhead",
    "memcache",
    "hash",
    "rabbitmq",
    "histogram",
    "concurrency",
    "imports",
    "overshoot",
    "rabbitmq_overshoot",
    "proxy",
    "drill",
    "soak",
    "rabbitmq_soak",
)


def run(question: str, folder: Path) -> tuple[list[harness.Figure], dict[str, dict[str, float]]]:
    """One question in a process of its own, so that none warms or burdens the next."""
    harness.console.rule(f"benchmarks.{question}")
    report = folder / f"{question}.json"
    command = [sys.executable, "-m", f"benchmarks.{question}", "--json", str(report)]
    status = subprocess.run(command, check=False).returncode
    if not report.exists():
        failed = harness.count(f"{question} ran to its end", 0, 1, note=f"exit status {status}")
        return [failed], {}
    return harness.read_json(report)


def main() -> int:
    options = harness.parser(__doc__)
    options.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    arguments = options.parse_args()
    unknown = set(arguments.questions) - set(QUESTIONS)
    if unknown:
        options.error(f"no such question: {', '.join(sorted(unknown))}")
    figures: list[harness.Figure] = []
    calibrations: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for question in arguments.questions or QUESTIONS:
            found, loops = run(question, Path(folder))
            figures += found
            calibrations |= loops
    harness.console.rule("all")
    harness.print_table(figures, calibrations)
    if arguments.json:
        harness.write_json(arguments.json, figures, calibrations)
    return harness.exit_code(figures)


if __name__ == "__main__":
    sys.exit(main())
