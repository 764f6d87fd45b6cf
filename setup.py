"""The compiled parts of rcache, each with a Python body beside it that is used where it could not be built.

What it is: the one list of extension modules, and how they are compiled. Everything else about the package is in
`pyproject.toml`. Without a C compiler the installation goes on and says what is missing; `rcached` says it again at each start.
`RCACHE_SANITIZE=address,undefined` (or `thread`) builds with those sanitizers, for `make sanitize`.
"""

from __future__ import annotations

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMPILED = {
    "rcache.engine.native._native": "rcache/engine/native/_native.pyx",
    "rcache.records._rows": "rcache/records/_rows.pyx",
    "rcache.records._walk": "rcache/records/_walk.pyx",
}
"""Module: source. What they `cimport` lies beside them."""

WARNING = """
*******************************************************************************
* rcache: {module} was not built.
* The reference body is used in its place. It keeps every promise, and is many
* times slower. What stood in the way:
*   {error}
* A C compiler and Python's headers mend it (Debian, Ubuntu: apt-get install
* gcc libc6-dev python3-dev); then install rcache again.
*******************************************************************************
"""


def compile_options() -> tuple[list[str], list[str]]:
    """What the compiler and the linker are told."""
    compiled = ["-O3", "-fno-strict-aliasing", "-fno-semantic-interposition", "-Wno-unused-function"]
    linked = ["-pthread"]
    sanitizers = os.environ.get("RCACHE_SANITIZE", "")
    if sanitizers:
        compiled += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g", "-O1", "-fno-sanitize-recover=all"]
        linked += [f"-fsanitize={sanitizers}"]
    return compiled, linked


class BuildWhatCanBeBuilt(build_ext):
    """Goes on without an extension that does not compile, and says so where it is seen."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            if os.environ.get("RCACHE_REQUIRE_NATIVE"):
                raise
            print(WARNING.format(module=ext.name, error=str(error).strip().splitlines()[-1]), file=sys.stderr)

    def copy_extensions_to_source(self) -> None:
        built = [ext for ext in self.extensions if os.path.exists(self.get_ext_fullpath_built(ext))]
        self.extensions, every = built, self.extensions
        super().copy_extensions_to_source()
        self.extensions = every

    def get_ext_fullpath_built(self, ext: Extension) -> str:
        """Where the compiler puts it, before it is copied beside its source."""
        return os.path.join(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name)))


def extensions() -> list[Extension]:
    compiled, linked = compile_options()
    return [Extension(name, [source], extra_compile_args=compiled, extra_link_args=linked) for name, source in COMPILED.items()]


setup(
    ext_modules=cythonize(
        extensions(),
        build_dir="build/cython",
        compiler_directives={"language_level": 3, "cdivision": True, "boundscheck": False, "wraparound": False},
    ),
    cmdclass={"build_ext": BuildWhatCanBeBuilt},
)
