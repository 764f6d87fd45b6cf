"""What the grammar's tests share: a name for every layout there is, and values for it made by hypothesis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from rcache_client.wire.grammar import REQUESTS, BadPayload, Field, Group, Layout, reply_layout
from rcache_client.wire.opcodes import Opcode, Status

AnyLayout = Layout | Group

SPAN = 40
"""How far a string's length strays from its bounds; longer ones only make the run slow."""


def _reply_layouts() -> Iterator[tuple[str, AnyLayout]]:
    for opcode in Opcode:
        for status in Status:
            try:
                yield f"reply {opcode.name} {status.name}", reply_layout(opcode, status)
            except BadPayload:
                continue


def _all_layouts() -> dict[str, AnyLayout]:
    named = [(f"request {Opcode(opcode).name}", layout) for opcode, layout in REQUESTS.items()]
    kept: dict[int, tuple[str, AnyLayout]] = {}
    for name, layout in [*named, *_reply_layouts()]:
        kept.setdefault(id(layout), (name, layout))
    return dict(kept.values())


LAYOUTS = _all_layouts()
"""Every layout once, under the name of the first place it is used in."""


def has_rest(layout: AnyLayout) -> bool:
    """Whether its last field is what is left of the payload."""
    return isinstance(layout, Layout) and any(field.rest for field in layout.fields)


def text_of(low: int, high: int) -> st.SearchStrategy[str]:
    """Text whose UTF-8 form has `low` to `high` bytes."""
    texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=low, max_size=min(high, low + SPAN))
    return texts.filter(lambda text: low <= len(text.encode()) <= high)


def field_values(field: Field) -> st.SearchStrategy[Any]:
    """Any value the field allows."""
    if field.text:
        return text_of(field.low, field.high)
    if field.string or field.fixed_bytes:
        return st.binary(min_size=field.low, max_size=min(field.high, field.low + SPAN))
    return st.one_of(st.sampled_from([field.low, field.high]), st.integers(field.low, field.high))


def layout_values(layout: AnyLayout) -> st.SearchStrategy[Any]:
    """Any values the layout allows, in the shape that `decode` returns them."""
    if isinstance(layout, Group):
        return st.lists(layout_values(layout.entry), max_size=5)
    return st.tuples(*[field_values(field) for field in layout.fields])


def encode(layout: AnyLayout, values: Any) -> bytes:
    """Both kinds take their values as arguments."""
    return layout.encode(*values)
