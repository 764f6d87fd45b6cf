"""Serializers: what goes in comes out, and nothing is read as what it is not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rcache_client
from rcache_client import BytesSerializer, Client, JsonSerializer, StrSerializer, WrongFormat

from .scripted_server import ScriptedServer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_comes_back(value: object) -> None:
    serializer = JsonSerializer()
    assert serializer.load(*serializer.dump(value)) == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(value: str) -> None:
    serializer = StrSerializer()
    assert serializer.load(*serializer.dump(value)) == value


def test_equal_values_give_equal_bytes() -> None:
    dump = JsonSerializer().dump
    assert dump({"b": 1, "a": [2]}) == dump({"a": [2], "b": 1}) == (b'{"a":[2],"b":1}', dump(0)[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
def test_json_refuses_what_it_cannot_hold(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        JsonSerializer().dump(value)


def test_one_serializers_values_are_not_misread_by_another(server: ScriptedServer) -> None:
    with (
        Client(server.address) as raw,
        Client(server.address, serializer=StrSerializer()) as texts,
        Client(server.address, serializer=JsonSerializer()) as things,
    ):
        texts.set("text", "5")
        things.set("json", "5")
        raw.set("bytes", b'"5"')
        with pytest.raises(WrongFormat, match="the value of 'text': the value is marked 0x72730001, not as JSON"):
            things.get("text")
        with pytest.raises(WrongFormat):
            texts.get("json")
        with pytest.raises(WrongFormat):
            things.get("bytes")
        assert raw.get("json") == b'"5"'
        assert texts.get("text") == things.get("json") == "5"


class Reversing(BytesSerializer):
    """A serializer of one's own, made from one of these."""

    def load(self, data: bytes, flags: int) -> bytes:
        return data[::-1]


def test_a_serializer_made_from_the_one_of_bytes_is_asked(server: ScriptedServer) -> None:
    with Client(server.address, serializer=Reversing()) as cache:
        cache.set("key", b"123")
        assert cache.get("key") == b"321"
        assert cache.get_with_version("key")[0] == b"321"
        assert cache.get_many(["key"]) == {"key": b"321"}


def test_counters_can_be_read_by_all(server: ScriptedServer) -> None:
    with (
        Client(server.address) as raw,
        Client(server.address, serializer=StrSerializer()) as texts,
        Client(server.address, serializer=JsonSerializer()) as things,
    ):
        things.incr("hits", initial=-5)
        assert (raw.get("hits"), texts.get("hits"), things.get("hits")) == (b"-5", "-5", -5)


def test_cas_by_previous_value_goes_by_the_serializer(server: ScriptedServer) -> None:
    with Client(server.address, serializer=JsonSerializer()) as cache:
        cache.set("key", {"b": None, "a": 1})
        assert cache.cas("key", None, previous={"a": 1, "b": None})
        assert cache.get_with_version("key")[0] is None
        assert cache.cas("key", 1, previous=None)


def test_text_can_be_appended_to(server: ScriptedServer) -> None:
    with Client(server.address, serializer=StrSerializer()) as cache:
        cache.set("key", "grü")
        cache.append("key", "ße")
        assert cache.get("key") == "grüße"


def test_bytes_that_are_not_text_are_not_misread() -> None:
    with pytest.raises(WrongFormat, match="not UTF-8"):
        StrSerializer().load(b"\xff", 0)
    with pytest.raises(WrongFormat, match="not JSON"):
        JsonSerializer().load(b"{", JsonSerializer().dump(0)[1])
    assert BytesSerializer().load(b"\xff", 12345) == b"\xff"


def test_nothing_in_the_package_unpickles() -> None:
    for path in Path(rcache_client.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names.append(getattr(node, "module", None) or "")
            assert not {"pickle", "marshal", "shelve", "dill"} & set(names), path
