"""What reads the change stream and keeps it on disk: the append-log writer, checkpoints, the savefile, recovery.

Which thread runs it: the append log and the checkpoints each their own; recovery and the savefile the main thread.
What it owns: the files of a data directory and the thread that writes the log.
What it must not know: requests, sockets, configuration sources.
"""
