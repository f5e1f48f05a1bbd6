"""The checks of `evpipe doctor`, in the order in which each needs the one before."""

from __future__ import annotations

import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import anyio

from evpipe.bus.embedded import FOLDER
from evpipe.bus.home import Home, read_info
from evpipe.bus.locks import FileLock, require_posix
from evpipe.bus.nats.connection import SERVER_MIN, ApiError, Connection, NotAnswered
from evpipe.bus.nats.provision import StreamNames, check_jetstream, provision, stream_configs
from evpipe.bus.server import BINARY_VARIABLE, find_server
from evpipe.bus.settings import _OPTIONS, _SECRET, BusSettings, _current_directory, _find, _read_nearest_file
from evpipe.bus.settings import load_settings as load_bus_settings
from evpipe.cli.output import DEBUG_VARIABLE, Exit
from evpipe.core.names import nearest
from evpipe.errors import BusError, EvpipeError, ServerNotFound, UsageError
from evpipe.hosting.logs import VARIABLE as LOG_VARIABLE
from evpipe.wire.subjects import Subjects

PACKAGES: Final = ("evpipe", "anyio", "click", "msgpack", "nats-py", "rich", "structlog")
PYTHON_MIN: Final = (3, 11)
#: A stream fuller than this is worth a warning: once full it lets nobody publish.
FULL_WARN: Final = 0.8
#: A controller that lives answers within milliseconds.
CONTROLLER_WAIT_S: Final = 1.0
ROUND_TRIPS: Final = 5
#: Above it each hop of a run is felt; a disk that syncs each write takes 1 to 10 ms.
ROUND_TRIP_WARN_MS: Final = 100.0
#: JetStream's "stream not found".
NO_STREAM: Final = 10059

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at and found."""

    name: str
    status: Status
    found: str
    #: What to do about it; "" if there is nothing to do.
    advice: str = ""
    #: The exit code if it failed.
    code: Exit = Exit.BUS


Found = Callable[[Check], None]


async def run_checks(url: str | None, found: Found) -> None:
    """Run all checks that make sense, telling each as it is done."""
    _check_python(found)
    _check_packages(found)
    settings = _check_settings(url, found)
    if settings is None:
        return
    _check_binary(found, needed=settings.url is None)
    reachable = _check_embedded(settings, found)
    if reachable is not None:
        await _check_bus(reachable, found, own_controller=settings.url is None)


# ---- this machine


def _check_python(found: Found) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON_MIN:
        found(Check("python", "fail", version, f"use {'.'.join(map(str, PYTHON_MIN))} or newer", Exit.USAGE))
    else:
        found(Check("python", "ok", f"{version} ({sys.executable})"))


def _check_packages(found: Found) -> None:
    versions: list[str] = []
    missing: list[str] = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        found(Check("packages", "fail", f"missing: {', '.join(missing)}", "pip install evpipe", Exit.USAGE))
    found(Check("packages", "ok", ", ".join(versions)))


def _check_settings(url: str | None, found: Found) -> BusSettings | None:
    """Load the settings, and tell those that are not defaults with where each came from."""
    try:
        settings = load_bus_settings(url=url)
    except EvpipeError as error:
        found(Check("settings", "fail", str(error), "correct it", Exit.USAGE))
        return None
    flags = {option.name: url if option.name == "url" else None for option in _OPTIONS}
    here = _current_directory()
    file = _read_nearest_file(here)
    shown: list[str] = []
    for option in _OPTIONS:
        origin = _find(option, flags, file, here)
        if origin is not None:
            value = "(set)" if option.name in _SECRET else getattr(settings, option.name)
            source = "--url" if option.name == "url" and url is not None else origin.source
            shown.append(f"{option.name} = {value} from {source}")
    found(Check("settings", "ok", "; ".join(shown) or "all defaults: the embedded bus"))
    _check_variables(found)
    return settings


def _check_variables(found: Found) -> None:
    """Warn of EVPIPE_ variables that nothing reads: usually a slip of the fingers."""
    known = [variable for option in _OPTIONS for variable in option.variables]
    known += [BINARY_VARIABLE, LOG_VARIABLE, DEBUG_VARIABLE]
    for variable in sorted(os.environ):
        if variable.startswith("EVPIPE_") and variable not in known:
            found(Check("settings", "warn", f"{variable} is set and nothing reads it{nearest(variable, known)}"))


def _check_binary(found: Found, *, needed: bool) -> None:
    try:
        binary = find_server()
    except UsageError as error:
        found(Check("nats-server", "fail", str(error), f"correct or unset {BINARY_VARIABLE}", Exit.USAGE))
        return
    except ServerNotFound as error:
        if needed:
            found(Check("nats-server", "fail", str(error)))
        else:
            found(Check("nats-server", "ok", "no binary on this machine, and none needed: a URL is configured"))
        return
    for note in binary.notes:
        found(Check("nats-server", "warn", note))
    found(Check("nats-server", "ok", f"{binary.version} ({binary.path})"))


def _check_embedded(settings: BusSettings, found: Found) -> BusSettings | None:
    """Look at the embedded server's folder.

    Returns:
        How to reach the bus; None if none runs that could be looked at.
    """
    needed = settings.url is None
    try:
        require_posix()
    except UsageError as error:
        found(Check("embedded", "fail" if needed else "ok", str(error), code=Exit.USAGE))
        return settings if not needed else None
    home = Home(settings.data_dir.expanduser().absolute() / FOLDER)
    obstacle = _not_writable(home.root)
    if obstacle and needed:
        advice = "set EVPIPE_DATA_DIR to a folder that you can write to"
        found(Check("embedded", "fail", f"{home.root} cannot be used: {obstacle}", advice, Exit.USAGE))
        return None
    # The lock on it says that it is true; without, it is what a keeper that was killed left.
    info = read_info(home.info) if FileLock.is_held(home.info) else None
    state = f"a server runs at {info.url}" if info else "no server runs"
    if not needed:
        found(Check("embedded", "ok", f"not used, because a URL is configured; {home.root}: {state}"))
        return settings
    if info is None:
        found(Check("embedded", "ok", f"{home.root} is writable; {state}: `evpipe run` starts one when it needs it"))
        found(Check("bus", "ok", "nothing to look at while no server runs"))
        return None
    found(Check("embedded", "ok", f"{home.root} is writable; {state} (process {info.server_pid})"))
    return replace(settings, url=info.url, token=info.token, replicas=1)


def _not_writable(folder: Path) -> str:
    """Say why a folder cannot be written to or made, or ""."""
    place = folder
    # A file in the way ends the look upwards, as does the root, which exists.
    while not place.exists() and not place.is_symlink():
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} cannot be written to by this user"
    return ""


# ---- the bus


async def _check_bus(settings: BusSettings, found: Found, *, own_controller: bool) -> None:
    connection = Connection(settings)
    try:
        await connection.open()
    except BusError as error:
        found(Check("bus", "fail", str(error)))
        return
    found(Check("bus", "ok", f"{settings.url} answers"))
    # An older one is refused when it is connected to.
    least = ".".join(map(str, SERVER_MIN))
    found(Check("server", "ok", f"version {connection.server_version}, {least} or newer is needed"))
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(connection.run)
        try:
            await connection.wait_ready()
            await _check_jetstream(connection, settings, found, own_controller=own_controller)
        finally:
            await connection.close()
            task_group.cancel_scope.cancel()


async def _check_jetstream(
    connection: Connection, settings: BusSettings, found: Found, *, own_controller: bool
) -> None:
    try:
        await check_jetstream(connection)
    except BusError as error:
        found(Check("jetstream", "fail", str(error)))
        return
    found(Check("jetstream", "ok", "on"))
    subjects = Subjects(settings.prefix)
    complete = await _check_streams(connection, settings, subjects, found)
    await _check_controller(connection, subjects, found, own_controller=own_controller)
    if complete:
        await _check_round_trip(connection, StreamNames.of(settings.prefix).bucket("leases"), found)


async def _check_streams(connection: Connection, settings: BusSettings, subjects: Subjects, found: Found) -> bool:
    """Look at every stream; returns whether all are there and as they must be."""
    names = [config["name"] for config in stream_configs(subjects, StreamNames.of(settings.prefix), 1)]
    missing: list[str] = []
    for name in names:
        try:
            info = await connection.api(f"STREAM.INFO.{name}")
        except ApiError as error:
            if error.code == NO_STREAM:
                missing.append(name)
            else:
                found(Check("stream", "fail", f"{name}: {error}"))
                return False
        except NotAnswered as error:
            found(Check("stream", "fail", str(error), f"give this user the permissions for {name}"))
            return False
        else:
            _check_use(name, info, found)
    if missing:
        found(Check("stream", "ok", f"not there yet: {', '.join(missing)}; the first client or worker makes them"))
        return False
    try:
        # All are there, so that it only compares.
        await provision(connection, subjects, settings.replicas)
    except BusError as error:
        found(Check("stream", "fail", str(error)))
        return False
    return True


def _check_use(name: str, info: dict[str, Any], found: Found) -> None:
    limit, used = int(info["config"].get("max_bytes", -1)), int(info["state"]["bytes"])
    text = f"{name}: {int(info['state']['messages']):,} messages, {_size(used)}"
    if limit <= 0:
        found(Check("stream", "ok", text))
    elif used < FULL_WARN * limit or info["config"].get("discard") == "old":
        found(Check("stream", "ok", f"{text} of {_size(limit)}"))
    else:
        share = f"{text} of {_size(limit)} ({used / limit:.0%})"
        found(Check("stream", "warn", share, "raise its max_bytes before it is full, which stops all publishing"))


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024 or unit == "GiB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"


async def _check_controller(connection: Connection, subjects: Subjects, found: Found, *, own_controller: bool) -> None:
    try:
        answer = await connection.request(subjects.ping_controller, b"", timeout_s=CONTROLLER_WAIT_S)
    except NotAnswered:
        if own_controller:
            found(Check("controller", "ok", "none now: each run on the embedded bus brings its own"))
        else:
            advice = "start one with `evpipe controller`: runs wait until one is there"
            found(Check("controller", "warn", "none answers", advice))
    else:
        found(Check("controller", "ok", f"{answer.data.decode(errors='replace')} answers"))


async def _check_round_trip(connection: Connection, bucket: str, found: Found) -> None:
    """Measure how long a stored message takes to be acknowledged, with a key that is removed again."""
    subject = f"$KV.{bucket}.doctor-{secrets.token_hex(6)}"
    took_ms: list[float] = []
    try:
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            answer = await connection.request(subject, b"")
            took_ms.append((time.perf_counter() - began) * 1000)
            if b'"error"' in answer.data:
                found(Check("publish", "fail", f"refused: {answer.data.decode(errors='replace')}"))
                return
    except NotAnswered as error:
        found(Check("publish", "fail", str(error), "give this user the permission to publish there"))
        return
    finally:
        with anyio.move_on_after(2.0, shield=True):
            try:
                await connection.api(f"STREAM.PURGE.KV_{bucket}", {"filter": subject})
            except BusError as error:
                found(Check("publish", "warn", f"the key {subject} could not be removed: {error}"))
    typical = statistics.median(took_ms)
    text = f"{typical:.1f} ms until a message is stored and acknowledged"
    if typical > ROUND_TRIP_WARN_MS:
        found(Check("publish", "warn", text, "look at the network and the server's disk"))
    else:
        found(Check("publish", "ok", text))
