"""A crash at every call of the disk: what was acknowledged is there afterwards, and nothing was invented."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.stream.harness import DAY_MS, IDENTITY, PhotographedDisk, segments_of
from tests.stream.node import Items, Node, recover_items


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data directory."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def workload(home: Path, disk: PhotographedDisk, progress: list[int], identities: list[object], seed: int) -> list[Items]:
    """Two starts with changes, segments that end by size and by day, checkpoints, retention and a savefile.

    Appends to `progress` the number of changes acknowledged; returns the state after each number of changes."""
    chosen, states, held = random.Random(seed), [{}], {}

    def change(node: Node, count: int) -> None:
        for _ in range(count):
            key = b"k%d" % chosen.randrange(12)
            if chosen.randrange(4) == 0 and key in held:
                del held[key]
                states.append(dict(held))
                node.delete(key)
            else:
                held[key] = b"%d" % len(states)
                states.append(dict(held))
                node.set(key, held[key])
            progress.append(len(states) - 1)

    node = Node(home, IDENTITY, disk=disk, segment_bytes_max=1200)
    identities.append(node.next_identity)
    change(node, 12)
    node.checkpoint()
    change(node, 6)
    node.now_ms += DAY_MS
    change(node, 3)
    node.checkpoint()
    node.retain(node.now_ms - DAY_MS // 2)
    change(node, 4)
    identity = node.stop(save=True)
    node = Node(home, identity, disk=disk, segment_bytes_max=1200, now_ms=node.now_ms)
    identities.append(node.next_identity)
    change(node, 6)
    node.checkpoint()
    node.retain(node.now_ms)
    change(node, 3)
    node.stop()
    return states


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crash_at_every_call_of_the_disk_loses_nothing_acknowledged_and_invents_nothing(
    home: Path, tmp_path: Path, seed: int
) -> None:
    album = tmp_path / "album"
    album.mkdir()
    progress: list[int] = [0]
    identities: list[object] = [IDENTITY]
    disk = PhotographedDisk(home, album, lambda: (progress[-1], identities[-1]))
    began = time.monotonic()
    states = workload(home, disk, progress, identities, seed)
    assert len(disk.pictures) > 150
    assert {"create", "write", "half a write", "sync", "rename", "remove", "sync directory"} <= set(disk.calls)
    for number, (killed, cut, (acknowledged, identity)) in enumerate(disk.pictures):  # type: ignore[misc]
        for picture in (killed, cut):
            what = f"picture {number}, {picture.name}, before {disk.calls[number]}, {acknowledged} acknowledged"
            found = recover_items(picture, identity)
            assert found in states[acknowledged : acknowledged + 2], what
            assert recover_items(picture, identity) == found, what
            assert not list(picture.glob("*.tmp")), what
    assert time.monotonic() - began < 60


def test_a_crash_at_every_call_of_a_recovery_is_recovered_from(home: Path, tmp_path: Path) -> None:
    """Recovery itself cuts, closes and begins a segment: killed at any call, the next one comes to the same."""
    node = Node(home)
    expected = {b"k%d" % number: b"value" for number in range(10)}
    for key, value in expected.items():
        node.set(key, value)
    crashed = tmp_path / "crashed"
    identity = node.crash(crashed)
    path = segments_of(crashed)[0]
    with path.open("ab") as file:
        file.write(b"a torn block")
    (crashed / "n1.rcs.tmp").write_bytes(b"half")
    album = tmp_path / "album"
    album.mkdir()
    disk = PhotographedDisk(crashed, album, lambda: None)
    again = Node(crashed, identity, disk=disk)
    again.stop()
    assert {"remove", "truncate", "write", "sync", "create", "rename"} <= set(disk.calls)
    for killed, _, _ in disk.pictures:
        assert recover_items(killed, identity) == expected
