"""The direction of the imports: each floor imports only from those below it, and an arrow that points up fails here.

What it is: a walk over the source (never imported, only parsed) of the packages, and two tables: the floors, and the
packages from outside that only some of them may use. An import counts wherever it stands: in a function and under
`TYPE_CHECKING` too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

CLIENT = ("rcache_client.wire", "rcache_client")

FLOORS: dict[str, tuple[str, ...]] = {
    "rcache_client.wire": (),
    "rcache_client": ("rcache_client.wire",),
    "rcache": (),
    "rcache.records": ("rcache_client.wire", "rcache"),
    "rcache.cluster": (*CLIENT, "rcache", "rcache.records"),
    "rcache.engine": (*CLIENT, "rcache", "rcache.records", "rcache.cluster"),
    "rcache.stream": (*CLIENT, "rcache", "rcache.records", "rcache.cluster", "rcache.engine"),
    "rcache.feeds": (*CLIENT, "rcache", "rcache.records", "rcache.cluster", "rcache.engine"),
    "rcache.logger": (*CLIENT, "rcache", "rcache.records", "rcache.cluster", "rcache.engine", "rcache.stream"),
    "rcache.peers": (*CLIENT, "rcache", "rcache.records", "rcache.cluster", "rcache.engine", "rcache.stream"),
    "rcache.agreement": (
        *(*CLIENT, "rcache", "rcache.records", "rcache.cluster", "rcache.engine", "rcache.stream"),
        "rcache.peers",
    ),
    "rcache.member": (
        *(*CLIENT, "rcache", "rcache.records", "rcache.cluster", "rcache.engine", "rcache.stream"),
        *("rcache.peers", "rcache.agreement"),
    ),
    "rcache.server": (
        *(*CLIENT, "rcache", "rcache.records", "rcache.cluster", "rcache.engine", "rcache.stream"),
        *("rcache.peers", "rcache.agreement", "rcache.member", "rcache.feeds"),
    ),
    "rcache.commands": (
        *(*CLIENT, "rcache", "rcache.records", "rcache.cluster", "rcache.engine", "rcache.stream"),
        *("rcache.peers", "rcache.agreement", "rcache.member", "rcache.server", "rcache.logger"),
    ),
    "soak": (
        *(*CLIENT, "rcache", "rcache.records", "rcache.cluster", "rcache.engine", "rcache.stream"),
        *("rcache.peers", "rcache.agreement", "rcache.member", "rcache.server", "rcache.commands"),
    ),
}
"""From low to high, with what each may import from beside itself. "rcache" is its `__init__` alone: the version number."""

PACKAGES: dict[str, tuple[str, ...]] = {
    "sortedcontainers": ("rcache.cluster", "rcache.engine", "rcache.stream", "rcache.server", "rcache.commands"),
    "configargparse": ("rcache.server", "rcache.commands"),
    "loguru": (
        *("rcache.feeds", "rcache.logger", "rcache.peers", "rcache.agreement", "rcache.member"),
        *("rcache.server", "rcache.commands"),
    ),
    "rich": ("rcache.commands", "soak"),
    "matplotlib": ("soak",),
}
"""Packages from outside, and the floors that may use them. The client and the formats use the standard library only."""

FORBIDDEN: dict[str, tuple[str, ...]] = {
    "rcache_client.wire": ("socket", "ssl", "select", "selectors", "asyncio", "threading", "queue", "time", "datetime", "os"),
    "rcache.records": ("socket", "ssl", "select", "selectors", "asyncio", "threading", "queue", "time"),
}
"""Parts of the standard library that the ground floor must not know: no sockets, no threads, no clock."""

ROOTS = ("rcache_client", "rcache", "soak")


def floor_of(module: str) -> str | None:
    """The floor of a module of ours, or None for anyone else's."""
    fitting = [floor for floor in FLOORS if module == floor or module.startswith(floor + ".")]
    return max(fitting, key=len, default=None)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(node: ast.AST, package: str) -> list[str]:
    """What one node imports, as far down as it says: `from a.b import c` is `a.b.c`, whatever c may be."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        stem = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{stem}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and node.args:
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        return [name] if called in ("import_module", "__import__") and isinstance(name, str) else []
    return []


def arrows(root: Path) -> Iterator[tuple[str, int, str]]:
    """Every import of every module: (module, line, what it imports)."""
    for path in sorted(path for name in ROOTS for path in (root / name).rglob("*.py")):
        module = module_name(path, root)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            for name in imported_names(node, package):
                yield module, getattr(node, "lineno", 0), name


def complaint(floor: str, name: str) -> str | None:
    """Why a module of this floor must not import this, or None where it may."""
    top = name.partition(".")[0]
    target = floor_of(name)
    if target is not None:
        allowed = target == floor or target in FLOORS[floor]
        return None if allowed else f"{floor} must not import from {target}"
    if top in sys.stdlib_module_names:
        return f"{floor} must not know {top}" if top in FORBIDDEN.get(floor, ()) else None
    if floor in PACKAGES.get(top, ()):
        return None
    return f"{floor} must not use the package {top}"


def upward_arrows(root: Path) -> list[str]:
    """Every import that points up, or out to where its floor may not go."""
    found = []
    for module, line, name in arrows(root):
        floor = floor_of(module)
        why = complaint(floor, name) if floor else "belongs to no floor"
        if why:
            found.append(f"{module}:{line} imports {name}: {why}")
    return found


def homeless_modules(root: Path) -> list[str]:
    """Modules right under `rcache`, or in a folder of it that the table does not name."""
    modules = [module_name(path, root) for path in sorted((root / "rcache").rglob("*.py"))]
    return [module for module in modules if floor_of(module) == "rcache" and module != "rcache"]


def test_no_arrow_points_up() -> None:
    assert upward_arrows(PROJECT) == []


def test_every_module_has_a_floor() -> None:
    assert homeless_modules(PROJECT) == []


def test_the_walk_sees_the_project() -> None:
    """An empty walk would find nothing wrong either."""
    seen = list(arrows(PROJECT))
    assert ("rcache_client.wire.frames", "rcache_client.wire.opcodes.Status") in {(module, name) for module, _, name in seen}
    assert {floor_of(module) for module, _, _ in seen} >= {"rcache_client.wire", "rcache_client", "rcache.records"}


def test_the_table_goes_from_low_to_high() -> None:
    """So no two floors can ever import each other."""
    order = list(FLOORS)
    for floor, below in FLOORS.items():
        assert all(order.index(lower) < order.index(floor) for lower in below), floor


PLANTED = {
    "to the next floor": ("rcache/engine/planted.py", "from rcache.stream.ring import Ring", "rcache.stream"),
    "from the ground to the top": ("rcache/records/planted.py", "import rcache.commands.rcached", "rcache.commands"),
    "as a name of the package": ("rcache/stream/planted.py", "from rcache import server", "rcache.server"),
    "relative": ("rcache/engine/planted.py", "from ..server import listener", "rcache.server"),
    "relative from an init": ("rcache/engine/__init__.py", "from ..server.listener import Listener", "rcache.server"),
    "inside a function": ("rcache/engine/planted.py", "def f():\n    from rcache import commands", "rcache.commands"),
    "for the type checker only": (
        *("rcache/cluster/planted.py", "if TYPE_CHECKING:\n    from rcache.engine.contract import Engine"),
        "rcache.engine",
    ),
    "by name at run time": ("rcache/engine/planted.py", "importlib.import_module('rcache.server.worker')", "rcache.server"),
    "client to server": ("rcache_client/planted.py", "from rcache import __version__", "from rcache"),
    "client to records": ("rcache_client/planted.py", "import rcache.records.record", "rcache.records"),
    "wire to client": ("rcache_client/wire/planted.py", "from rcache_client.pool import Pool", "from rcache_client"),
    "records to client": ("rcache/records/planted.py", "from rcache_client import Client", "from rcache_client"),
    "stream to agreement": ("rcache/stream/planted.py", "import rcache.agreement.etcd", "rcache.agreement"),
    "server to soak": ("rcache/server/planted.py", "import soak.checker", "soak"),
    "wire knows sockets": ("rcache_client/wire/planted.py", "from socket import create_connection", "must not know socket"),
    "wire knows threads": ("rcache_client/wire/planted.py", "import threading", "must not know threading"),
    "wire knows the time": ("rcache_client/wire/planted.py", "import time", "must not know time"),
    "client logs with loguru": ("rcache_client/planted.py", "from loguru import logger", "package loguru"),
    "engine logs with loguru": ("rcache/engine/planted.py", "import loguru", "package loguru"),
    "stream reads options": ("rcache/stream/planted.py", "import configargparse", "package configargparse"),
    "server paints tables": ("rcache/server/planted.py", "from rich.table import Table", "package rich"),
    "a package nobody named": ("rcache/commands/planted.py", "import requests", "package requests"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_arrow_is_found(kind: str, tmp_path: Path) -> None:
    file, text, told = PLANTED[kind]
    plant(tmp_path, file, text)
    (found,) = upward_arrows(tmp_path)
    assert told in found
    assert found.startswith(module_name(tmp_path / file, tmp_path) + ":")


ALLOWED = {
    "down": ("rcache/server/planted.py", "from rcache.engine.contract import Engine\nimport rcache.records"),
    "within a floor": ("rcache/server/planted.py", "from rcache.server import worker\nfrom . import listener"),
    "wire from records": ("rcache/records/planted.py", "from rcache_client.wire import countdown"),
    "client from cluster": ("rcache/cluster/planted.py", "from rcache_client import Client"),
    "version from anywhere": ("rcache/stream/planted.py", "from rcache import __version__"),
    "client and sockets": ("rcache_client/planted.py", "import socket, threading, time\nfrom rcache_client.wire import frames"),
    "loguru in the server": ("rcache/server/planted.py", "from loguru import logger"),
    "all of it from soak": ("soak/planted.py", "import rcache.server\nfrom rcache_client import Client\nimport rich"),
}


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_is_allowed_is_not_complained_of(kind: str, tmp_path: Path) -> None:
    plant(tmp_path, *ALLOWED[kind])
    assert upward_arrows(tmp_path) == []


def test_a_module_without_a_floor_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "rcache/__init__.py", "")
    plant(tmp_path, "rcache/stray.py", "")
    plant(tmp_path, "rcache/attic/old.py", "")
    assert homeless_modules(tmp_path) == ["rcache.attic.old", "rcache.stray"]


def plant(root: Path, file: str, text: str) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
