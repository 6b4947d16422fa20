"""The verdicts as JUnit XML, for a CI server: a suite an episode, a case a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from junitparser import Failure, JUnitXml, TestCase, TestSuite

from timedblock.drill.verdict import Verdict


def write(path: Path, name: str, verdicts: Sequence[Verdict]) -> None:
    """Writes the file whole or not at all. OSError when it cannot be written."""
    document = JUnitXml(name)
    for fault in dict.fromkeys(verdict.fault for verdict in verdicts):
        document.add_testsuite(_suite(name, [one for one in verdicts if one.fault == fault]))
    part = path.with_name(f"{path.name}.part")
    document.write(str(part), pretty=True)
    part.replace(path)


def _suite(name: str, verdicts: Sequence[Verdict]) -> TestSuite:
    suite = TestSuite(verdicts[0].fault)
    for verdict in verdicts:
        case = TestCase(f"{verdict.variant}: {verdict.name}", f"{name}.{verdict.fault}")
        if not verdict.passed:
            case.result = [Failure(verdict.words, verdict.name)]
        suite.add_testcase(case)
    return suite
