"""The compiled parts of rcache, each with a Python body beside it that is used where it could not be built.

What it is: the one list of extension modules, and how they are compiled. Everything else about the package is in
`pyproject.toml`. Without a C compiler or Python's headers the installation goes on and says what is missing (pip shows that
with -v); `rcached` says it again at each start, and `rcached --version` says which bodies it would use.

RCACHE_REQUIRE_NATIVE=1      a part that cannot be built is an error: for CI, which must not test the readable bodies alone
RCACHE_SANITIZE=address,undefined (or thread)      builds with those sanitizers, for `make sanitize`
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

COMPILED = {
    "rcache.engine.native._native": "rcache/engine/native/_native.pyx",
    "rcache.records._rows": "rcache/records/_rows.pyx",
    "rcache.records._walk": "rcache/records/_walk.pyx",
}
"""Module: source. What they `cimport` lies beside them."""

DIRECTIVES = {"language_level": 3, "cdivision": True, "boundscheck": False, "wraparound": False}
"""C's own arithmetic and arrays: every length is checked before, by the countdowns (`countdown.pxd`, `_countdown.pxd`)."""

WARNING = """
*******************************************************************************
* rcache WARNING: the compiled parts were not all built. Not there:
*   {modules}
* Python takes their place: it keeps every promise, and is many times slower.
* What stood in the way (the compiler's own words are above):
*   {error}
* A C compiler and Python's headers mend it (Debian, Ubuntu: apt-get install
* gcc libc6-dev python3-dev); then install rcache anew (in a checkout: make -B
* setup; else: pip install --force-reinstall --no-cache-dir, for pip keeps what
* it built).
*******************************************************************************
"""


class BuildWhatCanBeBuilt(build_ext):
    """Goes on without an extension that does not compile, and says so at the end, where it is seen.

    Setuptools goes on by itself where an extension is `optional`. What it does not do is take away what an earlier build left
    in its place (beside the source of an editable installation, or in `build/`), which would be used with newer Python code.
    """

    def run(self) -> None:
        self.failed: dict[str, str] = {}
        super().run()
        if self.failed:
            error = next(iter(self.failed.values()))
            print(WARNING.format(modules="\n*   ".join(self.failed), error=error), file=sys.stderr)

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            self.failed[ext.name] = in_short(str(error).strip() or repr(error))
            self._remove_earlier(ext.name)
            raise CompileError(str(error)) from error  # the kind that setuptools expects of an optional one

    def get_output_mapping(self) -> dict[str, str]:
        """What was built, to its place beside the source. A strict editable installation links all that it is told of."""
        return {built: place for built, place in super().get_output_mapping().items() if os.path.exists(built)}

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for name in self.failed:
            self._remove_earlier(name)

    def _remove_earlier(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.remove(self.get_ext_fullpath(name))


def in_short(text: str) -> str:
    """The last line, without the middle of a long one: there the compiler's options are."""
    line = text.splitlines()[-1]
    return line if len(line) <= 120 else f"{line[:50]} ... {line[-50:]}"


def compile_options() -> tuple[list[str], list[str]]:
    """What the compiler and the linker are told."""
    compiled = ["-O3", "-fno-strict-aliasing", "-fno-semantic-interposition", "-Wno-unused-function"]
    linked = ["-pthread"]
    sanitizers = os.environ.get("RCACHE_SANITIZE", "")
    if sanitizers:
        compiled += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g", "-O1", "-fno-sanitize-recover=all"]
        linked += [f"-fsanitize={sanitizers}"]
    return compiled, linked


def extensions() -> list[Extension]:
    """The extension modules, translated to C; none may be missing where RCACHE_REQUIRE_NATIVE says so."""
    compiled, linked = compile_options()
    sources = [
        Extension(name, [source], extra_compile_args=compiled, extra_link_args=linked) for name, source in COMPILED.items()
    ]
    translated = cythonize(sources, build_dir="build/cython", compiler_directives=DIRECTIVES)
    for extension in translated:  # not above: cythonize drops it
        extension.optional = os.environ.get("RCACHE_REQUIRE_NATIVE", "") in ("", "0")
    return list(translated)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildWhatCanBeBuilt})
