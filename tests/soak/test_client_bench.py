"""The benchmark of the clients: its arithmetic, what it leaves out, and a short run against whatever is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from soak import client_bench
from soak.bench.errors import BenchError
from soak.bench.samples import Sample, Samples
from soak.client_bench import (
    CONTENDERS,
    CPU,
    GET,
    GET_MANY,
    GOALS,
    KEYS,
    MINE,
    RATE,
    SET,
    SET_UNANSWERED,
    VALUE,
    Calls,
    Contender,
    Report,
    as_json,
    check,
    goals_grid,
    grids,
    main,
    measure,
    read_settings,
    run,
    show,
    why_not,
)

RCACHE, REDIS, MEMCACHED = CONTENDERS
HERE = [each for each in CONTENDERS if not why_not(each)]


def sample(client: str, number: int, rate: float, operation: str = GET) -> Sample:
    return Sample(operation, operation, client, number, {RATE: rate, CPU: 1e6 / rate})


SAMPLES = Samples(
    [
        *[sample(MINE, n, rate) for n, rate in enumerate((200.0, 300.0, 100.0), 1)],
        *[sample("redis-py", n, rate) for n, rate in enumerate((100.0, 100.0, 100.0), 1)],
        *[sample("pymemcache", n, rate) for n, rate in enumerate((200.0, 200.0, 100.0), 1)],
    ]
)


def test_a_goal_is_held_against_the_median_of_the_rounds_ratios() -> None:
    assert goals_grid(SAMPLES).rows == [
        ["get, to redis-py", "2", "2.00 (2.00 3.00 1.00)", "yes"],
        ["get, to pymemcache", "1.3", "1.00 (1.00 1.50 1.00)", "no"],
    ]


def test_the_goals_are_of_operations_that_are_measured() -> None:
    assert {other for other, _ in GOALS} == {REDIS.name, MEMCACHED.name}
    assert {operation for _, operation in GOALS} == {GET, SET, GET_MANY}


def test_the_tables_have_a_ratio_to_each() -> None:
    rates, times, _ = grids(SAMPLES)
    assert list(rates.columns) == ["call", MINE, "redis-py", "pymemcache", f"{MINE} : redis-py", f"{MINE} : pymemcache"]
    assert rates.rows == [["get", "200", "100", "200", "2.00 (2.00 3.00 1.00)", "1.00 (1.00 1.50 1.00)"]]
    assert times.rows[0][:4] == ["get", "5000.0", "10000.0", "5000.0"]


def test_keys_are_of_many_lengths_and_all_different() -> None:
    assert {len(key) for key in KEYS} == {8, 9, 10, 11, 12}
    assert len(set(KEYS)) == 100


def test_a_measurement_counts_calls_and_takes_its_time() -> None:
    calls = []
    figures = measure(lambda: calls.append(1), 0.02)
    measured = len(calls) - client_bench.WARM_UP
    assert measured > 0
    assert 0.02 <= measured / figures[RATE] < 1
    assert 0 < figures[CPU] < 1000


GOOD: Calls = {GET: lambda: VALUE, GET_MANY: lambda: dict.fromkeys(KEYS, VALUE)}


def test_answers_are_held_against_what_was_stored() -> None:
    check("good", GOOD)
    check("a list", {**GOOD, GET_MANY: lambda: [VALUE] * 100})
    wrong = [{GET: lambda: None}, {GET_MANY: dict}, {GET_MANY: lambda: [*[VALUE] * 99, None]}]
    for each in wrong:
        with pytest.raises(BenchError, match="liar does not give back what was stored"):
            check("liar", {**GOOD, **each})


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = replace(REDIS, packages=("no-such-package", "hiredis"))
    expected = "the package no-such-package is not installed (pip install no-such-package hiredis)"
    assert why_not(absent) == expected
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_not(replace(MEMCACHED, packages=())) == "memcached is not installed"


def test_settings(capsys: pytest.CaptureFixture[str]) -> None:
    settings = read_settings([])
    assert (settings.rounds, settings.seconds, settings.output, settings.engine) == (7, 0.5, None, "auto")
    settings = read_settings(["--rounds", "3", "--output", "out"])
    assert (settings.rounds, settings.output) == (3, Path("out"))
    assert settings.command == "python -m soak.client_bench --rounds 3 --output out"
    for wrong in ("--rounds 0", "--seconds 0", "--seconds nan", "--engine steam"):
        with pytest.raises(SystemExit) as ended:
            read_settings(wrong.split())
        assert ended.value.code == 2
    capsys.readouterr()


def test_nothing_to_compare_with_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(client_bench, "CONTENDERS", [RCACHE, replace(REDIS, packages=("no-such-package",))])
    assert main(["--rounds", "1", "--seconds", "0.01"]) == 1
    assert "client_bench: redis-py: the package no-such-package is not installed" in capsys.readouterr().err


@contextmanager
def pretending(contender: Contender, engine: str, report: Report) -> Iterator[Calls]:
    """A client without a server."""
    report.clients[contender.name] = {contender.name: "1.0"}
    calls = {SET: lambda: 1, **GOOD}
    yield calls if contender.name == "redis-py" else {SET_UNANSWERED: lambda: 1, **calls}


def test_clients_take_turns_and_who_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"pymemcache": "memcached is not installed"}
    monkeypatch.setattr(client_bench, "connected", pretending)
    monkeypatch.setattr(client_bench, "why_not", lambda contender: reasons.get(contender.name, ""))
    console = Console(record=True, width=200)
    report = run(read_settings(["--rounds", "2", "--seconds", "0.001"]), console)
    assert [(each.group, each.round, each.server) for each in report.samples] == [
        *[(operation, n, name) for operation in (GET, SET) for n in (1, 2) for name in (MINE, "redis-py")],
        *[(SET_UNANSWERED, n, MINE) for n in (1, 2)],
        *[(GET_MANY, n, name) for n in (1, 2) for name in (MINE, "redis-py")],
    ]
    show(report, console)
    assert "pymemcache was not measured: memcached is not installed" in console.export_text()


@pytest.mark.skipif(
    RCACHE not in HERE or len(HERE) < 2,
    reason="; ".join(why_not(each) for each in CONTENDERS if each not in HERE) or "all are installed",
)
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report" / "client.json"
    given = ["--rounds", "1", "--seconds", "0.02", "--engine", "reference", "--output", str(file.parent)]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "Calls a second of one thread" in said
    found = json.loads(file.read_text())
    assert found["command"].split() == ["python", "-m", "soak.client_bench", *given]
    assert set(found["clients"]) == {each.name for each in HERE}
    assert found["servers"]["rcached"]["version"].endswith(", engine reference")
    assert "--no-append-log" in found["servers"]["rcached"]["command"]
    assert {each["server"] for each in found["samples"]} == set(found["clients"])
    assert {each["group"] for each in found["samples"]} == {GET, SET, SET_UNANSWERED, GET_MANY}
    assert found["goals"]
    page = (file.parent / "client.md").read_text()
    assert "## Calls a second of one thread" in page
    for name in ("rcached", *(each.name for each in HERE)):
        assert f"\n- {name}" in page


def test_the_report_has_everything_that_was_measured() -> None:
    report = Report("command", "2025-01-02", {"processor": "abacus"}, 3, 0.5, samples=SAMPLES)
    found = json.loads(as_json(report))
    assert (found["command"], found["machine"], found["rounds"]) == ("command", {"processor": "abacus"}, 3)
    assert len(found["samples"]) == len(SAMPLES)
    assert found["goals"] == goals_grid(SAMPLES).rows
