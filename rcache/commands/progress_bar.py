"""A progress bar for people who wait: on standard error, and only where that is a terminal.

Which thread runs it: the main thread (rich draws from one of its own, joined when the bar ends).
What it owns: the bar, inside the `with`. What it must not know: what is being done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rcache.records.rebuild import Progress, no_progress


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Something to call with (done, total) while `title` goes on. Nothing is shown where nobody watches."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
