"""Pure decisions about the cluster: states, views, placement. One node needs only the first of them.

Which thread runs it: the caller's; nothing here starts or locks anything.
What it owns: nothing. What it must not know: sockets, threads, clocks, what a bucket holds.
"""
