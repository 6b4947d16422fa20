"""What the docs tell a user to type runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from timedblock.testing import rabbitmq
from timedblock.testing.memcached import EmbeddedMemcached

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/tutorial.md",
    "docs/explanation/learnt-limits.md",
    "docs/how-to/limits.md",
    "docs/how-to/own-work.md",
    "docs/how-to/without-the-store.md",
    "docs/how-to/budgets.md",
    "docs/how-to/faults-in-tests.md",
    "docs/how-to/proxy.md",
    "docs/how-to/drill.md",
    "docs/how-to/watch.md",
    "docs/how-to/monitor.md",
    "docs/how-to/read-a-report.md",
    "docs/how-to/configure.md",
    "docs/how-to/observe.md",
    "docs/migration/pymemcache.md",
    "docs/migration/pybreaker.md",
]
#: Pages that need a RabbitMQ.
RABBITMQ_PAGES = ["docs/migration/pika.md"]
# What a how-to takes for granted: the tutorial's client. The other pages make their own.
GIVEN = 'from timedblock import memcache\ncache = memcache.Client(("127.0.0.1", 11211))\n'
_SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where a memcached listens, in place of the pages' 11211."""
    with EmbeddedMemcached() as server:
        yield server.address[1]


def script_of(page: str) -> str:
    """All Python of a page, in order."""
    snippets = _SNIPPET.findall((ROOT / page).read_text())
    assert snippets, f"{page} has no Python"
    return (GIVEN if "how-to" in page else "") + "\n".join(snippets)


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page: str, port: int, tmp_path: Path) -> None:
    """The snippets of a page run one after another, without an error or a warning."""
    run(script_of(page).replace("11211", str(port)), tmp_path)


@pytest.mark.server
@pytest.mark.parametrize("page", RABBITMQ_PAGES)
def test_page_runs_on_rabbitmq(page: str, tmp_path: Path) -> None:
    """The snippets of a page run one after another, without an error or a warning."""
    reason = rabbitmq.why_not()
    if reason is not None:
        pytest.skip(reason)
    with rabbitmq.Broker() as broker:
        run(script_of(page).replace("5672", str(broker.address[1])), tmp_path)


def run(text: str, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_every_page_with_python_is_run() -> None:
    """A page that gets Python is added to the list."""
    with_python = {
        str(path.relative_to(ROOT))
        for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        if _SNIPPET.search(path.read_text()) and "_build" not in path.parts
    }
    assert with_python == {*PAGES, *RABBITMQ_PAGES}
