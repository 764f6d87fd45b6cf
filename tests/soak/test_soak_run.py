"""rcache-soak for real: short runs of a few seconds, which must prove what they say and leave nothing behind.

The time of each is bounded: a run breaks things for some seconds, and every wait in it ends at a deadline.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from soak.checker import verify
from soak.cluster.network import Network
from soak.cluster.shim import NoShim, Steering, built_shim
from soak.history import read_history

ROOT = Path(__file__).parents[2]
RUN_S = 150.0
"""Far more than a run of some seconds takes, on a machine that does much else."""


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "soak.cluster", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
        cwd=ROOT,
    )


def processes_below(directory: Path) -> list[str]:
    """The command lines of processes that work in a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line:
            found.append(line)
    return found


@pytest.mark.timeout(RUN_S + 20)
def test_a_short_run_breaks_and_proves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    report, history = tmp_path / "report", tmp_path / "history"
    ran = soak("--quick", "--seconds", "10", "--seed", "5", "--faults", "kill,pause", "--rate", "100", "--keys", "60",
               "--report", str(report), "--history", str(history))  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "seed 5" in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith("rcache-soak: FINE: ")
    figures = json.loads((report / "figures.json").read_text())
    assert {"kill", "pause"} == {fault["kind"] for fault in figures["faults"]}
    operations = read_history([history]).operations
    assert len(operations) == figures["checked"]["operations"] > 500
    assert verify(operations).fine
    kills = [fault for fault in figures["faults"] if fault["kind"] == "kill"]
    assert all(fault["recovery_s"] < 60 for fault in kills)
    assert processes_below(tmp_path) == []


@pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")
@pytest.mark.timeout(RUN_S + 20)
def test_a_short_run_on_etcd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ran = soak("--quick", "--seconds", "6", "--seed", "2", "--nodes", "2", "--manager", "etcd", "--faults", "kill,clock,pause",
               "--rate", "100", "--keys", "60", "--no-listeners", "--report", str(tmp_path / "report"))  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert processes_below(tmp_path) == []


@pytest.mark.timeout(60)
def test_a_run_that_is_ended_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-m", "soak.cluster", "--nodes", "2", "--seed", "1"], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if "whole" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.wait(30) == 3
    assert processes_below(tmp_path) == []


def test_no_etcd_is_no_proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = soak("--quick", "--manager", "etcd", "--nodes", "2")
    assert ran.returncode == 3
    assert "etcd is not installed" in ran.stderr


def test_a_clock_and_a_disk_of_its_own(tmp_path: Path) -> None:
    try:
        library = built_shim(tmp_path)
    except NoShim as why:
        pytest.skip(str(why))
    disk = tmp_path / "disk"
    disk.mkdir()
    steering = Steering(tmp_path / "page", disk)
    steering.step_clock(-3 * 3600)
    steering.fill_disk(True)
    program = (
        "import os, sys, time\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(os.write(os.open(name, os.O_CREAT | os.O_WRONLY), b'x'))\n"
        "    except OSError as error: print(error.errno)\n"
        "print(int(time.time()), int(time.monotonic()), int(time.clock_gettime(time.CLOCK_BOOTTIME)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(disk / "a"), str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=True,
        env=steering.environment(library),
    )
    full, free, clocks = ran.stdout.splitlines()
    assert (full, free) == ("28", "1")  # ENOSPC there, and room beside it
    wall, monotonic, boot = map(int, clocks.split())
    assert abs(wall - (time.time() - 3 * 3600)) < 30
    assert abs(monotonic - time.monotonic()) < 30
    assert abs(boot - time.clock_gettime(time.CLOCK_BOOTTIME)) < 30


def test_a_proxy_that_is_gone_is_told() -> None:
    from soak.cluster.errors import SoakFailed

    network = Network()
    network.close()
    with pytest.raises(SoakFailed):
        network.heal()
