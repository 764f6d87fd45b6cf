"""Proof on real processes: the demonstration behind `make run`, the benchmark behind `make bench`, and two loops that kill and
stop servers under load (`python -m soak.kill_loop`, `python -m soak.stop_loop`).

Which thread runs it: each program's main thread; servers and writers are processes of their own.
What it owns: the processes and temporary directories it starts and removes.
What it must not know: the inside of the server; it goes through sockets, files and command lines as any user does.
"""
