"""``python -m timedblock.faults.proxy``: the relay's process."""

from __future__ import annotations

import sys

from .process import main

if __name__ == "__main__":
    sys.exit(main())
