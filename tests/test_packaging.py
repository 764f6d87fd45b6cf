"""What stands around the program: the systemd unit, the account, the package's own description."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rcache.commands.exit_codes import ExitCode
from rcache.commands.options import parse

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "systemd" / "rcached.service"
EXPOSURE_MAX = 20
"""Tenths: systemd-analyze calls 2.0 and less "OK"."""

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: apt-get install systemd)"
)


def settings(name: str) -> list[str]:
    """All values the unit gives `name`, in order."""
    return re.findall(rf"^{re.escape(name)}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def unit_here(tmp_path: Path) -> Path:
    """A copy of the unit whose program is there: `verify` looks for it, and /opt/rcache is not on a development machine."""
    program = tmp_path / "rcached"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m rcache.commands.rcached\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("ExecStart=/opt/rcache/bin/rcached", f"ExecStart={program}"))
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"SYSTEMD_COLORS": "0", "SYSTEMD_LOG_LEVEL": "warning"}
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False, env=environ)


@needs_systemd_analyze
def test_systemd_finds_nothing_wrong_with_the_unit(unit_here: Path) -> None:
    verified = analyze("verify", "--man=no", str(unit_here))
    complaints = [line for line in verified.stderr.splitlines() if UNIT.name in line or str(unit_here) in line]
    assert complaints == []
    assert verified.returncode == 0, verified.stderr


@needs_systemd_analyze
def test_systemd_would_find_what_is_wrong(unit_here: Path) -> None:
    unit_here.write_text(unit_here.read_text().replace("WatchdogSec=", "WatchDogSec="))
    assert "WatchDogSec" in analyze("verify", "--man=no", str(unit_here)).stderr


@needs_systemd_analyze
def test_the_unit_is_hardened(unit_here: Path) -> None:
    judged = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager", str(unit_here))
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert "Overall exposure level" in judged.stdout


def test_the_unit_tells_systemd_the_truth() -> None:
    assert settings("Type") == ["notify"]
    assert settings("NotifyAccess") == ["main"]
    assert settings("KillSignal") == ["SIGTERM"]
    assert settings("WatchdogSec")


def test_the_unit_restarts_on_what_a_restart_can_mend() -> None:
    assert settings("Restart") == ["on-failure"]
    prevented = {ExitCode(int(code)) for code in settings("RestartPreventExitStatus")[0].split()}
    assert prevented == {ExitCode.WRONG_USE, ExitCode.DAMAGED_FILE, ExitCode.NOT_KEPT, ExitCode.APPEND_LOG_FAILED}


def test_the_unit_starts_with_options_that_exist_and_room_for_the_defaults(tmp_path: Path) -> None:
    shutil.copy(ROOT / "etc" / "rcache" / "rcached.conf", tmp_path)
    places = {"${CONFIGURATION_DIRECTORY}": str(tmp_path), "${STATE_DIRECTORY}": str(tmp_path / "state")}
    command = settings("ExecStart")[0]
    for variable, place in places.items():
        assert variable in command
        command = command.replace(variable, place)
    options = parse(command.split()[1:], {})
    assert options.data_dir == tmp_path / "state"
    assert int(settings("LimitNOFILE")[0]) > 2 * options.max_connections
    assert int(settings("TasksMax")[0]) > 2 * options.max_connections
    minutes = re.fullmatch(r"(\d+)min", settings("TimeoutStopSec")[0])
    assert minutes is not None
    assert int(minutes[1]) * 60 > 2 * options.stop_timeout


def test_the_account_of_the_unit_is_made_by_sysusers() -> None:
    made = re.findall(r"^u (\S+) ", (ROOT / "systemd" / "rcache.sysusers.conf").read_text(encoding="utf-8"), re.MULTILINE)
    assert made == settings("User") == settings("Group")


def test_the_package_names_programs_and_files_that_exist() -> None:
    described = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = described["project"]
    for entry in project["scripts"].values():
        module, _, function = entry.partition(":")
        assert function == "main"
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module
    assert all((ROOT / name).is_file() for name in [project["readme"], *project["license-files"]])
    shipped = described["tool"]["setuptools"]["data-files"]["share/rcache"]
    assert all((ROOT / name).is_file() for name in shipped)
    assert {Path(name).name for name in shipped} == {UNIT.name, "rcached.conf", "rcache.sysusers.conf"}
    assert {(ROOT / package / "py.typed").is_file() for package in ("rcache", "rcache_client")} == {True}


@pytest.mark.parametrize("package", ["rcache", "rcache_client"])
def test_every_folder_of_modules_is_a_package(package: str) -> None:
    """A folder without `__init__.py` works in a checkout and is missing from what pip installs."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
