"""HELLO: who we are, which cluster it is, and the secret that both sides must know."""

# ruff: noqa: SIM117 - the outer `with` holds a server and its client, the inner one what is expected of them

from __future__ import annotations

import os

import pytest

from rcache_client import AuthenticationFailed, Client, ProtocolError, Role, ServersUnavailable, WrongCluster
from rcache_client.wire.grammar import REQUESTS, WELCOME
from rcache_client.wire.opcodes import ANY_CLUSTER, Opcode, Status

from .scripted_server import CLUSTER, OTHER_CLUSTER, Line, Script, ScriptedServer, play

SECRET = b"sixteen bytes and more"


def play_secret(line: Line) -> None:
    line.challenge(SECRET)
    line.serve()


def refuse_hello(status: int) -> Script:
    def script(line: Line) -> None:
        line.refuse(line.request(), status)
        line.hold()

    return script


def test_hello_names_the_client_and_its_role(server: ScriptedServer) -> None:
    with Client(server.address, name="the-name", role=Role.ADMIN) as cache:
        cache.ping()
    low, high, role, cluster, nonce, name = REQUESTS[Opcode.HELLO].decode(server.requests[0].payload)
    assert (low, high, role, cluster, name) == (1, 1, Role.ADMIN, ANY_CLUSTER, "the-name")
    assert len(set(nonce)) > 1


def test_the_default_name_tells_the_process(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.ping()
    assert REQUESTS[Opcode.HELLO].decode(server.requests[0].payload)[5] == f"python-{os.getpid()}"


def test_the_cluster_learnt_first_is_demanded_from_all() -> None:
    with ScriptedServer() as one, ScriptedServer(cluster_id=OTHER_CLUSTER) as two:
        with Client([one.address, two.address]) as cache:
            cache.ping()
            with pytest.raises(WrongCluster, match=f"HELLO at {two.address}: WRONG_CLUSTER"):
                cache.ping()
        assert REQUESTS[Opcode.HELLO].decode(two.requests[0].payload)[3] == CLUSTER


def test_a_server_that_does_not_mind_which_cluster_is_found_out() -> None:
    def play_careless(line: Line) -> None:
        request = line.request()
        line.reply(request, Status.OK, line.welcome())
        line.hold()

    with ScriptedServer() as one, ScriptedServer(play_careless, cluster_id=OTHER_CLUSTER) as two:
        with Client([one.address, two.address]) as cache:
            cache.ping()
            with pytest.raises(WrongCluster, match=f"{two.address}: it is of cluster {OTHER_CLUSTER.hex()}"):
                cache.ping()


def test_both_sides_show_that_they_know_the_secret() -> None:
    with ScriptedServer(play_secret) as server, Client(server.address, secret=SECRET) as cache:
        assert cache.set("key", b"value")
        assert [r.opcode for r in server.requests] == [Opcode.HELLO, Opcode.AUTH, Opcode.SET]
        assert not any(SECRET in r.payload for r in server.requests)


def test_a_client_with_another_secret_is_turned_down() -> None:
    with ScriptedServer(play_secret) as server, Client(server.address, secret=b"another secret of ours") as cache:
        with pytest.raises(AuthenticationFailed, match=f"AUTH at {server.address}: WRONG_PROOF"):
            cache.set("key", b"value")
        with pytest.raises(AuthenticationFailed):  # again, not 'unavailable': the server is alive
            cache.set("key", b"value")


def test_a_client_without_a_secret_says_what_is_missing() -> None:
    with ScriptedServer(play_secret) as server, Client(server.address) as cache:
        with pytest.raises(AuthenticationFailed, match="make the client with secret="):
            cache.get("key")


def test_a_server_that_does_not_know_the_secret_gets_no_request() -> None:
    def play_impostor(line: Line) -> None:
        line.challenge(SECRET, shown=bytes(32))
        line.serve()

    with ScriptedServer(play_impostor) as server, Client(server.address, secret=SECRET) as cache:
        with pytest.raises(AuthenticationFailed, match="the server does not know the secret"):
            cache.set("key", b"value")
        assert server.opcodes() == []


def test_a_server_that_asks_for_no_proof_gets_no_request(server: ScriptedServer) -> None:
    with Client(server.address, secret=SECRET) as cache:
        with pytest.raises(AuthenticationFailed, match="it has no secret, or is not ours"):
            cache.set("key", b"value")
    assert server.opcodes() == []


def test_a_version_that_was_not_offered() -> None:
    def play_other_version(line: Line) -> None:
        fields = (2, *line.server.welcome_fields()[1:])
        line.reply(line.request(), Status.OK, WELCOME.encode(*fields))
        line.hold()

    with ScriptedServer(play_other_version) as server, Client(server.address) as cache:
        with pytest.raises(ProtocolError, match="chose version 2"):
            cache.get("key")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.STOPPING, ServersUnavailable),
        (Status.SHUTTING_DOWN, ServersUnavailable),
        (Status.BUSY, ServersUnavailable),
        (Status.BAD_VERSION, ProtocolError),
        (Status.WRONG_CLUSTER, WrongCluster),
    ],
)
def test_a_greeting_that_is_turned_down(status: int, kind: type[Exception]) -> None:
    with ScriptedServer(refuse_hello(status)) as server, Client(server.address) as cache:
        with pytest.raises(kind, match="because"):
            cache.set("key", b"value")


def test_a_door_that_is_stopping_is_left_for_another() -> None:
    with ScriptedServer(refuse_hello(Status.STOPPING)) as one, ScriptedServer(play) as two:
        with Client([one.address, two.address]) as cache:
            for _ in range(4):
                assert cache.set("key", b"value")
