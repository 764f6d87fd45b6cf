"""From one view to the next: what may follow what, whoever asks for it and why.

What it is: the rules that every change of view must keep, as one check of a pair. `wishes` makes views; the register's keeper
and every node hold each new one against these rules before they follow it.
Which thread runs it: any. What it owns: nothing. What it must not know: leases, time, why somebody wishes something.

Rules, with the sequence of events that each prevents:
1. The epoch grows, and the cluster and the number of buckets stay. (A node that was away proposes from an old view, and the
   roles given since are given again.)
2. A bucket's new primary was its in-sync backup in the view before, or is its own former self where nobody else had a copy.
   (A node whose copy lacks acknowledged writes, or that holds none, is made primary: they are gone.)
3. A new primary is opened in this very epoch, and a primary that stays keeps the epoch it was opened in. (Two primaries of one
   bucket write sequences of the same epoch, and copies of the two cannot be told apart.)
4. Only a bucket's primary adds backups to it, and none in the view that makes it primary, but for the old primary, which gave
   the bucket up. (A backup is counted in that the primary does not wait for; a write that it lacks is acknowledged.)
5. A node under a new incarnation has none of its old roles but that of rule 2. (It comes back empty, or behind, and is taken
   for a whole copy.)
6. Only a node that is up is made a backup; where none is, and all leave, one that leaves. (A node is given what it is about to
   let go of.)
7. A bucket loses its last copy only where its node was declared lost, or came back without it, from the same data directory;
   and a lost bucket gets a primary only from whoever offers its files, alone. (A bucket is forgotten because nobody looked; or
   because another node came under the name of the one that has it.)
8. The embedded register goes to another node only from its holder, or in a higher term. (Two nodes keep a register each.)
9. The mark of the takeover that a term began with stays to its end. (Two takeovers began the same term, of histories that do
   not know of each other, and epochs of both are taken for one order.)
10. An incarnation of a name is of one data directory, and the next one of that name is higher. (A node stalls and is removed,
   another joins under its name; the first one wakes, takes what the other has for its own, and both serve it.)
"""

from __future__ import annotations

from rcache.cluster.view import NodeState, Placement, View, faults_of


def faults_between(old: View, new: View) -> list[str]:
    """What of the rules does not hold between a view and the one that is to follow; empty if all does."""
    faults = faults_of(new)
    if new.epoch <= old.epoch:
        faults.append(f"epoch {new.epoch} after {old.epoch}")  # rule 1
    if new.cluster_id != old.cluster_id:
        faults.append("another cluster")  # rule 1
    if len(new.placements) != len(old.placements):
        return [*faults, f"{len(new.placements)} buckets after {len(old.placements)}"]  # rule 1
    if old.manager not in (new.manager, new.proposer) and new.term <= old.term:
        faults.append(f"{new.proposer} takes the register from {old.manager} in the same term")  # rule 8
    if new.taken != old.taken and new.term <= old.term:
        faults.append(f"the takeover {new.taken!r} after {old.taken!r} in the same term")  # rule 9
    faults += _faults_of_names(old, new)
    others = {name for name in {*old.nodes, *new.nodes} if _incarnation(old, name) != _incarnation(new, name)}
    for bucket, (was, now) in enumerate(zip(old.placements, new.placements, strict=True)):
        if (was is not now and was != now) or (others and not others.isdisjoint(now.holders)):
            faults += [f"bucket {bucket}: {fault}" for fault in _faults_of_change(old, new, was, now)]
    return faults


def _faults_of_names(old: View, new: View) -> list[str]:
    """Rule 10. Of a name that was removed a view knows nothing: who joins under it begins above the view's epoch."""
    faults = []
    for name, now in new.nodes.items():
        was = old.nodes.get(name)
        if was is None:
            continue
        if now.incarnation < was.incarnation:
            faults.append(f"{name} is incarnation {now.incarnation} after {was.incarnation}")
        elif now.incarnation == was.incarnation and now.data_dir_id != was.data_dir_id:
            faults.append(f"{name} is the same incarnation, {now.incarnation}, of another data directory")
    return faults


def _incarnation(view: View, name: str) -> int | None:
    node = view.nodes.get(name)
    return node.incarnation if node is not None else None


def _same_files(old: View, new: View, name: str) -> bool:
    """Whether a name in both views is of one data directory."""
    was, now = old.nodes.get(name), new.nodes.get(name)
    return was is not None and now is not None and was.data_dir_id == now.data_dir_id


def _faults_of_change(old: View, new: View, was: Placement, now: Placement) -> list[str]:
    if now.primary is None:
        return _faults_of_loss(old, new, was)
    faults = [
        f"{name} has a role under another incarnation"  # rule 5
        for name in now.backups
        if name in was.holders and _incarnation(old, name) != _incarnation(new, name)
    ]
    stays = now.primary == was.primary and _incarnation(old, now.primary) == _incarnation(new, now.primary)
    if stays and now.opened == was.opened:
        return faults + _faults_of_backups(new, was, now)
    faults += _faults_of_primary(old, new, was, now, stays=stays)
    added = set(now.backups) - set(was.backups) - {was.primary}
    if added:
        faults.append(f"backups {sorted(added)} in the view that makes {now.primary} primary")  # rule 4
    return faults


def _faults_of_primary(old: View, new: View, was: Placement, now: Placement, *, stays: bool) -> list[str]:
    """Rules 2, 3 and 7, of a bucket that is opened."""
    faults = []
    assert now.primary is not None
    if now.opened != new.epoch:
        faults.append(f"{now.primary} is primary from epoch {now.opened} on, in a view of {new.epoch}")  # rule 3
    recovers = now.primary == was.primary and not was.backups and _same_files(old, new, now.primary)
    offered = was.primary is None
    if recovers or offered or stays:
        if not stays and now.backups:
            faults.append(f"{now.primary} recovers it and has backups")  # rules 2 and 7
        return faults
    if now.primary not in was.backups or _incarnation(old, now.primary) != _incarnation(new, now.primary):
        faults.append(f"{now.primary} was no backup in step")  # rule 2
    return faults


def _faults_of_backups(new: View, was: Placement, now: Placement) -> list[str]:
    """Rules 4 and 6, of a bucket whose primary stays."""
    faults = []
    added = set(now.backups) - set(was.backups)
    if added and new.proposer != now.primary:
        faults.append(f"{new.proposer} adds backups {sorted(added)} to what is {now.primary}'s")  # rule 4
    wanted = (NodeState.UP,) if new.names(NodeState.UP) else (NodeState.LEAVING,)
    wrong = [name for name in sorted(added) if name in new.nodes and new.nodes[name].state not in wanted]
    faults += [f"{name} is {new.nodes[name].state} and becomes a backup" for name in wrong]  # rule 6
    return faults


def _faults_of_loss(old: View, new: View, was: Placement) -> list[str]:
    """Rule 7."""
    if was.primary is None:
        return []
    node = new.nodes.get(was.primary)
    gone = (
        node is None
        or node.state is NodeState.LOST
        or (_incarnation(old, was.primary) != node.incarnation and _same_files(old, new, was.primary))
    )
    if was.backups or not gone:
        return [f"it loses its last copy, at {was.primary}"]
    return []
