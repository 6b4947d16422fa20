"""The command line: ``timedblock``. It needs the extra ``drill``; importing this module doesn't."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

#: What the extra brings.
NEEDED = ("click", "rich", "pymemcache", "werkzeug", "junitparser", "jinja2", "matplotlib")
NEEDS_EXTRA = "timedblock: the command line needs: pip install 'timedblock[drill]'"
BAD_USE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and gives its exit code: 2 for bad input, 130 if it was interrupted."""
    if any(find_spec(name) is None for name in NEEDED):
        print(NEEDS_EXTRA, file=sys.stderr)
        return BAD_USE
    import click

    try:
        return int(_root().main(arguments, standalone_mode=False, prog_name="timedblock") or 0)
    except click.ClickException as error:
        help_asked = isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ()))
        print("" if help_asked else "timedblock: ", error.format_message(), sep="", file=sys.stderr)
        return BAD_USE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED


def _root() -> click.Group:
    import click

    from timedblock.audit.command import audit
    from timedblock.config.command import config
    from timedblock.drill.command import drill
    from timedblock.drill.run import package_version
    from timedblock.faults.command import faults

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_version())
    def timedblock() -> None:
        """Calls to stores that always end in time, and the drills that prove it."""

    timedblock.add_command(drill)
    timedblock.add_command(config)
    timedblock.add_command(faults)
    timedblock.add_command(audit)
    return timedblock


if __name__ == "__main__":
    sys.exit(main())
