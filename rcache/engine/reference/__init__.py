"""The reference engine: plain Python, the readable specification, and the fallback where nothing was compiled.

Which thread runs it: the caller's, many at once; it starts none.
What it owns: the items and the change stream. What it must not know: what its contract does not say of the floors above.
"""

from rcache.engine.reference.engine import ReferenceEngine

__all__ = ["ReferenceEngine"]
