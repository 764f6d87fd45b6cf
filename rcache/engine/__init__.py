"""The engine holds this node's items: buckets, stripes, memory, expiry, eviction, versions, and the change stream.

One contract (`contract`), several bodies; `reference` is the one in plain Python.
What it must not know: files, configuration, the control plane.
"""
