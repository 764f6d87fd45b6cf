"""A renamed host was once refused its own data, and an explicit --buckets 1024 was taken for no word at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rcache.commands.options import parse
from rcache.stream.data_dir import DataDir
from rcache_client import Client
from soak.server_process import ServerProcess


class NamelessServer(ServerProcess):
    """An rcached that is not told its name."""

    @property
    def command(self) -> list[str]:
        whole = super().command
        place = whole.index("--name")
        return whole[:place] + whole[place + 2 :]


def test_a_renamed_host_finds_its_data(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", name="an-old-name") as server:
        with Client(server.address) as cache:
            cache.set("k", b"v")
        assert server.stop() == 0
    with NamelessServer(tmp_path / "data") as server:
        with Client(server.address) as cache:
            assert cache.get("k") == b"v"
        assert server.stop() == 0
    with ServerProcess(tmp_path / "data", name="another-name", start=False) as server:
        server.launch()
        assert server.wait() == 2
        assert "an-old-name" in server.stderr_text


def test_the_savefile_is_called_as_the_data(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    directory.be("an-old-name", 64)
    directory.close()
    options = parse(["--data-dir", str(tmp_path)], {})
    assert (options.name, options.savefile) == ("an-old-name", tmp_path / "an-old-name.rcs")
    assert parse(["--data-dir", str(tmp_path), "--name", "x"], {}).name == "x"


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", json.dumps({"node": 7}).encode(), b'{"node": "../x"}'])
def test_what_is_no_identity_gives_no_name(tmp_path: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    (tmp_path / "node.json").write_bytes(text)
    assert parse(["--data-dir", str(tmp_path)], {}).name == "box"


def test_the_default_number_of_buckets_is_refused_where_it_is_said_and_wrong(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--buckets", "64") as server:
        assert server.stop() == 0
    with ServerProcess(tmp_path / "data", "--buckets", "1024", start=False) as server:
        server.launch()
        assert server.wait() == 2
        assert "--buckets is 1024" in server.stderr_text
    with ServerProcess(tmp_path / "data") as server:
        assert server.stop() == 0
