"""What people look at after a drill, made from what it left in its directory."""

from __future__ import annotations

from pathlib import Path

from timedblock.drill.html import write_report
from timedblock.drill.loads import read_drill
from timedblock.drill.picture import write_picture


def write_outputs(directory: Path) -> list[Path]:
    """Writes the picture and the report, which links to it, beside the records in ``directory``;
    gives their paths.

    DrillError if the records can't be read or a file can't be written; ImportError, with the pip
    line, without the extra ``drill``.
    """
    drill = read_drill(directory)
    drawn = [write_picture(directory, drill)] if any(map(len, drill.loads.values())) else []
    return [*drawn, write_report(directory, drill)]
