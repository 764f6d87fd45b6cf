"""One contract, two bodies: of any set of files both say the same plans, findings and rows, or the same error."""

from __future__ import annotations

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rcache.records import walk
from rcache.records.history import NO_LIMIT

from .bodies import colliding, outcome, using
from .stories import Story, write


def compare(seed: int) -> dict[str, object]:
    """Let both bodies read the files of one story. Returns what they said."""
    random = Random(seed)
    story = Story(random)
    story.happen()
    with TemporaryDirectory() as name:
        sources = write(story, Path(name))
        until_ms = NO_LIMIT if random.random() < 0.6 else random.randint(-1, story.now + 5)
        skip_damaged = random.random() < 0.7
        piece_bytes = random.choice([1, 50, 100, 1000, 1 << 20])
        with using(walk.REFERENCE):
            expected = outcome(sources, until_ms=until_ms, skip_damaged=skip_damaged, piece_bytes=piece_bytes)
        with using(random.choice([walk.COMPILED, walk.COMPILED, colliding(0), colliding(2)])):
            said = outcome(sources, until_ms=until_ms, skip_damaged=skip_damaged, piece_bytes=piece_bytes)
    assert said.keys() == expected.keys(), seed
    for what, value in expected.items():
        assert said[what] == value, (seed, what)
    return said


@settings(max_examples=400, deadline=None)
@example(seed=0)
@given(seed=st.integers(0, 2**32))
def test_both_bodies_say_the_same_of_any_files(seed: int) -> None:
    compare(seed)


def test_the_stories_are_worth_telling() -> None:
    """Most of them have rows to rebuild, and all that can go wrong does in some."""
    said = [compare(seed) for seed in range(300)]
    texts = [str(each.get("damaged", "")) + str(each.get("findings", "")) for each in said]
    for part in ("own future", "checksum", "no block begins", "was due", "follow the end", "bytes needed", "Tail.TORN"):
        assert sum(part in text for text in texts) > 0, part
    rows = [sum(len(bucket[5]) for bucket in each["built"].values()) for each in said if "built" in each]
    assert sum(count > 3 for count in rows) > 100
    for part in ("missing link", "its end may be missing", "no base", "opened twice"):
        assert sum(part in str(each.get("rest")) for each in said) > 0, part
