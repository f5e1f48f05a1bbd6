"""Saying that a worker is there, for as long as it is."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import anyio
import structlog

from evpipe.bus.protocol import Bus
from evpipe.errors import BusError
from evpipe.wire.presence import BUCKET, RENEW_S, TTL_S, WorkerEntry, encode_worker

log = structlog.get_logger(__name__)


async def tell_presence(bus: Bus, look: Callable[[], WorkerEntry]) -> None:
    """Renew a worker's entry until cancelled; then it is removed.

    Args:
        look: gives the entry as it is now.
    """
    bucket = bus.bucket(BUCKET)
    told = ""
    try:
        while True:
            entry = look()
            told = entry.id
            try:
                await bucket.put(entry.id, encode_worker(entry), ttl_s=TTL_S)
            except BusError as error:
                # Nothing is decided by it.
                log.debug("presence_not_told", error=str(error))
            await anyio.sleep(RENEW_S)
    finally:
        if told:
            with anyio.move_on_after(0.5, shield=True):
                await _remove(bus, told)


async def _remove(bus: Bus, worker: str) -> None:
    try:
        await bus.bucket(BUCKET).delete(worker)
    except BusError as error:
        log.debug("presence_not_removed", error=str(error))


def host_name() -> str:
    return platform.node() or "?"


def python_version() -> str:
    return platform.python_version()


def own_version() -> str:
    try:
        return version("evpipe")
    except PackageNotFoundError:
        return ""
