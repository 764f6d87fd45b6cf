"""The one record format: records, blocks, files, and what a set of files says about a bucket.

What it is: the ground floor on disk. The same record bytes go to the append log, the checkpoints, the savefile and (later)
to backups, subscribers and loggers. `docs/records.md` holds the layout and the procedure for changing it.
Which thread runs it: the caller's; nothing here starts or locks anything.
What it owns: nothing but the files it has open to read.
What it must not know: sockets, threads, clocks, where files lie.
"""
