"""The server's figures for people: a table for each section.

What it is: the one way in which figures are printed; `memory` and `slabs`, where figures explain each other, have rows of
their own.
Which thread runs it: the main thread; nothing is kept.
What it owns: nothing.
What it must not know: where the figures come from. A section or figure that it has not heard of is shown all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rcache.commands.show import show_seconds, show_size

Figures = Mapping[str, Any]

_PLAIN = frozenset({"pid", "epoch", "incarnation", "segment_number"})
"""Numbers that are names: no separators of thousands."""

_UNITS = ("_bytes", "_seconds", "_ms", "_s")


def tables(sections: Figures, beside: Figures | None = None) -> Group:
    """One table for each section. `beside`: sections that are not shown, but explain those that are."""
    parts: list[Text | Table] = []
    for name, figures in sections.items():
        table = _SPECIAL.get(name, _plain)(figures, {**sections, **(beside or {})})
        parts += [Text(name.replace("_", " "), style="bold"), table, Text()]
    return Group(*parts[:-1])


def _plain(figures: Any, _sections: Figures) -> Table:
    named = figures.items() if isinstance(figures, Mapping) else [("", figures)]
    return _rows((_title(name, figures), show_figure(name, figure)) for name, figure in named)


def _rows(rows: Iterable[tuple[str, str]]) -> Table:
    """A figure a row: its name, and what it is."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True, min_width=26)
    table.add_column(overflow="fold")
    for title, figure in rows:
        table.add_row(Text(f"  {title}"), Text(figure))
    return table


def _title(name: str, figures: Any) -> str:
    """A figure's name for people: without its unit, which stands beside the number, unless another is called so."""
    for suffix in _UNITS:
        if name.removesuffix(suffix) not in figures:
            name = name.removesuffix(suffix)
    return name.replace("_", " ")


def show_figure(name: str, figure: Any) -> str:
    """A figure in the unit that its name ends in."""
    if isinstance(figure, Mapping):
        return ", ".join(f"{each}: {show_figure(each, count)}" for each, count in figure.items()) or "none"
    if isinstance(figure, list):
        return ", ".join(map(str, figure)) or "none"
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    if isinstance(figure, int | float) and name not in _PLAIN:
        return _show_number(name, figure)
    return str(figure) if figure != "" else "-"


def _show_number(name: str, number: float) -> str:
    words = name.split("_")
    if "bytes" in words:
        return show_size(int(number))
    if words[-1] in ("s", "seconds"):
        return show_seconds(number)
    if words[-1] == "ms":
        return show_seconds(number / 1000)
    return f"{number:,}"


def show_share(part: float, whole: float) -> str:
    """What `part` is of `whole`."""
    return f"{part / whole * 100:.1f} %" if whole else "-"


# --- memory


def _memory(figures: Figures, _sections: Figures) -> Table:
    """Figures that belong together in one row: so much of so much."""
    left = dict(figures)
    limit, used = left.pop("limit_bytes"), left.pop("used_bytes")
    rows = [("limit", show_size(limit)), ("in use", f"{show_size(used)} ({show_share(used, limit)} of the limit)")]
    if {"pages", "pages_in_use", "page_bytes"} <= left.keys():
        pages, in_use, page_bytes = left.pop("pages"), left.pop("pages_in_use"), left.pop("page_bytes")
        rows.append(("pages in use", f"{in_use:,} of {pages:,}, each of {show_size(page_bytes)}"))
    if "reserved_bytes" in left:
        rows.append(("reserved", f"{show_size(left.pop('reserved_bytes'))} of addresses; memory only as it is used"))
    if {"connection_buffer_bytes", "connection_buffer_bytes_max"} <= left.keys():
        held, bound = left.pop("connection_buffer_bytes"), left.pop("connection_buffer_bytes_max")
        rows.append(("connection buffers", f"{show_size(held)} (bound: {show_size(bound)}, and one read for each)"))
    process = [("process, resident", show_size(left.pop("process_bytes")))] if "process_bytes" in left else []
    return _rows([*rows, *((_title(name, left), show_figure(name, figure)) for name, figure in left.items()), *process])


# --- slabs

_SLAB_COLUMNS = ("kind", "chunk", "pages", "used chunks", "free chunks", "evicted", "waste", "of used")


def _slabs(figures: Figures, sections: Figures) -> Table:
    """A class of chunks a row, and their sum. Waste is what chunks in use are larger than what lies in them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="cyan", show_footer=True)
    classes = [_with_used(each, sections) for each in figures["classes"]]
    for title, total in zip(_SLAB_COLUMNS, _slab_cells(_total(classes)), strict=True):
        table.add_column(f"  {title}" if title == "kind" else title, f"  {total}" if title == "kind" else total)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for each in classes:
        kind, *cells = _slab_cells(each)
        table.add_row(f"  {kind}", *cells)
    return table


def _with_used(each: Figures, sections: Figures) -> Figures:
    """A class and the bytes of its chunks in use. A large item's chunks are whole pages, of the size that `memory` tells."""
    chunk_bytes = each["chunk_bytes"] or sections.get("memory", {}).get("page_bytes", 0)
    return {**each, "chunk_bytes": chunk_bytes, "used_bytes": each["used_chunks"] * chunk_bytes}


def _total(classes: list[Figures]) -> Figures:
    summed = ("pages", "used_chunks", "free_chunks", "evicted", "wasted_bytes", "used_bytes")
    return {"kind": "all", "chunk_bytes": 0, **{name: sum(each[name] for each in classes) for name in summed}}


def _slab_cells(each: Figures) -> tuple[str, ...]:
    counts = (f"{each[name]:,}" for name in ("pages", "used_chunks", "free_chunks", "evicted"))
    chunk = f"{each['chunk_bytes']:,}" if each["chunk_bytes"] else ""
    return each["kind"], chunk, *counts, show_size(each["wasted_bytes"]), show_share(each["wasted_bytes"], each["used_bytes"])


_SPECIAL: Mapping[str, Callable[[Any, Figures], Table]] = {"memory": _memory, "slabs": _slabs}
