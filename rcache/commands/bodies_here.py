"""Which bodies of the compiled parts run here, and, where one is missing, why: in words, for --version and the log.

Which thread runs it: any; nothing is kept. What it owns: nothing.
What it must not know: options.
"""

from __future__ import annotations

from rcache.engine.bodies import best_body, why_not_native
from rcache.records import walk


def bodies_text() -> str:
    """The bodies that run unless told otherwise: of the engine, and of the walks over files of records."""
    return f"engine: {best_body()}; record walks: {walk.chosen.name}"


def missing_bodies() -> list[str]:
    """A line for each body that could not be built, and what its absence means. They are missing together, as a rule."""
    missing = []
    if why := why_not_native():
        missing.append(f"the native engine cannot be used: {why}; the reference engine is many times slower")
    if why := walk.why_not_compiled:
        missing.append(
            f"the compiled record walks cannot be used: they were not built when rcache was installed ({why}); "
            "starts and rcache-replay take many times as long"
        )
    return missing
