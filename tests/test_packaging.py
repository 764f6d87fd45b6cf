"""What stands around the programs: the systemd units, the account, the package's own description."""

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
from rcache.commands.logger_options import parse as parse_logger
from rcache.commands.options import parse as parse_server

ROOT = Path(__file__).parents[1]
EXPOSURE_MAX = 20
"""Tenths: systemd-analyze calls 2.0 and less "OK"."""

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: apt-get install systemd)"
)


class Unit:
    """A program's unit."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.path = ROOT / "systemd" / f"{program}.service"

    def settings(self, name: str) -> list[str]:
        """All values the unit gives `name`, in order."""
        return re.findall(rf"^{re.escape(name)}=(.*)$", self.path.read_text(encoding="utf-8"), re.MULTILINE)


UNITS = [Unit("rcached"), Unit("rcache-logger")]
SERVER, LOGGER = UNITS
PREVENTED = {
    SERVER: {ExitCode.WRONG_USE, ExitCode.DAMAGED_FILE, ExitCode.NOT_KEPT, ExitCode.APPEND_LOG_FAILED},
    LOGGER: {ExitCode.WRONG_USE, ExitCode.DAMAGED_FILE, ExitCode.APPEND_LOG_FAILED},
}
"""What a restart does not mend."""


@pytest.fixture(params=UNITS, ids=lambda unit: unit.program)
def unit(request: pytest.FixtureRequest) -> Unit:
    assert isinstance(request.param, Unit)
    return request.param


@pytest.fixture
def unit_here(unit: Unit, tmp_path: Path) -> Path:
    """A copy of the unit whose program is there: `verify` looks for it, and /opt/rcache is not on a development machine."""
    program = tmp_path / unit.program
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m rcache.commands.{unit.program.replace('-', '_')}\n")
    program.chmod(0o755)
    copy = tmp_path / unit.path.name
    text = unit.path.read_text(encoding="utf-8")
    copy.write_text(text.replace(f"ExecStart=/opt/rcache/bin/{unit.program}", f"ExecStart={program}"))
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"SYSTEMD_COLORS": "0", "SYSTEMD_LOG_LEVEL": "warning"}
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False, env=environ)


@needs_systemd_analyze
def test_systemd_finds_nothing_wrong_with_the_unit(unit_here: Path) -> None:
    verified = analyze("verify", "--man=no", str(unit_here))
    complaints = [line for line in verified.stderr.splitlines() if unit_here.name in line]
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


def test_the_unit_tells_systemd_the_truth(unit: Unit) -> None:
    assert unit.settings("Type") == ["notify"]
    assert unit.settings("NotifyAccess") == ["main"]
    assert unit.settings("KillSignal") == ["SIGTERM"]
    assert unit.settings("WatchdogSec")


def test_the_unit_restarts_on_what_a_restart_can_mend(unit: Unit) -> None:
    assert unit.settings("Restart") == ["on-failure"]
    assert {ExitCode(int(code)) for code in unit.settings("RestartPreventExitStatus")[0].split()} == PREVENTED[unit]


def command_of(unit: Unit, place: Path) -> list[str]:
    """The arguments that the unit starts its program with, where its directories are in `place`."""
    shutil.copy(ROOT / "etc" / "rcache" / f"{unit.program}.conf", place)
    command = unit.settings("ExecStart")[0]
    for variable, path in {"${CONFIGURATION_DIRECTORY}": place, "${STATE_DIRECTORY}": place / "state"}.items():
        assert variable in command
        command = command.replace(variable, str(path))
    return command.split()[1:]


def assert_stops_in_time(unit: Unit, stop_timeout: float) -> None:
    minutes = re.fullmatch(r"(\d+)min", unit.settings("TimeoutStopSec")[0])
    assert minutes is not None
    assert int(minutes[1]) * 60 > 2 * stop_timeout


def test_the_unit_starts_with_options_that_exist_and_room_for_the_defaults(tmp_path: Path) -> None:
    options = parse_server(command_of(SERVER, tmp_path), {})
    assert options.data_dir == tmp_path / "state"
    assert int(SERVER.settings("LimitNOFILE")[0]) > 2 * options.max_connections
    assert int(SERVER.settings("TasksMax")[0]) > 2 * options.max_connections
    assert_stops_in_time(SERVER, options.stop_timeout)


def test_the_unit_of_a_logger_starts_with_options_that_exist(tmp_path: Path) -> None:
    options = parse_logger(command_of(LOGGER, tmp_path), {})
    assert options.dir == tmp_path / "state"
    assert_stops_in_time(LOGGER, options.stop_timeout)


def test_the_two_units_share_no_place_to_write_to() -> None:
    for name in ("StateDirectory", "WorkingDirectory"):
        assert SERVER.settings(name) != LOGGER.settings(name)


def test_the_units_are_hardened_alike() -> None:
    """What one of them may not do the other may not either."""
    told = [unit.path.read_text(encoding="utf-8").split("needs nothing else of this machine.\n")[1] for unit in UNITS]
    first, second = ([line for line in text.splitlines() if not line.startswith("#")] for text in told)
    assert first == second


def test_the_account_of_the_units_is_made_by_sysusers(unit: Unit) -> None:
    made = re.findall(r"^u (\S+) ", (ROOT / "systemd" / "rcache.sysusers.conf").read_text(encoding="utf-8"), re.MULTILINE)
    assert made == unit.settings("User") == unit.settings("Group")


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
    assert {Path(name).name for name in shipped} == {
        "rcache.sysusers.conf",
        *(name for unit in UNITS for name in (unit.path.name, f"{unit.program}.conf")),
    }
    assert {(ROOT / package / "py.typed").is_file() for package in ("rcache", "rcache_client")} == {True}


@pytest.mark.parametrize("package", ["rcache", "rcache_client"])
def test_every_folder_of_modules_is_a_package(package: str) -> None:
    """A folder without `__init__.py` works in a checkout and is missing from what pip installs."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
