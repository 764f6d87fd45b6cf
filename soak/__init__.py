"""Proof on real processes: the demonstration behind `make run`, and the benchmark behind `make bench`.

What it owns: the processes and temporary directories it starts and removes.
What it must not know: the inside of the server; it goes through sockets, files and command lines as any user does.
"""
