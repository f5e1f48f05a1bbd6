"""Which of flag, environment, file and default counts, and what is said of a value that does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evpipe.bus.settings import BusSettings, load_settings
from evpipe.errors import UsageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder to be in, with nothing configured."""
    for name in ("USER", "PASSWORD", "TOKEN", "CREDENTIALS", "TLS_CA", "TLS_CERT", "TLS_KEY", "REPLICAS"):
        monkeypatch.delenv(f"EVPIPE_NATS_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "project" / "src"
    folder.mkdir(parents=True)
    (folder / "there.pem").write_text("")
    monkeypatch.chdir(folder)
    return folder


def test_nothing_configured_is_the_embedded_bus(tmp_path: Path) -> None:
    data_dir = load_settings().data_dir
    assert load_settings() == BusSettings(data_dir=data_dir)
    assert (load_settings().url, load_settings().prefix, load_settings().replicas) == (None, "evpipe", 1)
    assert data_dir.is_relative_to(tmp_path / "home")


def test_the_data_directory_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert load_settings().data_dir == tmp_path / "home/.local/share/evpipe"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert load_settings().data_dir == tmp_path / "home/.local/share/evpipe"
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    assert load_settings().data_dir == Path("/xdg/evpipe")
    monkeypatch.setattr("sys.platform", "darwin")
    assert load_settings().data_dir == tmp_path / "home/Library/Application Support/evpipe"


def test_each_source_wins_over_the_next(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here.parent / "pyproject.toml").write_text('[tool.evpipe]\nnats_url = "nats://project:1"\n')
    assert load_settings().url == "nats://project:1"
    (here.parent / "evpipe.toml").write_text('nats_url = "nats://file:1"\n')
    assert load_settings().url == "nats://file:1"
    (here / "pyproject.toml").write_text('[tool.evpipe]\nnats_url = "nats://nearer:1"\n')
    assert load_settings().url == "nats://nearer:1"
    monkeypatch.setenv("NATS_URL", "nats://generic:1")
    assert load_settings().url == "nats://generic:1"
    monkeypatch.setenv("EVPIPE_NATS_URL", "nats://variable:1")
    assert load_settings().url == "nats://variable:1"
    assert load_settings(url="nats://flag:1").url == "nats://flag:1"
    monkeypatch.setenv("EVPIPE_NATS_URL", "")
    assert load_settings().url == "nats://generic:1"


def test_a_project_without_our_table_is_passed_over(here: Path) -> None:
    (here.parent / "evpipe.toml").write_text('prefix = "upper"\n')
    for text in ("[tool.other]\n", "not TOML", "# evpipe\n[tool]\n"):
        (here / "pyproject.toml").write_text(text)
        assert load_settings().prefix == "upper"


def test_all_keys_of_a_file_and_paths_relative_to_it(here: Path) -> None:
    (here.parent / "ca.pem").write_text("")
    (here.parent / "evpipe.toml").write_text(
        'nats_url = "tls://a:1"\nnats_user = "u"\nnats_password = "p"\nnats_token = "t"\nnats_credentials = "ca.pem"\n'
        'nats_tls_ca = "ca.pem"\nnats_tls_cert = "ca.pem"\nnats_tls_key = "ca.pem"\nprefix = "x"\ndata_dir = "data"\n'
        "nats_replicas = 3\n"
    )
    ca = here.parent / "ca.pem"
    assert load_settings() == BusSettings(
        url="tls://a:1", user="u", password="p", token="t", credentials=ca, tls_ca=ca, tls_cert=ca, tls_key=ca,
        prefix="x", data_dir=here.parent / "data", replicas=3,
    )  # fmt: skip


def test_all_variables_and_paths_relative_to_the_current_directory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "NATS_URL": "host:4222", "NATS_USER": "u", "NATS_PASSWORD": "p", "NATS_TOKEN": "t",
        "NATS_CREDENTIALS": "there.pem",
        "NATS_TLS_CA": "there.pem", "NATS_TLS_CERT": "there.pem", "NATS_TLS_KEY": "there.pem", "PREFIX": "x",
        "DATA_DIR": "~/data", "NATS_REPLICAS": "5",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"EVPIPE_{name}", value)
    there = here / "there.pem"
    assert load_settings() == BusSettings(
        url="nats://host:4222", user="u", password="p", token="t", credentials=there, tls_ca=there, tls_cert=there,
        tls_key=there, prefix="x", data_dir=Path.home() / "data", replicas=5,
    )  # fmt: skip


def test_all_flags(here: Path) -> None:
    there = here / "there.pem"
    found = load_settings(
        url="nats://a, nats://b:1/", user="u", password="p", token="t", credentials=there, tls_ca="there.pem",
        tls_cert=there, tls_key=there, prefix="x", data_dir=Path("/d"), replicas=2,
    )  # fmt: skip
    assert found == BusSettings(
        url="nats://a,nats://b:1", user="u", password="p", token="t", credentials=there, tls_ca=there, tls_cert=there,
        tls_key=there, prefix="x", data_dir=Path("/d"), replicas=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://u:p%40x@a:1,nats://b:1", ("nats://a:1,nats://b:1", "u", "p@x", None)),
        ("nats://secret@a:1", ("nats://a:1", None, None, "secret")),
        ("nats://[::1]:4222", ("nats://[::1]:4222", None, None, None)),
    ],
)
def test_a_login_is_taken_out_of_the_url(url: str, expected: tuple[str | None, ...]) -> None:
    found = load_settings(url=url)
    assert (found.url, found.user, found.password, found.token) == expected


def test_a_login_of_its_own_wins_over_the_url() -> None:
    found = load_settings(url="nats://u:p@a:1", token="t")
    assert (found.url, found.user, found.password, found.token) == ("nats://a:1", None, None, "t")


def test_no_secret_is_in_a_repr() -> None:
    shown = repr(load_settings(url="nats://u:hush@a:1")) + repr(load_settings(token="hush", user="u", password="hush"))
    assert "hush" not in shown


SENTENCES = [
    (
        {"EVPIPE_NATS_URL": "http://a:1"},
        "EVPIPE_NATS_URL is 'http://a:1' with the unknown scheme 'http': expected nats://",
    ),
    ({"NATS_URL": "nats://u:hush@a:x"}, "NATS_URL is 'nats://a:x', whose Port could not be cast"),
    ({"NATS_URL": "nats://"}, "NATS_URL is 'nats://', which names no host and port: expected nats://host:port"),
    ({"NATS_URL": "nats://a:1,"}, "which names no host and port"),
    ({"NATS_URL": "nats://a:1/x"}, "NATS_URL is 'nats://a:1/x' with something after the port"),
    ({"NATS_URL": "nats://u:a@a,nats://v:b@b"}, "NATS_URL has different logins for its servers"),
    ({"EVPIPE_NATS_CREDENTIALS": "gone"}, "EVPIPE_NATS_CREDENTIALS is 'gone', but there is no file /"),
    ({"EVPIPE_NATS_TLS_CA": "gone"}, "EVPIPE_NATS_TLS_CA is 'gone', but there is no file /"),
    ({"EVPIPE_NATS_TLS_CERT": "."}, "EVPIPE_NATS_TLS_CERT is '.', but there is no file /"),
    ({"EVPIPE_NATS_TLS_KEY": "gone"}, "EVPIPE_NATS_TLS_KEY is 'gone', but there is no file /"),
    ({"EVPIPE_NATS_TLS_KEY": "there.pem"}, "EVPIPE_NATS_TLS_KEY is set and tls_cert is not: set EVPIPE_NATS_TLS_CERT"),
    ({"EVPIPE_NATS_PASSWORD": "hush"}, "EVPIPE_NATS_PASSWORD is set and user is not: set EVPIPE_NATS_USER"),
    ({"EVPIPE_PREFIX": "a.b"}, "EVPIPE_PREFIX: prefix 'a.b' is not allowed: 1 to 32 letters"),
    ({"EVPIPE_NATS_REPLICAS": "three"}, "EVPIPE_NATS_REPLICAS is 'three' (str): expected a whole number from 1 to 5"),
    ({"EVPIPE_NATS_REPLICAS": "6"}, "EVPIPE_NATS_REPLICAS is '6' (str): expected a whole number from 1 to 5"),
    ({"EVPIPE_DATA_DIR": "~nobody-of-that-name/x"}, "EVPIPE_DATA_DIR is '~nobody-of-that-name/x': "),
    (
        'nats_urll = "nats://a"',
        "unknown key 'nats_urll' in {file}; did you mean 'nats_url'?; accepted are nats_url, nats_user",
    ),
    ("other = 1", "unknown key 'other' in {file}; accepted are nats_url"),
    ("nats_url = 1", "nats_url in {file} is 1 (int): expected a text"),
    ('nats_user = ""', "nats_user in {file} is '' (str): expected a text that is not empty"),
    ("nats_password = 1234", "nats_password in {file} is of type int or empty: expected a text"),
    ("nats_token = 1234", "nats_token in {file} is of type int or empty: expected a text"),
    ("prefix = true", "prefix in {file} is True (bool): expected a text"),
    ("nats_replicas = true", "nats_replicas in {file} is True (bool): expected a whole number from 1 to 5"),
    ("nats_replicas = 0", "nats_replicas in {file} is 0 (int): expected a whole number from 1 to 5"),
    ("data_dir = []", "data_dir in {file} is [] (list): expected a path"),
    ('nats_credentials = "gone"', "nats_credentials in {file} is 'gone', but there is no file"),
    ("nats_url", "{file} is not valid TOML: "),
    (b"\xff", "cannot read the settings in {file}: "),
]


@pytest.mark.parametrize(("given", "sentence"), SENTENCES, ids=[sentence[:60] for _, sentence in SENTENCES])
def test_what_is_not_accepted(
    here: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str] | str | bytes, sentence: str
) -> None:
    file = here / "evpipe.toml"
    match given:
        case dict():
            for name, value in given.items():
                monkeypatch.setenv(name, value)
        case str():
            file.write_text(given)
        case bytes():
            file.write_bytes(given)
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert sentence.format(file=file) in str(caught.value)
    assert not re.search("hush|1234", str(caught.value))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[tool.evpipe]\nprefx = 'a'", "unknown key 'prefx' in {file}; did you mean 'prefix'?"),
        ("tool.evpipe = 1", "tool.evpipe in {file} is 1 (int): expected a table"),
        ("[tool.evpipe", "{file} is not valid TOML: "),
    ],
)
def test_what_is_not_accepted_in_a_project(here: Path, text: str, sentence: str) -> None:
    file = here / "pyproject.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(sentence.format(file=file))):
        load_settings()
