"""The decorator `cached`: which calls are one call, and what can be done with one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rcache_client import CachedFunction, Client, JsonSerializer, cached

from .scripted_server import ScriptedServer


@pytest.fixture
def store(server: ScriptedServer) -> Iterator[Client[Any]]:
    with Client(server.address, serializer=JsonSerializer()) as client:
        yield client


def noted(store: Client[Any], **options: Any) -> tuple[CachedFunction[..., Any], list[Any]]:
    calls: list[Any] = []

    def load(a: Any, b: Any = 2, *rest: Any, c: Any = None, **more: Any) -> Any:
        """Load it."""
        calls.append((a, b, rest, c, more))
        return [len(calls), a]

    return cached(store, ttl=10, name="load", **options)(load), calls


def module_function(a: int, b: int = 2) -> int:
    return a + b


class Service:
    number = 7

    @cached(lambda: Service.store, ttl=10, name="Service.bare")
    def bare(self, a: int) -> int:
        return a

    @cached(lambda: Service.store, ttl=10, key=lambda self, a: f"{self.number}/{a}", name="Service.keyed")
    def keyed(self, a: int) -> int:
        self.calls += 1
        return self.number * a

    @staticmethod
    @cached(lambda: Service.store, ttl=10, name="Service.plain")
    def plain(a: int) -> int:
        return -a

    store: Client[Any]
    calls = 0


def test_a_call_is_computed_once(store: Client[Any]) -> None:
    load, calls = noted(store)
    assert load(1) == load(1) == [1, 1]
    assert load(2) == [2, 2]
    assert len(calls) == 2


def test_calls_that_mean_the_same_are_one(store: Client[Any]) -> None:
    load, calls = noted(store)
    for result in (load(1), load(1, 2), load(1, b=2), load(a=1), load(b=2, a=1), load(1, 2, c=None)):
        assert result == [1, 1]
    assert load(1, x=1, y=2) == load(1, y=2, x=1) == [2, 1]
    assert calls == [(1, 2, (), None, {}), (1, 2, (), None, {"x": 1, "y": 2})]


def test_calls_that_mean_another_thing_are_others(store: Client[Any]) -> None:
    load, _ = noted(store)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        *[((1,), {}), ((1.0,), {}), ((True,), {}), (("1",), {}), ((b"1",), {}), ((None,), {}), (((1,),), {}), (([1],), {})],
        *[((1, 3), {}), ((1, 2, 3), {}), ((1,), {"c": 3}), ((1,), {"x": 3}), ((1, 2, "c"), {}), ((1, 2, ("c",)), {})],
    ]
    keys = [load.key_of(*args, **kwargs) for args, kwargs in calls]
    assert len(set(keys)) == len(keys)


def test_the_key_names_function_and_version(store: Client[Any]) -> None:
    first = cached(store, ttl=10)(module_function)
    assert first.key_of(1) == b"cached:" + __name__.encode() + b".module_function:s1:1s1:ai3:0x1s1:bi3:0x2"
    assert cached(store, version=2)(module_function).key_of(1) != first.key_of(1)
    assert cached(store, version="1s1:")(module_function).key_of(1) != first.key_of(1)
    assert cached(store, name="other")(module_function).key_of(1) != first.key_of(1)


def test_an_argument_without_encoding_is_refused_and_named(store: Client[Any]) -> None:
    load, calls = noted(store)
    with pytest.raises(TypeError, match=r"argument 'b' of load: a builtins.object has no canonical encoding; pass key="):
        load(1, object())
    with pytest.raises(TypeError, match="missing"):
        load()
    assert calls == []


def test_key_says_what_the_key_is_made_of(store: Client[Any]) -> None:
    keyed = cached(store, ttl=10, name="keyed", key=lambda thing: thing.name)(lambda thing: thing.value)

    class Thing:
        name, value = "x", 5

    assert keyed(Thing()) == keyed(Thing()) == 5
    assert keyed.key_of(Thing()) == b"cached:keyed:s1:1=x"
    bad = cached(store, name="bad", key=lambda a: a)(module_function)
    with pytest.raises(TypeError, match="a key must be"):
        bad(1)


def test_a_long_call_has_a_short_key(store: Client[Any]) -> None:
    load, _ = noted(store)
    assert len(load.key_of("x" * 100_000)) < 200
    assert load("x" * 100_000) == load("x" * 100_000)


def test_invalidate_drops_one_call(store: Client[Any]) -> None:
    load, _ = noted(store)
    load(1)
    load(2)
    assert load.invalidate(a=1) is True
    assert load.invalidate(1) is False
    assert load(1) == [3, 1]
    assert load(2) == [2, 2]


def test_refresh_computes_now(store: Client[Any]) -> None:
    load, calls = noted(store)
    assert load(1) == [1, 1]
    assert load.refresh(1, b=2) == [2, 1]
    assert load(1) == [2, 1]
    assert load.refresh(5) == load(5) == [3, 5]
    assert len(calls) == 3


def test_options_go_along(server: ScriptedServer, store: Client[Any]) -> None:
    load, _ = noted(store, stale=5, lease=3)
    load(1)
    assert server.service.items[load.key_of(1)].ttl_ms == 15_000


def test_it_looks_like_the_function(store: Client[Any]) -> None:
    load, _ = noted(store)
    assert (load.__name__, load.__doc__) == ("load", "Load it.")
    assert load.__wrapped__(1, 2) == [1, 1]
    assert repr(load) == "<rcache_client.CachedFunction load>"
    assert load.client is store


def test_a_client_may_come_later() -> None:
    load = cached(lambda: pytest.fail("asked too early"), ttl=10)(module_function)
    assert load.key_of(1)


def test_methods_are_refused_without_a_key_and_work_with_one(store: Client[Any]) -> None:
    Service.store = store
    service, other = Service(), Service()
    other.number = 8
    with pytest.raises(TypeError, match=r"Service.bare is a method.*key="):
        service.bare(1)
    assert service.keyed(2) == service.keyed(2) == 14
    assert other.keyed(2) == 16
    assert (service.calls, other.calls) == (1, 1)
    assert service.keyed.invalidate(2)
    assert service.keyed.refresh(2) == 14
    assert Service.plain(3) == service.plain(3) == -3
    assert isinstance(Service.keyed, CachedFunction)


def test_functions_that_their_names_do_not_tell_apart_are_refused(store: Client[Any]) -> None:
    def local() -> int:
        return 1

    def of_main() -> int:
        return 1

    of_main.__module__, of_main.__qualname__ = "__main__", "of_main"
    refused: list[Callable[..., Any]] = [local, lambda: 1, of_main, functools.partial(module_function, 1)]
    for function in refused:
        with pytest.raises(ValueError, match="name="):
            cached(store)(function)
        assert cached(store, name="f")(function)


BAD: list[dict[str, Any]] = [
    *[{"ttl": 0}, {"stale": 1}, {"lease": 0}, {"beta": -1}, {"version": None}, {"version": True}],
    *[{"name": "a:b"}, {"name": ""}],
]


@pytest.mark.parametrize("options", BAD)
def test_bad_options_are_refused_at_once(store: Client[Any], options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        cached(store, **options)


def test_what_is_no_plain_function_is_refused(store: Client[Any]) -> None:
    async def later() -> int:
        return 1

    for thing in (later, classmethod(module_function), property(module_function)):
        with pytest.raises(TypeError, match="plain function"):
            cached(store, name="f")(thing)  # type: ignore[arg-type]
