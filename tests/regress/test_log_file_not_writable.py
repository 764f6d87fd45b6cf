"""A --log-file that could not be opened once ended the start with a traceback and exit code 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak.server_process import ServerProcess


@pytest.mark.parametrize("place", ["/proc/no/such/place.log", "."])
def test_a_log_file_that_cannot_be_opened_is_wrong_use(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    with ServerProcess(tmp_path / "data", "--log-file", str(path), start=False) as server:
        server.launch()
        assert server.wait() == 2
        lines = server.stderr_text.splitlines()
    assert len(lines) == 1, lines
    assert f"--log-file: {str(path)!r}" in lines[0]
