"""The reference engine: plain Python, the readable specification, and the fallback where nothing was compiled."""

from rcache.engine.reference.engine import ReferenceEngine

__all__ = ["ReferenceEngine"]
