"""`python -m soak.cluster`: the same as `rcache-soak`, from a checkout."""

import sys

from soak.cluster.command import main

if __name__ == "__main__":
    sys.exit(main())
