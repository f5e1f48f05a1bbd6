"""Which bus to use and how to log in: flags, environment, file, defaults, in this order.

Read once by what opens a bus (`cli`, `client`, `hosting`); `bus.nats` gets the result and looks nowhere else.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from evpipe.core.names import nearest
from evpipe.errors import UsageError
from evpipe.wire.subjects import Subjects

#: What nats-py speaks without more packages (ws:// and wss:// need aiohttp, and were never tried by us).
SCHEMES: Final = ("nats", "tls")
DEFAULT_PREFIX: Final = "evpipe"
#: JetStream's own bounds for the copies of a stream.
REPLICAS_MAX: Final = 5
CONFIG_FILE: Final = "evpipe.toml"
PROJECT_FILE: Final = "pyproject.toml"


def default_data_dir() -> Path:
    """Folder for data of this user, by the custom of the platform."""
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "evpipe"
        base = os.environ.get("XDG_DATA_HOME", "")
        # The XDG specification: a relative path is to be ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "share") / "evpipe"
    except RuntimeError as exc:
        raise UsageError("this user has no home directory for evpipe's data: set EVPIPE_DATA_DIR") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings:
    """Where the bus is and how to log in. Paths are absolute, and those of files exist."""

    #: One server or several, comma-separated, without user and password; None: the embedded server.
    url: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    #: A .creds file (JWT and nkey seed).
    credentials: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    #: First token of every subject: another prefix is another installation.
    prefix: str = DEFAULT_PREFIX
    #: Where the embedded server keeps its data, and runs without a server their results.
    data_dir: Path = field(default_factory=default_data_dir)
    #: Copies of each stream on a cluster.
    replicas: int = 1


class _Option(NamedTuple):
    """One setting and where it may come from."""

    name: str
    #: The first that is set counts.
    variables: tuple[str, ...]
    key: str


_OPTIONS: Final = (
    _Option("url", ("EVPIPE_NATS_URL", "NATS_URL"), "nats_url"),
    *(
        _Option(name, (f"EVPIPE_NATS_{name.upper()}",), f"nats_{name}")
        for name in ("user", "password", "token", "credentials", "tls_ca", "tls_cert", "tls_key")
    ),
    _Option("prefix", ("EVPIPE_PREFIX",), "prefix"),
    _Option("data_dir", ("EVPIPE_DATA_DIR",), "data_dir"),
    _Option("replicas", ("EVPIPE_NATS_REPLICAS",), "nats_replicas"),
)
_SECRET: Final = frozenset({"password", "token"})


class _Found(NamedTuple):
    """A value as it was written."""

    value: object
    #: For messages: "EVPIPE_NATS_URL", "nats_url in /home/a/evpipe.toml".
    source: str
    #: What a relative path is relative to: the file's folder, or the current directory.
    base: Path


def load_settings(
    *,
    url: str | None = None,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    credentials: Path | str | None = None,
    tls_ca: Path | str | None = None,
    tls_cert: Path | str | None = None,
    tls_key: Path | str | None = None,
    prefix: str | None = None,
    data_dir: Path | str | None = None,
    replicas: int | None = None,
) -> BusSettings:
    """Collect the settings: argument, else EVPIPE_*, else the nearest evpipe.toml or [tool.evpipe], else default.

    An empty variable counts as not set. User and password may also stand in the URL.

    Raises:
        UsageError: if a value, a key or a file is not what is accepted; the sentence says where it was found.

    """
    flags: dict[str, object] = {
        "url": url, "user": user, "password": password, "token": token, "credentials": credentials,
        "tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key, "prefix": prefix, "data_dir": data_dir,
        "replicas": replicas,
    }  # fmt: skip
    here = _current_directory()
    file = _read_nearest_file(here)
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for option in _OPTIONS:
        found = _find(option, flags, file, here)
        if found is not None:
            values[option.name] = _CHECKS[option.name](found)
            sources[option.name] = found.source
    _move_login_out_of_url(values, sources)
    _check_pairs(values, sources)
    return BusSettings(**values)  # type: ignore[arg-type]  # each value went through the check of its name


def load_data_dir() -> Path:
    """Give the setting `data_dir` alone: who needs no bus is not held up by what is wrong with the others.

    Raises:
        UsageError: as `load_settings`.
    """
    here = _current_directory()
    option = next(option for option in _OPTIONS if option.name == "data_dir")
    found = _find(option, {option.name: None}, _read_nearest_file(here), here)
    return default_data_dir() if found is None else _check_path(found)


def _find(option: _Option, flags: Mapping[str, object], file: Mapping[str, _Found], here: Path) -> _Found | None:
    if flags[option.name] is not None:
        return _Found(flags[option.name], option.name, here)
    for variable in option.variables:
        if os.environ.get(variable):
            return _Found(os.environ[variable], variable, here)
    return file.get(option.key)


def _current_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as exc:
        raise UsageError("the current directory does not exist any more: change to another one") from exc


# The file.


def _read_nearest_file(here: Path) -> dict[str, _Found]:
    """Read evpipe.toml or [tool.evpipe] of the nearest folder, upwards, that has one."""
    for folder in (here, *here.parents):
        own = folder / CONFIG_FILE
        if own.is_file():
            return _check_keys(_parse(own, _read(own)), own)
        project = folder / PROJECT_FILE
        if project.is_file():
            text = _read(project)
            # A project of somebody else that does not even parse is none of our business.
            if "evpipe" not in text:
                continue
            tool = _parse(project, text).get("tool")
            table = tool.get("evpipe") if isinstance(tool, dict) else None
            if table is not None:
                if not isinstance(table, dict):
                    raise UsageError(f"tool.evpipe in {project} is {_shown(table)}: expected a table")
                return _check_keys(table, project)
    return {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read the settings in {path}: {exc}") from exc


def _parse(path: Path, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{path} is not valid TOML: {exc}") from exc


def _check_keys(table: Mapping[str, object], path: Path) -> dict[str, _Found]:
    known = [option.key for option in _OPTIONS]
    for key in table:
        if key not in known:
            guess = nearest(key, known)
            raise UsageError(f"unknown key {key!r} in {path}{guess}; accepted are {', '.join(known)}")
    return {key: _Found(value, f"{key} in {path}", path.parent) for key, value in table.items()}


# One check per kind of value.


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"


def _check_text(found: _Found) -> str:
    if not isinstance(found.value, str) or not found.value:
        raise UsageError(f"{found.source} is {_shown(found.value)}: expected a text that is not empty")
    return found.value


def _check_secret(found: _Found) -> str:
    # The value is not shown, also where it is wrong: messages end up in logs.
    if not isinstance(found.value, str) or not found.value:
        raise UsageError(f"{found.source} is of type {type(found.value).__name__} or empty: expected a text")
    return found.value


def _check_path(found: _Found) -> Path:
    if not isinstance(found.value, (str, Path)) or not str(found.value):
        raise UsageError(f"{found.source} is {_shown(found.value)}: expected a path")
    try:
        return found.base / Path(found.value).expanduser()
    except RuntimeError as exc:
        raise UsageError(f"{found.source} is {str(found.value)!r}: {exc}") from exc


def _check_file(found: _Found) -> Path:
    path = _check_path(found)
    if not path.is_file():
        raise UsageError(f"{found.source} is {str(found.value)!r}, but there is no file {path}")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{found.source} is {str(found.value)!r}, but the file {path} cannot be read by this user")
    return path


def _check_prefix(found: _Found) -> str:
    prefix = _check_text(found)
    try:
        Subjects(prefix)
    except UsageError as exc:
        raise UsageError(f"{found.source}: {exc}") from exc
    return prefix


def _check_replicas(found: _Found) -> int:
    value = found.value
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= REPLICAS_MAX:
        raise UsageError(f"{found.source} is {_shown(found.value)}: expected a whole number from 1 to {REPLICAS_MAX}")
    return value


def _check_url(found: _Found) -> str:
    servers = [part.strip() for part in _check_text(found).split(",")]
    return ",".join(_check_server(server if "://" in server else f"nats://{server}", found) for server in servers)


def _check_server(server: str, found: _Found) -> str:
    accepted = f"expected {' or '.join(f'{scheme}://host:port' for scheme in SCHEMES)}"
    try:
        parts = urlsplit(server)
        port = parts.port
    except ValueError as exc:
        raise UsageError(f"{found.source} is {_without_login(server)!r}, whose {exc}: {accepted}") from exc
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"{found.source} is {_without_login(server)!r} with the unknown scheme {parts.scheme!r}: {accepted}"
        )
    if not parts.hostname or port == 0:
        raise UsageError(f"{found.source} is {_without_login(server)!r}, which names no host and port: {accepted}")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(f"{found.source} is {_without_login(server)!r} with something after the port: {accepted}")
    return server.rstrip("/")


_CHECKS: Final[Mapping[str, Callable[[_Found], object]]] = {
    "url": _check_url,
    "user": _check_text,
    "password": _check_secret,
    "token": _check_secret,
    "credentials": _check_file,
    "tls_ca": _check_file,
    "tls_cert": _check_file,
    "tls_key": _check_file,
    "prefix": _check_prefix,
    "data_dir": _check_path,
    "replicas": _check_replicas,
}


# What concerns more than one value.


def _without_login(server: str) -> str:
    scheme, _, rest = server.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _move_login_out_of_url(values: dict[str, object], sources: dict[str, str]) -> None:
    """Take `user:password@` or `token@` out of the URL, which is printed and logged. The nearer setting wins."""
    url = values.get("url")
    if not isinstance(url, str):
        return
    servers = url.split(",")
    logins = {login for login in map(_login, servers) if login != (None, None)}
    if len(logins) > 1:
        raise UsageError(f"{sources['url']} has different logins for its servers: expected one for all of them")
    values["url"] = ",".join(_without_login(server) for server in servers)
    for first, second in logins:
        found = {"token": first} if second is None else {"user": first, "password": second}
        if not values.keys() & {"user", "password", "token", "credentials"}:
            values.update(found)
            sources.update(dict.fromkeys(found, sources["url"]))


def _login(server: str) -> tuple[str | None, str | None]:
    parts = urlsplit(server)
    first, second = parts.username, parts.password
    return (None if first is None else unquote(first), None if second is None else unquote(second))


def _check_pairs(values: Mapping[str, object], sources: Mapping[str, str]) -> None:
    for name, other, variable in (
        ("password", "user", "EVPIPE_NATS_USER"),
        ("tls_key", "tls_cert", "EVPIPE_NATS_TLS_CERT"),
    ):
        if name in values and other not in values:
            raise UsageError(f"{sources[name]} is set and {other} is not: set {variable} as well")
