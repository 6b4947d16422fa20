"""The records of a drill on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from timedblock.drill import history
from timedblock.drill.history import Call, Sample

CALL = Call(
    "hang", "raw-default", 7, "set", "k3", "w7", 0.035, 0.0351234567, 1.5, "hung", None, True
)
SAMPLE = Sample("hang", "timedblock", 1.2, 0.05, "learnt", "half-open", 3, "degraded")


def test_calls_come_back_as_they_were(tmp_path: Path) -> None:
    """To the microsecond; one JSON object a line, its columns by name."""
    file = tmp_path / history.HISTORY
    history.write_calls(file, [CALL, CALL._replace(number=8)])
    first, second = history.read_calls(file)
    assert first == CALL._replace(began=0.035123)
    assert second.number == 8
    assert set(json.loads(file.read_text().splitlines()[0])) == set(Call._fields)


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    """What timedblock knew, moment by moment."""
    file = tmp_path / history.SAMPLES
    history.write_samples(file, [SAMPLE])
    assert list(history.read_samples(file)) == [SAMPLE]


@pytest.mark.parametrize("line", ["{", "[]", '{"fault": "hang"}', '{"nonsense": 1}'])
def test_line_that_is_no_call_is_named(tmp_path: Path, line: str) -> None:
    """The file and the line, not a KeyError."""
    file = tmp_path / "history.jsonl"
    history.write_calls(file, [CALL])
    with file.open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(ValueError, match=r"history\.jsonl:2: not a Call"):
        list(history.read_calls(file))


def test_durations_are_the_calls_and_the_users() -> None:
    """A request that waited for a thread took its user longer than the call."""
    call = CALL._replace(due=1.0, began=1.25, ended=1.5)
    assert (call.duration, call.lateness) == (0.25, 0.5)
