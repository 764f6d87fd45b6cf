"""The register that etcd keeps, and answers that etcd does not give: each is told for what it is, and none is a crash."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from rcache.agreement.etcd import EtcdRegister
from rcache.agreement.line import ANSWER_BYTES_MAX
from rcache.cluster.register import RegisterFailed, RegisterUnreachable
from rcache.cluster.view import encode_view
from tests.agreement.etcds import PATIENCE_S, Question, ScriptedGateway
from tests.cluster.harness import one

HEADER = {"cluster_id": "1", "member_id": "2", "revision": "7", "raft_term": "2"}


def kvs(held: bytes, **other: Any) -> dict[str, Any]:
    return {"header": HEADER, "kvs": [{"mod_revision": "7", "value": b64encode(held).decode(), **other}]}


@pytest.mark.parametrize(
    ("status", "body", "error", "why"),
    [
        (
            503,
            {"error": "etcdserver: request timed out", "code": 14},
            RegisterUnreachable,
            "code 14: etcdserver: request timed",
        ),
        (500, {"error": "context deadline exceeded", "code": 2}, RegisterUnreachable, "deadline exceeded"),
        (503, {"code": 14, "message": "etcdserver: no leader", "details": []}, RegisterUnreachable, "no leader"),
        (429, {"error": "etcdserver: too many requests", "code": 8}, RegisterUnreachable, "too many requests"),
        (502, b"<html>Bad Gateway</html>", RegisterUnreachable, "status 502, code None: <html>Bad Gateway"),
        (503, b"", RegisterUnreachable, "status 503"),
        (400, {"error": "etcdserver: user name is empty", "code": 3}, RegisterFailed, "code 3: etcdserver: user name is empty"),
        (400, {"error": "etcdserver: request is too large", "code": 3}, RegisterFailed, "too large"),
        (404, b"Not Found", RegisterFailed, "status 404, code None: Not Found"),
        (301, b"", RegisterFailed, "status 301"),
        (500, {"error": {"code": [7]}, "code": {}}, RegisterUnreachable, "status 500"),
        (200, b"<html>Welcome to nginx</html>", RegisterFailed, "what etcd does not"),
        (200, b"[" * 100_000, RegisterFailed, "what etcd does not"),
        (200, b"\xff\xfe", RegisterFailed, "what etcd does not"),
        (200, b"7", RegisterFailed, "what etcd does not"),
        (200, b"", RegisterFailed, "what etcd does not"),
        (200, {}, RegisterFailed, "KeyError"),
        (200, {"header": 7}, RegisterFailed, "TypeError"),
        (200, {"header": {"revision": "x"}}, RegisterFailed, "ValueError"),
        (200, {"header": HEADER, "kvs": 7}, RegisterFailed, "TypeError"),
        (200, {"header": HEADER, "kvs": [{"mod_revision": "7"}]}, RegisterFailed, "KeyError"),
        (200, kvs(b"", value="?"), RegisterFailed, "etcd answers what it should not"),
        (200, kvs(b"{}", mod_revision={}), RegisterFailed, "TypeError"),
        (200, kvs(b"{}"), RegisterFailed, "what etcd has at k is no view"),
        (200, kvs(encode_view(one()).replace(b'"format":2', b'"format":1')), RegisterFailed, "a view of format 1"),
        (200, b" " * (ANSWER_BYTES_MAX + 1), RegisterFailed, "more than"),
    ],
)
def test_an_answer_that_is_none(status: int, body: Any, error: type[Exception], why: str) -> None:
    with ScriptedGateway(lambda question: question.reply(body, status)) as gateway:
        with pytest.raises(error, match=why):
            EtcdRegister([gateway.url], "k", PATIENCE_S).read()
        with pytest.raises(error):
            EtcdRegister([gateway.url], "k", PATIENCE_S).begin(one())


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", RegisterUnreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", RegisterUnreachable),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}", RegisterUnreachable),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}", RegisterFailed),
        (b"SSH-2.0-OpenSSH_9.2\r\n", RegisterFailed),
        (b"HTTP/1.1 hello\r\n\r\n", RegisterFailed),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n", RegisterFailed),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000, RegisterFailed),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3, RegisterUnreachable),
        (b"\0" * 1000, RegisterFailed),
    ],
)
def test_what_is_no_http(raw: bytes, error: type[Exception]) -> None:
    with ScriptedGateway(lambda question: question.raw(raw)) as gateway, pytest.raises(error):
        EtcdRegister([gateway.url], "k", PATIENCE_S).read()


@pytest.mark.parametrize(
    "answer",
    [
        {"header": HEADER},
        {"header": HEADER, "responses": []},
        {"header": HEADER, "responses": [{"response_put": {}}]},
        {"header": HEADER, "responses": [{"response_range": {"header": HEADER}}]},
        {"succeeded": True},
        {"header": HEADER, "succeeded": "yes"},
    ],
)
def test_what_came_of_a_change_is_not_told(answer: dict[str, Any]) -> None:
    with ScriptedGateway(lambda question: question.reply(answer)) as gateway, pytest.raises(RegisterFailed):
        EtcdRegister([gateway.url], "k", PATIENCE_S).begin(one())


@pytest.mark.parametrize("line", [{"result": 7}, {}, {"result": None}, {"error": {"grpc_code": 7, "message": "no"}}])
def test_a_stream_of_something_else(line: dict[str, Any]) -> None:
    def play(question: Question) -> None:
        if question.path == "/v3/watch":
            question.begin_stream()
            question.line(line)
        else:
            question.reply({"header": HEADER})

    with ScriptedGateway(play) as gateway, pytest.raises(RegisterFailed):
        EtcdRegister([gateway.url], "k", PATIENCE_S).watch(0, PATIENCE_S)


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:2379", "ftp://h", "http://", "http://h:x", "http://u:p@h", "http://h/v3", "http://h?a", "http://é"),
        *("http://" + "h" * 70, "http://h:70000"),
    ],
)
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(ValueError):
        EtcdRegister([url], "k")


def test_what_is_no_register() -> None:
    for endpoints, key, timeout_s in (([], "k", 1.0), (["http://h"], "", 1.0), (["http://h"], "k", 0.0)):
        with pytest.raises(ValueError):
            EtcdRegister(endpoints, key, timeout_s)
