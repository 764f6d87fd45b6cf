"""What the benchmark makes of its figures: arithmetic, tables, goals, files, page and drawings."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from soak.bench.command import render
from soak.bench.errors import BenchError
from soak.bench.goals import goals, goals_grid
from soak.bench.page import markdown, show, show_goals
from soak.bench.parts import PARTS
from soak.bench.plots import NoPlot, draw, short
from soak.bench.report import Report, load, save
from soak.bench.samples import Condition, Sample, Samples, ratios, ratios_to_fastest
from soak.bench.tables import condition_text, figure_grid, number, ratios_text

RATE = "operations_per_s"


def sample(group: str, at: Condition, server: str, round_number: int, **figures: float) -> Sample:
    return Sample(group, at, server, round_number, figures)


def rates(group: str, at: Condition, **servers: tuple[float, ...]) -> list[Sample]:
    """A series of rounds for each server, with the latencies that go with them."""
    return [
        sample(group, at, name, n, operations_per_s=rate, p50_us=10.0 * n, p99_us=100.0)
        for name, all_of in servers.items()
        for n, rate in enumerate(all_of, 1)
    ]


def report(part: str, samples: list[Sample]) -> Report:
    return Report(
        part=part,
        command=f"rcache-bench --parts {part}",
        date="2025-01-02",
        machine={"processor": "abacus"},
        servers={name: {"version": "1.2", "command": f"{name} --flag"} for name in ("rcached", "redis")},
        sizes={"rounds": 3, "seconds": 2.0},
        missing=["memcached"],
        samples=Samples(samples),
    )


SHAPES = report(
    "shapes", rates("GET", "16 x 16", rcached=(10, 30, 20), redis=(20, 30, 80), memcached=(40, 15, 10), limit=(60, 45, 80))
)
KEYS = report("keys", [*rates("GET", 1_000, rcached=(50,), redis=(25,)), *rates("GET", 10_000, rcached=(40,), redis=(20,))])
LOG = report(
    "log",
    [
        sample("disk", "sequential write", "disk", 1, written_mb_per_s=200),
        *(sample("SET", "off", name, 1, operations_per_s=100, written_mb_per_s=0) for name in ("rcached", "redis")),
        sample("SET", "interval (everysec)", "rcached", 1, operations_per_s=90, written_mb_per_s=50),
        sample("SET", "interval (everysec)", "redis", 1, operations_per_s=70, written_mb_per_s=40),
    ],
)
ITEMS = report("items", [sample("memory", 1_000_000, "rcached", 1, bytes_per_item=150.4)])
LOAD = report(
    "load",
    [
        sample("restart", 1_000_000, "rcached", 1, serving_s=1.0, empty_s=0.2, records_per_s=1_250_000, files_mb=150),
        sample("restart", 1_000_000, "redis", 1, serving_s=2.0, empty_s=0.1, records_per_s=500_000, files_mb=140),
    ],
)
CONNECTIONS = report(
    "connections",
    [
        sample("idle", 10_000, "rcached", 1, bytes_per_connection=2000),
        *rates("GET", 10_000, rcached=(100,), redis=(80,), memcached=(200,)),
        *rates("SET", 10_000, rcached=(60,), redis=(80,), memcached=(200,)),
        *rates("GET", 0, rcached=(1,), redis=(80,)),
    ],
)
VALUES = report("values", [sample("GET", size, "rcached", 1, operations_per_s=5, value_mb_per_s=1) for size in (10, 100)])
REPORTS = {each.part: each for each in (SHAPES, LOG, ITEMS, KEYS, VALUES, LOAD, CONNECTIONS)}


def test_ratios_are_taken_round_by_round() -> None:
    get = SHAPES.samples
    assert ratios(get.where(server="rcached"), RATE, get.where(server="redis")) == [0.5, 1.0, 0.25]
    one, other = Samples(rates("GET", 1, a=(2.0,))), Samples([sample("GET", 1, "b", 2, operations_per_s=2.0)])
    assert ratios(one, RATE, other) == []
    assert ratios(one, "unknown", one) == []


def test_the_faster_is_chosen_in_each_round() -> None:
    assert ratios_to_fastest(SHAPES.samples, RATE, "rcached", ["redis", "memcached", "postgres"]) == [0.25, 1.0, 0.25]
    assert ratios_to_fastest(SHAPES.samples, RATE, "rcached", ["postgres"]) == []
    assert ratios_to_fastest(SHAPES.samples, RATE, "rcached", []) == []


def test_medians() -> None:
    assert SHAPES.samples.where(server="redis").median(RATE) == 30
    assert SHAPES.samples.where(server="postgres").median(RATE) is None


def test_ratios_as_text() -> None:
    assert ratios_text([0.5, 1.0, 0.25]) == "0.50 (0.50 1.00 0.25)"
    assert ratios_text([1.0] * 9 + [2.0, 0.5]) == "1.00 (0.50 to 2.00 in 11 rounds)"
    assert ratios_text([]) == "-"


def test_figures_as_text() -> None:
    assert (number(1234.5), number(0.123, ".2f"), number(None)) == ("1,234", "0.12", "-")
    assert (condition_text(10_000), condition_text("16 x 16")) == ("10,000", "16 x 16")
    assert [short(each) for each in (1.234e6, 999_999, 45_600, 789, 0.0123, 0, None)] == [
        "1.23M", "1M", "45.6k", "789", "0.0123", "0", "",
    ]  # fmt: skip


def test_a_server_that_was_not_measured_somewhere_leaves_a_gap() -> None:
    grid = figure_grid("t", "h", Samples([*rates("GET", 1, a=(4,), b=(2,)), *rates("GET", 2, a=(4,))]), RATE)
    assert list(grid.columns) == ["h", "a", "b", "a : b"]
    assert grid.rows == [["1", "4", "2", "2.00 (2.00)"], ["2", "4", "-", "-"]]


def test_the_tables_of_the_shapes() -> None:
    rate, latency = PARTS["shapes"].grids(SHAPES.samples)
    names = ["rcached", "redis", "memcached", "limit"]
    assert list(rate.columns) == ["shape", *names, *(f"rcached : {name}" for name in names[1:])]
    ratio_texts = ["0.50 (0.50 1.00 0.25)", "2.00 (0.25 2.00 2.00)", "0.25 (0.17 0.67 0.25)"]
    assert rate.rows == [["16 x 16", "20", "30", "15", "60", *ratio_texts]]
    assert latency.rows == [["GET 16 x 16", *["20 / 100"] * 4]]


def test_the_tables_of_the_log() -> None:
    rate, kept, written = PARTS["log"].grids(LOG.samples)
    assert [row[0] for row in rate.rows] == ["off", "interval (everysec)"]
    assert kept.rows == [["interval (everysec)", "0.90 (0.90)", "0.70 (0.70)"]]
    assert "200 MB/s" in written.title
    assert written.rows == [["interval (everysec)", "50", "40", "25%", "20%"]]


def test_the_goals() -> None:
    assert {goal.what: (goal.found, goal.reached) for goal in goals(REPORTS)} == {
        "GET 16 x 16": ("0.25 (0.25 1.00 0.25); limit 1.50", False),
        "SET 16 x 16, log at an interval, to the log off (or to the disk's own rate)": ("0.90 (0.90); 25% of the disk", True),
        "the same, to what Redis keeps with everysec": ("0.90, Redis 0.70", True),
        "memory of an item, bytes": ("150", True),
        "replay, records a second": ("1,250,000", True),
        "killed, seconds until it serves": ("1.00", True),
        "replay, to Redis": ("2.50 (2.50)", True),
        "killed, how much sooner than Redis": ("2.00 (2.00)", True),
        "GET by 200 busy beside 10,000 idle, to Redis": ("1.25 (1.25)", True),
        "SET by 200 busy beside 10,000 idle, to Redis": ("0.75 (0.75)", False),
    }


def test_a_disk_that_is_the_limit_is_what_the_log_is_held_against() -> None:
    slow = [
        replace(each, figures=each.figures | {"operations_per_s": 50}) if each.at != "off" else each for each in LOG.samples
    ]
    assert not goals({"log": report("log", slow)})[0].reached
    full = [sample("disk", "sequential write", "disk", 1, written_mb_per_s=55), *slow[1:]]
    assert goals({"log": report("log", full)})[0].reached


def test_goals_for_a_million_items_are_not_held_against_fewer() -> None:
    few = [replace(each, at=1000) for each in (*ITEMS.samples, *LOAD.samples)]
    assert goals({"items": report("items", few[:1]), "load": report("load", few[1:])}) == []


def test_goals_need_rcached() -> None:
    without = {name: replace(each, samples=each.samples.where(server="redis")) for name, each in REPORTS.items()}
    assert goals_grid(without).rows == []


def test_a_report_is_kept_in_a_file(tmp_path: Path) -> None:
    odd = replace(KEYS, samples=Samples([sample("GET", 1, "a", 1, rate=1 / 3), sample("GET", "x", "a", 1, rate=12345678.9)]))
    save(odd, tmp_path)
    again = load("keys", tmp_path)
    assert again is not None
    assert [each.figures["rate"] for each in again.samples] == [0.333333, 12_345_700]
    assert replace(again, samples=odd.samples) == odd
    assert [each.at for each in again.samples] == [1, "x"]
    assert len(json.loads((tmp_path / "peers-keys.json").read_text())["samples"]) == 2
    assert load("shapes", tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"samples": [1]}', '{"samples": [], "parts": 1}'])
def test_a_file_that_is_no_report_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "peers-keys.json").write_text(text)
    with pytest.raises(BenchError, match="not a report"):
        load("keys", tmp_path)


def test_the_page_says_how_it_was_measured(tmp_path: Path) -> None:
    text = markdown({"shapes": SHAPES, "keys": replace(KEYS, machine={"processor": "another"})}, tmp_path)
    for said in (
        "by `rcache-bench --parts shapes`: 3 rounds, 2 s a measurement",
        "by `rcache-bench --parts keys`",
        "2025-01-02",
        "- processor: abacus",
        "- processor: another",
        "rcached 1.2: `rcached --flag`",
        "not installed, so not measured: memcached",
        "| 16 x 16 | 20 | 30 | 15 | 60 | 0.50 (0.50 1.00 0.25) | 2.00 (0.25 2.00 2.00) |",
        "| GET 16 x 16 | at least 1.3 | 0.25 (0.25 1.00 0.25); limit 1.50 | no |",
        "| 10,000 | 40 | 20 | 2.00 (2.00) |",
    ):
        assert said in text
    assert "![" not in text
    assert text.count("- processor") == 2


def test_a_part_measured_anew_leaves_the_others_on_the_page(tmp_path: Path) -> None:
    console = Console(quiet=True)
    for each in (SHAPES, KEYS):
        save(each, tmp_path)
        render(tmp_path, [each.part], console)
    text = (tmp_path / "peers.md").read_text()
    assert text.index("## Operations a second by shape") < text.index("## Operations a second by number of items")


def test_the_tables_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=200)
    show(PARTS["shapes"], SHAPES, console)
    show_goals({"shapes": SHAPES}, console)
    said = capsys.readouterr().out
    assert "0.50 (0.50 1.00 0.25)" in said
    assert "not measured: memcached" in said
    assert "at least 1.3" in said


@pytest.mark.parametrize("name", PARTS)
def test_a_drawing_of_every_part(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = draw(PARTS[name], REPORTS[name], tmp_path)
    drawn = path.read_bytes()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert b"rcached" in drawn
    assert draw(PARTS[name], REPORTS[name], tmp_path).read_bytes() == drawn
    assert f"({path.name})" in markdown(REPORTS, tmp_path)


def test_without_matplotlib_there_is_a_reason_and_no_old_drawing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "peers-keys.svg").write_text("of other figures")
    save(KEYS, tmp_path)
    render(tmp_path, ["keys"], Console(width=200))
    assert "keys: no drawing: matplotlib is not installed (pip install 'rcache[bench]')" in capsys.readouterr().out
    assert not (tmp_path / "peers-keys.svg").exists()
    assert "![" not in (tmp_path / "peers.md").read_text()


def test_nothing_measured_is_nothing_drawn(tmp_path: Path) -> None:
    with pytest.raises(NoPlot, match="nothing was measured"):
        draw(PARTS["keys"], report("keys", []), tmp_path)
