"""From what happened to the report: gaps, recoveries, false suspicions, throughput over time, and the page that shows them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from soak.cluster.bins import BIN_S, Bin, binned, merged
from soak.cluster.clients import Counts, Spec
from soak.cluster.command import FINE, VIOLATED, last_line, read_command
from soak.cluster.figures import About, by_kind, figures_of
from soak.cluster.findings import KEPT, Findings
from soak.cluster.judge import Verdict, judged
from soak.cluster.nodes import Birth
from soak.cluster.report import DRAWING, FIGURES, PAGE, page, write
from soak.cluster.run import Outcome, Settings
from soak.cluster.schedule import Kind
from soak.cluster.timeline import Broken, false_suspicions, measure_gaps
from soak.cluster.watch import Suspicion, Tail, Watcher, counted, read_line
from soak.cluster.workload import Load
from soak.history import HistoryWriter, Op, Operation, read_history
from soak.history import Outcome as Of

MS = 1_000_000
ABOUT = About("rcache-soak --seed 7", "2026-01-02", {"processor": "a good one"}, "0.1.0")
LOAD = Load(clients=2, rate=100.0, keys=20, round_s=5.0)


def settings(*kinds: Kind) -> Settings:
    return Settings(3, 60.0, 7, "etcd", kinds or (Kind.KILL,), LOAD, Birth(64, 1, "interval"), 5.0)


def kill(number: int = 1, began: float = 110.0) -> Broken:
    return Broken(number, "kill", "kill n2", ["n2"], True, False, began, began + 1.0, began + 1.5)


def outcome() -> Outcome:
    made = Outcome(started=100.0, seconds=60.0, first_whole_s=0.3, memory_most=3 << 20)
    made.faults = [kill(1, 110.0), kill(2, 130.0), Broken(3, "clock", "clock n1, +3 h", ["n1"], False, False, 140, 142, 142)]
    made.verdicts = [Verdict("r0", operations=1000, keys=24, failed=2, unknown=1)]
    made.counts = {"c0": Counts({"ok": 997, "fail": 2, "unknown": 1}, {"Busy": 2, "OutcomeUnknown": 1})}
    made.bins = {number: Bin(50, number % 3, 0, 1.0, 2.5, 40.0) for number in range(120) if number != 21}
    made.waits = [(109.9, 111.3), (120.0, 120.2), (130.0, 130.4)]
    made.suspicions = [Suspicion(110.8, "n1", "n2", "silent"), Suspicion(150.0, "n3", "n1", "the lease ran out")]
    made.false_suspicions = false_suspicions(made.suspicions, made.faults)
    measure_gaps(made.faults, made.waits)
    return made


# --- arithmetic


def test_a_gap_is_the_longest_wait_that_overlaps_its_fault() -> None:
    found = outcome().faults
    assert [round(fault.gap_s, 3) for fault in found] == [1.4, 0.4, 0.0]
    assert [round(fault.recovery_s, 3) for fault in found] == [0.5, 0.5, 0.0]


def test_each_kind_is_summed_up() -> None:
    kills, clocks = by_kind(outcome().faults)
    assert (kills.kind, kills.count, round(kills.gap_median, 3), round(kills.gap_most, 3)) == ("kill", 2, 0.9, 1.4)
    assert (clocks.kind, clocks.count, clocks.gap_most) == ("clock", 1, 0.0)


@pytest.mark.parametrize(
    ("fault", "suspicion", "false"),
    [
        (kill(), Suspicion(110.5, "n1", "n2", ""), False),
        (kill(), Suspicion(111.9, "n1", "n2", ""), False),  # read from the log a little late
        (kill(), Suspicion(112.5, "n1", "n2", ""), True),  # long whole again
        (kill(), Suspicion(109.0, "n1", "n2", ""), True),  # not yet dead
        (kill(), Suspicion(110.5, "n1", "n3", ""), True),  # somebody else
        (kill(), Suspicion(110.5, "n2", "n1", ""), False),  # it could not hear anybody
        (Broken(1, "pause", "", ["n2"], False, False, 110, 111, 111), Suspicion(110.5, "n1", "n2", ""), True),
        (Broken(1, "restart", "", ["n2"], False, True, 110, 111, 111), Suspicion(110.5, "n1", "n2", ""), False),
        (Broken(1, "restart", "", ["n2"], False, True, 110, 111, 111), Suspicion(110.5, "n2", "n1", ""), True),
    ],
)
def test_a_suspicion_is_false_if_nothing_explains_it(fault: Broken, suspicion: Suspicion, false: bool) -> None:
    assert false_suspicions([suspicion], [fault]) == ([suspicion] if false else [])


def test_operations_fall_into_bins_by_their_ends() -> None:
    def operation(start_ms: float, end_ms: float | None, of: Of) -> Operation:
        end_ns = None if end_ms is None else int(end_ms * MS)
        return Operation("c", Op.SET, "k", "v", int(start_ms * MS), end_ns, of)

    width = BIN_S * 1000
    start_ns = 1000 * MS
    found = binned(
        [
            operation(1000, 1001, Of.OK),
            operation(1000, 1009, Of.OK),
            operation(1002, 1004, Of.FAIL),
            operation(1002, 1002 + width, Of.UNKNOWN),
            operation(1002, None, Of.UNKNOWN),
            operation(1, 2, Of.OK),
        ],
        start_ns,
    )
    assert found == {0: Bin(2, 1, 0, 9.0, 9.0, 9.0), 1: Bin(0, 0, 1)}


def test_rounds_share_the_bin_at_their_border() -> None:
    assert merged([{0: Bin(1), 1: Bin(2, 1, 0, 3.0, 4.0, 9.0)}, {1: Bin(3, 0, 1, 2.0, 5.0, 6.0)}]) == {
        0: Bin(1),
        1: Bin(5, 1, 1, 3.0, 5.0, 9.0),
    }


# --- verdicts


def test_a_round_is_judged_and_joins_the_history(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "r0") as writer:
        writer.write(Operation("c0", Op.SET, "k", "a", 1, None, Of.UNKNOWN))
        writer.write(Operation("c0", Op.SET, "k", "a", 1, 2, Of.OK))
        writer.write(Operation("c0", Op.SET, "k", "b", 3, 4, Of.OK))
    with HistoryWriter(tmp_path / "r0-final") as writer:
        writer.write(Operation("final", Op.GET, "k", "b", 5, 6, Of.OK))
    fine = judged("r0", [tmp_path / "r0", tmp_path / "r0-final"], 0, tmp_path / "whole")
    assert (fine.fine, fine.operations, fine.keys) == (True, 3, 1)
    with HistoryWriter(tmp_path / "r1") as writer:
        writer.write(Operation("final", Op.GET, "k2", "a", 7, 8, Of.OK))
    wrong = judged("r1", [tmp_path / "r1"], 0, tmp_path / "whole")
    assert not wrong.fine
    assert "never written" in "\n".join(wrong.lines)
    assert len(read_history([tmp_path / "whole"]).operations) == 4


def test_a_damaged_history_is_not_fine(tmp_path: Path) -> None:
    (tmp_path / "r0").write_text("nonsense\n")
    assert not judged("r0", [tmp_path / "r0"], 0, None).fine


# --- the logs


@pytest.mark.parametrize(
    ("line", "means"),
    [
        (
            "2026 WARNING control: going on without n2: the lease of n2 ran out",
            {"suspicion": ("n2", "the lease of n2 ran out")},
        ),
        ("2026 ERROR   control: FELL OUT: in the view of epoch 9 by n1 this node is no member", {"fell_out": True}),
        ("2026 INFO    control: view: epoch 7 by n1: nothing of note", {}),
    ],
)
def test_what_a_line_of_a_log_means(line: str, means: dict[str, Any]) -> None:
    assert {name: found for name, found in read_line(line)._asdict().items() if found} == means


@pytest.mark.parametrize(
    "line",
    [
        "2026 ERROR   control: control: unhandled error",
        "2026 ERROR   x: heartbeat to n1: unhandled error",
        "Traceback (most recent call last):",
        "2026 ERROR   housekeeper: housekeeper: expire failed",
        "2026 ERROR   control: NOT WHOLE: this node is to be primary of bucket 3, and has no whole copy of it",
    ],
)
def test_what_nobody_expects_is_an_alarm(line: str) -> None:
    assert read_line(line).alarm == line


def test_other_errors_are_told() -> None:
    assert read_line("2026 ERROR   control: a peer sent what is no view: x").error


def test_a_log_is_read_on_line_by_line(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log")
    assert tail.lines() == []
    (tmp_path / "log").write_text("one\ntw")
    assert tail.lines() == ["one"]
    with (tmp_path / "log").open("a") as file:
        file.write("o\nthree\n")
    assert tail.lines() == ["two", "three"]


def test_an_alarm_is_told_once_with_its_error(tmp_path: Path) -> None:
    error = (
        "2026-01-02 03:04:0{0}.123 ERROR   control: control: unhandled error\nTraceback (most recent call last):\n  File x\n"
    )
    log = tmp_path / "log"
    log.write_text("".join(error.format(number) + "ValueError: closed\n" for number in range(3)) + error.format(9))
    cluster: Any = SimpleNamespace(nodes={"n1": SimpleNamespace(log=log, expected=False, running=False)})
    findings = Findings()
    watcher = Watcher(cluster, findings)
    watcher.stop()
    said = "n1 said: ERROR   control: control: unhandled error"
    assert findings.all() == [f"{said}: ValueError: closed", said]


def test_an_alarm_without_a_traceback_is_told_at_once(tmp_path: Path) -> None:
    """However long the node says nothing more."""
    log = tmp_path / "log"
    log.write_text("2026-01-02 03:04:05.123 ERROR   control: NOT WHOLE: bucket 3\n")
    cluster: Any = SimpleNamespace(nodes={"n1": SimpleNamespace(log=log, expected=False, running=False)})
    findings = Findings()
    Watcher(cluster, findings).read_logs()
    assert findings.all() == ["n1 said: ERROR   control: NOT WHOLE: bucket 3"]


def test_a_counter_that_is_not_there_is_zero() -> None:
    assert counted({"items": {"evicted": 3}}, "items", "evicted") == 3
    assert counted({"items": {}}, "items", "evicted") == counted({}, "cluster", "x") == 0


def test_findings_are_told_once_and_bounded() -> None:
    findings = Findings()
    assert not findings.any.is_set()
    for number in range(2 * KEPT):
        findings.add(f"wrong {number}")
        findings.add("wrong 0")
    assert findings.any.is_set()
    assert len(findings.all()) == KEPT
    assert findings.all()[0] == "wrong 0"


# --- the page


def test_a_report_is_page_drawing_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = figures_of(outcome(), settings(Kind.KILL, Kind.CLOCK), ABOUT)
    path = write(figures, tmp_path / "out")
    assert path == tmp_path / "out" / PAGE
    text = path.read_text()
    assert "nothing was violated" in text
    assert ABOUT.command in text
    assert "| kill | 2 | 0.90 | 1.40 | 0.50 | 0.50 | kill -9" in text
    assert "| longest gap of service | 1.40 s, fault 1: kill n2 |" in text
    assert "| longest wait until whole again | 0.50 s, fault 1: kill n2 |" in text
    assert "| false suspicions | 1 |" in text
    assert "n3 went on without n1: the lease ran out" in text
    assert "1 of these were false" in text
    assert DRAWING in text
    read = json.loads((tmp_path / "out" / FIGURES).read_text())
    assert read == json.loads(json.dumps(figures))
    assert [fault["began"] for fault in read["faults"]] == [10.0, 30.0, 40.0]
    drawing = (tmp_path / "out" / DRAWING).read_text()
    ElementTree.fromstring(drawing)
    assert all(word in drawing for word in ("calls a second", "latency, ms", "1 kill", "3 clock", "failed", "false suspicion"))


def test_the_same_figures_make_the_same_drawing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = figures_of(outcome(), settings(), ABOUT)
    drawings = [write(figures, tmp_path / name).with_name(DRAWING).read_bytes() for name in ("a", "b")]
    assert drawings[0] == drawings[1]


def test_violations_stand_at_the_top() -> None:
    found = outcome()
    found.violations = ["round r0: 3 operations\nviolation: key 'k': lost write", "n1 said: unhandled error"]
    text = page(figures_of(found, settings(), ABOUT))
    assert text.startswith("# Soak run: VIOLATED")
    assert text.index("lost write") < text.index("## Calls")
    assert "VIOLATED: round r0: 3 operations (and 1 more)" in last_line(found)


def test_without_a_drawing_the_page_says_why(tmp_path: Path) -> None:
    found = Outcome(violations=["nothing came of it"])
    path = write(figures_of(found, settings(), ABOUT), tmp_path)
    assert "no call was answered" in path.read_text()
    assert not (tmp_path / DRAWING).exists()


def test_the_last_line_of_a_fine_run() -> None:
    assert last_line(outcome()) == (
        "rcache-soak: FINE: 1000 operations are linearizable through 3 faults; longest gap 1.4 s, 1 false suspicions"
    )
    assert (FINE, VIOLATED) == (0, 1)


# --- the command line


def test_a_command_is_understood() -> None:
    given = ["--nodes", "5", "--seconds", "10", "--seed", "3", "--manager", "etcd"]
    given += ["--faults", "kill,cut,kill", "--clients", "4", "--fsync", "always"]
    command = read_command(given)
    found = command.settings
    assert (found.nodes, found.seconds, found.seed, found.manager) == (5, 10.0, 3, "etcd")
    assert found.kinds == (Kind.KILL, Kind.CUT)
    assert found.birth == Birth(64, 1, "always")
    assert command.text == "rcache-soak " + " ".join(given)


def test_a_drawn_seed_is_part_of_the_command() -> None:
    command = read_command(["--quick"])
    assert command.text == f"rcache-soak --quick --seed {command.settings.seed}"
    assert command.settings.seconds == 15.0
    assert Kind.REGISTER not in command.settings.kinds


@pytest.mark.parametrize(
    "wrong",
    [
        "--nodes 1",
        "--nodes 6",
        "--seconds 0",
        "--faults kill,earthquake",
        "--faults register",
        "--backups 3",
        "--buckets 48",
        "--history /proc/self/status",
        "--history /nowhere/at/all",
        "--clients 9",
    ],
)
def test_a_wrong_command_is_told(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_command(wrong.split())
    assert ended.value.code == 2
    assert wrong.split(maxsplit=1)[0].lstrip("-") in capsys.readouterr().err


def test_what_clients_are_told_survives_its_json() -> None:
    spec = Spec(["127.0.0.1:1"], 2, 2, 7, 123, "/tmp/x", 5.0, LOAD)
    assert Spec.from_json(spec.to_json()) == spec


def test_what_clients_counted_survives_its_json() -> None:
    counts = Counts()
    counts.outcomes["ok"] += 1
    counts.errors["Busy"] += 2
    assert Counts(**json.loads(json.dumps(counts.to_json()))) == counts
