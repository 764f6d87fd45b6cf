"""The register that etcd keeps: its verbs against a real etcd, and what it makes of answers that are lost or late."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rcache.agreement import etcd as module
from rcache.agreement.etcd import EtcdRegister
from rcache.cluster.register import Register, RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.view import BadView, Placement, Settings, View, encode_view
from rcache.cluster.wishes import pause, set_settings
from tests.agreement.etcds import PATIENCE_S, EtcdProcess, Question, ScriptedGateway, fast_directory, free_port
from tests.cluster.harness import by, one
from tests.contract.harness import MOMENT_S, Task

SHORT_S = 0.3
"""The time for a question that nobody will answer."""


@pytest.fixture(scope="module")
def program() -> str:
    found = shutil.which("etcd")
    if found is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")
    return found


@pytest.fixture(scope="module")
def etcd(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """One for all tests that do it no harm; each has a key of its own."""
    yield from running(program, tmp_path_factory.mktemp("etcd"))


@pytest.fixture
def own_etcd(program: str, tmp_path: Path) -> Iterator[EtcdProcess]:
    """One to be killed."""
    yield from running(program, tmp_path)


def running(program: str, tmp_path: Path) -> Iterator[EtcdProcess]:
    with fast_directory(tmp_path) as directory:
        process = EtcdProcess(program, directory)
        try:
            process.start()
            yield process
        finally:
            process.kill()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"/rcache/{request.node.name}/view"


@pytest.fixture
def begun(etcd: EtcdProcess, key: str) -> tuple[EtcdRegister, Revised]:
    """A register with a first view."""
    register = EtcdRegister([etcd.url], key)
    return register, register.begin(views(1)[0])


def views(count: int) -> list[View]:
    """So many, each of which may follow on the one before."""
    made = [one(embedded=False)]
    while len(made) < count:
        made.append(set_settings(made[-1], by("n1"), Settings(lease_s=1.0 + len(made), grace_s=100.0)))
    return made


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        threading.Event().wait(0.001)


def dead_endpoint() -> str:
    """Where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections, and nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


# --- the verbs


def test_before_the_first_view(etcd: EtcdProcess, key: str) -> None:
    register: Register = EtcdRegister([etcd.url], key)
    assert register.read() is None
    assert register.watch(0, 0.0) is None
    with pytest.raises(ValueError, match="no view yet"):
        register.compare_and_set(0, one())


def test_what_was_kept_is_there_for_everybody(etcd: EtcdProcess, key: str) -> None:
    first, second, third = views(3)
    register = EtcdRegister([etcd.url], key)
    begun = register.begin(first)
    assert begun.view == first
    assert register.read() == begun
    etcd.put("another/key", "so that revisions have gaps")
    was_kept, held = register.compare_and_set(begun.revision, second)
    assert (was_kept, held.view) == (True, second)
    assert held.revision == begun.revision + 2
    was_kept, held = register.compare_and_set(held.revision, third)
    assert was_kept
    assert register.read() == EtcdRegister([etcd.url], key).read() == held == (etcd.revision(), third)


def test_a_register_is_begun_once(etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised]) -> None:
    register, held = begun
    for asked in (register, EtcdRegister([etcd.url], key)):
        with pytest.raises(ValueError, match="a register of epoch 1 here already; this would be 7"):
            asked.begin(replace(one(), epoch=7))
    with pytest.raises(BadView):
        EtcdRegister([etcd.url], key + "2").begin(replace(one(), epoch=0))
    assert register.read() == held


def test_only_the_revision_it_is_at_is_changed(begun: tuple[EtcdRegister, Revised]) -> None:
    register, held = begun
    _, second, third = views(3)
    _, now = register.compare_and_set(held.revision, second)
    for revision in (0, held.revision, now.revision + 1):
        assert register.compare_and_set(revision, third) == (False, now)
    assert register.read() == now


def test_somebody_is_quicker_between_the_look_and_the_change(
    etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised]
) -> None:
    """The transaction decides, and tells what is there."""
    _, held = begun
    _, second, third = views(3)

    def quicker(question: Question) -> None:
        if question.path == "/v3/kv/txn":
            assert EtcdRegister([etcd.url], key).compare_and_set(held.revision, second)[0]
        question.pass_on(etcd.url)

    with ScriptedGateway(quicker) as between:
        was_kept, now = EtcdRegister([between.url], key).compare_and_set(held.revision, third)
    assert (was_kept, now.view) == (False, second)


def test_what_may_not_follow_is_never_kept(begun: tuple[EtcdRegister, Revised]) -> None:
    register, held = begun
    with pytest.raises(BadView, match="n2"):
        register.compare_and_set(held.revision, replace(held.view, epoch=2, placements=(Placement("n2", (), 2),) * 8))
    with pytest.raises(BadView, match="epoch 1 after 1"):
        register.compare_and_set(held.revision, held.view)
    assert register.read() == held


@pytest.mark.parametrize("shared", [True, False])
def test_of_many_who_ask_at_once_one_is_heard(
    etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised], shared: bool
) -> None:
    """Everybody tries again from what it was told; nothing is lost, nothing told twice, and nobody cries over an older answer
    that was overtaken by a newer one."""
    first, before = begun
    kept: list[int] = []

    def ask() -> None:
        register = first if shared else EtcdRegister([etcd.url], key)
        held = register.read()
        assert held is not None
        done = 0
        while done < 5:
            was_kept, held = register.compare_and_set(held.revision, pause(held.view, by("n1"), "asked", 1.0))
            if was_kept:
                done += 1
                kept.append(held.view.epoch)

    for task in [Task(ask) for _ in range(5)]:
        task.result()
    assert sorted(kept) == list(range(2, 27))
    after = first.read()
    assert after is not None
    assert (after.view.epoch, after.revision) == (26, before.revision + 25)


# --- watching


def test_whoever_watches_is_told(begun: tuple[EtcdRegister, Revised]) -> None:
    register, held = begun
    watching = Task(lambda: register.watch(held.revision, PATIENCE_S))
    was_kept, now = register.compare_and_set(held.revision, views(2)[1])
    assert was_kept
    assert watching.result() == now
    assert register.watch(held.revision, 0.0) == now, "what is beyond it already is told at once"


def test_the_first_view_wakes_whoever_watches(etcd: EtcdProcess, key: str) -> None:
    register = EtcdRegister([etcd.url], key)
    watching = Task(lambda: register.watch(0, PATIENCE_S))
    time.sleep(MOMENT_S)
    assert not watching.is_done
    held = EtcdRegister([etcd.url], key).begin(one())
    assert watching.result() == held


def test_a_watch_ends_in_time(begun: tuple[EtcdRegister, Revised]) -> None:
    register, held = begun
    for timeout_s in (0.0, 0.2):
        started = time.monotonic()
        assert register.watch(held.revision, timeout_s) is None
        assert timeout_s <= time.monotonic() - started < timeout_s + PATIENCE_S / 4


@pytest.mark.parametrize("stuck", ["/v3/kv/range", "/v3/watch", "stream"])
def test_close_wakes_whoever_watches(etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised], stuck: str) -> None:
    """Whether what is there is being read, the stream is being opened, or is open."""
    _, held = begun

    def play(question: Question) -> None:
        if question.path == stuck:
            question.hold()
        elif question.path == "/v3/watch":
            question.begin_stream()
            question.line({"result": {"created": True}})
            question.hold()
        else:
            question.pass_on(etcd.url)

    with ScriptedGateway(play) as between:
        register = EtcdRegister([between.url], key, PATIENCE_S * 2)
        watching = Task(lambda: register.watch(held.revision, PATIENCE_S * 2))
        wait_until(lambda: ("/v3/watch" if stuck == "stream" else stuck) in between.paths, stuck)
        register.close()
        assert watching.result() is None
        assert register.watch(0, PATIENCE_S * 2) is None, "from now on, too"
        with pytest.raises(RegisterUnreachable, match="closed"):
            register.read()


def test_close_wakes_a_watch_of_a_real_etcd(begun: tuple[EtcdRegister, Revised]) -> None:
    register, held = begun
    watching = Task(lambda: register.watch(held.revision, PATIENCE_S * 2))
    time.sleep(MOMENT_S)
    assert not watching.is_done
    register.close()
    assert watching.result() is None


def test_a_watch_from_before_a_compaction(etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised]) -> None:
    """Others have changed a lot, and all that was is forgotten."""
    register, held = begun
    for number in range(3):
        etcd.put("another/key", str(number))
    etcd.compact()
    watching = Task(lambda: register.watch(held.revision, PATIENCE_S))
    time.sleep(MOMENT_S)
    assert not watching.is_done
    now = held
    for view in views(3)[1:]:
        _, now = register.compare_and_set(now.revision, view)
        etcd.compact()
    told = watching.result()
    assert told is not None
    assert told.revision > held.revision
    assert register.watch(held.revision, 0.0) == now


def test_a_stream_begins_behind_what_was_read(etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised]) -> None:
    """And not behind the view's revision, which may be long compacted: then no stream would stay open."""
    register, held = begun
    etcd.put("another/key", "x")
    starts: list[str] = []

    def play(question: Question) -> None:
        if question.path == "/v3/watch":
            starts.append(question.facts["create_request"]["start_revision"])
            register.compare_and_set(held.revision, views(2)[1])
            question.begin_stream()
            question.line({"result": {"created": True, "events": [{}]}})
        else:
            question.pass_on(etcd.url)

    with ScriptedGateway(play) as between:
        told = EtcdRegister([between.url], key).watch(held.revision, PATIENCE_S)
    assert told == register.read()
    assert starts == [str(held.revision + 2)]


def test_what_is_compacted_just_before_the_stream_is_read(
    etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised]
) -> None:
    register, held = begun
    answers: list[bytes] = []

    def compacting(question: Question) -> None:
        if question.path == "/v3/watch":
            register.compare_and_set(held.revision, views(2)[1])
            etcd.put("another/key", "x")
            etcd.compact()
            question.begin_stream()
            question.line({"result": {"created": True}})
            question.line({"result": {"canceled": True, "compact_revision": str(etcd.revision())}})
            question.hold()
        else:
            body, status = question.forward(etcd.url)
            answers.append(body)
            question.reply(body, status)

    with ScriptedGateway(compacting) as between:
        told = EtcdRegister([between.url], key).watch(held.revision, PATIENCE_S)
    assert told is not None
    assert told.view.epoch == 2
    assert len(answers) == 2


def test_a_stream_that_breaks_is_a_poll(etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised]) -> None:
    """No more often than is decent."""
    register, held = begun

    def breaking(question: Question) -> None:
        if question.path != "/v3/watch":
            question.pass_on(etcd.url)
        elif between.paths.count("/v3/watch") % 2:
            question.begin_stream()
            question.line({"result": {"created": True}})
            question.line({"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}})

    with ScriptedGateway(breaking) as between:
        watching = Task(lambda: EtcdRegister([between.url], key).watch(held.revision, PATIENCE_S))
        wait_until(lambda: between.paths.count("/v3/watch") == 4, "four tries")
        _, now = register.compare_and_set(held.revision, views(2)[1])
        assert watching.result() == now
        assert len(between.paths) < 20


def test_a_stream_in_which_nothing_comes_is_opened_anew(
    etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that vanished tells nothing."""
    monkeypatch.setattr(module, "STREAM_S", 0.1)
    register, held = begun

    def play(question: Question) -> None:
        if question.path == "/v3/watch":
            question.begin_stream()
            question.line({"result": {"created": True}})
            question.hold()
        else:
            question.pass_on(etcd.url)

    with ScriptedGateway(play) as between:
        watching = Task(lambda: EtcdRegister([between.url], key).watch(held.revision, PATIENCE_S))
        wait_until(lambda: between.paths.count("/v3/watch") == 2, "the second stream")
        _, now = register.compare_and_set(held.revision, views(2)[1])
        assert watching.result() == now


# --- endpoints


def test_the_next_endpoint_is_asked_where_one_is_down(etcd: EtcdProcess, key: str, silent: str) -> None:
    first, second = views(2)
    endpoints = [dead_endpoint(), silent, etcd.url]
    register = EtcdRegister(endpoints, key, 1.5)
    assert register.read() is None
    held = register.begin(first)
    assert EtcdRegister([endpoints[0], etcd.url], key).compare_and_set(held.revision, second)[0]
    assert EtcdRegister(endpoints, key, 1.5).watch(held.revision, 1.0) == register.read()


def test_the_one_that_worked_last_is_asked_first(etcd: EtcdProcess, key: str, silent: str) -> None:
    register = EtcdRegister([silent, etcd.url], key, 1.0)
    register.read()
    started = time.monotonic()
    for _ in range(20):
        register.read()
    assert time.monotonic() - started < 5.0, "nobody waited for the silent one again"


def test_all_are_down(silent: str) -> None:
    _, second = views(2)
    dead = [dead_endpoint(), dead_endpoint()]
    for endpoints in (dead, [silent], [*dead, silent], [silent, silent, silent]):
        register = EtcdRegister(endpoints, "k", SHORT_S)
        for ask in (
            register.read,
            lambda register=register: register.begin(second),
            lambda register=register: register.compare_and_set(1, second),
            lambda register=register: register.watch(0, SHORT_S),
        ):
            started = time.monotonic()
            with pytest.raises(RegisterUnreachable, match=r"refused|timed out"):
                ask()
            assert time.monotonic() - started < SHORT_S * 2 + 0.5


def test_an_answer_that_trickles_in_is_late_too() -> None:
    def trickle(question: Question) -> None:
        question.raw(b"HTTP/1.1 200 OK\r\nX: ")
        while not done.wait(0.01) and time.monotonic() < deadline:
            question.raw(b"x")

    done = threading.Event()
    deadline = time.monotonic() + PATIENCE_S / 2
    with ScriptedGateway(trickle) as gateway:
        started = time.monotonic()
        try:
            with pytest.raises(RegisterUnreachable, match="timed out"):
                EtcdRegister([gateway.url], "k", SHORT_S).read()
        finally:
            done.set()
        assert time.monotonic() - started < SHORT_S + 1.0


def test_etcd_is_killed_and_comes_back(own_etcd: EtcdProcess) -> None:
    first, second, third = views(3)
    register = EtcdRegister([own_etcd.url], "k", SHORT_S * 3)
    held = register.begin(first)
    _, held = register.compare_and_set(held.revision, second)
    watching = Task(lambda: register.watch(held.revision, PATIENCE_S))
    time.sleep(MOMENT_S)
    own_etcd.kill()
    with pytest.raises(RegisterUnreachable):
        watching.result()
    with pytest.raises(RegisterUnreachable):
        register.compare_and_set(held.revision, third)
    own_etcd.start()
    assert register.read() == held
    was_kept, held = register.compare_and_set(held.revision, third)
    assert was_kept
    assert register.read() == held


# --- a change without an answer


def lossy(etcd: EtcdProcess) -> Callable[[Question], None]:
    """Passes everything on, and loses what came of a change."""

    def play(question: Question) -> None:
        body, status = question.forward(etcd.url)
        if question.path != "/v3/kv/txn":
            question.reply(body, status)

    return play


def test_a_change_whose_answer_is_lost_may_have_been_made(
    etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised]
) -> None:
    """It is not sent again, anywhere; and whoever asks again is told that its view is there."""
    register, held = begun
    second = views(2)[1]
    with ScriptedGateway(lossy(etcd)) as losing:
        asking = EtcdRegister([losing.url, etcd.url], key)
        with pytest.raises(RegisterUnreachable):
            asking.compare_and_set(held.revision, second)
        assert losing.paths == ["/v3/kv/range", "/v3/kv/txn"]
        now = register.read()
        assert now == (held.revision + 1, second)
        assert asking.compare_and_set(held.revision, second) == (False, now)
        assert len(losing.paths) == 2, "the next question went to the other endpoint"


def test_a_beginning_whose_answer_is_lost(etcd: EtcdProcess, key: str) -> None:
    first = one()
    with ScriptedGateway(lossy(etcd)) as losing:
        with pytest.raises(RegisterUnreachable):
            EtcdRegister([losing.url, etcd.url], key).begin(first)
        assert losing.paths == ["/v3/kv/txn"]
    held = EtcdRegister([etcd.url], key).read()
    assert held is not None
    assert held.view == first


def test_a_change_that_was_sent_to_nobody_goes_elsewhere(etcd: EtcdProcess, key: str) -> None:
    held = EtcdRegister([dead_endpoint(), etcd.url], key).begin(one())
    assert held.view.epoch == 1


# --- what is refused


def test_a_lower_epoch_is_refused_from_then_on(etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised]) -> None:
    register, held = begun
    first, second, third = views(3)
    _, now = register.compare_and_set(held.revision, second)
    etcd.put(key, encode_view(first))
    with pytest.raises(RegisterFailed, match=f"epoch 1 after 2, at {key}; was it restored"):
        register.read()
    etcd.put(key, encode_view(third))
    for ask in (
        register.read,
        lambda: register.compare_and_set(now.revision, third),
        lambda: register.begin(first),
        lambda: register.watch(0, 0.0),
    ):
        with pytest.raises(RegisterFailed, match="epoch 1 after 2"):
            ask()
    restarted = EtcdRegister([etcd.url], key).read()
    assert restarted is not None
    assert restarted.view.epoch == 3


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (replace(views(3)[2], cluster_id="another"), "cluster another after"),
        (replace(views(2)[1], nonce="somebody else's"), "another view of epoch 2"),
        (None, "no view, after epoch 2"),
    ],
)
def test_another_history_is_refused(
    etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised], other: View | None, why: str
) -> None:
    register, held = begun
    _, now = register.compare_and_set(held.revision, views(2)[1])
    if other is None:
        etcd.remove(key)
    else:
        etcd.put(key, encode_view(other))
    with pytest.raises(RegisterFailed, match=why):
        register.compare_and_set(now.revision, views(3)[2])


def test_a_restored_etcd_is_refused(own_etcd: EtcdProcess) -> None:
    """Whoever watches is told so, too."""
    first, second, third = views(3)
    register = EtcdRegister([own_etcd.url], "k")
    held = register.begin(first)
    own_etcd.kill()
    backup = own_etcd.files.with_name("backup")
    shutil.copytree(own_etcd.files, backup)
    own_etcd.start()
    _, held = register.compare_and_set(held.revision, second)
    _, held = register.compare_and_set(held.revision, third)
    own_etcd.kill()
    shutil.rmtree(own_etcd.files)
    backup.rename(own_etcd.files)
    own_etcd.start()
    with pytest.raises(RegisterFailed, match="epoch 1 after 3"):
        register.watch(held.revision, PATIENCE_S)


def test_an_endpoint_whose_keys_cannot_be_agreed_on(etcd: EtcdProcess) -> None:
    url = etcd.url.replace("http://", "https://")
    with pytest.raises(RegisterUnreachable, match=url):
        EtcdRegister([url], "k").read()


# --- compaction


def test_old_revisions_are_compacted_now_and_then(
    etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHANGES_PER_COMPACTION", 3)
    _, held = begun
    compacted: list[int] = []

    def play(question: Question) -> None:
        if question.path == "/v3/kv/compaction":
            compacted.append(int(question.facts["revision"]))
        question.pass_on(etcd.url)

    with ScriptedGateway(play) as between:
        register = EtcdRegister([between.url], key)
        revisions = [held.revision]
        for view in views(8)[1:]:
            was_kept, held = register.compare_and_set(held.revision, view)
            assert was_kept
            revisions.append(held.revision)
        assert compacted == [revisions[2], revisions[5]], "up to what was replaced, each third time"
        assert register.compactions_failed == 0
        assert register.read() == held


@pytest.mark.parametrize("lost", [True, False])
def test_a_compaction_that_fails_is_counted_and_the_change_stays(
    etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised], monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    monkeypatch.setattr(module, "CHANGES_PER_COMPACTION", 1)
    monkeypatch.setattr(module, "COMPACTION_S", 0.1)
    _, held = begun

    def play(question: Question) -> None:
        if question.path != "/v3/kv/compaction":
            question.pass_on(etcd.url)
        elif lost:
            question.hold()
        else:
            question.reply({"error": "etcdserver: permission denied", "code": 7}, 403)

    with ScriptedGateway(play) as between:
        register = EtcdRegister([between.url], key)
        assert register.compare_and_set(held.revision, views(2)[1])[0]
        assert register.compactions_failed == 1


def test_somebody_else_has_compacted(
    etcd: EtcdProcess, key: str, begun: tuple[EtcdRegister, Revised], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHANGES_PER_COMPACTION", 1)
    register, held = begun
    etcd.compact()
    assert register.compare_and_set(held.revision, views(2)[1])[0]
    assert register.compactions_failed == 0
