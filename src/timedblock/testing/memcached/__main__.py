"""``python -m timedblock.testing.memcached``."""

import sys

from .serving import main

if __name__ == "__main__":
    sys.exit(main())
