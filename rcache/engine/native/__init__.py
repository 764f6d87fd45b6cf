"""The native engine: the same contract without the interpreter's lock on the request path.

`_native.pyx` is the one compiled module; the `.pxd` files beside it are its floors, low to high: system, hashing;
memory, items, table, expiry, ring, protocol; store, removal, change, copies; answers, operations, serving. `engine` wraps it.
Which thread runs it: workers, and every thread that copies, expires or recovers; it starts none.
What it owns: the items, and the change stream. What it must not know: files, configuration, the control plane.
"""
