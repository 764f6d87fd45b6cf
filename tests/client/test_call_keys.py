"""The keys of calls: the same for the same call, in every process; never the same for two calls."""

from __future__ import annotations

import datetime
import decimal
import enum
import itertools
import subprocess
import sys
import uuid
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcache_client.call_keys import PLAIN_BYTES_MAX, bounded_key, canonical

ROOT = Path(__file__).parent.parent.parent


class Colour(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    ONE = 1


@dataclass(frozen=True)
class Point:
    x: int


class Text(str):
    __slots__ = ()


Pair = namedtuple("Pair", "a b")

DIFFERENT: list[Any] = [
    *[None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, 1j, "1", b"1", bytearray(b"1"), "", b"", (), [], {}, set(), frozenset()],
    *[("a", "b"), ("ab",), ("a,b",), "ab", ["a", "b"], [["a"], "b"], [["a", "b"]], {"a": "b"}, {"ab": ""}, {"a", "b"}],
    *[(1, 23), (12, 3), 123, "i3:0x1", {1: 2, 3: 4}, {1: 4, 3: 2}, [1, 2, 3, 4], ((1, 2), (3, 4)), frozenset({1, 2})],
    *[Colour.RED, Size.ONE, decimal.Decimal(1), decimal.Decimal("1.0"), uuid.UUID(int=1), uuid.UUID(int=1).hex],
    *[datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 1, fold=1), "2024-01-01"],
    *[datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1), float("inf"), 10**5000],
    *["ä", "a\u0308", "\ud800", "\0", "\0\0"],
]


def test_no_two_values_have_one_encoding() -> None:
    for one, two in itertools.combinations(DIFFERENT, 2):
        assert canonical(one) != canonical(two), (one, two)


def test_order_of_insertion_does_not_matter() -> None:
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    assert canonical({3, 1, 2}) == canonical({2, 3, 1})
    assert canonical({"a": 1, 1: {"x", "y"}}) == canonical({1: {"y", "x"}, "a": 1})


def test_it_is_the_same_in_every_process() -> None:
    """With other seeds of hash(), which orders sets of text."""
    code = (
        "from rcache_client.call_keys import canonical; print(canonical([{'a', 'b', 'c'}, {'x': 1.5, 'y': None}, 'ä']).hex())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, cwd=ROOT, capture_output=True, check=True, timeout=60
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1


def test_the_encoding_does_not_change() -> None:
    """Who changes it makes every value in every cluster be computed anew."""
    value = [None, True, 7, 1.5, "ä", b"\0", (1,), {"k": {2}}, datetime.date(2024, 2, 3), Colour.RED]
    module = Colour.__module__
    assert canonical(value) == (
        b"l10:nTi3:0x7f20:0x1.8000000000000p+0s2:\xc3\xa4b1:\x00t1:i3:0x1M1:s1:kS1:i3:0x2d10:2024-02-03"
        b"e" + b"%d:" % len(f"{module}.Colour.RED") + f"{module}.Colour.RED".encode()
    )


@pytest.mark.parametrize(
    "value",
    [
        *[object(), Point(1), Pair(1, 2), Text("text"), OrderedDict(a=1), range(3), lambda: 1, int, memoryview(b"1")],
        *[(1, object()), {"a": [Point(1)]}, {Point(1): 1}, iter([1]), NotImplemented, ...],
        datetime.datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")),
    ],
)
def test_what_has_no_encoding_is_refused_by_its_type(value: Any) -> None:
    with pytest.raises(TypeError, match="has no canonical encoding"):
        canonical(value)


def test_a_structure_that_holds_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(TypeError, match="nested"):
        canonical(ring)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def shape(value: Any) -> Any:
    """The value with the type of every part, to compare by."""
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(shape(part) for part in value)
    if isinstance(value, dict):
        return "dict", tuple(sorted((key, repr(shape(part))) for key, part in value.items()))
    return type(value).__name__, repr(value)


@given(VALUES, VALUES)
def test_two_values_have_one_encoding_only_if_they_are_one(one: Any, two: Any) -> None:
    assert (canonical(one) == canonical(two)) == (shape(one) == shape(two))


def test_a_long_key_is_cut_to_a_hash_of_all_of_it() -> None:
    plain = bounded_key("m.f", b"x" * (PLAIN_BYTES_MAX - 11))
    assert len(plain) == PLAIN_BYTES_MAX
    long, other = bounded_key("m.f", b"x" * 300), bounded_key("m.f", b"x" * 299 + b"y")
    assert long.startswith(b"cached:m.f:#")
    assert long != other
    assert len(long) < PLAIN_BYTES_MAX
    names = bounded_key("n" * 5000, b"x"), bounded_key("n" * 5000 + "m", b"x")
    assert names[0] != names[1]
    assert max(map(len, names)) <= PLAIN_BYTES_MAX
