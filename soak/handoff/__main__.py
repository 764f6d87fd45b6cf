"""`python -m soak.handoff`, see `soak.handoff.command`."""

import sys

from soak.handoff.command import main

if __name__ == "__main__":
    sys.exit(main())
