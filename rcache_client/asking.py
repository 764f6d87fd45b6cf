"""What many-key calls have in common: keys go to their nodes in frames, in waves, and again where nothing was executed.

What it is: `Asking`, which sends the frames of one call and yields what their answers say.
Which thread runs it: the caller's; it blocks to the call's deadline at most.
What it owns: nothing between calls.
What it must not know: what the entries of an answer mean, but for those that name another node.

A round: the keys by node, each node's in as few frames as they need. A wave: the next frame of each node; all are sent before
the first answer is awaited. What was surely not executed is sent again in the next round, within the budget; what may have been
is not, nor what refused, and the frames behind it for the same node are not sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from rcache_client.arguments import Key
from rcache_client.calls import Caller
from rcache_client.door import Door
from rcache_client.errors import OutcomeUnknown, ProtocolError, RcacheError, Refused, error_of
from rcache_client.fan_out import try_all
from rcache_client.many import Frame, Gathering, Room, by_door, frames_of
from rcache_client.retries import Failed, Retries
from rcache_client.routing import Table
from rcache_client.wire.grammar import CHANGE_ENTRY, ITEM_ENTRY
from rcache_client.wire.opcodes import MANY_KEYS_MAX, READ_OPCODES, Opcode, StatusClass, status_class

K = TypeVar("K", bound=Key)

_REPLY_ENTRY_BYTES = {
    Opcode.GET_MANY: ITEM_ENTRY.bytes_min,
    Opcode.SET_MANY: CHANGE_ENTRY.bytes_min,
    Opcode.DELETE_MANY: CHANGE_ENTRY.bytes_min,
}
"""What each key takes up in a reply at the least."""


class _Line(NamedTuple, Generic[K]):
    """The frames for one node that are still to be sent."""

    door: Door | None
    frames: Iterator[Frame[K]]


class _Again(Generic[K]):
    """What of a round was surely not executed: frames, those behind them, and single keys of frames that were answered."""

    def __init__(self) -> None:
        self.frames: list[tuple[Sequence[K], Failed]] = []
        self.unsent: list[K] = []
        self.entries: dict[K, RcacheError] = {}

    @property
    def keys(self) -> list[K]:
        return [*(key for part, _ in self.frames for key in part), *self.unsent, *self.entries]

    def why(self, used: int, newest: int) -> Failed:
        """What must be waited for before they are sent again: of several causes the one that decides.

        `used`: the epoch of the round's table; `newest`: the newest that was met in its answers.
        """
        causes = [failed for _, failed in self.frames]
        for error in self.entries.values():
            causes.append(Failed(error, elsewhere=True, used=used, wanted=newest))
            break
        return max(causes, key=lambda failed: (failed.no_way, failed.elsewhere, failed.wanted))


class Asking(Generic[K]):
    """One many-key call. `encode` makes of keys what `frames_of` takes; `gathering` is told of what fails."""

    def __init__(
        self,
        caller: Caller,
        opcode: Opcode,
        encode: Callable[[Sequence[K]], bytes | list[bytes]],
        gathering: Gathering[K, Any],
        deadline: float,
        entries_max: int = MANY_KEYS_MAX,
    ) -> None:
        self.gathering = gathering
        self._caller = caller
        self._opcode = opcode
        self._encode = encode
        self._deadline = deadline
        self._entries_max = entries_max
        self._again: _Again[K] | None = None

    def answers(self, keys: Sequence[K]) -> Iterator[tuple[Sequence[K], Any]]:
        """Yield the keys of each frame that was answered, with what its answer says of them. Blocks to the deadline at most.

        Of a key that was not done, tell `entry_failed` before the next answer is asked for.
        """
        with self._caller.asking_for(keys):
            yield from self._rounds(keys)

    def _rounds(self, keys: Sequence[K]) -> Iterator[tuple[Sequence[K], Any]]:
        asked = keys
        retries: Retries | None = None
        while asked:
            table, lines = self._begin(asked)
            self._again = None
            newest = -1
            answered = self._alone(lines[0], table) if len(lines) == 1 else self._in_waves(lines, table)
            for part, values, epoch in answered:
                newest = max(newest, epoch)
                yield part, values
            if len(lines) > 1 or self._again is not None:
                self.gathering.scattered = True
            if self._again is None:
                return
            retries = retries or self._caller.retries(self._deadline)
            if newest >= 0:
                retries.restart()
            asked = self._wait(self._again, self._again.why(table.epoch, newest), retries)

    def entry_failed(self, key: K, status: int) -> None:
        """An answer says of this key alone that it was not done."""
        error = error_of(status, "", "", self._opcode.name)
        if status_class(status) is StatusClass.ELSEWHERE:
            self._noted.entries[key] = error
        else:
            self.gathering.failed[key] = error

    @property
    def _noted(self) -> _Again[K]:
        """What of this round is to be sent again; nearly always there is nothing, so it is made only then."""
        if self._again is None:
            self._again = _Again()
        return self._again

    def _begin(self, keys: Sequence[K]) -> tuple[Table, list[_Line[K]]]:
        """The frames of a round, and the table that they go by. A bad key is found before anything is sent."""
        known = self._caller.known_table
        lines = self._lines(keys, known)
        table = self._caller.table(self._deadline)
        return table, lines if table is known else self._lines(keys, table)

    def _lines(self, keys: Sequence[K], table: Table) -> list[_Line[K]]:
        """The frames of each node. Raises `TypeError` or `ValueError` for a bad key."""
        groups = [(door, group, self._encode(group)) for door, group in by_door(keys, table)]
        room = Room.of(self._caller.frame_bytes_max(self._deadline), _REPLY_ENTRY_BYTES[self._opcode], self._entries_max)
        return [_Line(door, frames_of(group, encoded, room)) for door, group, encoded in groups]

    def _alone(self, line: _Line[K], table: Table) -> Iterator[tuple[Sequence[K], Any, int]]:
        """As `_in_waves`, for a single node: its answers do not tell their epoch, which would only save a question."""
        for part, payload in line.frames:
            try:
                outcome = self._caller.try_at(self._opcode, payload, line.door, table, self._deadline)
            except RcacheError as error:
                outcome = Failed(error, line.door)
            if isinstance(outcome, Failed):
                self._frame_failed(line, part, outcome)
            elif len(outcome[1]) != len(part):
                self._frame_failed(line, part, self._miscounted(part, len(outcome[1])))
            else:
                self.gathering.frame_answered()
                yield part, outcome[1], 0

    def _in_waves(self, lines: list[_Line[K]], table: Table) -> Iterator[tuple[Sequence[K], Any, int]]:
        """Send all frames; yield those that were answered, with the epochs of their answers, and note the others."""
        while True:
            heads = [(line, frame) for line in lines if (frame := next(line.frames, None)) is not None]
            if not heads:
                return
            requests = [(line.door, payload) for line, (_, payload) in heads]
            outcomes = try_all(self._caller, self._opcode, requests, table, self._deadline)
            for (line, (part, _)), outcome in zip(heads, outcomes, strict=True):
                if isinstance(outcome, Failed):
                    self._frame_failed(line, part, outcome)
                elif len(outcome.values) != len(part):
                    self._frame_failed(line, part, self._miscounted(part, len(outcome.values)))
                else:
                    self.gathering.frame_answered()
                    yield part, outcome.values, outcome.epoch

    def _miscounted(self, part: Sequence[K], entries: int) -> Failed:
        """An answer must be of exactly as many entries as were sent."""
        error = ProtocolError(f"{len(part)} keys were answered with {entries} entries", operation=self._opcode.name)
        if self._opcode in READ_OPCODES:
            return Failed(error)
        unknown = OutcomeUnknown(error.what, operation=self._opcode.name)
        unknown.__cause__ = error
        return Failed(unknown)

    def _frame_failed(self, line: _Line[K], part: Sequence[K], failed: Failed) -> None:
        """A frame that was refused says nothing about those behind it; after any other failure they are not sent."""
        error = failed.error
        if isinstance(error, Refused):
            self.gathering.frame_failed(part, error)
            return
        unsent = [key for rest, _ in line.frames for key in rest]
        if failed.is_final:
            self.gathering.frame_failed(part, error)
            self.gathering.not_sent(unsent, error)
        else:
            self._noted.frames.append((part, failed))
            self._noted.unsent += unsent

    def _wait(self, again: _Again[K], why: Failed, retries: Retries) -> Sequence[K]:
        """Wait until these keys may be sent again, and return them; none, and each one's error is told, where no other try may
        follow."""
        try:
            retries.wait(why)
        except RcacheError as error:
            for part, failed in again.frames:
                self.gathering.frame_failed(part, error if failed is why else failed.error)
            self.gathering.not_sent(again.unsent, error)
            self.gathering.failed.update(again.entries)
            return ()
        return again.keys
