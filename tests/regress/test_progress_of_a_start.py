"""Two walks over the files once went under one word, "recovering", and their sizes had no unit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from loguru import logger

from rcache.commands import recovering, startup
from rcache.commands.options import parse
from rcache.server.notify import Notifier
from rcache.server.stops import Stops
from rcache_client import Client
from soak.server_process import ServerProcess


def test_every_walk_has_its_name_and_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerProcess(tmp_path / "data") as server:
        with Client(server.address) as cache:
            cache.set_many({f"key-{number}": bytes(60_000) for number in range(50)})
        assert server.stop() == 0
    said = _said_by_a_start(["--data-dir", str(tmp_path / "data"), "--name", "n1"], monkeypatch)
    assert list(dict.fromkeys(line.partition(":")[0] for line in said)) == ["reading", "rebuilding", "loading"]
    for line in said:
        assert re.fullmatch(r"(reading|rebuilding): \d+ % of [\d.]+ MiB|loading: \d+ % of 1,024 buckets", line), line

    restored = ["--data-dir", str(tmp_path / "other"), "--name", "n2", "--restore", str(tmp_path / "data")]
    said = _said_by_a_start(restored, monkeypatch)
    assert list(dict.fromkeys(line.partition(":")[0] for line in said)) == ["reading", "rebuilding", "restoring"]
    assert said[-1] == "restoring: 100 % of 50 items"


def _said_by_a_start(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of progress of one start, none left out."""
    monkeypatch.setattr(recovering, "PROGRESS_EVERY_S", 0.0)
    lines: list[str] = []
    logger.remove()
    sink = logger.add(lambda text: lines.append(str(text).rstrip("\n")), format="{message}")
    try:
        service = startup.boot(parse([*arguments, "--listen", "127.0.0.1:0"], {}), "0", Notifier(), Stops())
        service.start()
        service.stop()
    finally:
        logger.remove(sink)
    return [line for line in lines if " % of " in line]
