"""The savefile: written on demand, loaded at the next start, never taken for the present when it is the past."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcache_client import Client

from .conftest import Serve
from .support import fill, held, stats, until

NO_LOG = "--no-append-log"
PERSIST = "--persist-on-shutdown"


def test_what_was_saved_is_there_at_the_next_start(serve: Serve) -> None:
    server = serve(NO_LOG, PERSIST)
    values = fill(server, 500)
    with Client(server.address) as cache:
        cache.set("flagged and short-lived", b"v", ttl=3000)
        version = cache.get_with_version("key-0").version
    assert server.stop() == 0
    assert (server.data_dir / "n1.rcs").stat().st_size > 50_000
    again = serve(NO_LOG)
    assert held(again, values) == values
    with Client(again.address) as cache:
        assert cache.get_with_version("key-0").version == version
        kept = cache.inspect("flagged and short-lived")
        assert kept is not None
        assert kept.ttl == pytest.approx(3000, abs=60)
        assert cache.set("key-0", b"new") > version
    assert "starting with 501 items" in again.stderr_text


def test_without_the_option_nothing_is_saved(serve: Serve) -> None:
    server = serve(NO_LOG)
    values = fill(server, 10)
    assert server.stop() == 0
    assert not (server.data_dir / "n1.rcs").exists()
    assert held(serve(NO_LOG), values) == {}


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_switched_while_it_runs(serve: Serve, on: bool) -> None:
    server = serve(NO_LOG, *([] if on else [PERSIST]))
    values = fill(server, 20)
    with Client(server.address) as cache:
        assert cache.persist().on is not on
        assert cache.persist(on).on is on
        assert cache.persist().savefile == str(server.data_dir / "n1.rcs")
    assert server.stop() == 0
    assert held(serve(NO_LOG), values) == (values if on else {})


def test_a_savefile_elsewhere(serve: Serve, tmp_path: Path) -> None:
    savefile = tmp_path / "elsewhere.rcs"
    server = serve(NO_LOG, PERSIST, "--savefile", str(savefile))
    values = fill(server, 20)
    assert server.stop() == 0
    assert savefile.exists()
    assert held(serve(NO_LOG, "--savefile", str(savefile)), values) == values


def test_a_second_save_takes_the_place_of_the_first(serve: Serve) -> None:
    server = serve(NO_LOG, PERSIST)
    values = fill(server, 50)
    assert server.stop() == 0
    server.start()
    with Client(server.address) as cache:
        assert cache.delete("key-7")
        cache.set("key-8", b"second life")
    assert server.stop() == 0
    del values["key-7"]
    values["key-8"] = b"second life"
    assert held(serve(NO_LOG), values | {"key-7": b""}) == values
    assert sorted(path.name for path in server.data_dir.iterdir()) == [
        "lock",
        "n1.rcs",
        "node.json",
        "register",
        "view",
    ]


def test_a_savefile_of_the_past_is_not_taken_for_the_present(serve: Serve, tmp_path: Path) -> None:
    """Saved, loaded, changed, killed: the file does not know what changed, so it is set aside, loudly, and kept."""
    server = serve(NO_LOG, PERSIST)
    values = fill(server, 50)
    assert server.stop() == 0
    server.start()
    with Client(server.address) as cache:
        cache.delete("key-1")
    server.kill()
    server.start()
    assert held(server, values) == {}
    assert "DATA SET ASIDE" in server.stderr_text
    assert stats(server, "recovery")["stale_history_set_aside"] is True
    server.kill()
    savefile = server.data_dir / "n1.rcs"
    assert savefile.exists(), "what was set aside is not thrown away"
    restored = serve("--restore", str(savefile), data_dir=tmp_path / "fresh")
    assert held(restored, values) == values
    assert "restored 50 items" in restored.stderr_text


def test_a_savefile_and_the_log_after_it_are_one_history(serve: Serve) -> None:
    server = serve(PERSIST, "--append-log-fsync", "always")
    values = fill(server, 50)
    assert server.stop() == 0
    server.start()
    values |= fill(server, 50, seed=2, prefix="later")
    with Client(server.address) as cache:
        cache.delete("key-3")
    del values["key-3"]
    server.kill()
    assert held(serve(), values | {"key-3": b""}) == values


def test_a_damaged_savefile_is_not_loaded_in_part(serve: Serve) -> None:
    server = serve(NO_LOG, PERSIST)
    values = fill(server, 300)
    assert server.stop() == 0
    savefile = server.data_dir / "n1.rcs"
    data = bytearray(savefile.read_bytes())
    data[len(data) // 2] ^= 1
    savefile.write_bytes(data)
    refused = serve(NO_LOG, start=False)
    refused.launch()
    assert refused.wait() == 5
    assert "n1.rcs" in refused.stderr_text
    data[len(data) // 2] ^= 1
    savefile.write_bytes(data)
    assert held(serve(NO_LOG), values) == values


def test_a_cut_savefile_is_not_loaded_in_part(serve: Serve) -> None:
    server = serve(NO_LOG, PERSIST)
    fill(server, 300)
    assert server.stop() == 0
    savefile = server.data_dir / "n1.rcs"
    savefile.write_bytes(savefile.read_bytes()[:-20])
    refused = serve(NO_LOG, start=False)
    refused.launch()
    assert refused.wait() == 5


# --- --restore


def test_restore_from_the_logs_of_another_node(serve: Serve, tmp_path: Path) -> None:
    server = serve("--buckets", "64", name="old")
    values = fill(server, 200)
    with Client(server.address) as cache:
        cache.delete("key-5")
        cache.set("gone soon", b"v", ttl=0.05)
        until(lambda: cache.get("gone soon") is None)
    del values["key-5"]
    assert server.stop() == 0
    restored = serve("--restore", str(server.data_dir), "--append-log-fsync", "always", data_dir=tmp_path / "new", name="new")
    assert held(restored, values | {"key-5": b"", "gone soon": b""}) == values
    restored.kill()
    again = serve(data_dir=tmp_path / "new", name="new")
    assert held(again, values) == values, "what was restored is in the new node's own log"


def test_restore_is_refused_over_data(serve: Serve, tmp_path: Path) -> None:
    server = serve(NO_LOG, PERSIST)
    fill(server, 5)
    assert server.stop() == 0
    other = serve(data_dir=tmp_path / "other")
    values = fill(other, 5, seed=3)
    assert other.stop() == 0
    refused = serve("--restore", str(server.data_dir / "n1.rcs"), data_dir=tmp_path / "other", start=False)
    refused.launch()
    assert refused.wait() == 2
    assert "--restore" in refused.stderr_text
    assert held(serve(data_dir=tmp_path / "other"), values) == values


# --- segments and checkpoints


def test_segments_turn_by_size_and_a_checkpoint_with_the_rest_is_the_whole(serve: Serve) -> None:
    server = serve("--append-log-max-mb", "1", "--append-log-fsync", "always")
    values: dict[str, bytes] = {}
    for part in range(6):
        values |= fill(server, 60, 10_000, seed=part, prefix=f"part-{part % 3}")
    until(lambda: stats(server, "append_log")["segments"] >= 3)
    until(lambda: _newest_checkpoint(server.data_dir) >= stats(server, "append_log")["segment_number"])
    with Client(server.address) as cache:
        cache.set("after the checkpoint", b"v")
        cache.delete("part-1-1")
    values["after the checkpoint"] = b"v"
    del values["part-1-1"]
    server.kill()
    first = sorted(server.data_dir.glob("*.rcl"))[0]
    first.rename(first.with_suffix(".away"))  # not needed any more: the checkpoint covers it
    again = serve()
    assert held(again, values | {"part-1-1": b""}) == values
    assert ".rcc" in again.stderr_text


def _newest_checkpoint(directory: Path) -> int:
    return max((int(path.stem.rsplit("-", 1)[1]) for path in directory.glob("*.rcc")), default=0)


def test_segments_are_named_for_people(serve: Serve) -> None:
    server = serve()
    assert server.stop() == 0
    server.start()
    names = sorted(path.name for path in server.data_dir.glob("*.rcl"))
    assert len(names) == 2
    for number, name in enumerate(names, start=1):
        node, day, rest = name.split("-")
        assert (node, len(day), rest) == ("n1", 8, f"{number:04d}.rcl")
