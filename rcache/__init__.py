"""rcache: a clustered in-memory cache; this package is the server and its tools.

Which thread runs it: each module says; `docs/threads.md` lists them all.
What it owns: a node's items and its data directory. What it must not know: what keys and values mean.
"""
