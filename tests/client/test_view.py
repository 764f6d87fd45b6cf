"""The view's text: what is read from it, and that nothing else gets through."""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcache_client.view import BUCKETS_MAX, NODES_MAX, TEXT_BYTES_MAX, BadView, Bucket, Node, parse_view

from .fake_cluster import node_facts, view_text
from .scripted_server import CLUSTER

NODES = {"n1": node_facts("10.0.0.1:13600"), "n2": node_facts("[::1]:7", "leaving", 3)}
RUNS = [[3, "n1", ["n2"], 5], [1, None, [], 2]]


def test_what_a_client_goes_by() -> None:
    view = parse_view(view_text(9, NODES, RUNS))
    assert (view.cluster_id, view.epoch) == (CLUSTER, 9)
    assert dict(view.nodes) == {"n1": Node("n1", 1, "10.0.0.1:13600", "up"), "n2": Node("n2", 3, "[::1]:7", "leaving")}
    assert view.buckets == (Bucket("n1", ("n2",), 5),) * 3 + (Bucket(None, (), 2),)


def test_a_keys_bucket_is_its_crc_masked() -> None:
    """The numbers are those of the server's documentation, not of this client's code."""
    assert crc32(b"123456789") == 0xCBF43926
    view = parse_view(view_text(1, NODES, [[512, "n1", [], 1], [512, "n2", [], 1]]))
    assert view.bucket_of("123456789") == view.bucket_of(b"123456789") == 0x126
    assert view.primary_of("123456789") == view.nodes["n1"]
    assert parse_view(view_text(1, NODES, [[1, None, [], 1]])).primary_of("key") is None


def test_the_text_that_a_node_writes_is_read() -> None:
    """By the server's own encoder: the two must agree, and the client must not import it."""
    from rcache.cluster import view as server

    nodes = {"n1": server.Node(4, "h:1", "dir", server.NodeState.UP, 2), "n2": server.Node(1, "h:2", "dir")}
    placements = (
        server.Placement("n1", ("n2",), 3),
        server.Placement("n1", ("n2",), 3),
        server.Placement(None),
        server.Placement("n2"),
    )
    written = server.View(CLUSTER.hex(), 7, "n1", "nonce", nodes, placements, pause=server.Pause("me", "why", 1.0, 6))
    view = parse_view(server.encode_view(written))
    assert view.epoch == 7
    assert view.nodes["n1"] == Node("n1", 4, "h:1", "up")
    assert view.nodes["n2"].state == "joining"
    assert view.buckets == (Bucket("n1", ("n2",), 3), Bucket("n1", ("n2",), 3), Bucket(None, (), 0), Bucket("n2", (), 0))


def changed(**facts: Any) -> bytes:
    return json.dumps({**json.loads(view_text(9, NODES, RUNS)), **facts}).encode()


def a_node(**facts: Any) -> bytes:
    return changed(nodes={**NODES, "n3": {**node_facts("h:1"), **facts}})


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "no_json": b"\xff\xfe",
    "half_of_it": view_text(9, NODES, RUNS)[:-9],
    "a_list": b"[]",
    "a_number": b"1",
    "no_keys": b"{}",
    "deep": b"[" * 100_000,
    "deep_inside": b'{"format":' + b"[" * 100_000,
    "a_number_of_many_digits": b'{"format":' + b"9" * 10_000 + b"}",
    "too_long": b" " * (TEXT_BYTES_MAX + 1),
    "another_format": changed(format=1),
    "a_format_of_text": changed(format="x" * 1000),
    "no_epoch": changed(epoch=0),
    "an_epoch_of_text": changed(epoch="9"),
    "an_epoch_that_is_true": changed(epoch=True),
    "an_epoch_of_fractions": changed(epoch=9.5),
    "an_epoch_that_is_infinite": changed(epoch=float("inf")),
    "an_epoch_above_its_field": changed(epoch=1 << 32),
    "a_cluster_id_of_no_hex": changed(cluster_id="hello"),
    "a_cluster_id_too_short": changed(cluster_id="00"),
    "a_cluster_id_of_null": changed(cluster_id=None),
    "no_nodes": changed(nodes={}),
    "nodes_in_a_list": changed(nodes=[NODES]),
    "too_many_nodes": changed(nodes={f"n{n}": node_facts("h:1") for n in range(NODES_MAX + 1)}),
    "a_node_of_null": changed(nodes={**NODES, "n3": None}),
    "a_name_too_long": changed(nodes={**NODES, "n" * 65: node_facts("h:1")}),
    "no_name": changed(nodes={**NODES, "": node_facts("h:1")}),
    "a_surrogate_name": b'{"format":2,"nodes":{"\\ud800":{}}}',
    "no_address": a_node(address=""),
    "an_address_of_null": a_node(address=None),
    "a_port_out_of_range": a_node(address="h:65536"),
    "an_address_too_long": a_node(address="h" * 400),
    "an_incarnation_below_0": a_node(incarnation=-1),
    "an_incarnation_of_null": a_node(incarnation=None),
    "a_state_of_null": a_node(state=None),
    "a_state_too_long": a_node(state="x" * 100),
    "no_buckets": changed(buckets=[]),
    "buckets_of_null": changed(buckets=None),
    "buckets_of_text": changed(buckets="xxxx"),
    "three_buckets": changed(buckets=[[3, "n1", [], 1]]),
    "a_run_of_nothing": changed(buckets=[[0, "n1", [], 1], [4, "n1", [], 1]]),
    "a_run_below_0": changed(buckets=[[-4, "n1", [], 1], [4, "n1", [], 1]]),
    "a_run_of_text": changed(buckets=[["4", "n1", [], 1]]),
    "a_run_that_is_true": changed(buckets=[[True, "n1", [], 1]]),
    "a_run_too_short": changed(buckets=[[4, "n1"]]),
    "a_run_too_long": changed(buckets=[[4, "n1", [], 1, 1]]),
    "too_many_buckets": changed(buckets=[[BUCKETS_MAX * 2, "n1", [], 1]]),
    "too_many_buckets_in_runs": changed(buckets=[[BUCKETS_MAX, "n1", [], 1]] * 2),
    "a_primary_nobody_knows": changed(buckets=[[4, "n9", [], 1]]),
    "a_primary_that_is_a_list": changed(buckets=[[4, ["n1"], [], 1]]),
    "a_backup_nobody_knows": changed(buckets=[[4, "n1", ["n9"], 1]]),
    "backups_of_text": changed(buckets=[[4, "n1", "n2", 1]]),
    "backups_of_lists": changed(buckets=[[4, "n1", [["n2"]], 1]]),
    "too_many_backups": changed(buckets=[[4, "n1", ["n2"] * 100, 1]]),
    "opened_never": changed(buckets=[[4, "n1", [], None]]),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_text_that_is_no_view_is_told_so(text: bytes) -> None:
    with pytest.raises(BadView) as caught:
        parse_view(text)
    assert 0 < len(str(caught.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(place=st.sampled_from(["format", "cluster_id", "epoch", "nodes", "buckets"]), value=JSON)
def test_any_json_in_any_place_is_a_view_or_is_told_not_to_be(place: str, value: Any) -> None:
    try:
        view = parse_view(changed(**{place: value}))
    except BadView:
        return
    assert len(view.buckets) & (len(view.buckets) - 1) == 0


@given(text=st.binary(max_size=200))
def test_any_bytes_are_told_not_to_be_a_view(text: bytes) -> None:
    with pytest.raises(BadView):
        parse_view(text)
