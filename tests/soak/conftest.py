"""The load programs, built for the tests that run them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from soak.bench import drivers as drivers_module
from soak.bench.drivers import COMPILE, Drivers, built_drivers

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    """With the sanitizers, where the compiler has them."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    probe = tmp_path_factory.mktemp("probe") / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    sanitized = subprocess.run([compiler, *SANITIZE, "-o", str(probe.with_suffix("")), str(probe)], check=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # they leave their memory to their end
        if sanitized.returncode == 0:
            patch.setattr(drivers_module, "COMPILE", (*COMPILE, *SANITIZE))
        with built_drivers() as built:
            yield built
