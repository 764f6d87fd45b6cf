"""Whose files still have a bucket where they end: by the marks of imports and drops, and by births.

What it is: a pure resolver beside `history`. Which records are on the chain does not say whether the node that wrote them kept
its copy: it may have let go of it (DROP), and its next copy may be only half on the disk. What was there before is then not the
bucket as it was last, however whole it looks: others went on with it, and it may end in changes that are dead.
Which thread runs it: the caller's. What it owns: what it was told of each source. What it must not know: paths, values, keys.

The events, and what may come back. Node B has bucket 7 up to 5.13, of which 5.11 to 5.13 were never acknowledged. It is cut
off; A opens epoch 6 from 5.10 and goes on. B comes back, lets go of its copy (DROP), is filled anew (IMPORT_BEGIN, rows,
changes of epoch 6, IMPORT_END) and is counted in. Then A is gone for good, and B loses its power and is started:
- the disk has the second copy to its end: that, with what follows it, is what comes back (it may lack the last interval of
  fsync, which is all that was promised);
- the disk has the DROP, and not the whole second copy: nothing of the bucket comes back by itself. Its first copy is older
  by as long as the filling took, and more, and 5.11 to 5.13 are dead. Recovery says so and gives up; only an operator may
  have what there is (`--skip-damaged`), or what other nodes' files have (`rcache-replay`);
- the disk has not even the DROP: all of this happened after the last fsync, and the first copy is what was there then.

Invariants:
1. A log has a bucket until a DROP of it or the IMPORT_BEGIN of another copy, and has it again from that copy's whole end, or
   from an OPEN that begins it anew, empty. Of what it never said either it has what it speaks of.
2. A checkpoint or savefile has what it has whole copies of; a log that says nothing of a bucket since has it too. A copy at
   sequence 0 says nothing: the bucket was not there, and the log says why.
3. Of several nodes' files it is enough that one has the bucket, and has come to the newest epoch that any of them knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from rcache.records.files import FileHeader, FileKind
from rcache.records.links import LogId, log_of
from rcache.records.record import epoch_of, show_sequence

Place = tuple[int, int]
"""A source's number and a bucket."""


class Holdings:
    """Collects, from `History`, what each source says of having each bucket, in the order of the source."""

    def __init__(self) -> None:
        self._turns: dict[Place, list[tuple[int, bool]]] = {}
        self._ends: dict[Place, int] = {}

    def note_turn(self, source: int, bucket: int, time_ms: int, *, has_it: bool) -> None:
        """Take in that from here on (of that time) the source has this bucket, or has it no longer."""
        self._turns.setdefault((source, bucket), []).append((time_ms, has_it))

    def note_end(self, source: int, bucket: int, sequence: int) -> None:
        """Take in that the source speaks of this sequence of the bucket."""
        place = (source, bucket)
        if sequence > self._ends.get(place, 0):
            self._ends[place] = sequence

    def doubt(self, bucket: int, end: int, headers: Sequence[FileHeader | None], until_ms: int) -> str:
        """Why none of these files has the bucket at the end of its history, at `until_ms`, or "". `headers`: of each source,
        one of its files'."""
        let_go: list[str] = []
        for sources in self._by_log(bucket, headers).values():
            newest = max(self._ends.get((source, bucket), 0) for source, _ in sources)
            if not self._has_it(bucket, sources, until_ms):
                let_go.append(sources[0][1].node)
            elif epoch_of(newest) >= epoch_of(end):
                return ""  # invariant 3
        if not let_go:
            return ""
        return f"let go of by {', '.join(sorted(set(let_go)))} at {show_sequence(end)}, and no whole copy made since is here"

    def _by_log(self, bucket: int, headers: Sequence[FileHeader | None]) -> dict[LogId, list[tuple[int, FileHeader]]]:
        """The sources that speak of a bucket, of each log: the log first, then its copies, the newest first."""
        found: dict[LogId, list[tuple[int, FileHeader]]] = {}
        for source, header in enumerate(headers):
            if header is not None and ((source, bucket) in self._turns or (source, bucket) in self._ends):
                found.setdefault(log_of(header), []).append((source, header))
        for sources in found.values():
            sources.sort(key=lambda each: (each[1].kind is not FileKind.SEGMENT, -each[1].first_segment, -each[1].created_ms))
        return found

    def _has_it(self, bucket: int, sources: list[tuple[int, FileHeader]], until_ms: int) -> bool:
        """Whether a node has a bucket: by its log, or, where that says nothing, by the newest of its copies (invariant 2)."""
        for source, _ in sources:
            turns = [has_it for time_ms, has_it in self._turns.get((source, bucket), ()) if time_ms <= until_ms]
            if turns:
                return turns[-1]
        return True  # invariant 1
