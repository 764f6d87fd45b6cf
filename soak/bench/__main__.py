"""`python -m soak.bench`: the same as `rcache-bench`, from a checkout."""

import sys

from soak.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
