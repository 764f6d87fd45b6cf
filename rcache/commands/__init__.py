"""The command lines: rcached, rcache-cli, rcache-replay. The only floor that wires things up.

Which thread runs it: each program's main thread.
What it owns: the options, and every part until it is handed on.
What it must not know: how the floors below do what they are told; they in turn never read an option or a variable.
"""
