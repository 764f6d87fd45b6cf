"""`python -m soak.feed_bench`, see `soak.feed_bench.command`."""

import sys

from soak.feed_bench.command import main

if __name__ == "__main__":
    sys.exit(main())
