"""The options of rcached: every source, every bound, every message, and the sample configuration."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcache.commands import option_values as values
from rcache.commands.exit_codes import ExitCode
from rcache.commands.joining import settings_of
from rcache.commands.option_definitions import BUCKETS_DEFAULT, build_parser
from rcache.commands.option_parser import SEVERAL
from rcache.commands.option_values import size_text
from rcache.commands.options import OPTION_NAMES, ServerOptions, parse
from rcache.engine import bodies
from rcache.engine.bodies import best_body
from rcache.stream.policy import FsyncPolicy
from rcache_client.address import Address

SAMPLE = Path(__file__).parents[2] / "etc" / "rcache" / "rcached.conf"
SECRET = "0123456789abcdef"
WITHOUT_VALUE = ("--no-evict", "--trust-network", "--skip-damaged", "--append-log", "--persist-on-shutdown")

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `parse`, demands exit code 2 and one message, and returns it."""

    def run(*argv: str, environ: Mapping[str, str] | None = None) -> str:
        with pytest.raises(SystemExit) as ended:
            parse(argv, environ or {})
        assert ended.value.code == ExitCode.WRONG_USE
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("rcached: ")
        assert output.err.endswith("\nTry 'rcached --help'.\n")
        assert output.err.count("\n") == 2
        return output.err.splitlines()[0]

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "rcached.conf"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"  {SECRET}\n")
    path.chmod(0o640)
    return path


def test_defaults() -> None:
    options = parse(["--name", "alpha"], {})
    assert options == ServerOptions(
        listen=Address("127.0.0.1", 13600),
        name="alpha",
        secret_file=None,
        secret=None,
        trust_network=False,
        advertise=None,
        node=(),
        etcd=(),
        etcd_key="rcache/view",
        backups=None,
        lease=None,
        reads="lease",
        drain_timeout=600.0,
        data_dir=Path("rcache-data"),
        buckets=None,
        append_log=True,
        append_log_fsync=None,
        append_log_fsync_interval=1.0,
        append_log_max_mb=512,
        append_log_keep_days=7,
        savefile=Path("rcache-data/alpha.rcs"),
        persist_on_shutdown=False,
        restore=None,
        skip_damaged=False,
        memory_limit=1 << 30,
        no_evict=False,
        max_value_size=1 << 20,
        max_frame_size=16 << 20,
        change_stream_size=64 << 20,
        max_connections=2048,
        worker_threads=0,
        hello_timeout=10.0,
        idle_timeout=600.0,
        frame_timeout=30.0,
        send_timeout=30.0,
        stop_timeout=20.0,
        engine=best_body(),
        log_level="INFO",
        log_file=None,
    )


def test_the_name_defaults_to_the_host_name(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box.example")
    assert parse([], {}).name == "box.example"
    monkeypatch.setattr("socket.gethostname", lambda: "")
    assert "--name" in refused()


def test_options_are_frozen_and_do_not_show_the_secret(secret_file: Path) -> None:
    options = parse(["--secret-file", str(secret_file)], {})
    assert options.secret == SECRET.encode()
    assert SECRET not in repr(options)
    with pytest.raises(FrozenInstanceError):
        options.buckets = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--listen", "[::1]:0"], "listen", Address("::1", 0)),
        (["--listen", "localhost:65535"], "listen", Address("localhost", 65535)),
        (["--name", "größe 1"], "name", "größe 1"),
        (["--data-dir", "/x/y", "--savefile", "/s"], "savefile", Path("/s")),
        (["--buckets", "1"], "buckets", 1),
        (["--buckets", "65536"], "buckets", 65536),
        (["--no-append-log"], "append_log", False),
        (["--append-log-fsync", "always"], "append_log_fsync", FsyncPolicy.ALWAYS),
        (["--append-log-fsync", "never"], "append_log_fsync", FsyncPolicy.NEVER),
        (["--append-log-fsync-interval", "0.25"], "append_log_fsync_interval", 0.25),
        (["--persist-on-shutdown"], "persist_on_shutdown", True),
        (["--restore", "/"], "restore", Path("/")),
        (["--skip-damaged"], "skip_damaged", True),
        (["--memory-limit", "16M"], "memory_limit", 16 << 20),
        (["--memory-limit", "20000000"], "memory_limit", 20_000_000),
        (["--memory-limit", "2g"], "memory_limit", 2 << 30),
        (["--max-value-size", "512K"], "max_value_size", 512 << 10),
        (["--no-evict"], "no_evict", True),
        (["--worker-threads", "8"], "worker_threads", 8),
        (["--stop-timeout", "1.5"], "stop_timeout", 1.5),
        (["--engine", "reference"], "engine", "reference"),
        (["--log-level", "debug"], "log_level", "DEBUG"),
        (["--log-file", "/var/log/x"], "log_file", Path("/var/log/x")),
        (["--listen", "0.0.0.0:1", "--trust-network"], "trust_network", True),
    ],
)
def test_an_option_is_taken(argv: list[str], field: str, value: object) -> None:
    assert getattr(parse(argv, {}), field) == value


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--listen", "13600", "HOST:PORT"),
        ("--listen", "::1:13600", "HOST:PORT"),
        ("--listen", "[::1]", "HOST:PORT"),
        ("--listen", "[::g]:1", "not an IPv6 address"),
        ("--listen", "127.0.0.1:65536", "0 to 65535"),
        ("--listen", "127.0.0.1:-1", "HOST:PORT"),
        ("--listen", ":13600", "HOST:PORT"),
        ("--listen", "127.0.0.1:\u0661", "HOST:PORT"),
        ("--name", "", "1 to 64 bytes"),
        ("--name", "a/b", "no '/'"),
        ("--name", ".hidden", "no '.' in front"),
        ("--name", "a\0b", "printable"),
        ("--name", "a\nb", "printable"),
        ("--name", "\udcff", "UTF-8"),
        ("--name", "ü" * 33, "1 to 64 bytes"),
        ("--buckets", "0", "a power of two, 1 to 65536"),
        ("--buckets", "1000", "a power of two"),
        ("--buckets", "131072", "a power of two"),
        ("--buckets", "-4", "a power of two"),
        ("--append-log-fsync", "sometimes", "always, interval, never"),
        ("--append-log-fsync-interval", "0", "0.001 to 2592000 seconds"),
        ("--append-log-max-mb", "0", "1 to 65536"),
        ("--append-log-max-mb", "1.5", "1 to 65536"),
        ("--append-log-keep-days", "0", "1 to 36500"),
        ("--restore", "/no/such/place", "neither a file nor a directory"),
        ("--savefile", "", "not a path"),
        ("--memory-limit", "15M", "16M to 1024T"),
        ("--memory-limit", "1.5G", "512K, 64M, 2G"),
        ("--memory-limit", "1GB", "512K, 64M, 2G"),
        ("--memory-limit", "-1G", "512K, 64M, 2G"),
        ("--memory-limit", "1²", "512K, 64M, 2G"),
        ("--memory-limit", "9" * 5000, "512K, 64M, 2G"),
        ("--max-value-size", "0", "1 to 1G"),
        ("--max-value-size", "1073741825", "1 to 1G"),
        ("--max-frame-size", "3G", "1 to 2G"),
        ("--change-stream-size", "2T", "1 to 1T"),
        ("--max-connections", "0", "1 to 1000000"),
        ("--max-connections", "many", "1 to 1000000"),
        ("--worker-threads", "-1", "0 to 1000000"),
        ("--hello-timeout", "0", "0.001 to 2592000 seconds"),
        ("--idle-timeout", "nan", "0.001 to 2592000 seconds"),
        ("--frame-timeout", "inf", "0.001 to 2592000 seconds"),
        ("--send-timeout", "-1", "0.001 to 2592000 seconds"),
        ("--stop-timeout", "2592000.1", "0.001 to 2592000 seconds"),
        ("--secret-file", "/no/such/file", "No such file"),
        ("--engine", "quantum", "auto, native, reference"),
        ("--log-level", "LOUD", "TRACE, DEBUG, INFO"),
        ("--data-dir", "/dev/null", "not a directory"),
    ],
)
def test_a_wrong_value_is_refused(option: str, value: str, allowed: str, refused: Refused) -> None:
    message = refused(f"{option}={value}")
    assert message.startswith(f"rcached: {option}: ")
    assert repr(value) in message
    assert allowed in message


@pytest.mark.parametrize(
    "argv", [["--listn", "x"], ["--memory", "1G"], ["stray"], ["--name"], ["--no-evict=yes"], ["--conf", "x"]]
)
def test_a_wrong_command_line_is_refused(argv: list[str], refused: Refused) -> None:
    assert argv[0].partition("=")[0] in refused(*argv)


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a compiler."""

    def find_nothing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(bodies.importlib, "import_module", find_nothing)


@pytest.mark.usefixtures("not_built")
def test_where_the_native_engine_was_not_built_it_is_refused_and_auto_is_the_reference(refused: Refused) -> None:
    message = refused("--engine", "native")
    assert "not built" in message
    assert "auto and reference" in message
    assert parse(["--engine", "auto"], {}).engine == "reference"


@pytest.mark.skipif(bool(bodies.why_not_native()), reason="the native engine was not built here")
def test_where_the_native_engine_was_built_auto_is_native() -> None:
    assert parse(["--engine", "auto"], {}).engine == parse(["--engine", "native"], {}).engine == "native"


def test_sizes_must_fit_together(refused: Refused) -> None:
    overhead = 65_535 + 128
    assert parse([f"--max-frame-size={(1 << 20) + overhead}"], {})
    message = refused(f"--max-frame-size={(1 << 20) + overhead - 1}")
    assert message.startswith("rcached: --max-frame-size: ")
    assert "--max-value-size 1M" in message
    assert str((1 << 20) + overhead) in message

    stream_bytes = 4 * (40 + 65_535 + (1 << 20))
    assert parse([f"--change-stream-size={stream_bytes}"], {})
    message = refused(f"--change-stream-size={stream_bytes - 1}")
    assert message.startswith("rcached: --change-stream-size: ")
    assert str(stream_bytes) in message


def test_the_largest_value_there_is_can_be_configured() -> None:
    options = parse(["--max-value-size=1G", "--max-frame-size=2G", "--change-stream-size=5G"], {})
    assert options.max_value_size == 1 << 30


@pytest.mark.parametrize("place", ["127.0.0.1:1", "127.8.9.10:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_no_secret(place: str) -> None:
    assert str(parse(["--listen", place], {}).listen) == place


@pytest.mark.parametrize("place", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "cache.example:1", "[::ffff:192.0.2.1]:1"])
def test_other_places_need_a_secret_or_plain_words(place: str, refused: Refused, secret_file: Path) -> None:
    message = refused("--listen", place)
    assert message.startswith(f"rcached: --listen: '{place}'")
    assert "--secret-file" in message
    assert "--trust-network" in message
    assert parse(["--listen", place, "--trust-network"], {}).secret is None
    assert parse(["--listen", place, "--secret-file", str(secret_file)], {}).secret == SECRET.encode()


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644])
def test_a_secret_open_to_others_is_refused(mode: int, secret_file: Path, refused: Refused) -> None:
    secret_file.chmod(mode)
    message = refused("--secret-file", str(secret_file))
    assert "--secret-file" in message
    assert f"{mode:04o}" in message


@pytest.mark.parametrize("content", ["", "short", "x" * 15 + "   \n", "x" * 4097])
def test_a_secret_of_a_wrong_length_is_refused_and_not_shown(content: str, secret_file: Path, refused: Refused) -> None:
    secret_file.write_text(content)
    message = refused("--secret-file", str(secret_file))
    assert "16 to 4096 bytes" in message
    assert not content or content.strip() not in message


def test_a_secret_file_that_is_none_is_refused_at_once(tmp_path: Path, refused: Refused) -> None:
    tmp_path.chmod(0o700)
    assert "is not a file" in refused("--secret-file", str(tmp_path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is not a file" in refused("--secret-file", str(tmp_path / "pipe"))


def test_a_savefile_must_be_possible(tmp_path: Path, refused: Refused) -> None:
    assert "is a directory" in refused("--savefile", str(tmp_path))
    assert "no directory" in refused("--savefile", str(tmp_path / "missing" / "x.rcs"))
    new = tmp_path / "new"
    assert parse(["--data-dir", str(new), "--savefile", str(new / "x.rcs")], {}).savefile == new / "x.rcs"


def test_the_command_line_wins_over_a_variable_and_that_over_the_file(config: Callable[[str], str]) -> None:
    file = config("memory-limit = 16M\nname = file\nbuckets = 4\nappend-log = false\nno-evict = true\n")
    environ = {"RCACHE_CONFIG": file, "RCACHE_MEMORY_LIMIT": "17M", "RCACHE_NAME": "variable", "RCACHE_APPEND_LOG": "true"}
    options = parse(["--memory-limit", "18M"], environ)
    assert (options.memory_limit, options.name, options.buckets) == (18 << 20, "variable", 4)
    assert options.append_log
    assert options.no_evict
    assert not parse(["--config", file], {"RCACHE_NO_EVICT": "false"}).no_evict


def test_a_file_and_a_variable_may_give_several(config: Callable[[str], str], refused: Refused) -> None:
    file = config("node = [a:1, [::1]:2]\netcd = [http://a:1,http://b:2]\n")
    options = parse(["--config", file], {})
    assert options.node == (Address("a", 1), Address("::1", 2))
    assert len(options.etcd) == 2
    assert parse(["--config", config("node = [::1]:2")], {}).node == (Address("::1", 2),)
    assert parse([], {"RCACHE_NODE": "[a:1, b:2]"}).node == (Address("a", 1), Address("b", 2))
    assert "--node: ''" in refused("--config", config("node = [a:1, ]"))


def test_what_takes_several_is_what_a_file_may_list() -> None:
    several = {action.dest for action in build_parser(OPTION_NAMES)._actions if type(action).__name__ == "_AppendAction"}
    assert several == set(SEVERAL)


def test_every_option_has_its_variable(refused: Refused) -> None:
    for name in OPTION_NAMES:
        variable = "RCACHE_" + name.upper().replace("-", "_")
        if f"--{name}" in WITHOUT_VALUE:
            assert variable in refused(environ={variable: "perhaps"})
        else:
            assert f"--{name}: " in refused(environ={variable: "" if name != "restore" else "/no/such"})


def test_variables_of_others_are_left_alone() -> None:
    assert parse(["--name", "n"], {"RCACHE_SERVER": "x:1", "RCACHE_PORT": "tcp://10.0.0.1:1", "HOME": "/"}) == parse(
        ["--name", "n"], {}
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("memroy-limit = 1G", "line 1: 'memroy-limit' is not an option; did you mean 'memory-limit'?"),
        ("\n# x\n[section]", "line 3: '[section]' is not an option"),
        ("no-append-log = true", "'no-append-log' is not an option; did you mean 'append-log'?"),
        ("config = other", "'config' is not an option"),
        ("version = true", "'version' is not an option"),
        ("secret = 0123456789abcdef", "'secret' is not an option"),
        ("max_connections = 1", "'max_connections' is not an option"),
        ("no-evict", "has no '='"),
        ("name = a\nname = b", "line 2: 'name' was given before"),
        ("name = a # the first", "a comment needs a line of its own"),
        ("append-log = perhaps", "append-log: 'perhaps'"),
        ("memory-limit = 1", "--memory-limit: '1'"),
        ("name = [a, b]/", "--name: '[a, b]/'"),
    ],
)
def test_a_wrong_file_is_refused(text: str, complaint: str, config: Callable[[str], str], refused: Refused) -> None:
    assert complaint in refused("--config", config(text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "--config: " in refused("--config", str(tmp_path / "missing"))
    assert "--config: " in refused("--config", str(tmp_path))
    (tmp_path / "latin").write_bytes(b"name = gr\xf6\xdfe\n")
    assert "not a text in UTF-8" in refused("--config", str(tmp_path / "latin"))


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--version"], {})
    assert ended.value.code == 0
    assert re.fullmatch(r"rcached \d+\.\d+\.\d+ \(engine: \w+; record walks: \w+\)\n", capsys.readouterr().out)
    with pytest.raises(SystemExit) as ended:
        parse(["--help"], {})
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in OPTION_NAMES)
    assert "exit codes:" in text


def test_the_parser_and_the_result_name_the_same_options() -> None:
    named = {action.dest for action in build_parser(OPTION_NAMES)._actions} - {"help", "version", "config"}
    assert named | {"secret"} == {field.name for field in fields(ServerOptions)}


def test_the_sample_names_every_option_with_its_default(config: Callable[[str], str]) -> None:
    text = SAMPLE.read_text(encoding="utf-8")
    commented = re.findall(r"^#([a-z][a-z-]*) =(.*)$", text, re.MULTILINE)
    assert tuple(sorted(name for name, _ in commented)) == tuple(sorted(OPTION_NAMES))
    assert all(not line or line.startswith("#") for line in text.splitlines()), "the sample changes nothing"
    assert parse(["--config", str(SAMPLE)], {}) == parse([], {})

    born = settings_of(parse([], {}))  # what no word amounts to is the cluster's; these are what one is born with
    at_birth = {
        "buckets": BUCKETS_DEFAULT,
        "backups": born.backups,
        "lease": born.lease_s,
        "append_log_fsync": FsyncPolicy(born.fsync),
    }
    first_start = replace(parse([], {}), **at_birth)
    for name, value in commented:  # each states its default, so that giving it is the same as not giving it
        said = parse(["--config", config(f"{name} ={value}\n")], {})
        field = name.replace("-", "_")
        assert said == (replace(parse([], {}), **{field: at_birth[field]}) if field in at_birth else parse([], {}))
    uncommented = re.sub(r"^#([a-z][a-z-]* =)", r"\1", text, flags=re.MULTILINE)
    assert parse(["--config", config(uncommented)], {}) == first_start


def test_the_sample_gives_a_value_wherever_there_is_a_fixed_default() -> None:
    unfixed = {"config", "buckets", "backups", "lease", "append-log-fsync"}  # without a word they are the cluster's business
    empty = set(re.findall(r"^#([a-z][a-z-]*) =$", SAMPLE.read_text(encoding="utf-8"), re.MULTILINE))
    assert (
        empty
        == {action.dest.replace("_", "-") for action in build_parser(OPTION_NAMES)._actions if action.default is None} - unfixed
    )


@given(st.integers(1, 1 << 60))
def test_a_size_survives_its_own_text(count: int) -> None:
    assert values.size(1, 1 << 60)(size_text(count)) == count


@pytest.mark.parametrize(
    "kind",
    [values.address, values.node_name, values.size(0, 9), values.seconds(0, 9), values.whole(0, 9), values.power_of_two(8)],
)
@given(text=st.text())
def test_any_text_is_taken_or_refused_with_itself_in_the_message(kind: Callable[[str], object], text: str) -> None:
    try:
        kind(text)
    except ArgumentTypeError as refusal:
        message = str(refusal)
    else:
        return
    assert repr(text) in message
