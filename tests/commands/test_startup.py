"""A start that meets what recovery handed over but cannot be fed to the engine, and what a start lets go of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rcache.commands import recovering, startup
from rcache.commands.exit_codes import ExitCode
from rcache.commands.options import parse
from rcache.commands.start_failed import StartFailed
from rcache.engine.bodies import why_not_native
from rcache.records import walk
from rcache.server.notify import Notifier
from rcache.server.service import Service
from rcache.server.stops import Stops
from rcache.stream.recovery import Recovered, recover
from rcache_client import Client
from soak.server_process import ServerProcess

needs_compiled = pytest.mark.skipif(walk.COMPILED is None, reason="the compiled record walks were not built here")
needs_native = pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")

MEGABYTE = 1_000_000
FIVE_TIMES_16M = 90
"""Values of a megabyte: more than the 80 MiB that an engine with 16 MiB has addresses for."""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """What a server leaves that was killed with a few items."""
    with ServerProcess(tmp_path / "data") as server:
        with Client(server.address) as cache:
            cache.set_many({f"key-{number}": b"value" * 100 for number in range(200)})
        assert server.stop() == 0
    return tmp_path / "data"


def boot(data_dir: Path) -> Service:
    options = parse(["--data-dir", str(data_dir), "--name", "n1", "--listen", "127.0.0.1:0"], {})
    return startup.boot(options, "0", Notifier(), Stops())


def after_recovery(monkeypatch: pytest.MonkeyPatch, call: Callable[[Recovered], None]) -> None:
    """Have `call` look at what a start recovered before it goes on."""

    def recover_and_call(*arguments: Any, **more: Any) -> Recovered:
        recovered = recover(*arguments, **more)
        call(recovered)
        return recovered

    monkeypatch.setattr(recovering, "recover", recover_and_call)


@needs_compiled
def test_a_file_that_is_changed_under_a_start_is_damage(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def zero(recovered: Recovered) -> None:
        assert recovered.items == 200
        for path in (*data_dir.glob("*.rcl"), *data_dir.glob("*.rcc")):
            with path.open("r+b") as file:  # in place: a file that is cut short would take its pages away
                file.write(bytes(path.stat().st_size))

    after_recovery(monkeypatch, zero)
    with pytest.raises(StartFailed, match="changed while it was read") as failed:
        boot(data_dir)
    assert failed.value.code is ExitCode.DAMAGED_FILE


@needs_compiled
def test_once_it_is_fed_nothing_is_left_of_what_was_recovered(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped() -> bool:
        return str(data_dir) in Path("/proc/self/maps").read_text()

    kept: list[Recovered] = []

    def keep(recovered: Recovered) -> None:
        assert mapped()
        kept.append(recovered)

    after_recovery(monkeypatch, keep)
    service = boot(data_dir)
    try:
        assert not mapped()
        assert kept[0].buckets == {}
        assert service.stats()["items"]["items"] == 200
    finally:
        service.start()
        service.stop()


@needs_native
def test_2_data_that_a_much_smaller_limit_has_no_addresses_for(tmp_path: Path) -> None:
    options = ("--append-log-fsync", "never")
    with ServerProcess(tmp_path / "data", *options, "--memory-limit", "256M") as server:
        with Client(server.address) as cache:
            for number in range(FIVE_TIMES_16M):
                cache.set(f"key-{number}", bytes(MEGABYTE))
        assert server.stop() == 0
    with ServerProcess(tmp_path / "data", *options, "--memory-limit", "16M", "--engine", "native", start=False) as server:
        server.launch()
        assert server.wait() == ExitCode.WRONG_USE
        assert "--memory-limit 16M is too small for the data on disk" in server.stderr_text
        assert "unhandled" not in server.stderr_text
    with ServerProcess(tmp_path / "data", *options, "--memory-limit", "256M") as server:  # the refusal cost nothing
        with Client(server.address) as cache:
            assert cache.stats("items")["items"]["items"] == FIVE_TIMES_16M
        assert server.stop() == 0
