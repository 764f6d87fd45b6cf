"""setup.py as a build meets it: with a compiler, without one, and with a part that does not compile.

Each build is of a small copy: the real setup.py, and a line of Cython in place of each compiled part."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("rcache.engine.native._native", "rcache.records._rows", "rcache.records._walk")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
NO_COMPILER = {"CC": "/nonexistent"}
STALE = b"of an earlier build"

pytest.importorskip("Cython", reason="Cython is not installed (pip install 'rcache[dev]')")

needs_compiler = pytest.mark.skipif(
    shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is None
    or not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="there is no C compiler here, or no Python.h",
)


def source(tree: Path, module: str) -> Path:
    return tree / (module.replace(".", "/") + ".pyx")


def built(tree: Path, module: str) -> Path:
    return tree / (module.replace(".", "/") + SUFFIX)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small copy, with stale parts beside their sources."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "small"\nversion = "0"\n[tool.setuptools]\npackages = ["rcache"]\n'
    )
    for module in MODULES:
        source(tmp_path, module).parent.mkdir(parents=True, exist_ok=True)
        source(tmp_path, module).write_text("answer = 42\n")
        built(tmp_path, module).write_bytes(STALE)
    return tmp_path


def build(tree: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if name not in ("RCACHE_REQUIRE_NATIVE", "RCACHE_SANITIZE")}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=tree, env=clean | variables, capture_output=True, text=True, check=False, timeout=100)


def named_in_warning(said: str) -> list[str]:
    """The modules that the warning names."""
    return re.findall(r"^\*   (rcache\.\S+)$", said.partition("rcache WARNING")[2], re.MULTILINE)


@needs_compiler
def test_with_a_compiler_everything_is_built_and_nothing_is_said(tree: Path) -> None:
    ended = build(tree, RCACHE_REQUIRE_NATIVE="1")
    assert ended.returncode == 0, ended.stderr
    assert "rcache WARNING" not in ended.stderr
    program = "; ".join(f"import {module}; assert {module}.answer == 42" for module in MODULES)
    subprocess.run([sys.executable, "-c", program], cwd=tree, check=True)


@needs_compiler
def test_once_the_compiler_is_gone_nothing_is_left_of_an_earlier_build(tree: Path) -> None:
    """A part of older sources would be used with newer Python code."""
    assert build(tree).returncode == 0
    for module in MODULES:
        source(tree, module).write_text("answer = 43\n")
        os.utime(source(tree, module), (2**31 - 2, 2**31 - 2))  # newer than what was built a moment ago
    ended = build(tree, **NO_COMPILER)
    assert ended.returncode == 0, ended.stderr
    assert list(tree.rglob(f"*{SUFFIX}")) == [], "neither beside the source nor in build/"


def test_without_a_compiler_the_build_goes_on_and_warns(tree: Path) -> None:
    ended = build(tree, **NO_COMPILER)
    assert ended.returncode == 0, ended.stderr
    assert named_in_warning(ended.stderr) == sorted(MODULES)
    assert "/nonexistent" in ended.stderr, "what stood in the way"
    assert max(map(len, ended.stderr.partition("rcache WARNING")[2].splitlines())) <= 120
    assert list(tree.rglob(f"*{SUFFIX}")) == []


@needs_compiler
def test_a_part_that_does_not_compile_is_left_out_alone(tree: Path) -> None:
    source(tree, MODULES[1]).write_text('cdef extern from "no/such/header.h":\n    int answer\n')
    ended = build(tree)
    assert ended.returncode == 0, ended.stderr
    assert named_in_warning(ended.stderr) == [MODULES[1]]
    assert [built(tree, module).exists() for module in MODULES] == [True, False, True]


def test_where_they_are_required_a_build_without_them_fails(tree: Path) -> None:
    ended = build(tree, RCACHE_REQUIRE_NATIVE="1", **NO_COMPILER)
    assert ended.returncode != 0
    assert "/nonexistent" in ended.stderr
