"""The wire format: opcodes, the countdown buffer, frames and the payload grammar.

What it is: the ground floor. One grammar, used by the server to read requests and write replies, and by clients (and nodes,
which are clients of their peers) to write requests and read replies.
Which thread runs it: the caller's; nothing here starts or locks anything.
What it owns: nothing but the bytes it is given.
What it must not know: sockets, threads, clocks. `tests/test_layers.py` holds it to that.
"""
