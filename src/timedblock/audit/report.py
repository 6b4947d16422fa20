"""What the processes of an audited program recorded, by call site (L5)."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .recorder import APPS, DIRECTORY, NO_APP, Record

#: Scopes that can be left out.
IGNORABLE = ("loopback", "unix")
_SHOWN = 3
_INJECT = Path(__file__).parent / "inject"


class Recording:
    """Where processes write, for the time of a ``with`` block: a directory that is then removed."""

    def __init__(self, apps: Sequence[str] = ()) -> None:
        self._apps = tuple(apps)
        self.directory = tempfile.mkdtemp(prefix="timedblock-audit-")
        if os.getuid() == 0:  # a program that root starts may go on as somebody else
            os.chmod(self.directory, 0o1733)

    def environment(self, before: Mapping[str, str]) -> dict[str, str]:
        """`before`, with what makes a Python that is started in it, and its children, record."""
        path = before.get("PYTHONPATH")
        return {
            **before,
            "PYTHONPATH": f"{_INJECT}{os.pathsep}{path}" if path else str(_INJECT),
            DIRECTORY: self.directory,
            APPS: ",".join(self._apps),
        }

    def read(self) -> Recorded:
        """Everything that was written until now."""
        recorded = Recorded()
        for file in sorted(Path(self.directory).glob("*.jsonl")):
            if file.is_file() and not file.is_symlink():
                recorded.processes += 1
                recorded.take(file.read_bytes())
        return recorded

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass
class Recorded:
    """Counts by record, of all processes together."""

    processes: int = 0
    counts: dict[Record, int] = field(default_factory=dict)

    def take(self, content: bytes) -> None:
        """Add a process's file; its last line may be cut short."""
        for line in content.split(b"\n")[1:-1]:
            try:
                one = json.loads(line)
                record = Record(*one["record"])
            except (ValueError, KeyError, TypeError):
                continue
            self.counts[record] = self.counts.get(record, 0) + one["count"]


@dataclass
class Site:
    """One place that asks the network without a deadline.

    Attributes:
        kind: ``connect`` or ``look-up``.
        file, line, function: the innermost frame of the application.
        through: the library that made the request for it, or ``""``.
        timeout: the socket's own: ``none``, ``own``, ``zero`` (non-blocking), ``""`` (look-up).
        seconds: the longest of its own timeouts that was kept.
        count: how often.
        destinations: how often for each.
    """

    kind: str
    file: str
    line: int
    function: str
    through: str
    timeout: str
    seconds: float = 0.0
    count: int = 0
    destinations: dict[str, int] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """``file:line``, as short as it is clear from here."""
        return f"{_shown(self.file)}:{self.line}"

    def explanation(self) -> str:
        """One line: what is asked for, by what, and what it may cost."""
        by = f" through {self.through}" if self.through not in ("", NO_APP) else ""
        if self.through == NO_APP:
            by = ", in a thread without a frame of the application,"
        verb = "looks up" if self.kind == "look-up" else "connects to"
        return f"{verb} {self._told()}{by} with no deadline: {self._cost()}"

    def _told(self) -> str:
        names = sorted(self.destinations, key=lambda name: (-self.destinations[name], name))
        more = len(names) - _SHOWN
        return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

    def _cost(self) -> str:
        if self.kind == "look-up":
            return "it takes as long as the resolver does"
        if self.timeout == "own":
            return f"the socket's own timeout, {self.seconds:g} s, is for each step of it alone"
        if self.timeout == "zero":
            return "the socket is non-blocking, and nothing limits the wait for it"
        return "the socket has no timeout, so the kernel's minutes"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("kind", "file", "line", "function", "timeout", "seconds", "count", "destinations")
        told = {name: getattr(self, name) for name in names}
        through = None if self.through in ("", NO_APP) else self.through
        return {**told, "through": through, "explanation": self.explanation()}


def _shown(file: str) -> str:
    relative = os.path.relpath(file) if os.path.isabs(file) else file
    return file if relative.startswith(os.pardir) else relative


def sites(
    recorded: Recorded, *, ignore: Collection[str] = (), allow: Iterable[str] = ()
) -> tuple[list[Site], int]:
    """The sites, the most frequent first, and how many requests were left out.

    Args:
        recorded: what the processes wrote.
        ignore: scopes to leave out: ``loopback``, ``unix``.
        allow: shell patterns of what is left out: of a file, ``file:line`` or ``file:function``
            (absolute, or relative to here), of a library, or of a destination.
    """
    found: dict[tuple[Any, ...], Site] = {}
    left_out = 0
    patterns = list(allow)
    for record, count in recorded.counts.items():
        if record.scope in ignore or _allowed(record, patterns):
            left_out += count
            continue
        site = found.setdefault(_key(record), Site(*_key(record)))
        site.seconds = max(site.seconds, record.seconds)
        site.count += count
        before = site.destinations.get(record.destination, 0)
        site.destinations[record.destination] = before + count
    order = sorted(found.values(), key=lambda site: (-site.count, site.where, site.kind))
    return order, left_out


def _key(record: Record) -> tuple[str, str, int, str, str, str]:
    one = record
    return one.kind, one.file, one.line, one.function, one.through, one.timeout


def _allowed(record: Record, patterns: Sequence[str]) -> bool:
    names = [record.destination, record.through]
    for file in (record.file, _shown(record.file)):
        names += [file, f"{file}:{record.line}", f"{file}:{record.function}"]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names if name)


def lines(found: Sequence[Site], recorded: Recorded, left_out: int) -> list[str]:
    """The report, for people."""
    processes = f"{recorded.processes} Python process{'es' * (recorded.processes != 1)}"
    kept = f"; {left_out} more ignored or allowed" if left_out else ""
    if not found:
        return [f"timedblock audit: nothing without a deadline in {processes}{kept}"]
    total = sum(site.count for site in found)
    width = len(str(found[0].count))
    head = (
        f"timedblock audit: {total} connection{'s' * (total != 1)} or name look-ups without a "
        f"deadline, from {len(found)} place{'s' * (len(found) != 1)} in {processes}{kept}"
    )
    return [head] + [
        f"{site.count:{width}d} × {site.where} in {site.function} {site.explanation()}"
        for site in found
    ]
