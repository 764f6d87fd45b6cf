"""Run a program under what the systemd unit allows: `python confined.py UNIT PROGRAM [ARGUMENT...]`.

What it is: SystemCallFilter= (its sets as systemd-analyze here has them), SystemCallErrorNumber=EPERM, MemoryDenyWriteExecute=,
and LimitNOFILE=, laid on this process by libseccomp before it becomes the program. What needs a service manager (namespaces,
the account, the protection of files) is not there.
Which thread runs it: the main thread. What it owns: nothing after it has become the program.
What it must not know: rcache.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LIBRARY = "libseccomp.so.2"

ALLOW = 0x7FFF0000
REFUSE_EPERM = 0x00050000 | errno.EPERM
MASKED_EQUAL = 7
PROTECTION = 2
"""The third argument of mmap and of mprotect."""


class Compare(ctypes.Structure):
    """struct scmp_arg_cmp: the argument's bits under the mask `first` are `second`."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def settings(unit: Path, name: str) -> list[str]:
    return re.findall(rf"^{re.escape(name)}=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)


def resolved(names: Iterable[str]) -> set[str]:
    """Calls by name; an @set is what systemd says is in it."""
    calls: set[str] = set()
    for name in names:
        if not name.startswith("@"):
            calls.add(name)
            continue
        said = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True).stdout
        inside = [line.strip() for line in said.splitlines()[1:]]
        calls |= resolved(line for line in inside if line and not line.startswith("#"))
    return calls


def allowed_calls(unit: Path) -> set[str]:
    """SystemCallFilter=, line by line: the first allows, one with a ~ takes away."""
    calls: set[str] = set()
    for line in settings(unit, "SystemCallFilter"):
        names = resolved(line.removeprefix("~").split())
        calls = calls - names if line.startswith("~") else calls | names
    return calls


def filter_calls(calls: set[str]) -> None:
    """Lay the filter on this process. Memory that was made executable must never have been writable, nor become it."""
    library = ctypes.CDLL(LIBRARY, use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(REFUSE_EPERM)))
    without = {"mmap": (mmap.PROT_WRITE, mmap.PROT_EXEC), "mprotect": (mmap.PROT_EXEC,), "pkey_mprotect": (mmap.PROT_EXEC,)}
    for name in calls:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another architecture
            continue
        rules = [[Compare(PROTECTION, MASKED_EQUAL, bit, 0)] for bit in without.get(name, ())] or [[]]
        for rule in rules:
            compared = (Compare * len(rule))(*rule)
            failed = library.seccomp_rule_add_array(context, ctypes.c_uint32(ALLOW), number, len(rule), compared)
            assert failed == 0, (name, failed)
    failed = library.seccomp_load(context)
    assert failed == 0, failed


def main() -> None:
    unit, program = Path(sys.argv[1]), sys.argv[2:]
    files = min(int(settings(unit, "LimitNOFILE")[0]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    calls = allowed_calls(unit)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    assert settings(unit, "MemoryDenyWriteExecute") == ["yes"], "then mmap and mprotect are as free as the rest"
    filter_calls(calls)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
