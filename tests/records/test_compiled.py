"""What holds for the compiled body alone: its checksum, how far it reads by itself, its window, its table of keys, and that it
comes to no harm whatever bytes it meets and however it is used."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import zlib
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcache.records import walk
from rcache.records.files import encode_block, encode_end, encode_header
from rcache.records.history import History
from rcache.records.links import Links
from rcache.records.reader import DataDamaged, RecordFile, Tail
from rcache.records.rebuild import RebuiltBucket, Source, rebuild, survey
from rcache.records.record import BadRecord, Head, Kind, heads

from .bodies import needs_compiled, outcome, told, using
from .fuzz import fuzz
from .making import file_bytes, flushed, header_of, imported, opened, removed, row, seq, stored, write_file

pytestmark = needs_compiled

HEADER = header_of(1)
FRONT = encode_header(HEADER)


def compiled_taker() -> walk.Taker:
    assert walk.COMPILED is not None
    return walk.COMPILED.checker()


def put_file(folder: Path, *bodies: bytes, records: int = 1, first: int = 0) -> Path:
    """A file of blocks with these bodies, whatever they are, that claim so many records; the first has the number `first`."""
    path = folder / "made.rcl"
    with path.open("wb") as file:
        file.write(FRONT)
        for number, each in enumerate(bodies, first):
            file.write(encode_block(HEADER.file_id, number, each, records, 0))
    return path


def rebuilt(path: Path) -> RebuiltBucket:
    with using(walk.COMPILED):
        read = [Source("made", (path,))]
        return rebuild(read, survey(read).plans)[0]


# --- the checksum


@pytest.mark.parametrize("fold", [False, True])
def test_the_checksum_is_that_of_zlib_for_every_length_and_alignment(fold: bool) -> None:
    from rcache.records import _walk

    data = Random(1).randbytes(1200)
    for start in range(9):
        for length in [*range(300), 1000, 1024, 1039]:
            part = data[start : start + length]
            for before in (0, 1, 0xFFFFFFFF, 0xDEADBEEF):
                assert _walk.checksum(part, before, fold) == zlib.crc32(part, before), (start, length, before)
    large = Random(2).randbytes((1 << 20) + 7)
    assert _walk.checksum(large, 5, fold) == zlib.crc32(large, 5)


# --- reading ahead


def test_a_whole_file_is_read_without_the_readable_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for OPENs, marks or a cut in the middle of a window: it would be slow, and no other test would show it."""
    records = [opened(1), *imported(seq(1, 0), seq(1, 0)), *(stored(seq(1, n), b"k%d" % n, bytes(900)) for n in range(1, 5000))]
    path = write_file(tmp_path, HEADER, *([record] for record in records[:50]), records[50:2000], records[2000:], closed=False)
    monkeypatch.setattr(RecordFile, "_block_at", None)
    assert len(rebuilt(path).rows) == 4999


def test_it_stops_where_anything_else_comes(tmp_path: Path) -> None:
    path = write_file(tmp_path, HEADER, [opened(1)], [stored(seq(1, 1), b"a", b"1")])
    end = path.stat().st_size - 32
    with RecordFile(path) as file:
        taker = compiled_taker()
        taker.begin(0, file)
        assert taker.run(len(FRONT), 0) == (end, 2, None)
        assert taker.run(end, 2) == (end, 0, None)  # the end block
        assert taker.run(len(FRONT), 1) == (len(FRONT), 0, None)  # another number
        assert taker.run(len(FRONT) + 1, 0) == (len(FRONT) + 1, 0, None)
        for at in (file.size, file.size + 1, (1 << 64) - 1):
            assert taker.run(at, 0) == (at, 0, None)


def test_it_comes_back_every_few_megabytes(tmp_path: Path) -> None:
    body = stored(seq(1, 1), b"a", bytes(1 << 20))
    path = put_file(tmp_path, *[body] * 40)
    seen: list[int] = []
    with RecordFile(path) as file:
        walk.walk(compiled_taker(), 0, file, skip_damaged=False, progress=seen.append)
    assert len(seen) > 3
    assert max(later - before for before, later in itertools.pairwise(seen)) < 12 << 20
    assert seen[-1] == path.stat().st_size


def test_a_caller_that_gives_up_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    path = put_file(tmp_path, *[stored(seq(1, 1), b"a", bytes(1 << 20))] * 20)

    class Stopped(Exception):
        pass

    def stop(_done: int, _total: int) -> None:
        raise Stopped

    with using(walk.COMPILED):
        for _ in range(3):
            with pytest.raises(Stopped):
                survey([Source("made", (path,))], progress=stop)
        assert survey([Source("made", (path,))]).records == 20
    assert str(path) not in mapped_files()


@pytest.mark.parametrize("first", [0, (1 << 64) - 2, (1 << 64) - 1])
def test_the_last_of_all_block_numbers(tmp_path: Path, first: int) -> None:
    """A file whose first block is damaged may go on with any number; behind the last there is none."""
    body = stored(seq(1, 1), b"a", b"1")
    path = put_file(tmp_path, body, first=first)
    with path.open("ab") as file:
        for number in (first + 1, first + 2, 0, 1):
            file.write(encode_block(HEADER.file_id, number & (1 << 64) - 1, body, 1, 1 << 40))
    for skip_damaged in (True, False):
        said = []
        for chosen in (walk.REFERENCE, walk.COMPILED):
            with using(chosen):
                read = [Source("made", (path,))]
                said.append(outcome(read, until_ms=1 << 60, skip_damaged=skip_damaged, piece_bytes=1))
        assert said[0] == said[1]


SIZES = [1, 100, 1000, 4000, (1 << 20) - 73, (1 << 20) - 72, (1 << 20) - 71, 1 << 20, 3 << 20, (8 << 20) + 1]


@pytest.mark.parametrize("seed", range(6))
def test_blocks_of_every_size_around_the_window(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    blocks, counter = [[opened(1)]], 0
    for _ in range(40):
        block = []
        count = random.choice([1, 1, 3, 200])
        for _ in range(count):
            counter += 1
            size = random.choice(SIZES[:4] if count == 200 or random.random() < 0.8 else SIZES)
            block.append(stored(seq(1, counter), b"key %d" % random.randrange(100), bytes([counter % 251]) * size))
        blocks.append(block)
    read = [Source("made", (write_file(tmp_path, HEADER, *blocks),))]
    said = []
    for chosen in (walk.REFERENCE, walk.COMPILED):
        with using(chosen):
            said.append(outcome(read, until_ms=1 << 60, skip_damaged=False, piece_bytes=1 << 20))
    assert said[0] == said[1]
    assert "damaged" not in said[0]


# --- bytes that lie


@given(st.data())
def test_it_takes_a_body_for_records_exactly_where_heads_does(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The checksum fits, so only the records say whether the block is whole."""
    made = [
        opened(1),
        stored(seq(1, 1), b"key", b"value"),
        removed(seq(1, 2), b"k"),
        flushed(seq(1, 3)),
        row(seq(1, 4), b"r", b"v"),
    ]
    body = bytearray(b"".join(data.draw(st.lists(st.sampled_from(made), max_size=4))))
    for at in data.draw(st.lists(st.integers(0, max(0, len(body) - 1)), max_size=3)) if body else ():
        body[at] = data.draw(st.sampled_from([0, 1, 8, 9, 40, 41, 255, body[at] ^ 1]))
    end = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    body = body[:end]
    try:
        count = len(list(heads(bytes(body))))
    except BadRecord:
        count = -1
    claimed = max(0, count) + data.draw(st.sampled_from([0, 0, 0, 1]))
    path = put_file(tmp_path_factory.mktemp("lies"), bytes(body), records=claimed)
    with RecordFile(path) as file:
        taker = compiled_taker()
        taker.begin(0, file)
        assert taker.run(len(FRONT), 0)[1] == (count == claimed)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_short_campaign_of_blocks_that_lie(seed: int) -> None:
    whole, pieces = fuzz(seed, 4000)
    assert 1000 < whole < 3000
    assert pieces


@pytest.mark.parametrize("skip_damaged", [False, True])
def test_random_bytes_behind_a_header(tmp_path: Path, skip_damaged: bool) -> None:
    random = Random(7)
    path = tmp_path / "made.rcl"
    for _ in range(300):
        junk = random.randbytes(random.randrange(300))
        if random.random() < 0.5:
            junk = b"rBLK" + random.randbytes(3).rjust(4, b"\0") + b"\0\0\0\1" + bytes(8) + junk
        path.write_bytes(FRONT + junk)
        with RecordFile(path) as file:
            expected = [block.body for block in file.blocks(skip_damaged=skip_damaged)], told(file.findings)
            walk.walk(compiled_taker(), 0, file, skip_damaged=skip_damaged)
            assert told(file.findings) == expected[1]


def test_a_block_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    body = stored(seq(1, 1), b"a", b"1")
    whole = put_file(tmp_path, body).read_bytes()
    for length in range(len(FRONT), len(whole)):
        path = tmp_path / "made.rcl"
        path.write_bytes(whole[:length])
        with RecordFile(path) as file:
            walk.walk(compiled_taker(), 0, file, skip_damaged=False)
            assert (file.findings.blocks, file.findings.whole_bytes) == (0, len(FRONT))
            assert file.findings.tail is (Tail.UNCLOSED if length == len(FRONT) else Tail.TORN)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = put_file(tmp_path, *[stored(seq(1, 1), b"a", bytes(1000))] * 50)
    with RecordFile(path) as file:
        os.truncate(path, file.size // 2)
        walk.walk(compiled_taker(), 0, file, skip_damaged=False)
        assert (file.findings.blocks, file.findings.tail) == (24, Tail.TORN)


# --- the keys


def test_many_keys_of_one_bucket_each_with_its_newest_value(tmp_path: Path) -> None:
    random = Random(3)
    expected: dict[bytes, tuple[int, bytes | None]] = {}
    records = [opened(1)]
    for counter in range(1, 60_000):
        key = random.choice([b"%d", b"key:%012d", b"%040d"]) % random.randrange(8000)
        if random.random() < 0.2:
            records.append(removed(seq(1, counter), key))
            expected[key] = seq(1, counter), None
        elif counter in (20_000, 20_001, 45_000):
            records.append(flushed(seq(1, counter)))
            expected.clear()
        else:
            records.append(stored(seq(1, counter), key, b"%d" % counter))
            expected[key] = seq(1, counter), b"%d" % counter
    bucket = rebuilt(write_file(tmp_path, HEADER, records))
    assert len(bucket.rows) == len(expected)
    live = {key: (found.version, found.value) for key, found in bucket.live_rows()}
    assert live == {key: state for key, state in expected.items() if state[1] is not None}
    assert bucket.items == len(live)


def test_the_longest_key_and_a_large_value(tmp_path: Path) -> None:
    key, value = b"\xff" * 65535, os.urandom(20 << 20)
    near = key[:-1] + b"\xfe"
    records = [
        opened(1),
        stored(seq(1, 1), key, value, flags=1 << 31),
        stored(seq(1, 2), near, b""),
        stored(seq(1, 3), b"\0", b"x"),
    ]
    bucket = rebuilt(write_file(tmp_path, HEADER, records))
    assert {found: each.value for found, each in bucket.live_rows()} == {key: value, near: b"", b"\0": b"x"}
    large, rest = bucket.pieces(100_000)
    assert len(large) > len(value)
    assert [head.kind for head in heads(large + rest)] == [Kind.IMPORT_BEGIN, Kind.ROW, Kind.ROW, Kind.ROW, Kind.IMPORT_END]


# --- the rows and the files they lie in


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


def test_a_file_stays_mapped_while_its_rows_are_wanted_and_no_longer(tmp_path: Path) -> None:
    path = write_file(tmp_path, HEADER, [opened(1), stored(seq(1, 1), b"a", b"1")])
    bucket = rebuilt(path)
    path.unlink()
    assert str(path) in mapped_files()
    assert [row.value for _, row in bucket.live_rows()] == [b"1"]
    del bucket
    assert str(path) not in mapped_files()


@pytest.mark.parametrize("at", [0, 4, 6, 16, 23], ids=["length", "kind", "key length", "epoch", "counter"])
def test_a_row_that_was_changed_since_it_was_read_is_not_given_out(tmp_path: Path, at: int) -> None:
    record = stored(seq(1, 1), b"a", b"1")
    path = write_file(tmp_path, HEADER, [opened(1), record])
    bucket = rebuilt(path)
    data = bytearray(path.read_bytes())
    place = data.index(record)
    data[place + at] ^= 0x40
    path.write_bytes(data)
    for read in (bucket.live_rows, bucket.records, lambda: bucket.pieces(1000)):
        with pytest.raises(DataDamaged, match="changed while it was read") as caught:
            list(read())
        assert (caught.value.path, caught.value.offset) == (path, place)


def test_rows_that_were_let_go_of(tmp_path: Path) -> None:
    records = [opened(1), *(stored(seq(1, n), b"%d" % n, b"v") for n in range(1, 100))]
    path = write_file(tmp_path, HEADER, records)
    bucket = rebuilt(path)
    rows, pieces = bucket.live_rows(), bucket.pieces(500)
    next(rows)
    next(pieces)
    bucket.rows.clear()
    bucket.rows.clear()
    assert (len(bucket.rows), bucket.items, list(rows)) == (0, 0, [])
    with pytest.raises(RuntimeError, match="let go"):
        next(pieces)
    assert [head.kind for head in heads(b"".join(bucket.records()))] == [Kind.IMPORT_BEGIN, Kind.IMPORT_END]


def test_a_taker_is_for_one_thread_at_a_time(tmp_path: Path) -> None:
    """A history that calls back into the walk that is telling it stands in for another thread."""
    assert walk.COMPILED is not None

    class Calling(History):
        def note_opening(self, head: Head, body: bytes) -> None:
            surveyor.run(len(FRONT), 0)

    surveyor = walk.COMPILED.surveyor(Calling(), Links())
    with RecordFile(write_file(tmp_path, HEADER, [opened(1)])) as file:
        surveyor.begin(0, file)
        with pytest.raises(RuntimeError, match="another thread"):
            surveyor.run(len(FRONT), 0)
        with pytest.raises(RuntimeError, match="another thread"):  # and is not left locked
            surveyor.run(len(FRONT), 0)


def test_a_plan_with_many_epochs(tmp_path: Path) -> None:
    """Records of all epochs in a mixed order: each is judged by its own."""
    random = Random(4)
    opens = [opened(epoch, seq(epoch - 1, 2) if epoch > 1 else 0) for epoch in range(1, 200)]
    sets = [stored(seq(epoch, n), b"%d.%d" % (epoch, n), b"v") for epoch in range(1, 200) for n in (1, 2, 3)]
    random.shuffle(sets)
    path = write_file(tmp_path, HEADER, opens + sets)
    assert {key for key, _ in rebuilt(path).live_rows()} == {
        b"%d.%d" % (epoch, n) for epoch in range(1, 200) for n in (1, 2, 3) if n < 3 or epoch == 199
    }


def test_a_walk_that_has_ended_takes_nothing_in(tmp_path: Path) -> None:
    assert walk.COMPILED is not None
    path = write_file(tmp_path, HEADER, [opened(1), stored(seq(1, 1), b"a", b"1")])
    with using(walk.COMPILED), RecordFile(path) as file:
        builder = walk.COMPILED.builder(survey([Source("made", (path,))]).plans, 0)
        builder.begin(0, file)
        builder.finish()
        with pytest.raises(RuntimeError, match="has ended"):
            builder.run(len(FRONT), 0)


def test_a_file_that_cannot_be_mapped_is_an_error_of_the_system() -> None:
    assert walk.COMPILED is not None
    out, into = os.pipe()
    fake: Any = SimpleNamespace(header=HEADER, size=100, fileno=lambda: out, path=Path("a pipe"))
    with pytest.raises(OSError, match="a pipe"):
        walk.COMPILED.builder({}, 0).begin(0, fake)
    os.close(out)
    os.close(into)


# --- without it


def test_without_the_compiled_modules_the_readable_body_is_used() -> None:
    program = (
        "import sys\n"
        "sys.modules['rcache.records._walk'] = None\n"
        "from rcache.records import walk\n"
        "assert walk.COMPILED is None and walk.chosen is walk.REFERENCE\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_with_them_they_are() -> None:
    assert walk.chosen is walk.COMPILED


def test_end_blocks_are_not_read_ahead(tmp_path: Path) -> None:
    """What follows an end block is damage, and only the reader knows."""
    path = tmp_path / "made.rcl"
    path.write_bytes(file_bytes(HEADER, [[opened(1)]]) + encode_end(HEADER.file_id, 2, 0))
    with RecordFile(path) as file, pytest.raises(DataDamaged, match="follow the end of the file"):
        walk.walk(compiled_taker(), 0, file, skip_damaged=False)
