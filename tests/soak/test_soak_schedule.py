"""What is broken when: the same from the same seed, every kind in its turn, and never whom it must not meet."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from soak.cluster.faults import FAULTS, fault_for
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
    assert set(default_kinds("embedded")) == set(ALL) - {Kind.REGISTER}


def test_every_kind_has_its_fault() -> None:
    assert set(FAULTS) == set(ALL)


def cluster(manager: str | None, nodes: int = 3, etcd: bool = False) -> Any:
    names = [f"n{number}" for number in range(1, nodes + 1)]
    return SimpleNamespace(
        nodes=dict.fromkeys(names),
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


def test_isolation_is_from_all_and_sometimes_from_clients() -> None:
    with_clients = set()
    for planned in first(2, 50, (Kind.ISOLATE,)):
        fault: Any = fault_for(cluster(None, etcd=True), planned)
        assert set(cluster(None).others(fault.victim)) | {ETCD} <= set(fault.others)
        with_clients.add(CLIENTS in fault.others)
    assert with_clients == {True, False}
