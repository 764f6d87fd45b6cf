"""The bytes on disk are pinned, here and in `docs/records.md`, which shows the same. A change of either is a new format."""

from __future__ import annotations

import re
from pathlib import Path

from rcache.records.files import FileHeader, FileKind, encode_block, encode_end, encode_header
from rcache.records.reader import RecordFile, Tail
from rcache.records.record import Cause, Kind, Opening, Record, encode, encode_opening, make_sequence, scan

DOCUMENT = Path(__file__).parents[2] / "docs" / "records.md"

HEADER = FileHeader(
    kind=FileKind.SEGMENT,
    cluster_id=bytes(range(0x10, 0x20)),
    data_dir_id=bytes(range(0x20, 0x30)),
    file_id=bytes(range(0x30, 0x40)),
    node="n1",
    incarnation=2,
    epoch=5,
    number=7,
    buckets=1024,
    created_ms=1_714_565_400_000,
    predecessor=bytes(range(0x40, 0x50)),
)
AT = 1_714_565_400_123
RECORDS = [
    Record(Kind.OPEN, Cause.NONE, 3, 0, make_sequence(5, 0), AT, 0, b"", encode_opening(Opening(make_sequence(4, 9), 2, "n1"))),
    Record(Kind.SET, Cause.SET, 3, 7, make_sequence(5, 1), AT + 1, AT + 60_000, b"key", b"value"),
    Record(Kind.REMOVE, Cause.EXPIRED, 3, 0, make_sequence(5, 2), AT + 60_000, 0, b"key", b""),
]

GOLDEN = bytes.fromhex(
    "5243414348450d0a0001007e01000002101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f"
    "303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f00000000000000020000000000000007"
    "00000000000000000000018f340fc5c000000005000004006e31b8746ae072424c4b0000009700000003000000000000"
    "0000000000000000007e2501b2bb0000003c01000000000000030000000000000500000000000000018f340fc63b0000"
    "0000000000000000040000000009000000000000000200026e3100000030020100030000000300000007000005000000"
    "00010000018f340fc63c0000018f3410b09b6b657976616c75650000002b031100030000000300000000000005000000"
    "00020000018f3410b09b00000000000000006b657972454e440000000000000000000000000000000100000000000001"
    "3543f36d16"
)


def test_what_is_written_is_these_bytes() -> None:
    body = b"".join(map(encode, RECORDS))
    written = (
        encode_header(HEADER) + encode_block(HEADER.file_id, 0, body, len(RECORDS), 126) + encode_end(HEADER.file_id, 1, 309)
    )
    assert written.hex() == GOLDEN.hex()


def test_these_bytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "golden.rcl"
    path.write_bytes(GOLDEN)
    with RecordFile(path) as file:
        assert file.header == HEADER
        assert [record for block in file.blocks() for record in scan(block.body)] == RECORDS
        assert file.findings.tail is Tail.CLOSED


def test_the_document_shows_these_bytes() -> None:
    (shown,) = re.findall(r"```hex\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert bytes.fromhex(re.sub(r"#.*", "", shown)).hex() == GOLDEN.hex()


def _numbers_in_document(heading: str) -> dict[str, int]:
    """The tables of kinds and causes: name to number."""
    table = DOCUMENT.read_text().split(f"| {heading} | name |", 1)[1].split("\n\n", 1)[0]
    return {name: int(number) for number, name in re.findall(r"\| (\d+) \| ([A-Z_]+) ", table)}


def test_the_document_names_every_kind_and_cause() -> None:
    assert _numbers_in_document("kind") == {kind.name: kind.value for kind in Kind}
    assert _numbers_in_document("cause") == {cause.name: cause.value for cause in Cause}
