"""Folders of this user's cache: what is in them can be had again, and may be cleared away at any time."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import structlog

from evpipe.wire.spool import TemporaryFolder

log = structlog.get_logger(__name__)

#: In the place of folders that cannot be: ones that go with this process.
_instead: dict[Path, TemporaryFolder] = {}


def cache_folder(name: str) -> Path:
    """Make a folder of this user's cache; where that cannot be, one for this process alone.

    Args:
        name: of the folder, below that of this package.
    """
    if sys.platform == "darwin":
        base = Path("~/Library/Caches").expanduser()
    else:
        given = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(given) if Path(given).is_absolute() else Path("~/.cache").expanduser()
    folder = base / "evpipe" / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        probe = draft_in(folder)
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError) as error:
        instead = _instead.get(folder)
        if instead is None:
            instead = _instead[folder] = TemporaryFolder(name)
            log.warning("no_cache_folder", error=str(error), instead=str(instead.path))
        return instead.path
    return folder


def draft_in(folder: Path) -> Path:
    """Name a new file or folder there that nobody else takes for a finished one."""
    return folder / f".{secrets.token_hex(8)}"
