"""The native code under the compiler's sanitizers: `python -m soak.sanitize [address|thread]`, which is `make sanitize`.

What it is: a copy of the source in build/sanitized/, built there with AddressSanitizer and UndefinedBehaviorSanitizer, or with
ThreadSanitizer; and what is run over it, each part in a process of its own. What was built for use is not touched.
Which thread runs it: the main one, alone. What it owns: build/sanitized.
What it must not know: what the tests test. A finding ends the process it was made in, and this program with 1.

Needs gcc with its sanitizers (Debian, Ubuntu: in libgcc-dev, which gcc brings along).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "rcache",
    "rcache_client",
    "soak",
    "tests",
    "docs",
    "etc",
    "pyproject.toml",
    "setup.py",
    "Makefile",
    "README.md",
    "LICENSE",
)
LEFT_OUT = shutil.ignore_patterns("*.so", "__pycache__", "*.c.o")

TESTS = (
    "tests/contract tests/wire tests/records tests/engine tests/stream tests/regress tests/integration/test_hostile_frames.py "
    "tests/integration/test_many_connections.py"
)
"""What runs under address,undefined. Nothing there takes so long that a sanitizer makes it pass pytest's time-out."""

REPORT = "report"
FUZZ = ("--seed", "1", "--inputs", "200000", "--seconds", "120")
FUZZ_PEERS = ("--seed", "1", "--inputs", "60000", "--seconds", "120")
STRESS = ("--seed", "1", "--seconds", "60")

KINDS = {"address": ("address,undefined", "libasan.so"), "thread": ("thread", "libtsan.so")}
OPTIONS = {
    # What CPython itself does not give back at its end is none of ours; an allocation that is refused is to be NULL, as it is
    # without the sanitizer.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=1:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=0:exitcode=66:second_deadlock_stack=1:history_size=7",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak.sanitize", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("kind", nargs="?", choices=sorted(KINDS), default="address")
    parser.add_argument("--build-only", action="store_true", help="build, and say with which environment to run something")
    parser.add_argument("pytest", nargs="*", help="address: these tests, and nothing else (after --)")
    options = parser.parse_args()
    tree = build(options.kind)
    environment = environment_for(options.kind, tree)
    if options.build_only:
        print(f"cd {tree} && env", *(f"'{key}={text}'" for key, text in added(environment).items()), "COMMAND")
        return 0
    return int(not all(run(command, tree, environment) for command in commands(options.kind, options.pytest)))


def run(command: list[str], tree: Path, environment: dict[str, str]) -> bool:
    """Whether it ended well, and nothing was found in it or in a process that it started."""
    print("+", *command, flush=True)
    for old in tree.glob(f"{REPORT}.*"):
        old.unlink()
    code = subprocess.run([*without_randomised_addresses(), sys.executable, *command], cwd=tree, env=environment, check=False)
    if code.returncode:
        print(f"ended with {code.returncode}: {' '.join(command)}", file=sys.stderr)
    reports = list(tree.glob(f"{REPORT}.*"))
    for report in reports:
        print(report.read_text(errors="replace"), file=sys.stderr)
    return not code.returncode and not reports


def build(kind: str) -> Path:
    """Copy and build, as far as something changed. Returns where."""
    tree = ROOT / "build" / "sanitized" / kind
    tree.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source, target = ROOT / name, tree / name
        if source.is_dir():
            for stale in [path for path in target.rglob("*.p*") if not (source / path.relative_to(target)).exists()]:
                if stale.suffix in (".py", ".pyi", ".pyx", ".pxd"):
                    stale.unlink()
            shutil.copytree(source, target, ignore=LEFT_OUT, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, target)
    environment = {**os.environ, "RCACHE_SANITIZE": KINDS[kind][0], "RCACHE_REQUIRE_NATIVE": "1"}
    # Python is built with -fwrapv, which makes signed overflow a matter of course; here it is none.
    environment["CFLAGS"] = f"{os.environ.get('CFLAGS', '')} -fno-wrapv".strip()
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, env=environment, check=True)
    return tree


def environment_for(kind: str, tree: Path) -> dict[str, str]:
    """What a Python that loads the sanitized modules needs: the sanitizer's library before everything else; and no pools of
    Python's own, which would hide the ends of small objects."""
    compiler = (sysconfig.get_config_var("CC") or "gcc").split()[0]
    found = subprocess.run([compiler, f"-print-file-name={KINDS[kind][1]}"], capture_output=True, text=True, check=True)
    preload = [str(Path(found.stdout.strip()).resolve())]
    if kind == "address":  # C++ throws through it: pytest's own extensions, if any
        more = subprocess.run([compiler, "-print-file-name=libstdc++.so"], capture_output=True, text=True, check=True)
        if Path(more.stdout.strip()).is_absolute():
            preload.append(str(Path(more.stdout.strip()).resolve()))
    # Into a file: a server's would go with the server. (gcc's UBSan writes to standard error all the same.)
    options = {key: f"{text}:log_path={tree / REPORT}" for key, text in OPTIONS.items()}
    return {**os.environ, **options, "PYTHONMALLOC": "malloc", "LD_PRELOAD": " ".join(preload), "PYTHONPATH": str(tree)}


def added(environment: dict[str, str]) -> dict[str, str]:
    return {key: text for key, text in environment.items() if os.environ.get(key) != text}


def without_randomised_addresses() -> list[str]:
    """ThreadSanitizer wants the addresses where it expects them, which a kernel with much randomness does not grant."""
    program = shutil.which("setarch")
    return [program, os.uname().machine, "-R"] if program else []


def commands(kind: str, tests: list[str]) -> list[list[str]]:
    # What the process grows by is the sanitizer's doing.
    pytest = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--capture=sys",
        "-o",
        "timeout=600",
        "-k",
        "not the_process_grows",
    ]
    if tests:
        return [[*pytest, *tests]]
    stress = [["-m", "tests.engine.stress", *STRESS], ["-m", "tests.engine.stress_pair", *STRESS]]
    if kind == "thread":
        return stress
    fuzz = [["-m", "tests.engine.fuzz", *FUZZ], ["-m", "tests.engine.fuzz_peers", *FUZZ_PEERS]]
    return [[*pytest, *TESTS.split()], *fuzz, *stress]


if __name__ == "__main__":
    raise SystemExit(main())
