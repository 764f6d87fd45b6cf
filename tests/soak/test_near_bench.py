"""The benchmark of the near cache: what it leaves out, what it holds against the servers' counts, and a short run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from soak import near_bench
from soak.bench.errors import BenchError
from soak.bench.samples import Sample, Samples
from soak.client_bench import CPU, MINE, RATE
from soak.near_bench import HIT, HITS, MISS, PLAIN, Side, as_page, grids, main, measured, missing, read_settings, run, show


def sample(client: str, number: int, rate: float) -> Sample:
    return Sample(HIT, HIT, client, number, {RATE: rate, CPU: 1e6 / rate})


def test_the_figure_to_reach_is_held_against_the_median() -> None:
    for rates, found, reached in (((3e6, 9e5, 2e6), "2,000,000", "yes"), ((1e5, 9e5, 2e6), "900,000", "no")):
        samples = Samples([sample(MINE, number, rate) for number, rate in enumerate(rates, 1)])
        assert grids(samples)[-1].rows == [["hits a second, one key", "1,000,000", found, reached]]


def test_what_is_called_a_hit_asks_nobody_and_a_miss_does() -> None:
    asked = [0]

    def ask() -> None:
        asked[0] += 1

    side = Side({HIT: ask, MISS: lambda: None, PLAIN: ask}, lambda: asked[0])
    with pytest.raises(BenchError, match="one: hit, one key: the server was asked for 1"):
        measured("one", side, HIT, 0.01)
    with pytest.raises(BenchError, match="one: miss: the server was asked for 0"):
        measured("one", side, MISS, 0.01)
    assert measured("one", side, PLAIN, 0.01)[RATE] > 0


def test_settings(capsys: pytest.CaptureFixture[str]) -> None:
    settings = read_settings(["--rounds", "3", "--output", "out"])
    assert (settings.rounds, settings.seconds, settings.output, settings.engine) == (3, 0.5, Path("out"), "auto")
    assert settings.command == "python -m soak.near_bench --rounds 3 --output out"
    for wrong in ("--rounds 0", "--seconds 0", "--engine steam"):
        with pytest.raises(SystemExit) as ended:
            read_settings(wrong.split())
        assert ended.value.code == 2
    capsys.readouterr()


def test_without_rcached_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(near_bench, "missing", lambda: {MINE: "rcached is not installed"})
    assert main(["--rounds", "1"]) == 1
    assert "near_bench: rcache_client: rcached is not installed" in capsys.readouterr().err


@pytest.mark.skipif(MINE in missing(), reason="rcached is not installed")
def test_a_short_run_that_names_who_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(near_bench, "missing", lambda: {"redis-py": "redis-server is not installed"})
    monkeypatch.setattr(near_bench, "MANY", near_bench.MANY[:3000])
    assert main(["--rounds", "1", "--seconds", "0.02", "--output", str(tmp_path)]) == 0
    assert "redis-py was not measured: redis-server is not installed" in capsys.readouterr().out
    found = json.loads((tmp_path / "near_cache.json").read_text())
    assert {each["group"] for each in found["samples"]} == {HIT, HITS, MISS, PLAIN}
    page = (tmp_path / "near_cache.md").read_text()
    assert "| hits a second, one key |" in page
    assert "- redis-py was not measured: redis-server is not installed" in page


@pytest.mark.skipif(bool(missing()), reason="; ".join(missing().values()) or "all are installed")
def test_a_short_run_of_all() -> None:
    console = Console(record=True, width=200)
    report = run(read_settings(["--rounds", "1", "--seconds", "0.02"]), console)
    show(report, console)
    assert {each.server for each in report.samples} == {MINE, "redis-py"}
    assert all(remark in as_page(report) for remark in report.remarks)
