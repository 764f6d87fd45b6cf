"""What a node promised to takeovers: on its disk before it is said, restarts included, and what may be followed after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest

from rcache.cluster.register import RegisterFailed
from rcache.cluster.view import View
from rcache.cluster.wishes import pause, take_over_register
from rcache.records.reader import DataDamaged
from rcache.stream.disk import Disk
from rcache.stream.terms import Promise, Terms
from tests.cluster.harness import by, grown

FIRST = grown(3)


def taken_by(name: str, nonce: str, view: View = FIRST, term: int = 1) -> View:
    return take_over_register(view, by(name)._replace(nonce=nonce), "n1", term)


class Traced(Disk):
    """Says what was done, in order; fails at the call of that name."""

    def __init__(self, fails_at: str = "") -> None:
        self.done: list[str] = []
        self.fails_at = fails_at

    def _note(self, what: str) -> None:
        self.done.append(what)
        if what == self.fails_at:
            raise OSError(28, "No space left on device")

    def write(self, fd: int, *parts: bytes | memoryview) -> None:
        self._note("write")
        super().write(fd, *parts)

    def sync(self, fd: int) -> None:
        self._note("sync")
        super().sync(fd)

    def rename(self, old: Path, new: Path) -> None:
        self._note("rename")
        super().rename(old, new)

    def sync_directory(self, path: Path) -> None:
        self._note("sync directory")
        super().sync_directory(path)


def test_a_promise_is_on_the_disk_when_it_is_given(tmp_path: Path) -> None:
    """Invariant 1: or it is forgotten by a restart, and the former holder goes on by this node's word."""
    disk = Traced()
    terms = Terms(tmp_path, disk)
    assert terms.promise(Promise(1, "a"))
    assert disk.done == ["write", "sync", "rename", "sync directory"]
    again = Terms(tmp_path)
    assert again.held == Promise(1, "a")
    assert "this node promised the takeover a of term 1" in again.follow(FIRST)
    assert not again.promise(Promise(1, "b"))


def test_a_term_is_promised_once_and_none_below_it(tmp_path: Path) -> None:
    terms = Terms(tmp_path)
    assert terms.promise(Promise(2, "b"))
    for other in (Promise(1, "a"), Promise(2, "a"), Promise(2, "c"), Promise(1, "z")):
        assert not terms.promise(other)
        assert terms.held == Promise(2, "b")
    assert terms.promise(Promise(2, "b")), "the same takeover asks again"
    assert terms.promise(Promise(3, "a"))


@pytest.mark.parametrize("fails_at", ["write", "sync", "rename", "sync directory"])
def test_after_a_write_that_failed_nothing_is_promised_and_nothing_lower_followed(tmp_path: Path, fails_at: str) -> None:
    """The file may hold the promise, or not."""
    terms = Terms(tmp_path, Traced(fails_at))
    for promise in (Promise(1, "a"), Promise(1, "a"), Promise(2, "b")):
        with pytest.raises(RegisterFailed, match="No space left"):
            terms.promise(promise)
    assert terms.follow(FIRST) != ""
    assert Terms(tmp_path).held in (Promise(), Promise(1, "a"))


def test_only_the_takeover_that_was_promised_is_followed_in_its_term(tmp_path: Path) -> None:
    terms = Terms(tmp_path)
    assert terms.promise(Promise(2, "a"))
    for lower in (FIRST, taken_by("n2", "a"), taken_by("n2", "b", term=2)):
        assert terms.follow(lower) != "", lower.term
    assert terms.followed is None
    for view in (taken_by("n2", "a", term=2), pause(taken_by("n2", "a", term=2), by("n3"), "r", 1.0)):
        assert terms.follow(view) == ""
        assert terms.followed == view
    assert terms.follow(taken_by("n3", "c", term=3)) == ""


def test_what_was_followed_before_a_promise_may_be_taken_in_after_it(tmp_path: Path) -> None:
    """It is told with the promise, so the takeover goes on from it; anything newer is not known to that."""
    terms = Terms(tmp_path)
    newer = replace(FIRST, epoch=FIRST.epoch + 1)
    assert terms.follow(newer) == ""
    assert terms.promise(Promise(1, "a"))
    assert terms.follow(FIRST) == terms.follow(newer) == ""
    assert terms.follow(replace(FIRST, epoch=FIRST.epoch + 2)) != ""
    assert terms.followed == newer


def test_two_takeovers_of_one_term_are_not_both_followed(tmp_path: Path) -> None:
    """Invariant 4, though nothing was promised: this node was said to be stopped in both."""
    terms = Terms(tmp_path)
    first, other = taken_by("n2", "a"), pause(taken_by("n3", "b"), by("n3"), "r", 1.0)
    assert terms.follow(first) == ""
    assert "this node goes by that term by takeover a" in terms.follow(other)
    assert not terms.promise(Promise(1, "b")), "nor is a term promised whose views are followed"
    assert terms.followed == first


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"00000000\n", b"zz", b"x" * 5000),
        *(b'{"format":1}', b'{"format":2,"term":1,"nonce":"a"}', b'{"format":1,"term":0,"nonce":"a"}', b"[]", b"{", b"7"),
        *(b'{"format":1,"term":true,"nonce":"a"}', b'{"format":1,"term":1,"nonce":7}'),
    ],
    ids=repr,
)
def test_a_damaged_promise_is_told_from_none(tmp_path: Path, text: bytes) -> None:
    summed = b"%08x\n%s\n" % (crc32(text), text) if text[:1] in b"{[7" and text else text
    (tmp_path / "promise").write_bytes(summed)
    with pytest.raises(DataDamaged):
        Terms(tmp_path)
