"""The client in a process that has nothing but the standard library, against a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import rcache_client

from .conftest import Serve

ROOT = Path(rcache_client.__file__).parent.parent

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from rcache_client import Client
with Client(sys.argv[2]) as cache:
    cache.set("greeting", b"hello", ttl=60)
    assert cache.get("greeting") == b"hello"
    assert cache.incr("count", initial=1) == 1
    assert cache.incr("count") == 2
    cache.set_many({"a": b"1", "b": b"2"})
    assert cache.get_many(["a", "b", "c"]) == {"a": b"1", "b": b"2"}
    assert cache.cas("a", b"3", previous=b"1")
    assert not cache.cas("a", b"4", previous=b"1")
print("done", *sorted(name for name in sys.modules if name.split(".")[0] in ("rcache", "loguru", "sortedcontainers")))
"""


def test_a_client_of_the_standard_library_alone(serve: Serve) -> None:
    server = serve()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", PROGRAM, str(ROOT), server.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
