"""The end of a benchmark's command: measure, show, write the page and the figures, or say why not.

What it is: `carry_out`, for the benchmarks that have a page of their own. Which thread runs it: the main thread.
What it owns: the two files that it writes. What it must not know: what is measured.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from rcache_client import RcacheError
from soak.bench.errors import BenchError

R = TypeVar("R")


class Shown(NamedTuple):
    """A report as its page, in Markdown, and as its figures, in JSON."""

    page: str
    figures: str


def carry_out(program: str, measure: Callable[[], R], shown: Callable[[R], Shown], output: Path | None, stem: str) -> int:
    """Measure, and write `stem`.md and `stem`.json into `output`, where that is given. Returns the exit code: 1 where it could
    not be measured, or written."""
    try:
        report = measure()
        if output is not None:
            told = shown(report)
            output.mkdir(parents=True, exist_ok=True)
            (output / f"{stem}.md").write_text(told.page, encoding="utf-8")
            (output / f"{stem}.json").write_text(told.figures, encoding="utf-8")
    except (BenchError, RcacheError, OSError, subprocess.SubprocessError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0
