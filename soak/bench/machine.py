"""The machine: what the figures depend on, and what the kernel counts of a process.

What it is: readings of /proc, the limit of open files, and the disk's own rate.
Which thread runs it: the benchmark's only one.
What it owns: nothing that outlives a call.
What it must not know: which server a process is.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import time
from pathlib import Path

from soak.bench.errors import BenchError

BLOCK = 1 << 20
"""Bytes of one write where the disk is measured: as large as an append log ever writes at once."""

SETTLED_SHARE = 0.05
SETTLE_LOOK_S = 0.2
SETTLE_S = 60.0
"""A process has settled when it takes less than this share of a processor for this long; it gets so long for that."""


def describe_machine(directory: Path) -> dict[str, str]:
    """What the numbers depend on; the servers keep their files in `directory`."""
    models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{memory / (1 << 30):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": file_system(directory),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def file_system(directory: Path) -> str:
    """The kind of file system that `directory` lies on: of its mounts the one with the longest path, and of those the last."""
    here, best, kind = str(directory.resolve()), "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        point, of_kind = line.split()[1:3]
        if len(point) >= len(best) and (here == point or here.startswith(point.rstrip("/") + "/")):
            best, kind = point, of_kind
    return kind


def allow_open_files(count: int) -> None:
    """Allow this process, and the servers it starts, `count` open files. Raises `BenchError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise BenchError(f"this account may open {hard} files at once; {count} are needed (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def resident_bytes(pid: int) -> int:
    """The resident memory of a process. Raises `BenchError` where it has none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise BenchError(f"process {pid} cannot be looked at: {error}") from error
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise BenchError(f"process {pid} has no resident memory")
    return int(found[1]) * 1024


def written_bytes(pid: int) -> int:
    """What a process has given the file system to be written, log and all else; its children are not counted."""
    try:
        counters = Path(f"/proc/{pid}/io").read_text(encoding="ascii")
    except OSError as error:
        raise BenchError(f"process {pid} cannot be looked at: {error}") from error
    return int(re.findall(r"^write_bytes: (\d+)$", counters, re.MULTILINE)[0])


def processor_s(pid: int) -> float:
    """The processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settle(pid: int, timeout_s: float = SETTLE_S) -> bool:
    """Wait until a process is idle, so that its after-work is not measured as another's; False where it never is."""
    deadline = time.monotonic() + timeout_s
    used = processor_s(pid)
    while time.monotonic() < deadline:
        time.sleep(SETTLE_LOOK_S)
        before, used = used, processor_s(pid)
        if used - before <= SETTLED_SHARE * SETTLE_LOOK_S:
            return True
    return False


def files_bytes(directory: Path) -> int:
    """The sizes of all files below `directory` together. Files may come and go meanwhile."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def write_out(directory: Path) -> None:
    """Have every file below `directory` on the disk, so that nobody else's measurement waits for it."""
    for path in directory.rglob("*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # gone by now, or a socket: nothing of it waits to be written
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sequential_write_rate(directory: Path, size: int) -> float:
    """Bytes a second that the disk takes: `size` bytes in blocks one after the other, then fdatasync. Blocks for that long."""
    path, block = directory / "sequential", os.urandom(BLOCK)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        began, written = time.monotonic(), 0
        while written < size:
            written += os.write(descriptor, block[: size - written])
        os.fdatasync(descriptor)
        return written / (time.monotonic() - began)
    finally:
        os.close(descriptor)
        path.unlink()
