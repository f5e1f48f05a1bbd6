"""Paths of files and folders."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

import msgpack
import pytest

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers import folders
from evpipe.wire.serializers.folders import FOLDER, Entry
from evpipe.wire.serializers.paths import SERIALIZERS, serializer_of
from evpipe.wire.serializers.registry import ArtifactUnreadable
from tests.serializers.helpers import StoredBytes, StoredFile, check_corrupted, fingerprint, read, written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with some of everything that may be in one."""
    root = tmp_path / "set"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a.txt").write_bytes(b"text")
    (root / "a").mkdir()
    (root / "a" / "file ä \U0001f600").write_bytes(b"x" * 3_000_000)
    (root / "deep" / "er" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "deep" / "er" / "run.sh").chmod(0o755)
    (root / "nothing").write_bytes(b"")
    (root / "linked").symlink_to("a.txt")
    return root


def _read(value: Path, into: Path) -> Path:
    serializer, data, meta = written(value)
    stored = into / "stored"
    stored.write_bytes(data)
    again = serializer.read(StoredFile(stored, meta, into / "own"))
    assert isinstance(again, Path)
    return again


def _listed(root: Path) -> list[tuple[str, bytes | None, bool]]:
    found = []
    for path in sorted(root.rglob("*")):
        content = None if path.is_dir() else path.read_bytes()
        found.append((path.relative_to(root).as_posix(), content, path.is_file() and os.access(path, os.X_OK)))
    return found


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
@pytest.mark.parametrize("mode", [0o644, 0o755, 0o400])
def test_files_come_back_under_their_names(tmp_path: Path, size: int, mode: int) -> None:
    """Content, name, and whether it is executable; the copy is one to write into."""
    path = tmp_path / "data set.csv"
    path.write_bytes(os.urandom(size))
    path.chmod(mode)
    again = _read(path, tmp_path)
    assert again.name == path.name
    assert again != path
    assert again.read_bytes() == path.read_bytes()
    assert os.access(again, os.X_OK) == (mode == 0o755)
    with again.open("ab") as file:
        file.write(b"more")
    assert path.stat().st_size == size


def test_folders_come_back_with_all_that_is_in_them(folder: Path, tmp_path: Path) -> None:
    """Empty folders and executable files too; a link inside is the file that it leads to."""
    again = _read(folder, tmp_path)
    assert again.name == "set"
    assert _listed(again) == _listed(folder)
    assert not (again / "linked").is_symlink()
    (again / "new").write_bytes(b"")


def test_whoever_reads_twice_gets_two_copies(tmp_path: Path) -> None:
    """Neither sees what is done to the other."""
    path = tmp_path / "f"
    path.write_bytes(b"1")
    serializer, data, meta = written(path)
    with closing(StoredBytes(data, meta)) as stored:
        one, other = serializer.read(stored), serializer.read(stored)
        one.write_bytes(b"2")
        assert other.read_bytes() == b"1"
        assert other.name == "f"


def test_a_relative_path_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one without a name of its own."""
    monkeypatch.chdir(tmp_path)
    Path("f").write_bytes(b"1")
    assert written(Path("f"))[2] == {"name": "f"}
    assert written(Path())[2] == {"name": tmp_path.name}


def test_equal_files_and_folders_have_equal_bytes(folder: Path, tmp_path: Path) -> None:
    """Times and the order in which things were made make no difference."""
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "set"
    other.mkdir()
    for name in [
        "nothing",
        "linked",
        "empty",
        "deep",
        "deep/er",
        "deep/er/run.sh",
        "a.txt",
        "a",
        "a/file ä \U0001f600",
    ]:
        source = folder / name
        if source.is_dir():
            (other / name).mkdir()
        else:
            (other / name).write_bytes(source.read_bytes())
            (other / name).chmod(source.stat().st_mode)
            os.utime(other / name, (1, 1))
    assert fingerprint(other) == fingerprint(folder)
    assert fingerprint(other / "a.txt") == fingerprint(folder / "a.txt")
    (other / "empty").rmdir()
    assert fingerprint(other) != fingerprint(folder)


def _refused(value: Any) -> str:
    serializer = serializer_of(value)
    assert serializer is not None
    with pytest.raises(Refused) as caught:
        serializer.write(value, io.BytesIO())
    return f"{caught.value.problem} ({caught.value.hint})"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """It says which of the things that a path can lead to it is."""
    assert "where nothing is" in _refused(tmp_path / "missing")
    (tmp_path / "dangling").symlink_to("missing")
    assert "leads nowhere" in _refused(tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in _refused(tmp_path / "pipe")
    assert "device" in _refused(Path("/dev/null"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert "socket" in _refused(tmp_path / "socket")
    assert "pathlib.Path" in _refused(PurePosixPath("a/b"))
    assert "cannot be shown" in _refused(_touched(tmp_path / "a\nb"))
    assert "separator" in _refused(_touched(tmp_path / "a\\b"))
    assert _refused(tmp_path / ("x" * 5000))
    assert _refused(Path("a\0b"))
    assert serializer_of("a text") is None


def _touched(path: Path) -> Path:
    path.touch()
    return path


class _OwnPath(type(Path())):  # type: ignore[misc]
    """A path of somebody's own."""


def test_other_classes_of_paths_are_refused(tmp_path: Path) -> None:
    """They would come back as something else."""
    assert "_OwnPath" in _refused(_OwnPath(tmp_path))


def test_what_is_in_a_folder_is_looked_at(folder: Path, tmp_path: Path) -> None:
    """Links out of it, links to folders, pipes and odd names are refused with their place."""
    bad = folder / "deep" / "bad"
    bad.symlink_to("/etc/passwd")
    assert "'deep/bad' is a link out of it" in _refused(folder)
    bad.unlink()
    (tmp_path / "set2").mkdir()
    bad.symlink_to("../../set2")
    assert "out of it" in _refused(folder)
    bad.unlink()
    bad.symlink_to("er")
    assert "does not lead to a file" in _refused(folder)
    bad.unlink()
    bad.symlink_to("bad")
    assert _refused(folder)
    bad.unlink()
    os.mkfifo(bad)
    assert "a pipe" in _refused(folder)
    bad.unlink()
    for name in ("a\\b", "a\nb", "\udcff"):
        (folder / name).touch()
        assert _refused(folder)
        (folder / name).unlink()


def test_a_folder_with_too_many_files_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how many may be in one."""
    monkeypatch.setattr(folders, "ENTRIES_MAX", 5)
    assert "more than 5 entries" in _refused(folder)


def test_what_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so."""
    path = _touched(tmp_path / "f")

    def denied(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "permissions" in _refused(path)


@pytest.mark.parametrize(
    "meta",
    [{}, *({"name": name} for name in ("", ".", "..", "a/b", "/etc/passwd", "../a", "a\0b", "a\\b", "x" * 256, 3))],
)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_names_that_lead_elsewhere_are_unreadable(meta: dict[str, Any], kind: str) -> None:
    """Nothing is made anywhere but in the folder."""
    with pytest.raises(ArtifactUnreadable):
        read(kind, folders.head([]), meta)


def _stream(entries: list[Any], content: bytes = b"") -> bytes:
    listed = msgpack.packb(entries)
    return b"EVFOLDER\x01" + len(listed).to_bytes(8, "big") + bytes(listed) + content


@pytest.mark.parametrize(
    "data",
    [
        _stream([["../evil", 1, False]], b"x"),
        _stream([["/tmp/evil", 1, False]], b"x"),
        _stream([["a", FOLDER, False], ["a/../../evil", 1, False]], b"x"),
        _stream([["a", FOLDER, False], ["a/./evil", 1, False]], b"x"),
        _stream([["a//b", 1, False]], b"x"),
        _stream([["a/", 1, False]], b"x"),
        _stream([["", 1, False]], b"x"),
        _stream([["..\\evil", 1, False]], b"x"),
        _stream([["a\0", 1, False]], b"x"),
        _stream([["a\x1b[31m", 1, False]], b"x"),
        _stream([["x" * 256, 1, False]], b"x"),
        _stream([["a", FOLDER, False], ["a/" + "/".join(["x"] * 2000), 1, False]], b"x"),
        _stream([["a", 1, False], ["a", 1, False]], b"xx"),
        _stream([["b", 1, False], ["a", 1, False]], b"xx"),
        _stream([["a", 1, False], ["a/b", 1, False]], b"xx"),
        _stream([["a", FOLDER, False], ["a", 1, False]], b"x"),
        _stream([["a/b", 1, False]], b"x"),
        _stream([["a", 2, False]], b"x"),
        _stream([["a", 1, False]], b"xx"),
        _stream([["a", -2, False]]),
        _stream([["a", FOLDER, True]]),
        _stream([["a", 1]], b"x"),
        _stream([["a", 1.0, False]], b"x"),
        _stream([["a", True, False]], b"x"),
        _stream([["a", 2**63, False]], b"x"),
        _stream([{}]),
        _stream([["a", msgpack.ExtType(1, b""), False]]),
        b"EVFOLDER\x01" + b"\xff" * 8,
        b"EVFOLDER\x02" + b"\0" * 7 + b"\x01\x90",
        b"EVFOLDER\x01" + b"\0" * 7 + b"\x05\xdd\xff\xff\xff\xff",
        b"EVFOLDER\x01" + b"\0" * 7 + b"\x01\xc0",
        b"PK\x03\x04",
        b"",
    ],
)
def test_bad_streams_are_unreadable(data: bytes, tmp_path: Path) -> None:
    """What leads elsewhere, is there twice or says more than there is; nothing is written outside."""
    own = tmp_path / "own"
    (tmp_path / "stored").write_bytes(data)
    stored = StoredFile(tmp_path / "stored", {"name": "set"}, own)
    with pytest.raises(ArtifactUnreadable):
        SERIALIZERS["folder"].read(stored)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["stored"], ["own", "stored"])
    assert not Path("/tmp/evil").exists()


def test_too_many_entries_are_unreadable() -> None:
    """The list is not even taken apart."""
    with pytest.raises(ArtifactUnreadable):
        read("folder", _stream([[f"{i:06}", 0, False] for i in range(folders.ENTRIES_MAX + 1)]), {"name": "a"})


def test_the_stream_is_as_described() -> None:
    """Its bytes are pinned: other versions have to read them."""
    entries = [Entry("a", FOLDER, False), Entry("a/b", 3, True)]
    expected = b"EVFOLDER\x01\0\0\0\0\0\0\0\x0d\x92\x93\xa1a\xff\xc2\x93\xa3a/b\x03\xc3"
    assert folders.head(entries) == expected
    assert folders.read_head(io.BytesIO(expected + b"xyz"), len(expected) + 3) == entries


def test_corrupted_bytes_are_unreadable_or_a_value(folder: Path) -> None:
    """No other exception comes out, whatever is broken."""
    (folder / "a" / "file ä \U0001f600").write_bytes(b"short")
    assert check_corrupted(folder, tries=200) > 100


_LARGE = """
import resource, sys
from pathlib import Path
from evpipe.wire.serializers.paths import SERIALIZERS
from tests.serializers.helpers import StoredFile
here, kind = Path(sys.argv[1]), sys.argv[2]
source = here / "source" if kind == "folder" else here / "source" / "large"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with (here / "stored").open("wb") as file:
    meta = SERIALIZERS[kind].write(source, file)
again = SERIALIZERS[kind].read(StoredFile(here / "stored", meta, here / "own"))
large = again / "large" if kind == "folder" else again
assert large.stat().st_size == 200 * 1024 * 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_large_file_takes_little_memory(tmp_path: Path, kind: str) -> None:
    """It is copied in chunks, both ways."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "large").touch()
    os.truncate(tmp_path / "source" / "large", 200 * 1024 * 1024)
    child = subprocess.run(
        [sys.executable, "-c", _LARGE, str(tmp_path), kind],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) < 30 * 1024, "KiB of growth"
