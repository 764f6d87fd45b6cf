"""What is broken when: the same from the same seed, every kind in its turn, and never whom it must not meet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest

from soak.cluster import faults
from soak.cluster.faults import DEPOSED_S, FAULTS, POLL_S, STALLED_S, fault_for
from soak.cluster.rules import CLIENTS, ETCD
from soak.cluster.schedule import ALL, LASTS_S, NOT_OF_A_MANAGER, Cut, Kind, default_kinds, schedule


def first(seed: int, count: int = 60, kinds: tuple[Kind, ...] = ALL, nodes: int = 3) -> list[Any]:
    return list(islice(schedule(seed, kinds, nodes), count))


def test_the_same_seed_is_the_same_schedule() -> None:
    assert first(7) == first(7)
    assert first(7) != first(8)


def test_each_kind_comes_once_in_each_turn() -> None:
    planned = first(3, 5 * len(ALL))
    for turn in range(5):
        kinds = [each.kind for each in planned[turn * len(ALL) : (turn + 1) * len(ALL)]]
        assert sorted(kinds) == sorted(ALL)


def test_what_is_drawn_keeps_to_its_bounds() -> None:
    for each in first(5, 300, nodes=4):
        least, most = LASTS_S[each.kind]
        assert least <= each.lasts_s <= most
        assert sorted(each.order) == [0, 1, 2, 3]
        assert each.cut in Cut
    assert [each.number for each in first(5, 4)] == [1, 2, 3, 4]


def test_etcd_is_stopped_only_where_there_is_one() -> None:
    assert Kind.REGISTER in default_kinds("etcd")
    assert set(default_kinds("embedded")) == set(ALL) - {Kind.REGISTER, Kind.BEHIND}


def test_every_kind_has_its_fault() -> None:
    assert set(FAULTS) == set(ALL)


def placed(primary: str, *backups: str) -> Any:
    return SimpleNamespace(primary=primary, backups=backups, holders=(primary, *backups))


def ring(names: list[str]) -> Any:
    """Each a backup of the one before it."""
    return SimpleNamespace(placements=[placed(name, names[number - 1]) for number, name in enumerate(names)])


def cluster(manager: str | None, nodes: int = 3, etcd: bool = False) -> Any:
    names = [f"n{number}" for number in range(1, nodes + 1)]
    return SimpleNamespace(
        nodes=dict.fromkeys(names),
        view=lambda: ring(names),
        manager=lambda: manager,
        others=lambda name: [other for other in names if other != name],
        etcd=object() if etcd else None,
    )


@pytest.mark.parametrize("manager", ["n1", "n2", "n3"])
def test_who_keeps_the_register_is_spared(manager: str) -> None:
    for planned in first(1, 200):
        fault = fault_for(cluster(manager), planned)
        if planned.kind in NOT_OF_A_MANAGER:
            assert fault.victim != manager
        assert fault.text().split()[0] == planned.kind


def test_with_etcd_all_are_met() -> None:
    met = {(planned.kind, fault_for(cluster(None, etcd=True), planned).victim) for planned in first(1, 500)}
    assert {("kill", name) for name in ("n1", "n2", "n3")} <= met


def test_a_cut_is_between_two_and_one_way_or_both() -> None:
    seen = set()
    for planned in first(2, 200, (Kind.CUT,)):
        fault: Any = fault_for(cluster(None), planned)
        one, other = fault.victims
        assert one != other
        ways = set(fault.ways())
        seen.add(planned.one_way)
        assert ways == [{(one, other), (other, one)}, {(one, other)}, {(other, one)}][planned.one_way]
    assert seen == {0, 1, 2}


class Recorded:
    """A cluster that notes what is done to it. `views`: whether the second node has deposed the first, look by look."""

    def __init__(self, views: list[bool]) -> None:
        self.done: list[Any] = []
        self.views = views
        names = ("n1", "n2", "n3")
        self.etcd = object()
        self.network = SimpleNamespace(follow=self.done.append, heal=lambda: self.done.append("heal"))
        self.nodes = {
            name: SimpleNamespace(
                freeze=lambda name=name: self.done.append(f"freeze {name}"),
                thaw=lambda name=name: self.done.append(f"thaw {name}"),
                kill=lambda name=name: self.done.append(f"kill {name}"),
                port=int(name[1:]),
            )
            for name in names
        }

    def manager(self) -> None:
        return None

    def others(self, name: str) -> list[str]:
        return [other for other in self.nodes if other != name]

    def start(self, name: str) -> None:
        self.done.append(f"start {name}")

    def view(self) -> Any:
        pairs = [("n2", "n1"), ("n1", "n2"), ("n1", "n2"), *[("n3", "n2")] * 5]
        return SimpleNamespace(placements=[placed(*pair) for pair in pairs])

    def look(self, _name: str) -> Any:
        deposed = self.views.pop(0) if len(self.views) > 1 else self.views[0]
        return SimpleNamespace(view=SimpleNamespace(placements=[placed("n1"), placed("n2")]) if deposed else self.view())


def carried_out(kind: Kind, views: list[bool]) -> tuple[Any, Recorded, list[float]]:
    """A fault at n1, with n2 as the other, and how long it waited each time."""
    planned = next(each for each in schedule(1, (kind,), 3) if each.order[:2] == (0, 1))
    made = Recorded(views)
    made.manager = lambda: "n3"
    fault = fault_for(made, planned)  # type: ignore[arg-type]
    waits = list(fault.course())
    fault.end()
    return fault, made, waits


@pytest.mark.parametrize("kind", [Kind.BEHIND, Kind.STALL])
def test_who_is_to_be_deposed_has_an_heir(kind: Kind) -> None:
    """It is the backup of most of the victim's buckets; for a stall it sends the victim records, too, where there are such."""
    for planned in first(4, 60, (kind,)):
        fault = fault_for(Recorded([False]), planned)  # type: ignore[arg-type]
        assert tuple(fault.victims) == (("n3", "n2") if kind is Kind.BEHIND else ("n1", "n2"))
        assert cluster(None).view().placements[0].backups == ("n3",)
        assert tuple(fault_for(cluster(None), planned).victims) in [("n1", "n3"), ("n2", "n1"), ("n3", "n2")]


def test_who_is_severed_is_called_on_and_killed_before_the_cut_ends() -> None:
    fault, made, waits = carried_out(Kind.SEVER, [False])
    cut, *rest = made.done
    assert set(cut.cuts) == {("n1", to) for to in ("n2", "n3", ETCD)} | {(to, "n1") for to in ("n2", "n3", ETCD)}
    assert set(cut.cuts.values()) == {Cut.DROP}, "what was on its way must never arrive"
    assert rest == ["kill n1", "heal", "start n1"]
    assert len(waits) == 1
    assert waits[0] < 0.75, "less than what is left of a lease"
    assert fault.spared == [], "it takes writes that it cannot bring to a backup"


def test_who_is_behind_can_hear_of_its_successor_from_other_nodes_only() -> None:
    fault, made, waits = carried_out(Kind.BEHIND, [False, False, True])
    first, second, healed = made.done
    away = {("n1", ETCD), (ETCD, "n1"), ("n1", CLIENTS), (CLIENTS, "n1")}
    assert set(first.cuts) == away | {("n1", "n2"), ("n2", "n1")}
    assert set(second.cuts) == away
    assert healed == "heal"
    assert waits == [POLL_S, POLL_S, fault.lasts_s], "until it is deposed, and so long after it"
    assert fault.spared == ["n1"]
    assert fault.victims == ["n1", "n2"]


def test_who_is_deposed_for_its_stalled_records_goes_on_with_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    def write_once(port: int, keys: Iterator[str]) -> io.BytesIO:
        written.extend((port, crc32(key.encode()) % 8) for key in keys)
        return io.BytesIO()

    monkeypatch.setattr(faults, "write_once", write_once)
    fault, made, waits = carried_out(Kind.STALL, [False, True])
    assert written == [(2, 0)], "at the heir, in the one bucket that it sends the victim"
    rules, *rest = made.done
    assert rules.stalls == {("n2", "n1")}
    assert set(rules.cuts) == {("n1", ETCD), (ETCD, "n1")}
    assert rest == ["freeze n1", "thaw n1", "heal"]
    assert waits[:2] == [STALLED_S, POLL_S]
    assert DEPOSED_S < waits[2] <= fault.lasts_s
    assert len(waits) == 3
    lease_s, ack_s = 1.0, 1.0
    most = LASTS_S[Kind.STALL][1]
    assert ack_s + 2 * DEPOSED_S < STALLED_S + most, "deposed by then, and written to at its heir"
    assert most < 3 / 4 * lease_s, "with a lease that was granted a heartbeat before, at most"
    assert fault.spared == ["n1"]


def test_a_node_that_nobody_deposes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "TAKEN_S", 0.05)
    monkeypatch.setattr(faults, "POLL_S", 0.0)
    monkeypatch.setattr(faults, "write_once", lambda *_: io.BytesIO())
    _, made, _ = carried_out(Kind.STALL, [False])
    assert made.done[-1] == "heal"


def test_writes_past_the_views_are_kept_from_who_is_to_be_deposed() -> None:
    for kind in ALL:
        planned = first(1, 1, (kind,))[0]
        fault = fault_for(cluster(None, etcd=True), planned)
        expected = [fault.victim] if fault.destructive and kind is not Kind.SEVER else []
        assert fault.spared == expected


def test_isolation_is_from_all_and_sometimes_from_clients() -> None:
    with_clients = set()
    for planned in first(2, 50, (Kind.ISOLATE,)):
        fault: Any = fault_for(cluster(None, etcd=True), planned)
        assert set(cluster(None).others(fault.victim)) | {ETCD} <= set(fault.others)
        with_clients.add(CLIENTS in fault.others)
    assert with_clients == {True, False}
