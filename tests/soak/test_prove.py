"""Several seeds, one table: the worst run decides, and none of them is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak import prove
from soak.cluster.command import FINE, NOT_RUN, VIOLATED
from soak.prove import TABLE, Ran, worst

PLAYED = """
import json, pathlib, sys
given = sys.argv[1:]
seed, report = int(given[len(given) - given[::-1].index("--seed")]), pathlib.Path(given[given.index("--report") + 1])
print("said by", seed)
code = {2: 1, 3: 3}.get(seed, 0)
if code != 3:
    report.mkdir()
    faults = [{"gap_s": 1.25, "recovery_s": 0.5}, {"gap_s": 0.0, "recovery_s": 2.0}]
    figures = {"faults": faults, "checked": {"operations": 1000 * seed}, "suspicions": {"false": []}}
    (report / "figures.json").write_text(json.dumps(figures))
sys.exit(code)
"""


@pytest.fixture
def _played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m soak.cluster` is a play: seed 2 finds something, seed 3 cannot be carried out."""
    package = tmp_path / "root" / "soak" / "cluster"
    package.mkdir(parents=True)
    for each in (package.parent, package):
        (each / "__init__.py").touch()
    (package / "__main__.py").write_text(PLAYED)
    monkeypatch.setattr(prove, "ROOT", tmp_path / "root")


@pytest.mark.usefixtures("_played")
@pytest.mark.parametrize(("seeds", "code"), [("1,4", FINE), ("1,3,4", NOT_RUN), ("3,2,1", VIOLATED)])
def test_each_seed_is_a_row_and_the_worst_decides(
    seeds: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prove.main(["--seeds", seeds, "--report", str(out), "--nodes", "5"]) == code
    table = (out / TABLE).read_text()
    assert capsys.readouterr().out == table
    rows = table.splitlines()[2:]
    assert [int(row.split("|")[2]) for row in rows] == [int(seed) for seed in seeds.split(",")]
    expected = {
        1: "| `rcache-soak --nodes 5` | 1 | 1,000 | 2 | 1.2 | 2.0 | 0 | FINE |",
        2: "| `rcache-soak --nodes 5` | 2 | 2,000 | 2 | 1.2 | 2.0 | 0 | **VIOLATED** |",
        3: "| `rcache-soak --nodes 5` | 3 | | | | | | not run |",
        4: "| `rcache-soak --nodes 5` | 4 | 4,000 | 2 | 1.2 | 2.0 | 0 | FINE |",
    }
    assert rows == [expected[int(seed)] for seed in seeds.split(",")]
    assert (out / f"seed-{seeds[0]}.log").read_text() == f"said by {seeds[0]}\n"


def test_figures_of_a_run_before_are_not_taken_for_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "seed-1").mkdir()
    with pytest.raises(SystemExit) as ended:
        prove.main(["--seeds", "1", "--report", str(tmp_path)])
    assert ended.value.code == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.usefixtures("_played")
def test_what_is_given_beside_goes_to_each_run_unread(tmp_path: Path) -> None:
    assert prove.main(["--seeds", "1", "--report", str(tmp_path / "out"), "--seed", "9"]) == FINE
    assert "| `rcache-soak --seed 9` | 1 | 1,000 |" in (tmp_path / "out" / TABLE).read_text()


def test_what_nobody_expects_is_the_worst() -> None:
    assert worst([FINE, VIOLATED, -9, NOT_RUN]) == -9
    assert worst([FINE, NOT_RUN]) == NOT_RUN
    assert "exit code -9" in Ran([], 1, -9, None).row()
