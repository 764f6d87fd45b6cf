"""The checker: histories that must pass, histories that must fail, and random ones against a search that tries every order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soak import checker
from soak.checker import Kind, Report, Undecided, verify
from soak.history import HistoryWriter, Op, Operation, Outcome, to_line

OK, FAIL, UNKNOWN = Outcome


def get(value: str | None, start: int, end: int, outcome: Outcome = OK) -> Operation:
    return Operation("r", Op.GET, "k", value, start, end, outcome)


def put(value: str, start: int, end: int, outcome: Outcome = OK) -> Operation:
    return Operation("w", Op.SET, "k", value, start, end, outcome)


def delete(start: int, end: int, applied: bool | None = None, outcome: Outcome = OK) -> Operation:
    return Operation("w", Op.DELETE, "k", None, start, end, outcome, applied=applied)


def cas(expected: str | None, value: str, start: int, end: int, applied: bool = True) -> Operation:
    return Operation("s", Op.CAS, "k", value, start, end, OK, expected=expected, applied=applied)


def lost_cas(expected: str | None, value: str, start: int, end: int, outcome: Outcome = UNKNOWN) -> Operation:
    return Operation("s", Op.CAS, "k", value, start, end, outcome, expected=expected)


def add(delta: int, answer: str | None, start: int, end: int) -> Operation:
    return Operation("i", Op.INCREMENT, "k", answer, start, end, OK if answer else UNKNOWN, delta=delta)


MUST_PASS = {
    "nothing at all": [],
    "a miss before any write": [get(None, 1, 2)],
    "one after the other": [put("a", 1, 2), get("a", 3, 4), put("b", 5, 6), get("b", 7, 8)],
    "a read beside a write sees the old": [put("a", 1, 2), put("b", 3, 6), get("a", 4, 5)],
    "a read beside a write sees the new": [put("a", 1, 2), put("b", 3, 6), get("b", 4, 5)],
    "old then new beside a write": [put("a", 1, 2), put("b", 3, 10), get("a", 4, 5), get("b", 6, 7)],
    "old after new, when the two reads are concurrent": [put("a", 1, 2), put("b", 3, 10), get("b", 4, 7), get("a", 5, 8)],
    "touching at one time is concurrent": [put("a", 1, 2), put("b", 2, 3), get("a", 3, 4)],
    "concurrent writes, either order": [put("a", 1, 5), put("b", 1, 5), get("a", 6, 7), get("a", 8, 9)],
    "a failed write is not seen": [put("a", 1, 2), put("b", 3, 4, FAIL), get("a", 5, 6)],
    "an unknown write took effect": [put("a", 1, 2), put("b", 3, 4, UNKNOWN), get("b", 5, 6)],
    "an unknown write did not": [put("a", 1, 2), put("b", 3, 4, UNKNOWN), get("a", 5, 6)],
    "an unknown write took effect late": [put("b", 3, 4, UNKNOWN), put("a", 5, 6), get("a", 7, 8), get("b", 9, 10)],
    "and was overwritten": [put("b", 3, 4, UNKNOWN), get("b", 5, 6), put("a", 7, 8), get("a", 9, 10)],
    "two unknown writes of one value, seen twice": [
        *(put("u", 1, 2, UNKNOWN), put("u", 1, 2, UNKNOWN)),
        *(put("a", 3, 4), get("u", 5, 6), put("b", 7, 8), get("u", 9, 10)),
    ],
    "an unknown delete, late": [put("a", 1, 2), delete(3, 4, outcome=UNKNOWN), get("a", 5, 6), get(None, 7, 8)],
    "an unknown read says nothing": [put("a", 1, 2), get(None, 3, 4, UNKNOWN), get("a", 5, 6)],
    "a failed read says nothing": [put("a", 1, 2), get(None, 3, 4, FAIL)],
    "deleted": [put("a", 1, 2), delete(3, 4, True), get(None, 5, 6), delete(7, 8, False)],
    "two deletes beside each other, one found it": [put("a", 1, 2), delete(3, 6, True), delete(4, 7, False)],
    "a delete beside a write": [put("a", 1, 5), delete(2, 6, False), get("a", 7, 8)],
    "deleted and written again": [put("a", 1, 2), delete(3, 4), put("a", 5, 6), get("a", 7, 8)],
    "cas": [put("a", 1, 2), cas("a", "b", 3, 4), get("b", 5, 6), cas("a", "c", 7, 8, applied=False)],
    "two cas, one refused": [put("a", 1, 2), cas("a", "b", 3, 6), cas("a", "c", 4, 7, applied=False), get("b", 8, 9)],
    "add": [cas(None, "a", 1, 2), cas(None, "b", 3, 4, applied=False), get("a", 5, 6)],
    "a cas refused for a write nobody saw": [put("a", 1, 2), put("u", 3, 4, UNKNOWN), cas("a", "b", 5, 6, applied=False)],
    "and again, because of two": [
        *(put("u", 1, 2, UNKNOWN), put("v", 1, 2, UNKNOWN), put("a", 3, 4), cas("a", "x", 5, 6, applied=False)),
        *(put("a", 7, 8), cas("a", "x", 9, 10, applied=False)),
    ],
    "an unknown cas took effect": [put("a", 1, 2), lost_cas("a", "b", 3, 4), get("b", 5, 6)],
    "an unknown cas waits for its value": [lost_cas("a", "b", 1, 2), put("a", 3, 4), get("b", 5, 6)],
    "an unknown write for an unknown cas": [put("a", 1, 2, UNKNOWN), lost_cas("a", "b", 1, 2), get("b", 5, 6)],
    "a delete that found an unknown write": [put("u", 1, 2, UNKNOWN), delete(3, 4, True)],
    "a counter": [add(2, "2", 1, 2), add(-3, "-1", 3, 4), get("-1", 5, 6), delete(7, 8), add(1, "1", 9, 10)],
    "two counts beside each other": [add(1, "2", 1, 5), add(1, "1", 2, 6)],
    "an unknown count": [add(1, "1", 1, 2), add(5, None, 3, 4), add(1, "2", 5, 6), add(1, "8", 7, 8)],
    "a count upon a set": [put("41", 1, 2), add(1, "42", 3, 4)],
}  # fmt: skip

MUST_FAIL = {
    "stale read": (Kind.STALE_READ, [put("a", 1, 2), put("b", 3, 4), get("a", 5, 6), get("b", 7, 8)]),
    "lost write": (Kind.LOST_WRITE, [put("a", 1, 2), put("b", 3, 4), get("a", 5, 6)]),
    "lost write, a miss": (Kind.LOST_WRITE, [put("a", 1, 2), get(None, 3, 4)]),
    "lost write, a miss after a deletion before it": (Kind.LOST_WRITE, [delete(1, 2), put("a", 3, 4), get(None, 5, 6)]),
    "lost write that had been read": (Kind.LOST_WRITE, [put("a", 1, 2), put("b", 3, 4), get("b", 5, 6), get("a", 7, 8)]),
    "lost delete": (Kind.LOST_WRITE, [put("a", 1, 2), delete(3, 4, True), get("a", 5, 6)]),
    "lost cas": (Kind.LOST_WRITE, [put("a", 1, 2), cas("a", "b", 3, 4), get("a", 5, 6)]),
    "a cas upon a value that is gone": (Kind.LOST_WRITE, [put("a", 1, 2), put("b", 3, 4), cas("a", "c", 5, 6)]),
    "a delete that found nothing": (Kind.LOST_WRITE, [put("a", 1, 2), delete(3, 4, False)]),
    "never written": (Kind.NEVER_WRITTEN, [put("a", 1, 2), get("x", 3, 4)]),
    "dirty read of a failed write": (Kind.FAILED_WRITE, [put("a", 1, 2), put("b", 3, 6, FAIL), get("b", 4, 5)]),
    "of a failed cas": (Kind.FAILED_WRITE, [put("a", 1, 2), lost_cas("a", "b", 3, 4, FAIL), get("b", 5, 6)]),
    "a refused cas wrote": (Kind.NEVER_WRITTEN, [put("a", 1, 2), cas("x", "b", 3, 4, applied=False), get("b", 5, 6)]),
    "read before the write": (Kind.TOO_EARLY, [get("a", 1, 2), put("a", 3, 4)]),
    "read before the unknown write": (Kind.TOO_EARLY, [get("a", 1, 2), put("a", 3, 4, UNKNOWN)]),
    "two reads disagree on the order of concurrent writes": (
        Kind.STALE_READ,
        [put("a", 1, 9), put("b", 1, 9), get("a", 10, 11), get("b", 12, 13)],
    ),
    "two clients disagree while the writes run": (
        Kind.STALE_READ,
        [put("a", 1, 9), put("b", 1, 9), get("a", 2, 3), get("b", 4, 5), get("a", 10, 11), get("b", 10, 11)],
    ),
    "new, then old, beside a write": (Kind.STALE_READ, [put("a", 1, 2), put("b", 3, 10), get("b", 4, 5), get("a", 6, 7)]),
    "an unknown write twice": (
        Kind.LOST_WRITE,
        [put("u", 1, 2, UNKNOWN), get("u", 3, 4), put("a", 5, 6), get("u", 7, 8)],
    ),
    "an unknown write twice, seen late": (
        Kind.STALE_READ,
        [
            *(put("u", 1, 2, UNKNOWN), put("a", 3, 4), get("u", 5, 6), put("b", 7, 8)),
            *(get("b", 9, 10), get("u", 11, 12), get("b", 13, 14)),
        ],
    ),
    "an unknown delete twice": (
        Kind.NO_ORDER,
        [put("a", 1, 2), delete(3, 4, outcome=UNKNOWN), get(None, 5, 6), put("b", 7, 8), get(None, 9, 10)],
    ),
    "a delete found what was deleted": (Kind.NO_ORDER, [put("a", 1, 2), delete(3, 4, True), delete(5, 6, True)]),
    "two deletes beside each other found it": (Kind.NO_ORDER, [put("a", 1, 2), delete(3, 6, True), delete(4, 7, True)]),
    "a delete found what was never there": (Kind.NO_ORDER, [delete(1, 2, True)]),
    "two cas upon one value": (Kind.REPLACED_TWICE, [put("a", 1, 2), cas("a", "b", 3, 6), cas("a", "c", 4, 7)]),
    "two adds": (Kind.NO_ORDER, [cas(None, "a", 1, 5), cas(None, "b", 2, 6)]),
    "a cas refused for nothing": (Kind.NO_ORDER, [put("a", 1, 2), cas("a", "b", 3, 4, applied=False)]),
    "refused once too often": (
        Kind.NO_ORDER,
        [
            *(put("u", 1, 2, UNKNOWN), put("a", 3, 4), cas("a", "x", 5, 6, applied=False)),
            *(put("a", 7, 8), cas("a", "x", 9, 10, applied=False)),
        ],
    ),
    "a lost count": (Kind.NO_ORDER, [add(1, "1", 1, 2), add(1, "1", 3, 4)]),
    "a count upon text": (Kind.NO_ORDER, [put("a", 1, 2), add(1, "1", 3, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("name", MUST_PASS)
def test_must_pass(name: str) -> None:
    assert brute(MUST_PASS[name])
    report = verify(MUST_PASS[name])
    assert report.fine, list(report.lines())


@pytest.mark.parametrize("name", MUST_FAIL)
def test_must_fail(name: str) -> None:
    kind, history = MUST_FAIL[name]
    assert not brute(history)
    report = verify(history)
    assert [each.kind for each in report.violations] == [kind]
    assert not report.fine


# Against a search that tries every order. It shares no code with the checker.


def apply(operation: Operation, value: str | None) -> tuple[bool, str | None]:
    """Whether a register with this value gives the operation's answer, and its value afterwards."""
    ok = operation.outcome == OK
    match operation.op:
        case Op.GET:
            return not ok or operation.value == value, value
        case Op.SET:
            return True, operation.value
        case Op.DELETE:
            return operation.applied in {None, value is not None}, None
        case Op.CAS:
            return operation.applied in {None, value == operation.expected}, (
                operation.value if value == operation.expected else value
            )
    assert operation.delta is not None
    if value is not None and not value.lstrip("-").isdigit():
        return not ok, value
    total = str(int(value or "0") + operation.delta)
    return not ok or operation.value == total, total


def brute(history: list[Operation], optional: tuple[Operation, ...] = ()) -> bool:
    """Whether some order of all that is ok, and some of what is unknown or `optional`, explains it. For a few operations."""
    spare = {id(each) for each in (*optional, *(each for each in history if each.outcome == UNKNOWN))}

    def placed(left: list[Operation], value: str | None) -> bool:
        if all(id(each) in spare for each in left):
            return True
        for each in left:
            if any(other.outcome == OK and ended(other) < each.start_ns for other in left):
                continue
            answers, after = apply(each, value)
            if answers and placed([other for other in left if other is not each], after):
                return True
        return False

    return placed([each for each in (*history, *optional) if each.outcome != FAIL], None)


def ended(operation: Operation) -> int:
    assert operation.end_ns is not None
    return operation.end_ns


def any_operation(chance: random.Random, number: int, values: str, ops: list[Op]) -> Operation:
    """With any answer, which may be a wrong one."""
    op = chance.choice(ops)
    outcome = chance.choices([OK, UNKNOWN, FAIL], [8, 3, 1])[0]
    start = chance.randrange(14)
    end = start + chance.randrange(8)
    plain = Operation(f"c{number}", op, "k", None, start, end, outcome)
    some = chance.choice(values)
    match op:
        case Op.GET:
            return plain._replace(value=chance.choice([None, *values]) if outcome == OK else None)
        case Op.SET:
            return plain._replace(value=some)
        case Op.DELETE:
            return plain._replace(applied=chance.choice([None, True, False]) if outcome == OK else None)
        case Op.CAS:
            applied = chance.random() < 0.6 if outcome == OK else None
            return plain._replace(value=some, expected=chance.choice([None, *values]), applied=applied)
    return plain._replace(value=some if outcome == OK else None, delta=chance.choice([1, 1, 2]))


MIXTURES = {
    "sets and gets": ("abc", [Op.GET, Op.SET]),
    "with deletes": ("ab", [Op.GET, Op.SET, Op.DELETE]),
    "with cas": ("abc", [Op.GET, Op.SET, Op.CAS]),
    "all but counts": ("abc", [Op.GET, Op.SET, Op.DELETE, Op.CAS]),
    "counts": ("123", list(Op)),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_both_searches_agree_on_small_histories(mixture: str) -> None:
    verdicts: Counter[bool] = Counter()
    for seed in range(2000):
        chance = random.Random(f"{mixture} {seed}")
        history = [any_operation(chance, number, *MIXTURES[mixture]) for number in range(chance.randint(2, 7))]
        legal = brute(history)
        assert verify(history).fine == legal, f"seed {seed}: {history}"
        if not legal:
            check_the_prefix(history)
        check_what_is_told_without_a_search(history, legal)
        verdicts[legal] += 1
    assert min(verdicts[True], verdicts[False]) > 200, verdicts


def check_the_prefix(history: list[Operation]) -> None:
    """What had ended before the operation that fits nowhere has an order, with some of what ran; with it there is none."""
    (violation,) = verify(history).violations
    by_end = sorted((each for each in history if each.outcome == OK), key=ended)
    before, operation = by_end[: violation.placed], by_end[violation.placed]
    assert operation == violation.operation
    assert operation in violation.excerpt
    started = [each for each in history if each.start_ns <= ended(operation)]
    unknown = [each for each in started if each.outcome == UNKNOWN]
    running = tuple(each for each in by_end[violation.placed + 1 :] if each.start_ns <= ended(operation))
    assert brute([*before, *unknown], optional=(operation, *running))
    assert not brute([*before, operation, *unknown], optional=running)


def check_what_is_told_without_a_search(history: list[Operation], legal: bool) -> None:
    """With no budget a history may be undecided; it is never fine, and in violation only if it is."""
    report = verify(history, budget=0)
    if any(each.outcome == OK for each in history):
        assert not report.fine
    assert not (legal and report.violations)


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_both_searches_agree(chance: random.Random) -> None:
    history = [any_operation(chance, number, *MIXTURES["all but counts"]) for number in range(chance.randint(0, 7))]
    assert verify(history).fine == brute(history)


# Histories of a register that is linearizable.


class Simulated:
    """Clients of one register. An operation takes effect between start and end; an unknown one at any time, or never."""

    def __init__(self, seed: object, clients: int = 6, operations: int = 120, unknown: float = 0.05) -> None:
        self._chance = random.Random(str(seed))
        self._unknown = unknown
        self._written: list[str] = []
        self._last_ns = 60 * operations // clients
        moments = [moment for client in range(clients) for moment in self._client(f"c{client}", operations // clients)]
        moments.sort(key=lambda moment: moment[0])
        self.history: list[Operation] = []
        value: str | None = None
        for _, operation, happens in moments:
            done, value = self._done(operation, value) if happens else (operation, value)
            self.history.append(done)

    def _client(self, client: str, count: int) -> Iterator[tuple[int, Operation, bool]]:
        now = 0
        for number in range(count):
            start = now + self._chance.randrange(10)
            at = start + self._chance.randrange(40)
            now = at + self._chance.randrange(40)
            operation = self._asked(client, f"{client}.{number}", start, now)
            if self._chance.random() >= self._unknown:
                yield at, operation, True
            elif operation.op != Op.GET:
                lost = operation._replace(outcome=UNKNOWN, value=operation.value)
                yield start + self._chance.randrange(self._last_ns), lost, self._chance.random() < 0.5

    def _asked(self, client: str, value: str, start: int, end: int) -> Operation:
        op = self._chance.choices([Op.GET, Op.SET, Op.CAS, Op.DELETE], [10, 6, 3, 1])[0]
        plain = Operation(client, op, "k", None, start, end, OK)
        if op == Op.CAS:
            expected = self._chance.choice([None, *self._written[-3:]])
            plain = plain._replace(expected=expected)
        if op in {Op.SET, Op.CAS}:
            self._written.append(value)
            plain = plain._replace(value=value)
        return plain

    def _done(self, operation: Operation, value: str | None) -> tuple[Operation, str | None]:
        told = operation.outcome == OK
        match operation.op:
            case Op.GET:
                return operation._replace(value=value), value
            case Op.SET:
                return operation, operation.value
            case Op.DELETE:
                say = told and self._chance.random() < 0.7
                return operation._replace(applied=value is not None if say else None), None
        applies = operation.expected == value
        return operation._replace(applied=applies if told else None), operation.value if applies else value


@pytest.mark.parametrize("unknown", [0.0, 0.05, 0.3])
def test_a_linearizable_register_passes(unknown: float) -> None:
    for seed in range(60):
        report = verify(Simulated(f"{unknown} {seed}", unknown=unknown).history)
        assert report.fine, (seed, *report.lines())


def made_stale(history: list[Operation], chance: random.Random) -> list[Operation] | None:
    """One read has a value that two acknowledged writes in a row, both before it, have taken away for good."""
    sets = [each for each in history if each.op == Op.SET and each.outcome == OK]
    reads = [number for number, each in enumerate(history) if each.op == Op.GET]
    chance.shuffle(reads)
    for number in reads:
        read = history[number]
        newer = [each for each in sets if ended(each) < read.start_ns]
        older = [each for each in newer if any(ended(each) < other.start_ns for other in newer)]
        if older:
            return [*history[:number], read._replace(value=chance.choice(older).value), *history[number + 1 :]]
    return None


@pytest.mark.parametrize("unknown", [0.0, 0.05, 0.3])
def test_one_stale_read_fails(unknown: float) -> None:
    found = 0
    for seed in range(60):
        history = made_stale(Simulated(f"{unknown} {seed}", unknown=unknown).history, random.Random(seed))
        if history is not None:
            assert len(verify(history).violations) == 1, seed
            found += 1
    assert found > 40


def test_dozens_of_unknown_writes_that_were_seen_are_decided() -> None:
    """Each was sent at the start, and takes effect at a time of its own: a search over their subsets does not end."""
    unknown = [put(f"u{number}", 1, 2, UNKNOWN) for number in range(60)]
    history = [*unknown, *(delete(1, 2, outcome=UNKNOWN) for _ in range(30))]
    for number in range(60):
        at = 100 * number + 100
        history += [put(f"v{number}", at, at + 10), get(f"v{number}", at + 20, at + 30), get(f"u{number}", at + 40, at + 50)]
        history += [get(None, at + 60, at + 70)] if number % 2 else []
    assert verify(history).fine
    (violation,) = verify([*history, put("v", 9000, 9001), get(None, 9002, 9003)]).violations  # as if a 31st had happened
    assert (violation.kind, violation.possible) == (Kind.NO_ORDER, ("v",))


def test_a_burst_of_concurrent_writes_is_decided() -> None:
    history = []
    for burst in range(0, 5000, 100):
        history += [put(f"{burst}.{client}", burst, burst + 50) for client in range(8)]
        history += [get(f"{burst}.{client}", burst + 1, burst + 60) for client in range(8)]
        history += [get(f"{burst}.3", burst + 70, burst + 80)]
    assert verify(history).fine


# What is said about it.


def test_keys_are_independent_and_counted() -> None:
    history = [
        *(put("a", 1, 2), get("a", 3, 4)),
        *(put("b", 5, 6)._replace(key="other"), get(None, 7, 8)._replace(key="other")),
        *(put("c", 9, 10, FAIL)._replace(key="third"), put("c", 9, 10, UNKNOWN)._replace(key="third")),
    ]
    report = verify(history)
    assert (report.keys, report.operations, report.failed, report.unknown, report.started_ns) == (3, 6, 1, 1, 1)
    assert [each.key for each in report.violations] == ["other"]


def test_a_violation_tells_the_operation_and_what_it_takes_to_see_it() -> None:
    ms = 10**6
    history = [
        *(put(f"old{number}", number * ms, number * ms + 5) for number in range(1, 30)),
        *(put("new", 40 * ms, 41 * ms), get("old29", 42 * ms, 43 * ms), put("other", 42 * ms, 44 * ms)),
        get("other", 50 * ms, 51 * ms),
    ]
    report = verify(history)
    (violation,) = report.violations
    assert (violation.kind, violation.placed, violation.operation) == (Kind.LOST_WRITE, 30, history[30])
    assert violation.possible == ("new", "other")
    assert violation.excerpt == tuple(history[22:32])
    assert list(report.lines())[:6] == [
        "33 operations (0 failed, 0 of unknown outcome) on 1 keys: 1 keys in violation, 0 undecided",
        "times are in ms after 1000000 ns (CLOCK_MONOTONIC), the start of the history",
        "violation: key 'k': lost write: client w: set 'new', ok, acknowledged at 41000000 ns; "
        "later client r: get -> 'old29', ok",
        "  the 30 operations that ended before have an order; this one (>) fits nowhere",
        "  the value could only be: 'new', 'other'",
        "       22.000000 ..    22.000005  client w: set 'old23', ok",
    ]
    assert "  >    41.000000 ..    42.000000  client r: get -> 'old29', ok" in report.lines()


def test_beyond_the_budget_is_undecided_and_never_fine() -> None:
    history = [put(f"v{number}", 1, 50) for number in range(8)] + [get(f"v{number}", 60, 70) for number in range(1)]
    assert verify(history).fine
    report = verify(history, budget=4)
    assert not report.fine
    assert [(each.key, each.operations) for each in report.undecided] == [("k", 9)]
    assert "undecided: key 'k': beyond the budget after 3 of 9 operations" in list(report.lines())


def test_what_is_provably_wrong_is_a_violation_beyond_the_budget_too() -> None:
    history = [put("a", 1, 2), put("b", 3, 4), get("a", 5, 6)]
    (violation,) = verify(history, budget=1).violations
    assert (violation.kind, violation.possible) == (Kind.LOST_WRITE, ())


def test_a_long_report_is_cut_short() -> None:
    report = verify([get("x", 1, 2)._replace(key=f"k{number}") for number in range(25)])
    lines = list(report.lines())
    assert sum(line.startswith("violation") for line in lines) == 10
    assert lines[-1] == "and 15 keys more"
    report = Report(undecided=[Undecided("k", 1, 0)] * 11)
    assert list(report.lines())[-1] == "and 1 keys more"


# The command.


def test_the_command_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, empty = (tmp_path / name for name in ("good", "bad", "empty"))
    for path, history in ((good, [put("a", 1, 2), get("a", 3, 4)]), (bad, [get("x", 5, 6)]), (empty, [])):
        with HistoryWriter(path) as writer:
            for operation in history:
                writer.write(operation)
    assert checker.main([str(good)]) == 0
    assert "2 operations" in capsys.readouterr().out
    assert checker.main([str(good), str(bad)]) == 1
    assert "value never written" in capsys.readouterr().out
    assert checker.main([str(good), "--budget", "1"]) == 1
    assert "undecided" in capsys.readouterr().out
    assert checker.main([str(empty)]) == 2
    assert checker.main([str(tmp_path / "missing")]) == 2
    bad.write_text("{}\n")
    assert checker.main([str(good), str(bad)]) == 2
    assert "bad:1: " in capsys.readouterr().err


def test_the_command_tells_of_a_torn_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "h"
    path.write_bytes(to_line(put("a", 1, 2)) + to_line(get("a", 3, 4))[:-7])
    assert checker.main([str(path)]) == 0
    assert f"{path}: the last line was cut off and is left out\n1 operations" in capsys.readouterr().out
