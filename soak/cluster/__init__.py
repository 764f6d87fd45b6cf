"""The proof of the cluster behind `rcache-soak` and `make soak`: real processes, real faults, and every answer checked.

What it is, from the ground up: `rules` (who reaches whom), `listening`, `through` and `proxy` (the process between the nodes,
which keeps to the rules) and `network` (its handle); `shim` (a node's wall clock and disk), `etcd`, `nodes` (the processes)
and `cluster` (all of them); `schedule` (what is broken when, from a seed) and `faults` (how); `operations` (one call, and what
its outcome means to the history), `workload` and `clients` (the processes that call), `lanes` and `stayers` (one that asks
every node for everything, whatever views say), `crew` (their handle); `watch` (what nodes say of themselves), `judge` (rounds
of keys, each checked by `soak.checker`); `timeline`, `report` and `plots` (what is made of it); `run` and `command`. Which
thread runs it: the main thread breaks things; beside it a watcher and a judge. Nodes, proxy, clients, stayers and the checker
are processes of their own.
What it owns: the processes and the temporary directory it starts and removes.
What it must not know: the inside of the nodes.
"""
