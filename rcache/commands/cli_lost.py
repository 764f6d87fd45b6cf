"""The commands of rcache-cli about what is lost: lost, renew. Both ask every node what its files still hold.

What it is: `ask_files`, who holds what of lost buckets; for each command the orders that it gives, and what came of them.
Which thread runs it: the main thread. Every question and order blocks to the budget at most, one after the other.
What it owns: nothing. What it must not know: how files are read, or an order carried out.

Invariant 11 of `design`, section 5, is kept here as well: a bucket that somebody's files hold begins empty only with `--empty`,
and whoever could not be asked is named before anything begins empty, or from a chain that may not be the longest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rcache.cluster.view import NodeState, View
from rcache.commands.cli_answer import Answer
from rcache.commands.cli_cluster import ask_view
from rcache.commands.cli_exit import CliExit, CliStopped, code_of, explain
from rcache.commands.cli_line import Door
from rcache.commands.cli_options import PROGRAM, CliOptions
from rcache.commands.cli_steer import Facts, ask_first, order, order_of, show_ranges
from rcache.commands.show import show_count
from rcache_client import RcacheError
from rcache_client.wire.opcodes import Opcode

BROKEN_SHOWN = 10
"""Of buckets that are held with something missing so many are told one by one: mostly it is the same that is missing of all."""


class Chain(NamedTuple):
    """What a node's files hold of a bucket. `end` as it was told, EPOCH.COUNTER."""

    bucket: int
    node: str
    end: str
    as_of_ms: int
    items: int
    whole: bool
    let_go: bool
    why: str

    @property
    def length(self) -> tuple[int, ...]:
        """What chains of a bucket are compared by."""
        return tuple(map(int, self.end.split(".")))

    def facts(self) -> Facts:
        return self._asdict()


@dataclass(slots=True)
class Held:
    """Who holds what of lost buckets: the chains of each, and who did not say, with the reason."""

    chains: dict[int, list[Chain]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    def chosen(self) -> dict[int, Chain]:
        """For each bucket of which somebody's files hold a whole chain, the longest of those; of equal ones whose node has been
        chosen least."""
        times: Counter[str] = Counter()
        chosen: dict[int, Chain] = {}
        for bucket, chains in sorted(self.chains.items()):
            whole = [chain for chain in chains if chain.whole]
            if whole:
                chosen[bucket] = max(whole, key=lambda chain: (chain.length, -times[chain.node]))
                times[chosen[bucket].node] += 1
        return chosen

    def broken(self) -> dict[int, Chain]:
        """For each bucket the longest chain with something missing, where no whole one goes as far."""
        chosen = self.chosen()
        broken: dict[int, Chain] = {}
        for bucket, chains in sorted(self.chains.items()):
            longest = max(chains, key=lambda chain: (chain.length, chain.whole))
            if not longest.whole and (bucket not in chosen or longest.length > chosen[bucket].length):
                broken[bucket] = longest
        return broken

    def facts(self) -> Facts:
        chains = [chain.facts() for chains in self.chains.values() for chain in chains]
        return {"held": chains, "silent": self.silent}


def ask_files(door: Door, view: View, buckets: Sequence[int], without: str = "") -> Held:
    """Ask every node, one after the other. One that is lost is not there to be asked; it may have the longest chain of all."""
    held = Held()
    for name, node in view.nodes.items() if buckets else ():
        if name == without:
            continue
        if node.state is NodeState.LOST:
            held.silent[name] = "it is lost; if it can be started with the files that it had, do that first"
            continue
        try:
            told = _order_at(door, node.address, "files", buckets=list(buckets))
        except (RcacheError, CliStopped) as error:
            held.silent[name] = _why(error)
            continue
        for each in told["held"]:
            chain = Chain(node=name, **{part: each[part] for part in Chain._fields if part != "node"})
            held.chains.setdefault(chain.bucket, []).append(chain)
    return held


def _order_at(door: Door, address: str, verb: str, **fields: Any) -> Facts:
    (text,) = door.ask_at(address, Opcode.STEER, order_of(verb, **fields), timeout_s=door.budget_s)
    answer: Facts = json.loads(text)
    return answer


def _code(error: RcacheError | CliStopped) -> CliExit:
    return code_of(error) if isinstance(error, RcacheError) else error.code


def _why(error: RcacheError | CliStopped) -> str:
    return explain(error) if isinstance(error, RcacheError) else str(error)


# --- in words


def _holders(held: Held, buckets: Sequence[int]) -> list[str]:
    """Who holds what of these, a line each."""
    chosen, broken = held.chosen(), held.broken()
    lines = []
    for name in sorted({chain.node for chain in chosen.values()}):
        chains = [chain for chain in chosen.values() if chain.node == name]
        items = show_count(sum(chain.items for chain in chains), "item")
        when = f"as of {_times(chain.as_of_ms for chain in chains)}"
        lines.append(f"{name}'s files hold {_buckets(chain.bucket for chain in chains)}: {items}, {when}")
    for bucket, chain in list(broken.items())[:BROKEN_SHOWN]:
        more = f", further than the whole chain up to {chosen[bucket].end}" if bucket in chosen else ""
        lines.append(f"{chain.node}'s files hold bucket {bucket} up to {chain.end}{more}, but not whole: {chain.why}")
    if len(broken) > BROKEN_SHOWN:
        lines.append(f"so it is with {show_count(len(broken) - BROKEN_SHOWN, 'bucket')} more; --json has all")
    if nobody := [bucket for bucket in buckets if bucket not in chosen and bucket not in broken]:
        lines.append(f"nobody's files hold {_buckets(nobody)}")
    lines += [f"what {name}'s files hold is not known: {why}" for name, why in held.silent.items()]
    return lines


def _buckets(buckets: Iterable[int]) -> str:
    listed = sorted(buckets)
    return f"{show_count(len(listed), 'bucket')} ({show_ranges(listed)})"


def _times(times_ms: Iterable[int]) -> str:
    """The oldest and the newest of some times."""
    shown = [datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ") for ms in sorted(times_ms)]
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]} to {shown[-1]}"


# --- lost


def lost(options: CliOptions, door: Door) -> Answer:
    """First ask what would be lost, and what files still hold of that; then whether it may be."""
    said: Facts = {"node": options.node, "stopped": True}
    would = order(door, "lost", **said, dry_run=True)
    buckets = would["lost"]
    _, view, _ = ask_view(door)
    held = ask_files(door, view, buckets, without=options.node)
    lines = _holders(held, buckets) if buckets else []
    if buckets and not options.yes:
        what = f"{show_count(len(buckets), 'bucket')} have their only copy at {options.node}: {show_ranges(buckets)}"
        told = "\n".join(
            [what, *lines, "If it can be started again, from the files that it had, nothing is lost: that comes first"]
        )
        ask_first(f"{told}\nLose what is in them?", f"{told}\nNothing was changed; --yes loses what is in them")
    answer = order(door, "lost", **said, lose_max=len(buckets)) | held.facts()
    shown = f"{options.node} is lost; {show_count(len(answer['promoted']), 'bucket')} went to their backups"
    if not answer["lost"]:
        return Answer(answer, shown)
    gone = f"{shown}, {show_count(len(answer['lost']), 'bucket')} are lost with it: {show_ranges(answer['lost'])}"
    advice = f"'{PROGRAM} renew' brings back what files hold, or has them begin again"
    return Answer(answer, "\n".join([gone, *lines, advice]))


# --- renew


@dataclass(slots=True)
class _Plan:
    """What `renew` is about to do. `left`: lost buckets that stay so, because what files hold of them is not whole."""

    chosen: dict[int, Chain]
    empty: list[int]
    left: list[int]


def renew(options: CliOptions, door: Door) -> Answer:
    """Have each lost bucket begin again where the longest chain is, and empty where there is none."""
    _, view, _ = ask_view(door)
    buckets = [bucket for bucket, placed in enumerate(view.placements) if placed.primary is None]
    if not buckets:
        raise CliStopped(CliExit.REFUSED, f"{door.server} goes by epoch {view.epoch}, in which no bucket is lost")
    held = ask_files(door, view, buckets)
    plan = _plan(options, buckets, held)
    lines = _holders(held, buckets)
    if (plan.empty or held.silent or plan.chosen.keys() & held.broken().keys()) and not options.yes:
        told = "\n".join([*lines, *_intended(plan)])
        ask_first(f"{told}\nGo on?", f"{told}\nNothing was changed; --yes goes on")
    return _carry_out(door, view, plan, held, lines)


def _plan(options: CliOptions, buckets: Sequence[int], held: Held) -> _Plan:
    if options.empty:
        return _Plan({}, list(buckets), [])
    chosen = held.chosen()
    empty = [bucket for bucket in buckets if bucket not in held.chains]
    return _Plan(chosen, empty, [bucket for bucket in buckets if bucket in held.chains and bucket not in chosen])


def _intended(plan: _Plan) -> list[str]:
    lines = [f"{_buckets(plan.chosen)} would begin again from files"] if plan.chosen else []
    return lines + ([f"{_buckets(plan.empty)} would begin again, empty"] if plan.empty else [])


def _carry_out(door: Door, view: View, plan: _Plan, held: Held, lines: list[str]) -> Answer:
    """Each node in turn; one that fails leaves its buckets lost, and the others go on."""
    facts: Facts = {"epoch": view.epoch, "recovered": [], "renewed": [], "left": plan.left, **held.facts()}
    complaints = [f"bucket {bucket} stays lost: what files hold of it is not whole" for bucket in plan.left]
    unknown = False
    for name in sorted({chain.node for chain in plan.chosen.values()}):
        chains = {bucket: chain for bucket, chain in plan.chosen.items() if chain.node == name}
        ends = [[bucket, chain.end] for bucket, chain in chains.items()]
        try:
            answer = _order_at(door, view.nodes[name].address, "renew", recover=ends, epoch=view.epoch)
        except (RcacheError, CliStopped) as error:
            facts["left"] += chains
            unknown = unknown or _code(error) is CliExit.UNKNOWN
            complaints.append(f"{_buckets(chains)} did not come back from {name}'s files: {_why(error)}")
            continue
        facts["epoch"] = max(facts["epoch"], answer["epoch"])
        facts["recovered"] += [{**each, "node": name} for each in answer["recovered"]]
        facts["left"] += [each["bucket"] for each in answer["failed"]]
        complaints += [f"bucket {each['bucket']} stays lost: {each['why']}" for each in answer["failed"]]
    if plan.empty:
        try:
            answer = order(door, "renew", empty=plan.empty, epoch=view.epoch)
            facts["epoch"], facts["renewed"] = max(facts["epoch"], answer["epoch"]), answer["renewed"]
        except (RcacheError, CliStopped) as error:
            facts["left"] += plan.empty
            unknown = unknown or _code(error) is CliExit.UNKNOWN
            complaints.append(f"{_buckets(plan.empty)} did not begin again, empty: {_why(error)}")
    facts["left"] = sorted(facts["left"])
    done = _done(facts)
    code = CliExit.DONE if not complaints else CliExit.IN_PART if done else CliExit.REFUSED
    advice = ["'rcache-replay' over the directories of all nodes shows what is left of them; --empty has them begin empty"]
    complaint = "\n".join([*complaints, *(advice if plan.left else [])])
    return Answer(facts, "\n".join(done or lines), CliExit.UNKNOWN if unknown else code, complaint)


def _done(facts: Facts) -> list[str]:
    done = []
    for name in sorted({each["node"] for each in facts["recovered"]}):
        mine = [each for each in facts["recovered"] if each["node"] == name]
        items = show_count(sum(each["items"] for each in mine), "item")
        done.append(f"{_buckets(each['bucket'] for each in mine)} begin again from {name}'s files, with {items}")
    if facts["renewed"]:
        done.append(f"{_buckets(facts['renewed'])} begin again, empty")
    return done
