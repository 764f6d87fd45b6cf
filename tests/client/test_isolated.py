"""The package stands on the standard library alone, and its guide is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import rcache_client
from rcache_client import Client

from .scripted_server import ScriptedServer

ROOT = Path(rcache_client.__file__).parent.parent
GUIDE = ROOT / "docs" / "client.md"


def test_it_imports_without_any_installed_package() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import rcache_client; rcache_client.Client('h:1').close()"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_public_names_exist_and_are_sorted() -> None:
    assert sorted(rcache_client.__all__, key=str.lower) == sorted(set(rcache_client.__all__), key=str.lower)
    for name in rcache_client.__all__:
        assert hasattr(rcache_client, name)


def test_every_error_is_in_the_guide() -> None:
    text = GUIDE.read_text()
    errors = [
        n
        for n in rcache_client.__all__
        if isinstance(getattr(rcache_client, n), type) and issubclass(getattr(rcache_client, n), Exception)
    ]
    assert len(errors) > 15
    for name in errors:
        assert f"`{name}`" in text, name


def test_every_call_is_in_the_guide() -> None:
    text = GUIDE.read_text()
    for name in dir(Client):
        if not name.startswith("_"):
            assert re.search(rf"`{name}\b", text), name


EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL) if GUIDE.exists() else []


@pytest.mark.parametrize("example", EXAMPLES, ids=[e.splitlines()[0][:40] for e in EXAMPLES])
def test_the_guides_examples_run(example: str, server: ScriptedServer) -> None:
    exec(compile(example.replace("127.0.0.1:13600", server.address), str(GUIDE), "exec"), {})


def test_the_guide_has_examples() -> None:
    assert len(EXAMPLES) >= 5
