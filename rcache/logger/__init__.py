"""The recording node: what it takes to have every change of a cluster in files, and to go on without a gap after a restart."""
