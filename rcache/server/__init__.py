"""The service: listener, workers, sessions, control requests, housekeeper, and what they tell systemd.

What it owns: the sockets of a running server and the threads that serve them.
What it must not know: where its settings come from; `rcache.commands` reads options and hands values down.
"""
