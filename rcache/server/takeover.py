"""A takeover: this node keeps the register of a holder that is stopped for good. Ordered by an operator, of a member or of a
node that is still starting: the last survivor, restarted, waits for a register that never answers.

What it is: `Takeover`, the steps of one, each with why it is where it is.
Which thread runs it: the worker of the connection that orders; one takeover at a time, others are refused.
What it owns: the attempt that is under way, or came to nothing. It may lock: the terms' lock, in which the register is begun.
What it must not know: how views are carried out.

The steps, and the sequence of events that each is there for:
1. Every node of the newest view that anybody knows is asked what it knows. Whoever does not answer must be named as stopped,
   and whoever is named so must not answer. (A node that was not asked knows a newer view, in which what it acknowledged since
   is somebody else's.) Who answers from another data directory than the view names does not know what its former self knew:
   it has to be stopped, and named so. Up to here nothing was changed, anywhere.
2. Every node that is not named promises this takeover its term, on its disk, and tells the newest view it followed (see
   `rcache.stream.terms`). From then on it follows nothing that the former holder says, nor another takeover.
3. Those that are named as stopped are asked once more. (The holder was started again while the others were asked, and found
   its majority before they promised. After that they do not count for it: `Finder.confirm_register`.)
4. This node promises itself, and begins the register, with no promise to anybody else between the two. (Two takeovers at once,
   at n2 and n3: n3 promises n2 its term, n2 promises n3 the same term, and neither can promise itself any more: both come to
   nothing. Where n2 promised n3 a higher one after n3 had promised, n2 finds its own promise outbid, and n3 goes on. Where n2
   has begun by then, it keeps the register and promises nothing.)

What is promised to a takeover that came to nothing stays promised; it is ordered again, here (where the same attempt goes on)
or at any other node, where it goes above. Until then nobody keeps the register: that is so where a takeover is begun.

What a stopped node had together with others goes to those in the view of the takeover. What it may have changed without them
(it parted from a backup, and nobody who is left heard of that) is listed as `old`, and the takeover is not begun without
`accept_old`. What it was a backup of goes on at its primary, and is told as `shared`: was it cut off from that one, it may have
taken over as well, and what it acknowledged then is gone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from typing import NamedTuple

from loguru import logger

from rcache.agreement.embedded import ToldPromise, told_promise
from rcache.cluster import wishes
from rcache.cluster.register import RegisterFailed, Revised
from rcache.cluster.view import TERM_MAX, BadView, Node, View
from rcache.cluster.wishes import Asker, WishRefused
from rcache.server.asking import Others
from rcache.server.node_answers import Refusal, Standing
from rcache.server.orders import Order, Ordered, bad, names_of, not_now
from rcache.stream.terms import Promise, Terms
from rcache_client.wire.opcodes import Opcode, Status

ROUNDS_MAX = 5
"""How often a newer view that is found begins the asking anew. Nothing changes it while the register is gone."""

FIELDS = frozenset({"stopped", "accept_old"})


class _Known(NamedTuple):
    """What was found out: the newest view, and the highest promise that any node gave."""

    view: View
    promise: Promise


class Takeover:
    """See the module."""

    def __init__(self, standing: Standing, name: str, others: Others) -> None:
        self._standing = standing
        self._name = name
        self._others = others
        self._attempt = Promise()
        self._promised: list[str] = []  # who has promised the attempt that is under way, or may have
        self._busy = threading.Lock()

    def __call__(self, order: Ordered) -> Order:
        """Carry it out. `taken` False: not begun, because of what is `old`. Raises `Refusal`."""
        stopped = names_of(order.fields, "stopped")
        if not self._busy.acquire(blocking=False):
            raise not_now("another takeover is under way at this node")
        self._promised = []
        try:
            return self._take_over(stopped, order)
        except Refusal as refusal:
            raise self._with_what_was_changed(refusal) from None
        finally:
            self._busy.release()

    def _take_over(self, stopped: frozenset[str], order: Ordered) -> Order:
        terms = self._terms(stopped)
        known = self._find_out(stopped, order)
        holder = self._holder_to_replace(known, stopped)
        answer = _of_buckets(known.view, stopped)
        answer["from"] = holder
        if answer["old"] and order.fields.get("accept_old") is not True:
            return {**answer, "taken": False, "epoch": known.view.epoch}
        attempt = self._attempt = self._next_attempt(known)
        for name, node in known.view.nodes.items():
            if name != self._name and name not in stopped:
                self._have_promise(name, node, attempt, known.view, order)
        for name in sorted(stopped):
            self._demand_silence(name, known.view.nodes[name], order)
        taken = self._begin(terms, known.view, attempt, holder, stopped)
        logger.warning(
            "TAKEOVER by {}: this node keeps the register in place of {}, in term {} from epoch {} on; {} buckets may be old,"
            " {} have no copy at a node that runs",
            *(order.by, holder, taken.term, taken.epoch, len(answer["old"]), len(answer["away"])),
        )
        return {**answer, "taken": True, "epoch": taken.epoch}

    def _with_what_was_changed(self, refusal: Refusal) -> Refusal:
        """What came to nothing leaves promises behind, on the disks of those who gave them."""
        if not self._promised:
            changed = "nothing was changed"
        else:
            changed = (
                f"{', '.join(self._promised)} promised the {self._attempt}, or may have, and will follow nobody who kept the"
                " register before: order this again, here or at another node"
            )
        return Refusal(refusal.status, *refusal.values[:-1], f"{refusal.values[-1]} ({changed})")

    def _terms(self, stopped: Collection[str]) -> Terms:
        view = self._standing.newest
        if view is None:
            raise Refusal(Status.VIEW_AHEAD, "this node has no view yet; try again")
        if view.manager is None or self._standing.terms is None:
            raise not_now("etcd keeps the register of this cluster; there is nobody to take it over from")
        if self._name in stopped:
            raise bad(f"{self._name} is this node, which answers")
        return self._standing.terms

    # --- step 1

    def _find_out(self, stopped: Collection[str], order: Ordered) -> _Known:
        """Each node must have answered, or be named as stopped and not answer."""
        terms = self._standing.terms
        assert terms is not None
        newest, promise = self._newest_here(), terms.held
        for _ in range(ROUNDS_MAX):
            if strange := sorted(set(stopped) - set(newest.nodes)):
                raise bad(f"{', '.join(strange)}: not in the view; there are: {', '.join(newest.nodes)}")
            found = newest
            for name in sorted(stopped):
                self._demand_silence(name, newest.nodes[name], order)
            for name, node in newest.nodes.items():
                if name != self._name and name not in stopped:
                    told = self._ask(name, node, Promise(), order)
                    promise, view = max(promise, told.held), told.view
                    if view.term == newest.term and view.taken != newest.taken:
                        raise not_now(f"{name} goes by another takeover of term {view.term}; start it with an empty --data-dir")
                    found = max(found, view, key=lambda each: each.epoch)
            if found is newest:
                self._demand_same_files(newest)
                return _Known(newest, promise)
            newest = found
        raise not_now("views change while nodes are asked, so somebody keeps the register")

    def _demand_same_files(self, view: View) -> None:
        """This node is the one of its name in the view."""
        me = view.nodes.get(self._name)
        if me is not None and me.data_dir_id != self._standing.data_dir_id:
            raise not_now(
                f"{self._name} in the view has another data directory than this node, which does not know what that one knew:"
                " order this at another node"
            )

    def _newest_here(self) -> View:
        try:
            newest = self._standing.newest_known()
        except RegisterFailed as error:
            raise not_now(f"this node cannot keep the register: {error}") from None
        assert newest is not None
        return newest

    def _demand_silence(self, name: str, node: Node, order: Ordered) -> None:
        if self._others.runs(name, node, order):
            raise not_now(f"{name} is not stopped: it answers at {node.address}")

    def _ask(self, name: str, node: Node, promise: Promise, order: Ordered) -> ToldPromise:
        """What a node answers. Raises `Refusal`, also where it is not the one that is meant."""
        told = self._others.ask(name, node, order, Opcode.REGISTER_PROMISE, *promise)
        if told.values is None:
            what = "it answers, but" if told.answers else "it does not answer:"
            raise not_now(
                f"{name} may know a newer view; {what} {told.trouble}. Try again, or name it as stopped if it is for good"
            )
        try:
            answer = told_promise(told.values)
        except BadView as error:
            raise not_now(f"{name} answers, but what it sent is no view: {error}") from None
        if answer.view.cluster_id != self._newest_here().cluster_id:
            raise not_now(f"{name} is of another cluster, {answer.view.cluster_id}")
        if not answer.is_of(node):
            raise not_now(
                f"{name} answers at {node.address}, but from another data directory than the view names, and does not know what"
                " its former self knew: stop it, and name it as stopped"
            )
        return answer

    def _holder_to_replace(self, known: _Known, stopped: Collection[str]) -> str:
        view, holder = known.view, known.view.manager
        assert holder is not None
        if holder in stopped:
            return holder
        if holder != self._name:
            raise not_now(f"{holder} keeps the register; only where it is stopped for good can another: name it as stopped")
        if self._standing.register is not None and not _is_outbid(known):
            raise not_now(f"{holder} is this node, which keeps the register already, by the view of epoch {view.epoch}")
        return holder  # it waits for a majority that does not come, or whose promises a takeover has that came to nothing

    # --- steps 2 to 4

    def _next_attempt(self, known: _Known) -> Promise:
        """The one that came to nothing, if nobody went above it since: terms are few."""
        held = self._attempt
        if held.term > known.view.term and (held.term > known.promise.term or held == known.promise):
            return held
        term = max(known.view.term, known.promise.term) + 1
        if term > TERM_MAX:
            raise not_now("the cluster has used up its terms")
        return Promise(term, os.urandom(8).hex())

    def _have_promise(self, name: str, node: Node, attempt: Promise, newest: View, order: Ordered) -> None:
        self._promised.append(name)  # also where its answer is lost
        promised, held, _, view = self._ask(name, node, attempt, order)
        if not promised:
            self._promised.remove(name)
            raise not_now(f"{name} promised the {held}; order this again if that one came to nothing")
        if view.epoch > newest.epoch:
            raise not_now(f"{name} knows a newer view by now, of epoch {view.epoch} by {view.proposer}; order this again")

    def _begin(self, terms: Terms, newest: View, attempt: Promise, holder: str, stopped: Collection[str]) -> View:
        """The next view, in the term that was promised, on this node's disk (step 4)."""
        own = self._standing.own
        assert own is not None
        try:
            taken = wishes.take_over_register(newest, Asker(self._name, attempt.nonce), holder, attempt.term, stopped)
            with terms.lock:
                if self._newest_here().epoch > newest.epoch:
                    raise not_now("this node knows a newer view by now; order this again")
                if not terms.promise(attempt):
                    raise not_now(f"this node promised the {terms.held}; order this again if that one came to nothing")
                self._promised.append(self._name)
                own.begin(taken)
                terms.follow(taken)
                self._standing.learn(taken)
                self._standing.register = own
        except WishRefused as refused:
            raise not_now(str(refused)) from None
        except (ValueError, RegisterFailed) as error:
            raise not_now(f"this node cannot keep the register: {error}") from None
        if self._standing.member is not None:
            self._standing.member.agreement.learn(Revised(taken.epoch, taken))
        return taken


def _is_outbid(known: _Known) -> bool:
    """Whether somebody promised another takeover than the one that the term of the view began with: it follows no view of that
    term any more."""
    view, promise = known.view, known.promise
    return promise.term > view.term or (promise.term == view.term and promise.nonce != view.taken)


def _of_buckets(view: View, stopped: Collection[str]) -> Order:
    """Which buckets may be old at the backups that are left; which go on at their primary, though a stopped backup may have
    taken them over where it did not hear of that one; and which have no copy at all at a node that runs."""
    placed = [(bucket, each) for bucket, each in enumerate(view.placements) if each.primary is not None]
    return {
        "old": [bucket for bucket, each in placed if each.primary in stopped and set(each.backups) - set(stopped)],
        "shared": [bucket for bucket, each in placed if each.primary not in stopped and set(each.backups) & set(stopped)],
        "away": [bucket for bucket, each in placed if set(each.holders) <= set(stopped)],
    }
