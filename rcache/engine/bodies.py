"""The bodies of the engine that are there: which can be used here, and why another cannot.

Which thread runs it: any. What it owns: nothing. What it must not know: options, the server.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from rcache.engine.clock import NodeClock
from rcache.engine.contract import Engine, EngineConfig
from rcache.engine.reference import ReferenceEngine

NATIVE = "native"
REFERENCE = "reference"


def why_not_native() -> str:
    """Why the native engine cannot be used here; "" where it can."""
    try:
        importlib.import_module("rcache.engine.native.engine")
    except ImportError as error:
        return f"it was not built when rcache was installed ({error})"
    return ""


def best_body() -> str:
    """The fastest body that can be used here."""
    return REFERENCE if why_not_native() else NATIVE


def make_engine(body: str, config: EngineConfig, clock: NodeClock) -> Engine:
    """An engine of that body. Raises ImportError for `native` where it was not built; MemoryError where what the configuration
    asks for cannot be reserved."""
    maker: Callable[[EngineConfig, NodeClock], Engine] = ReferenceEngine
    if body == NATIVE:
        maker = importlib.import_module("rcache.engine.native.engine").NativeEngine
    return maker(config, clock)
