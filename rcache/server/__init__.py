"""The service: listener, workers, sessions, control requests, housekeeper, and what they tell systemd.

Which thread runs it: the main thread starts and stops it; the listener, the workers and the housekeeper are its own.
What it owns: the sockets of a running server and the threads that serve them.
What it must not know: where its settings come from; `rcache.commands` reads options and hands values down.
"""
