"""What reads the change stream and keeps it on disk: the append-log writer, checkpoints, the savefile, recovery.

What it owns: the files of a data directory and the thread that writes the log.
What it must not know: requests, sockets, configuration sources.
"""
