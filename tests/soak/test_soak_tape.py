"""The logger under test, at one real server: what it recorded is compared, and a difference is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcache_client import Client
from soak.cluster.errors import Violated
from soak.cluster.tape import Tape
from soak.server_process import ServerProcess


def test_what_differs_is_found(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--buckets", "4") as server, Client(server.address) as cache:
        cache.set_many({f"k{number}": b"v" for number in range(50)})
        cache.delete("k7")
        tape = Tape(tmp_path / "tape", [server.address])
        try:
            tape.start()
            tape.before(3)
            cache.set("k8", b"while it was away")
            tape.after()
            assert tape.finish(cache, ["k7", "k8"]) == []
            assert (tape.figures.restarts, tape.figures.items) == (1, 49 + 4)
            cache.set("k1", b"not recorded")
            cache.delete("k2")
            cache.set("k7", b"not recorded")
            found = tape._compare(cache, [b"k1", b"k2", b"k3", b"k7"])
            assert [line.split("'")[1] for line in found] == ["k1", "k2", "k7"]
        finally:
            tape.close()


def test_one_that_does_not_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soak.cluster.tape.START_S", 0.2)
    tape = Tape(tmp_path / "tape", ["127.0.0.1:1"])
    try:
        with pytest.raises(Violated, match="ended with code 3"):
            tape.start()
    finally:
        tape.close()
