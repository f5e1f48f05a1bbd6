"""Paths of files (kind "file") and of folders (kind "folder"): what is in them travels, and a copy is the value.

A file's bytes are stored as they are, so two steps that make the same file store it once. A folder's are a stream of
our own, made of a list and the contents in its order, because archives carry times and owners, and their readers
follow links and names to wherever they lead. A reader gets a private copy that it may change.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import Refused, named
from evpipe.wire.serializers import folders
from evpipe.wire.serializers.borders import CHUNK_BYTES, meta_value, reading, said
from evpipe.wire.serializers.folders import Entry
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, Stored

#: What file systems allow.
_NAME_BYTES_MAX: Final = 255
_NO_FILE: Final = "accepted are paths of files and folders"


class FileSerializer:
    """Writes and reads files."""

    name = "file"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        path = _own_path(value)
        with _opened(path) as source:
            # The file that is open is the one that is looked at.
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"the path {str(path)!r}, which is no file any more", _NO_FILE)
            while data := _read(source, path):
                file.write(data)
        meta: dict[str, Any] = {"name": _name_of(path)}
        return meta | {"executable": True} if _is_executable(status) else meta

    def read(self, stored: Stored) -> Any:
        with reading(self.name):
            name = meta_value(stored.meta, "name", str)
            if problem := _name_problem(name):
                raise ArtifactUnreadable(f"the name of a file {problem}: {name!r:.300}")
            path = _own_place(stored, name)
            with stored.open() as source:
                folders.copy(source, path, stored.size_bytes)
            if stored.meta.get("executable") is True:
                _make_executable(path)
            return path


class FolderSerializer:
    """Writes and reads folders."""

    name = "folder"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        path = _own_path(value)
        with _looking_at(path):
            entries = _entries(path)
        file.write(folders.head(entries))
        for entry in entries:
            if not entry.is_folder:
                _append(path / entry.path, entry, file)
        return {"name": _name_of(path)}

    def read(self, stored: Stored) -> Any:
        with reading(self.name):
            name = meta_value(stored.meta, "name", str)
            if problem := _name_problem(name):
                raise ArtifactUnreadable(f"the name of a folder {problem}: {name!r:.300}")
            root = _own_place(stored, name)
            with stored.open() as source:
                entries = folders.read_head(source, stored.size_bytes)
                root.mkdir()
                for entry in entries:
                    target = root / entry.path
                    if entry.is_folder:
                        target.mkdir()
                        continue
                    folders.copy(source, target, entry.size_bytes)
                    if entry.is_executable:
                        _make_executable(target)
            return root


SERIALIZERS: Final[dict[str, Serializer]] = {"file": FileSerializer(), "folder": FolderSerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value of pathlib; a path that leads nowhere is refused when it is written."""
    if not isinstance(value, PurePath):
        return None
    try:
        return SERIALIZERS["folder" if isinstance(value, Path) and value.is_dir() else "file"]
    except (OSError, ValueError):
        return SERIALIZERS["file"]


def _own_path(value: Any) -> Path:
    """Check that a value is a path that leads to a file or a folder.

    Raises:
        Refused: if it is none.
    """
    if not isinstance(value, Path):
        raise Refused(f"{named(type(value))}, which names no file of this machine", "pass pathlib.Path(value)")
    if type(value) is not type(Path()):
        raise Refused(f"{named(type(value))}, which would come back as a plain path", "pass pathlib.Path(value)")
    with _looking_at(value):
        if not value.exists():
            link = value.is_symlink()
            problem = "a link that leads nowhere" if link else "where nothing is"
            raise Refused(f"the path {str(value)!r}, {problem}", f"make the file first; {_NO_FILE}")
        if not (value.is_file() or value.is_dir()):
            raise Refused(f"the path {str(value)!r}, which is a socket, a pipe or a device", _NO_FILE)
    return value


def _name_of(path: Path) -> str:
    """Give the name that a copy will have; "." and ".." have none of their own."""
    name = path.name if path.name not in {"", ".", ".."} else path.resolve().name
    name = name or "root"
    if problem := _name_problem(name):
        raise Refused(f"the path {str(path)!r}, whose name {problem}", "give it another name")
    return name


def _name_problem(name: str) -> str:
    """Say why a text can be no name of a file, or ""."""
    if name in {"", ".", ".."}:
        return "is none"
    if "/" in name or "\\" in name:
        return "has a separator of folders"
    if not name.isprintable():
        return "has characters that cannot be shown"
    if len(name.encode()) > _NAME_BYTES_MAX:
        return f"is longer than {_NAME_BYTES_MAX} bytes"
    return ""


def _entries(root: Path) -> list[Entry]:
    """List what is in a folder, in an order that is the same everywhere.

    Raises:
        Refused: if something in it is neither a file nor a folder, or a link out of it.
    """
    inside = root.resolve()
    entries: list[Entry] = []
    for folder, subfolders, files in os.walk(root, onerror=_raise):
        for name in subfolders + files:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if problem := folders.path_problem(relative):
                raise Refused(f"the folder {str(root)!r}, in which the path {relative!r:.300} {problem}")
            entries.append(_entry(path, relative, root, inside))
        if len(entries) > folders.ENTRIES_MAX:
            hint = "make it one file, for instance with shutil.make_archive"
            raise Refused(f"the folder {str(root)!r} with more than {folders.ENTRIES_MAX:,} entries", hint)
    return sorted(entries)


def _entry(path: Path, relative: str, root: Path, inside: Path) -> Entry:
    where = f"the folder {str(root)!r}, in which {relative!r} is"
    if path.is_symlink():
        hint = "links to files inside the folder are followed; copy what another leads to"
        target = path.resolve()
        if not target.is_relative_to(inside):
            raise Refused(f"{where} a link out of it", hint)
        if not target.is_file():
            raise Refused(f"{where} a link that does not lead to a file", hint)
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        return Entry(relative, folders.FOLDER, False)
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{where} a socket, a pipe or a device", "take it out; accepted are files and folders")
    return Entry(relative, status.st_size, _is_executable(status))


def _append(path: Path, entry: Entry, file: BinaryIO) -> None:
    left = entry.size_bytes
    with _opened(path) as source:
        while data := _read(source, path):
            left -= len(data)
            if left < 0:
                break
            file.write(data)
    if left:
        raise Refused(f"the file {str(path)!r}, which changed while it was read", "write it to its end first")


def _opened(path: Path) -> BinaryIO:
    with _looking_at(path):
        return path.open("rb")


def _read(source: BinaryIO, path: Path) -> bytes:
    """Read a chunk; errors of the file that is written to are not among those it raises."""
    with _looking_at(path):
        return source.read(CHUNK_BYTES)


@contextmanager
def _looking_at(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as exc:
        raise Refused(f"the path {str(path)!r}, which may not be read ({said(exc)})", "change its permissions") from exc
    except (OSError, ValueError, RuntimeError) as exc:
        raise Refused(f"the path {str(path)!r}, which cannot be read ({said(exc)})", _NO_FILE) from exc


def _is_executable(status: os.stat_result) -> bool:
    return bool(status.st_mode & stat.S_IXUSR)


def _own_place(stored: Stored, name: str) -> Path:
    """Give a path where nothing is: who reads an artifact twice gets two copies."""
    path = stored.folder() / name
    return Path(tempfile.mkdtemp(dir=path.parent)) / name if path.exists() else path


def _make_executable(path: Path) -> None:
    """Let everybody run a file who may read it."""
    mode = path.stat().st_mode
    path.chmod(mode | (mode & 0o444) >> 2)


def _raise(error: OSError) -> None:
    raise error
