"""The options of rcache-logger: every source, every bound, every message, and the sample configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from rcache.commands.exit_codes import ExitCode
from rcache.commands.logger_options import OPTION_NAMES, VARIABLE_PREFIX, LoggerOptions, build_parser, parse
from rcache.stream.data_dir import LOGGER, DataDir
from rcache.stream.policy import FsyncPolicy
from rcache_client.address import Address

SAMPLE = Path(__file__).parents[2] / "etc" / "rcache" / "rcache-logger.conf"
SECRET = "0123456789abcdef"

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
        assert output.err.startswith("rcache-logger: ")
        assert output.err.endswith("\nTry 'rcache-logger --help'.\n")
        assert output.err.count("\n") == 2
        return output.err.splitlines()[0]

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "rcache-logger.conf"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box.example")
    monkeypatch.chdir(tmp_path)
    assert parse([], {}) == LoggerOptions(
        node=(Address("127.0.0.1", 13600),),
        dir=Path("rcache-log"),
        name="box.example-logger",
        secret_file=None,
        secret=None,
        fsync=FsyncPolicy.INTERVAL,
        fsync_interval=1.0,
        max_mb=512,
        keep_days=0,
        start_timeout=30.0,
        stop_timeout=20.0,
        skip_damaged=False,
        log_level="INFO",
        log_file=None,
    )


def test_a_directory_knows_its_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    """So a host that was given another name goes on with its files."""
    data_dir = DataDir(tmp_path / "tape")
    data_dir.be("tape", 8, "c1" * 16, LOGGER)
    data_dir.close()
    assert parse(["--dir", str(tmp_path / "tape")], {}).name == "tape"
    assert parse(["--dir", str(tmp_path / "tape"), "--name", "other"], {}).name == "other"
    monkeypatch.setattr("socket.gethostname", lambda: "x" * 60)
    assert "--name: the default" in refused("--dir", str(tmp_path / "new"))


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--node", "a:1", "--node", "[::1]:2"], "node", (Address("a", 1), Address("::1", 2))),
        (["--name", "größe 1"], "name", "größe 1"),
        (["--dir", "/x/y"], "dir", Path("/x/y")),
        (["--fsync", "always"], "fsync", FsyncPolicy.ALWAYS),
        (["--fsync-interval", "0.25"], "fsync_interval", 0.25),
        (["--max-mb", "65536"], "max_mb", 65_536),
        (["--keep-days", "0"], "keep_days", 0),
        (["--keep-days", "36500"], "keep_days", 36_500),
        (["--skip-damaged"], "skip_damaged", True),
        (["--start-timeout", "1.5"], "start_timeout", 1.5),
        (["--log-level", "debug"], "log_level", "DEBUG"),
    ],
)
def test_an_option_is_taken(argv: list[str], field: str, value: object) -> None:
    assert getattr(parse(argv, {}), field) == value


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--node", "13600", "HOST:PORT"),
        ("--node", "a:65536", "0 to 65535"),
        ("--name", "a/b", "no '/'"),
        ("--name", "ü" * 33, "1 to 64 bytes"),
        ("--dir", "", "not a path"),
        ("--fsync", "sometimes", "always, interval, never"),
        ("--fsync-interval", "0", "0.001 to 2592000 seconds"),
        ("--max-mb", "0", "1 to 65536"),
        ("--keep-days", "-1", "0 to 36500"),
        ("--keep-days", "1.5", "0 to 36500"),
        ("--start-timeout", "nan", "0.001 to 2592000 seconds"),
        ("--stop-timeout", "2592000.1", "0.001 to 2592000 seconds"),
        ("--secret-file", "/no/such/file", "No such file"),
        ("--log-level", "LOUD", "TRACE, DEBUG, INFO"),
    ],
)
def test_a_wrong_value_is_refused(option: str, value: str, allowed: str, refused: Refused) -> None:
    message = refused(f"{option}={value}")
    assert message.startswith(f"rcache-logger: {option}: ")
    assert repr(value) in message
    assert allowed in message


@pytest.mark.parametrize(
    "argv", [["--nodes", "x"], ["--max", "1"], ["stray"], ["--name"], ["--skip-damaged=yes"], ["--listen=x:1"]]
)
def test_a_wrong_command_line_is_refused(argv: list[str], refused: Refused) -> None:
    assert argv[0].partition("=")[0] in refused(*argv)


def test_the_secret_is_read_and_not_shown(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "secret"
    path.write_text(f"  {SECRET}\n")
    path.chmod(0o640)
    options = parse(["--secret-file", str(path)], {})
    assert options.secret == SECRET.encode()
    assert SECRET not in repr(options)
    path.chmod(0o644)
    assert "0644" in refused("--secret-file", str(path))


def test_the_command_line_wins_over_a_variable_and_that_over_the_file(config: Callable[[str], str]) -> None:
    file = config("max-mb = 1\nname = file\nkeep-days = 4\nskip-damaged = true\nnode = [a:1, b:2]\n")
    environ = {
        "RCACHE_LOGGER_CONFIG": file,
        "RCACHE_LOGGER_MAX_MB": "2",
        "RCACHE_LOGGER_NAME": "variable",
        "RCACHE_NAME": "node",
    }
    options = parse(["--max-mb", "3"], environ)
    assert (options.max_mb, options.name, options.keep_days, options.skip_damaged) == (3, "variable", 4, True)
    assert options.node == (Address("a", 1), Address("b", 2))


def test_every_option_has_its_variable(refused: Refused) -> None:
    for name in OPTION_NAMES:
        variable = VARIABLE_PREFIX + name.upper().replace("-", "_")
        if name == "skip-damaged":
            assert variable in refused(environ={variable: "perhaps"})
        else:
            assert f"--{name}: " in refused(environ={variable: ""})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max-mbs = 1", "line 1: 'max-mbs' is not an option; did you mean 'max-mb'?"),
        ("memory-limit = 1G", "'memory-limit' is not an option"),
        ("secret = 0123456789abcdef", "'secret' is not an option"),
        ("max-mb = 0", "--max-mb: '0'"),
    ],
)
def test_a_wrong_file_is_refused(text: str, complaint: str, config: Callable[[str], str], refused: Refused) -> None:
    assert complaint in refused("--config", config(text))


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--version"], {})
    assert ended.value.code == 0
    assert re.fullmatch(r"rcache-logger \d+\.\d+\.\d+\n", capsys.readouterr().out)
    with pytest.raises(SystemExit) as ended:
        parse(["--help"], {})
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in OPTION_NAMES)
    assert "exit codes:" in text


def test_the_parser_and_the_result_name_the_same_options() -> None:
    named = {action.dest for action in build_parser()._actions} - {"help", "version", "config"}
    assert named | {"secret"} == {field.name for field in fields(LoggerOptions)}


def test_the_sample_names_every_option_with_its_default(config: Callable[[str], str]) -> None:
    text = SAMPLE.read_text(encoding="utf-8")
    commented = re.findall(r"^#([a-z][a-z-]*) =(.*)$", text, re.MULTILINE)
    assert tuple(sorted(name for name, _ in commented)) == tuple(sorted(OPTION_NAMES))
    assert all(not line or line.startswith("#") for line in text.splitlines()), "the sample changes nothing"
    assert parse(["--config", str(SAMPLE)], {}) == parse([], {})
    for name, value in commented:  # each states its default, so that giving it is the same as not giving it
        assert parse(["--config", config(f"{name} ={value}\n")], {}) == parse([], {})
    uncommented = re.sub(r"^#([a-z][a-z-]* =)", r"\1", text, flags=re.MULTILINE)
    assert parse(["--config", config(uncommented)], {}) == parse([], {})


def test_the_sample_gives_a_value_wherever_there_is_a_fixed_default() -> None:
    empty = set(re.findall(r"^#([a-z][a-z-]*) =$", SAMPLE.read_text(encoding="utf-8"), re.MULTILINE))
    without = {action.dest.replace("_", "-") for action in build_parser()._actions if action.default is None}
    assert empty == without - {"config"}
