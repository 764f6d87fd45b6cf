"""What becomes of keys that the server has when rows are put into it, and how putting them in ends."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rcache.commands import replay_inject
from rcache.commands.replay_inject import Existing, InjectTerms, Value, inject, terms_between
from rcache.records.rows import Row
from rcache_client.key_calls import Inspection


class Held:
    """A server's items by version, as far as `inject` asks for them; a change takes the next version. `before_cas` happens
    between a look and the write."""

    def __init__(self, items: dict[bytes, tuple[bytes, int]], newest: int = 100) -> None:
        self.items, self.newest = dict(items), newest
        self.before_cas: list[Any] = []

    def set(self, key: bytes, value: Value, ttl: float | None = None) -> int:
        self.newest += 1
        self.items[key] = (value.data, self.newest)
        return self.newest

    def add(self, key: bytes, value: Value, ttl: float | None = None) -> int:
        return 0 if key in self.items else self.set(key, value, ttl)

    def cas(self, key: bytes, value: Value, *, version: int | None = None, ttl: float | None = None) -> int:
        if self.before_cas:
            self.before_cas.pop()()
        held = self.items[key][1] if key in self.items else 0
        return self.set(key, value, ttl) if held == version else 0

    def inspect(self, key: bytes) -> Inspection | None:
        return Inspection(self.items[key][1], 0, None, 1) if key in self.items else None

    def set_many(self, mapping: dict[bytes, Value], ttl: float | None = None) -> None:
        for key, value in mapping.items():
            self.set(key, value, ttl)


ROWS = [(b"old", Row(20, 0, 0, b"mine")), (b"same", Row(20, 0, 0, b"mine")), (b"new", Row(20, 0, 0, b"mine"))]
HELD = {b"old": (b"theirs", 19), b"same": (b"theirs", 20), b"new": (b"theirs", 21)}


@pytest.mark.parametrize(
    ("existing", "mine"),
    [(Existing.KEPT, []), (Existing.REPLACED_IF_OLDER, [b"old"]), (Existing.REPLACED, [b"old", b"same", b"new"])],
)
def test_which_keys_of_the_server_are_replaced(existing: Existing, mine: list[bytes]) -> None:
    held = Held(HELD)
    injected = inject([*ROWS, (b"none", Row(5, 0, 0, b"mine"))], 4, held, InjectTerms(existing), lambda _done, _total: None)
    assert {key for key, (value, _) in held.items.items() if value == b"mine"} == {*mine, b"none"}
    assert (injected.done, injected.kept, injected.failed) == (len(mine) + 1, 3 - len(mine), 0)


def test_what_is_put_in_again_is_kept() -> None:
    """An interrupted run is made again: what it put in has newer versions than the files'."""
    held = Held(HELD)
    for done in (1, 0):
        injected = inject(ROWS, 3, held, InjectTerms(Existing.REPLACED_IF_OLDER), lambda _done, _total: None)
        assert (injected.done, injected.kept) == (done, 3 - done)


def test_what_a_client_writes_meanwhile_is_newer() -> None:
    held = Held(HELD)
    held.before_cas = [lambda: held.set(b"old", Value(b"a client's", 0))]
    injected = inject(ROWS[:1], 1, held, InjectTerms(Existing.REPLACED_IF_OLDER), lambda _done, _total: None)
    assert (injected.kept, held.items[b"old"][0]) == (1, b"a client's")


def test_what_goes_away_meanwhile_is_put_in() -> None:
    held = Held(HELD)
    held.before_cas = [held.items.clear]
    injected = inject(ROWS[:1], 1, held, InjectTerms(Existing.REPLACED_IF_OLDER), lambda _done, _total: None)
    assert (injected.done, held.items[b"old"][0]) == (1, b"mine")


@pytest.mark.parametrize(
    ("server", "overwrite", "existing"),
    [
        (b"c" * 16, False, Existing.REPLACED_IF_OLDER),
        (b"d" * 16, False, Existing.KEPT),
        (None, False, Existing.KEPT),
        (b"c" * 16, True, Existing.REPLACED),
        (b"d" * 16, True, Existing.REPLACED),
    ],
)
def test_terms_between_files_and_a_server(server: bytes | None, overwrite: bool, existing: Existing) -> None:
    assert terms_between(b"c" * 16, server, overwrite=overwrite, rate=7) == InjectTerms(existing, 7)


def test_where_progress_raises_nothing_more_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under way ends; of what was handed out beside it nothing goes over."""
    putters: list[replay_inject._Putter] = []

    class Known(replay_inject._Putter):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            putters.append(self)

    class Slow(Held):
        def add(self, key: bytes, value: Value, ttl: float | None = None) -> int:
            patience_s = 0.0 if self.items else 5.0
            putters[0].gone.wait(patience_s)  # the first requests are under way until it is given up
            return super().add(key, value, ttl)

    monkeypatch.setattr(replay_inject, "_Putter", Known)
    held = Slow({})
    rows = ((b"key-%d" % n, Row(1, 0, 0, b"mine")) for n in range(100_000))

    def stop(done: int, _total: int) -> None:
        if done >= 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inject(rows, 100_000, held, InjectTerms(), stop)
    assert len(held.items) <= replay_inject.WORKERS
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("replay-inject")]
