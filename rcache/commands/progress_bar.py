"""Progress for people who wait: a bar on standard error where that is a terminal, else a line now and then.

Which thread runs it: the main thread (rich draws from one of its own, joined when the bar ends).
What it owns: the bar, inside the `with`. What it must not know: what is being done.

The lines are for what runs under a service manager or with its output in a file: whoever looks there sees that it goes on. What
is done soon says nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rcache.records.rebuild import Progress

LINE_EVERY_S = 10.0
"""So an hour's work is some hundred lines, and nobody waits long for the next."""


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Something to call with (done, total) while `title` goes on."""
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(title: str) -> Progress:
    began = said = monotonic()

    def note(done: int, total: int) -> None:
        nonlocal said
        now = monotonic()
        if now - said >= LINE_EVERY_S:
            said = now
            print(f"{title}: {100 * done // max(total, 1)} % after {now - began:.0f} s", file=sys.stderr, flush=True)

    return note
