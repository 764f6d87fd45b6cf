"""What measures a node that leaves: the arithmetic, the page, and one small handoff through real processes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from soak.bench.errors import BenchError
from soak.bench.samples import Sample, Samples
from soak.handoff import command
from soak.handoff.page import as_page, grid_of
from soak.handoff.rcache_side import RcacheSide
from soak.handoff.redis_side import RedisSide


def calls(*times_ms: float, at: float = 0.5) -> list[tuple[float, float, bool]]:
    return [(at, took_ms, False) for took_ms in times_ms]


def test_times_are_those_of_the_calls_that_ended_then() -> None:
    before = calls(*range(100), at=0.5)
    during = [(1.5, 500.0, True), (1.6, 1.0, False)]
    figures = command.times(before + during, 0.0, 1.0, "before") | command.times(before + during, 1.0, 2.0, "during")
    assert figures == {
        "before_p50_ms": 50.0,
        "before_p99_ms": 99.0,
        "before_max_ms": 99.0,
        "before_calls": 100.0,
        "before_failed": 0.0,
        "during_p50_ms": 500.0,
        "during_p99_ms": 500.0,
        "during_max_ms": 500.0,
        "during_calls": 2.0,
        "during_failed": 1.0,
    }


def test_a_handoff_too_short_to_say_anything_is_an_error() -> None:
    with pytest.raises(BenchError, match="no request ended during the handoff"):
        command.times(calls(1.0), 1.0, 2.0, "during")


def test_the_page_has_medians_and_the_ratios_of_each_round() -> None:
    def sample(name: str, number: int, items_per_s: float) -> Sample:
        return Sample("handoff", "leaving", name, number, {"items_per_s": items_per_s})

    samples = Samples(
        [sample(*each) for each in (("rcached", 1, 300.0), ("redis", 1, 100.0), ("rcached", 2, 100.0), ("redis", 2, 100.0))]
    )
    row = next(row for row in grid_of(samples).rows if row[0] == "items a second")
    assert row == ["items a second", "200", "100", "2.00 (3.00 1.00)"]


@pytest.mark.parametrize(
    "line", [["--rounds", "0"], ["--items", "0"], ["--value-bytes", "0"], ["--rate", "0"], ["--value-bytes", "9999999"]]
)
def test_what_cannot_be_measured_is_refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.read_settings(line)
    assert stopped.value.code == 2
    assert "--items, --rounds and --rate must be 1 or more" in capsys.readouterr().err


@pytest.mark.timeout(180)
def test_a_node_leaves_a_real_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every item that the node had is somewhere else afterwards, while requests went on."""
    monkeypatch.setattr(command, "why_not", lambda name: "" if name == RcacheSide.name else "not asked for here")
    monkeypatch.setattr(command, "BEFORE_S", 0.5)
    monkeypatch.setattr(command, "SETTLE_S", 0.1)
    line = ["--items", "3000", "--rounds", "1", "--rate", "400", "--scratch", str(tmp_path), "--output", str(tmp_path / "out")]
    assert command.main(line) == 0
    facts = json.loads((tmp_path / "out" / "handoff.json").read_text())
    (figures,) = [sample["figures"] for sample in facts["samples"]]
    assert 1500 < figures["items"] <= 3000, "about two of three items"
    assert figures["items_per_s"] == pytest.approx(figures["items"] / figures["seconds"])
    assert figures["failed"] == 0
    assert figures["before_calls"] > 0
    assert figures["during_calls"] > 0
    assert facts["missing"] == {RedisSide.name: "not asked for here"}
    page = (tmp_path / "out" / "handoff.md").read_text()
    assert "redis was not measured: not asked for here" in page


def test_the_command_of_a_page_is_the_one_that_made_it() -> None:
    given = command.read_settings(["--items", "10"])
    assert isinstance(given, argparse.Namespace)
    samples = Samples([Sample("handoff", "leaving", "rcached", 1, {"items": 7.0})])
    report = {
        "command": given.command,
        "date": "2026-11-26",
        "machine": {},
        "items": 10,
        "value_bytes": 100,
        "rate": 5.0,
        "rounds": 1,
    }
    page = as_page(report | {"sides": {"rcached": "it"}, "missing": {}, "samples": samples})
    assert "`python -m soak.handoff --items 10`" in page
    assert "| items that the node had | 7 |" in page
