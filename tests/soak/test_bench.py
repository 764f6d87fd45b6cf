"""The benchmark as a command: its options, and every part of it at a small size, against whatever is installed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from soak.bench import main
from soak.bench.command import ROOT, read_settings
from soak.bench.context import FULL, QUICK, Bench, Sizes
from soak.bench.drivers import LIMIT, Drivers, built_drivers
from soak.bench.errors import BenchError
from soak.bench.parts import PARTS, growth
from soak.bench.parts.growth import item_counts
from soak.bench.parts.shapes import SHAPES
from soak.bench.peers import LOGGING, NAMES, Needs, peer_named
from soak.bench.samples import Samples
from soak.bench.traffic import OPERATIONS

SMALL = Sizes(
    rounds=1, seconds=0.05, spread_rounds=2, items=2_000, items_max=3_000, connections_held=20, disk_bytes=1 << 20
)  # fmt: skip
HERE = [name for name in NAMES if peer_named(name, Needs()).path]

needs_compiler = pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="no C compiler is installed")


def test_settings() -> None:
    settings = read_settings([])
    assert (settings.sizes, settings.servers, settings.parts) == (FULL, list(NAMES), list(PARTS))
    assert settings.output.parts[-2:] == ("docs", "benchmarks")
    quick = read_settings(["--quick"])
    assert (quick.sizes, quick.output) == (QUICK, None)
    wanted = "--parts keys --rounds 30 --seconds 0.5 --items 7 --max-items 9 --connections 11"
    given = read_settings(wanted.split()).sizes
    assert given == replace(
        FULL, rounds=30, seconds=0.5, spread_rounds=30, items=7, items_max=9, connections_held=11
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        "--rounds -1",
        "--rounds x",
        "--seconds 0",
        "--seconds nan",
        "--max-items 0",
        "--servers postgres",
        "--parts shape",
        "--engine steam",
        "--scratch /nowhere/at/all",
        "--quick --render",
    ],
)
def test_wrong_settings(wrong: str) -> None:
    with pytest.raises(SystemExit) as ended:
        read_settings(wrong.split())
    assert ended.value.code == 2


def test_the_document_names_every_part() -> None:
    text = (ROOT / "docs" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(PARTS)
    for command in re.findall(r"^rcache-bench (.*?)(?:  +#.*)?$", text, re.MULTILINE):
        read_settings(command.split())


def test_items_grow_by_tens() -> None:
    assert item_counts(10_000_000) == [1_000, 10_000, 100_000, 1_000_000, 10_000_000]
    assert item_counts(2_500) == [1_000, 2_500]
    assert item_counts(500) == [500]


@pytest.fixture(scope="module")
def drivers() -> Iterator[Drivers]:
    with built_drivers() as built:
        yield built


@pytest.fixture
def bench(drivers: Drivers, tmp_path: Path) -> Bench:
    return Bench(SMALL, drivers, tmp_path, HERE, step=lambda _: None)


def measured(bench: Bench, name: str) -> Samples:
    """The samples of one part, all of which must have become tables and left no files."""
    samples = Samples(PARTS[name].measure(bench))
    assert all(grid.rows for grid in PARTS[name].grids(samples))
    assert list(bench.scratch.iterdir()) == []
    assert all(figure >= 0 for each in samples for figure in each.figures.values())
    return samples


@needs_compiler
def test_shapes(bench: Bench) -> None:
    samples = measured(bench, "shapes")
    assert samples.groups == list(OPERATIONS)
    assert samples.conditions == [str(shape) for shape in SHAPES]
    in_turn = [(each.server, each.round) for each in samples.where("GET", "1 x 1")]
    assert in_turn == [(name, number) for number in (1, 2) for name in (*HERE, LIMIT)]
    assert bench.started.keys() == set(HERE)


@needs_compiler
def test_log(bench: Bench) -> None:
    samples = measured(bench, "log")
    logging = [name for name in HERE if name in LOGGING]
    assert samples.where("SET").servers == logging
    assert samples.where("SET").conditions == ["off", "interval (everysec)", "never (no)", "always"]
    assert len(samples.where("disk").figures("written_mb_per_s")) == 1
    for name in logging:
        assert f"{name}, log: always" in bench.started


@needs_compiler
@pytest.mark.parametrize("part", ["log", "load"])
def test_a_server_without_a_log_has_no_part_in_it(part: str, bench: Bench) -> None:
    bench.names = ["memcached"]
    with pytest.raises(BenchError, match="none of these servers has an append log"):
        PARTS[part].measure(bench)


@needs_compiler
def test_items(bench: Bench) -> None:
    samples = measured(bench, "items")
    assert samples.servers == HERE
    for each in samples:
        assert 0 < each.figures["bytes_per_item"] < 5_000


@needs_compiler
def test_keys(bench: Bench) -> None:
    samples = measured(bench, "keys")
    assert samples.conditions == [1_000, 3_000]
    assert samples.servers == HERE


@needs_compiler
def test_values(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "VALUE_SIZES", (10, 1_000_000))
    monkeypatch.setattr(growth, "VALUES_BYTES", 10_000_000)
    samples = measured(bench, "values")
    assert samples.conditions == [10, 1_000_000]
    assert samples.servers == HERE


@needs_compiler
def test_load(bench: Bench) -> None:
    samples = measured(bench, "load")
    assert samples.servers == [name for name in HERE if name in LOGGING]
    for each in samples:
        assert each.figures["serving_s"] > 0
        assert each.figures["files_mb"] > 2_000 * 100 / 1e6


@needs_compiler
def test_connections(bench: Bench) -> None:
    samples = measured(bench, "connections")
    assert samples.where("idle").conditions == [20]
    assert samples.where("GET").conditions == [20, 0]
    assert samples.servers == HERE


@needs_compiler
def test_a_server_that_serves_too_few_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soak.bench.parts.connections.SPARE", -15)
    bench.names = [name for name in HERE if name == "redis"]
    if not bench.names:
        pytest.skip("redis-server is not installed")
    with pytest.raises(BenchError, match=r"redis did not serve connection \d+ of 20"):
        PARTS["connections"].measure(bench)


@needs_compiler
def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in HERE if name != "rcached"]
    if not names:
        pytest.skip("neither redis-server nor memcached is installed")
    arguments = ["--parts", "keys", "--servers", *names, "--rounds", "1", "--seconds", "0.05", "--max-items", "2000"]
    assert main([*arguments, "--output", str(tmp_path / "new"), "--scratch", str(tmp_path)]) == 0
    page = (tmp_path / "new" / "peers.md").read_text()
    assert f"`rcache-bench {' '.join(arguments)}" in page
    assert len(json.loads((tmp_path / "new" / "peers-keys.json").read_text())["samples"]) == 4 * len(names)
    assert main(["--render", "--output", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "peers.md").read_text() == page
    assert "Written:" in capsys.readouterr().out


@needs_compiler
def test_interrupted_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("soak.bench.command.measure", interrupted)
    assert main(["--quick"]) == 1
    assert "rcache-bench: interrupted" in capsys.readouterr().err


def test_without_a_compiler_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--quick", "--servers", "redis", "memcached"]) == 1
    assert "C compiler is needed" in capsys.readouterr().err


@needs_compiler
def test_a_part_that_fails_leaves_the_others_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "soak.bench.command.peer_named", lambda name, needs: replace(peer_named(name, needs), program="nothing")
    )
    assert main(["--quick", "--parts", "keys", "items", "--servers", "redis", "memcached", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "rcache-bench: keys: not installed: nothing, nothing" in said
    assert "rcache-bench: items: not installed" in said
    assert list(tmp_path.iterdir()) == []
