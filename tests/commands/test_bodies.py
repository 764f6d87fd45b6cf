"""Which bodies a server runs: asked for by name, chosen by itself, and where none was built. All through real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rcache.engine.bodies import NATIVE, REFERENCE, best_body, why_not_native
from rcache.records import walk
from rcache_client import Client
from soak.server_process import ServerProcess

needs_native = pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")

MODULES = ("rcache.engine.native._native", "rcache.records._walk", "rcache.records._rows")


@pytest.fixture
def without_compiled(tmp_path: Path) -> dict[str, str]:
    """Variables with which a process of Python finds no compiled part, as where there was no compiler."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(f"import sys\nfor name in {MODULES}:\n    sys.modules[name] = None\n")
    return {"PYTHONPATH": os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])}


def runs(server: ServerProcess) -> str:
    """The engine that a server says it runs."""
    with Client(server.address) as cache:
        cache.set("k", b"v")
        assert cache.get("k") == b"v"
        engine = cache.stats("server")["server"]["engine"]
    assert isinstance(engine, str)
    return engine


def version(environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-m", "rcache.commands.rcached", "--version"]
    said = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True, check=True, timeout=30)
    return said.stdout.partition(" (")[2]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [pytest.param(NATIVE, NATIVE, marks=needs_native), (REFERENCE, REFERENCE), ("auto", best_body())],
)
def test_the_engine_that_was_asked_for_runs_and_says_so(tmp_path: Path, asked: str, expected: str) -> None:
    with ServerProcess(tmp_path / "data", "--engine", asked) as server:
        assert runs(server) == expected
        assert f"engine {expected}," in server.stderr_text
        assert f"record walks: {walk.chosen.name}\n" in server.stderr_text
        assert server.stop() == 0
        assert ("WARNING" in server.stderr_text) == bool(why_not_native() or walk.why_not_compiled)


def test_the_version_tells_the_bodies_that_would_run() -> None:
    assert version() == f"engine: {best_body()}; record walks: {walk.chosen.name})\n"


def test_where_nothing_was_built_a_server_warns_at_each_start_and_serves(
    tmp_path: Path, without_compiled: dict[str, str]
) -> None:
    with ServerProcess(tmp_path / "data", environment=without_compiled) as server:
        for starts in (1, 2):
            assert runs(server) == REFERENCE
            assert server.stop() == 0
            warnings = [line for line in server.stderr_text.splitlines() if " WARNING " in line]
            assert len(warnings) == 2 * starts
            assert "the native engine cannot be used" in warnings[-2]
            assert "the compiled record walks cannot be used" in warnings[-1]
            if starts == 1:
                server.start()
    assert version(without_compiled) == "engine: reference; record walks: reference)\n"


def test_where_nothing_was_built_the_native_engine_is_refused(tmp_path: Path, without_compiled: dict[str, str]) -> None:
    with ServerProcess(tmp_path / "data", "--engine", NATIVE, environment=without_compiled, start=False) as server:
        server.launch()
        assert server.wait() == 2
        assert "'native' cannot be used: it was not built" in server.stderr_text


@pytest.mark.skipif(
    os.environ.get("RCACHE_REQUIRE_NATIVE", "") in ("", "0"), reason="RCACHE_REQUIRE_NATIVE is not set: CI sets it"
)
def test_where_they_are_required_the_compiled_parts_are_there() -> None:
    assert why_not_native() == walk.why_not_compiled == ""
