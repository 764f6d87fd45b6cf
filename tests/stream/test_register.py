"""The embedded register: its three verbs, and that what it answered is on the disk, whenever it is killed."""

from __future__ import annotations

import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from rcache.cluster.register import RegisterFailed
from rcache.cluster.view import BadView, Placement, Settings, View
from rcache.cluster.wishes import pause, set_settings
from rcache.records.reader import DataDamaged
from rcache.stream.register import REGISTER_FILE, FileRegister
from tests.cluster.harness import by, grown, one
from tests.contract.harness import Task
from tests.stream.harness import PATIENCE_S, PhotographedDisk, ScriptedDisk, wait_until


@pytest.fixture
def register(tmp_path: Path) -> FileRegister:
    """With a first view."""
    register = FileRegister(tmp_path)
    register.begin(one())
    return register


def views(count: int) -> list[View]:
    """So many, each of which may follow on the one before."""
    made = [one()]
    while len(made) < count:
        made.append(set_settings(made[-1], by("n1"), Settings(lease_s=1.0 + len(made), grace_s=100.0)))
    return made


def test_a_new_directory_has_no_view(tmp_path: Path) -> None:
    register = FileRegister(tmp_path)
    assert register.read() is None
    assert register.watch(0, 0.0) is None
    with pytest.raises(ValueError, match="no view yet"):
        register.compare_and_set(0, one())
    assert not (tmp_path / REGISTER_FILE).exists()


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    first, second, third = views(3)
    register = FileRegister(tmp_path)
    assert register.begin(first) == (1, first)
    assert register.compare_and_set(1, second) == (True, (2, second))
    assert register.compare_and_set(2, third) == (True, (3, third))
    assert FileRegister(tmp_path).read() == register.read() == (3, third)


def test_only_the_revision_it_is_at_is_changed(register: FileRegister) -> None:
    _, second, third = views(3)
    assert register.compare_and_set(1, second)[0]
    for revision in (0, 1, 3):
        assert register.compare_and_set(revision, third) == (False, (2, second))
    assert register.read() == (2, second)


def test_of_many_who_ask_at_once_one_is_heard(register: FileRegister) -> None:
    """Everybody tries again from what it was told; nothing is lost and nothing is told twice."""
    kept: list[int] = []

    def ask() -> None:
        held = register.read()
        assert held is not None
        done = 0
        while done < 10:
            wish = pause(held.view, by("n1"), "asked", 1.0)
            was_kept, held = register.compare_and_set(held.revision, wish)
            if was_kept:
                done += 1
                kept.append(held.revision)

    for task in [Task(ask) for _ in range(5)]:
        task.result()
    assert sorted(kept) == list(range(2, 52))


def test_what_may_not_follow_is_never_kept(register: FileRegister) -> None:
    wrong = replace(one(), epoch=2, placements=(Placement("n2", (), 2),) * 8)
    with pytest.raises(BadView, match="n2"):
        register.compare_and_set(1, wrong)
    held = register.read()
    assert held is not None
    assert (held.revision, held.view.epoch) == (1, 1)


def test_a_register_is_begun_once_and_taken_on_from_an_older(register: FileRegister) -> None:
    with pytest.raises(ValueError, match="a register of epoch 1 here already"):
        register.begin(one())
    with pytest.raises(ValueError, match="here already"):
        register.begin(replace(one(), epoch=9, cluster_id="another"))
    with pytest.raises(BadView):
        register.begin(replace(one(), epoch=0))
    newer = grown(3)
    assert register.begin(newer) == (newer.epoch, newer)


def test_whoever_watches_is_told(register: FileRegister) -> None:
    _, second, _ = views(3)
    watching = Task(lambda: register.watch(1, PATIENCE_S))
    assert register.compare_and_set(1, second)[0]
    assert watching.result() == (2, second)
    assert register.watch(1, 0.0) == (2, second), "what is beyond it already is told at once"
    assert register.watch(2, 0.01) is None
    watching = Task(lambda: register.watch(2, PATIENCE_S * 2))
    register.close()
    assert watching.result() is None


@pytest.mark.parametrize("call", ["create", "write", "sync", "rename", "sync directory"])
def test_a_register_that_could_not_be_written_says_nothing_any_more(tmp_path: Path, call: str) -> None:
    disk = ScriptedDisk()
    register = FileRegister(tmp_path, disk)
    register.begin(one())
    watching = Task(lambda: register.watch(1, PATIENCE_S))
    disk.break_call(call)
    for ask in (lambda: register.compare_and_set(1, views(2)[1]), register.read, lambda: register.begin(grown(2))):
        with pytest.raises(RegisterFailed, match="could not be written: Input/output error"):
            ask()
    with pytest.raises(RegisterFailed):
        watching.result()
    held = FileRegister(tmp_path).read()
    assert held is not None
    assert held.revision in (1, 2), "one of the two is on the disk"


def test_the_disk_is_full(tmp_path: Path) -> None:
    register = FileRegister(tmp_path, ScriptedDisk(room=1000))
    register.begin(one())
    with pytest.raises(RegisterFailed, match="No space left"):
        register.compare_and_set(1, replace(one(), epoch=2, nonce="n" * 2000))
    held = FileRegister(tmp_path).read()
    assert held is not None
    assert held.revision == 1


def test_whenever_it_is_killed_or_the_power_fails_it_holds_what_was_answered_last(tmp_path: Path) -> None:
    """A picture of the directory before every call to the disk, and half-way through every write."""
    home, album = tmp_path / "home", tmp_path / "album"
    home.mkdir()
    album.mkdir()
    answered = [0]
    disk = PhotographedDisk(home, album, lambda: answered[-1])
    register = FileRegister(home, disk)
    for number, view in enumerate(views(4), 1):
        if number == 1:
            register.begin(view)
        else:
            assert register.compare_and_set(number - 1, view)[0]
        answered.append(number)
    assert len(disk.pictures) > 15
    for killed, cut, noted in disk.pictures:
        for picture in (killed, cut):
            held = FileRegister(picture).read()
            found = held.revision if held else 0
            assert isinstance(noted, int)
            assert found in (noted, noted + 1), (picture.name, noted)


@pytest.mark.parametrize("at", [0, 5, 9, 40, -3])
def test_damage_is_told(tmp_path: Path, register: FileRegister, at: int) -> None:
    path = tmp_path / REGISTER_FILE
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(DataDamaged, match="checksum"):
        FileRegister(tmp_path)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{}", "no register"),
        (b"7", "no register"),
        (b'{"format":2,"revision":1,"view":{}}', "its format is 2"),
        (b'{"format":1,"revision":0,"view":{}}', "revision 0"),
        (b'{"format":1,"revision":"1","view":{}}', "revision '1'"),
        (b'{"format":1,"revision":1,"view":{}}', "no register"),
        (b'{"format":1,"revision":1,"view":{"format":1}}', "a view of format 1, by another version of rcache"),
        (b"", "no register"),
    ],
)
def test_what_is_no_register(tmp_path: Path, line: bytes, why: str) -> None:
    (tmp_path / REGISTER_FILE).write_bytes(b"%08x\n%s\n" % (zlib.crc32(line), line))
    with pytest.raises(DataDamaged, match=why):
        FileRegister(tmp_path)


def test_nobody_is_answered_while_another_is_written(tmp_path: Path) -> None:
    disk = ScriptedDisk()
    register = FileRegister(tmp_path, disk)
    register.begin(one())
    disk.gate.clear()
    setting = Task(lambda: register.compare_and_set(1, views(2)[1]))
    wait_until(lambda: disk.calls[-1] == "write", "the write")
    reading = Task(register.read)
    time.sleep(0.02)
    assert not reading.is_done
    disk.gate.set()
    assert setting.result()[0]
    read = reading.result()
    assert read is not None
    assert read.revision == 2
