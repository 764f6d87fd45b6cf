"""The engine holds this node's items: buckets, stripes, memory, expiry, eviction, versions, and the change stream.

One contract (`contract`), several bodies; `reference` is the one in plain Python.
Which thread runs it: workers, and every thread that copies, expires or recovers; it starts none.
What it owns: the items, and the change stream. What it must not know: files, configuration, the control plane.
"""
