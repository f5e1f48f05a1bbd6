"""Results on a disk: found again as they were written or not at all, whatever becomes of the files, and bounded."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from evpipe.bus.locks import FileLock
from evpipe.bus.results import KEPT_AFTER_CUT, Kept, ResultStore, Use, kept_results
from evpipe.core.artifact import Artifact
from evpipe.wire.artifacts import VALUE
from evpipe.wire.cache import (
    HIT_TTL_S,
    CacheEntry,
    Hit,
    Marker,
    encode_entry,
    encode_hit,
    encode_marker,
    hit_key,
    made_key,
)
from evpipe.wire.messages import encode_succeeded
from evpipe.wire.values import pack

Objects = Mapping[str, bytes | Path]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def of(data: bytes, *, nested: bool = False) -> Artifact:
    return Artifact(kind=VALUE, digest=digest_of(data), size_bytes=len(data), nested=nested)


def entry_of(name: str, value: object = None, step: str = "fit") -> CacheEntry:
    event = encode_succeeded(1, 5.0, pack(value, "the value"))
    fingerprint = digest_of(name.encode())
    return CacheEntry(
        fingerprint=fingerprint,
        pipeline="p",
        run="r" * 20,
        step=step,
        attempt=1,
        event=event,
        components={"code": name},
    )


def put(store: ResultStore, entry: CacheEntry, objects: Objects | None = None) -> bool:
    def find(digest: str) -> bytes | Path | None:
        return (objects or {}).get(digest)

    return store.put(entry.fingerprint, encode_entry(entry), find)


def nowhere(_: str) -> None:
    return None


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"lock"}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> ResultStore:
    return ResultStore(tmp_path / "results", said.append)


def test_another_process_finds_what_was_put(store: ResultStore, tmp_path: Path, said: list[str]) -> None:
    small, inner = b"small", b"inner" * 10_000
    outer = pack({"inner": of(inner), "here": of(small)}, "it")
    file = tmp_path / "inner"
    file.write_bytes(inner)
    objects: Objects = {digest_of(inner): file, digest_of(outer): outer, digest_of(small): small}
    entry = entry_of("a", {"whole": of(outer, nested=True)})
    began_s = time.time()
    assert put(store, entry, objects)
    other = ResultStore(store.folder, said.append)
    use = Use(other)
    found = other.get(entry.fingerprint, use)
    assert found is not None
    assert (found.value, set(found.objects)) == (encode_entry(entry), set(objects))
    assert began_s <= found.at_s <= time.time()
    for digest in objects:
        taken = use.file(digest)
        assert taken is not None
        assert digest_of(taken.read_bytes()) == digest
    assert other.get(digest_of(b"b"), use) is None
    assert not said


def test_nobody_else_can_read_it(store: ResultStore) -> None:
    data = b"x" * 100_000
    assert put(store, entry_of("a", of(data)), {digest_of(data): data})
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    for file in store.folder.rglob("*"):
        if file.is_file():
            assert not stat.S_IMODE(file.stat().st_mode) & 0o077, file


@pytest.mark.parametrize("folder", ["entries", "objects"])
@pytest.mark.parametrize("damage", ["removed", "cut", "bit", "empty", "other", "pipe", "endless"])
def test_what_is_damaged_is_a_miss_and_can_be_put_again(store: ResultStore, folder: str, damage: str) -> None:
    data = b"x" * 100_000
    entry = entry_of("a", of(data))
    objects = {digest_of(data): data}
    assert put(store, entry, objects)
    (file,) = (file for file in (store.folder / folder).rglob("*") if file.is_file())
    content = file.read_bytes()
    changed = {
        "cut": content[:-1],
        "bit": bytes([content[0] ^ 1]) + content[1:],
        "empty": b"",
        "other": b"y" * len(content),
    }
    file.unlink()
    if damage == "pipe":
        os.mkfifo(file)
    elif damage == "endless":
        file.symlink_to("/dev/zero")
    elif damage != "removed":
        file.write_bytes(changed[damage])
    assert store.get(entry.fingerprint, Use(store)) is None
    assert put(store, entry, objects)
    assert store.get(entry.fingerprint, Use(store)) is not None


def test_an_entry_in_the_place_of_another_is_a_miss(store: ResultStore) -> None:
    one, other = entry_of("a"), entry_of("b")
    put(store, one)
    put(store, other)
    place = store.folder / "entries"
    shutil.copyfile(place / one.fingerprint[:2] / one.fingerprint, place / other.fingerprint[:2] / "copy")
    (place / other.fingerprint[:2] / "copy").replace(place / other.fingerprint[:2] / other.fingerprint)
    assert store.get(other.fingerprint, Use(store)) is None


def test_an_entry_whose_objects_are_not_to_be_had_is_not_put(store: ResultStore, said: list[str]) -> None:
    missing = b"m" * 100
    outer = pack([of(missing)], "it")
    cases: list[tuple[Artifact, Objects]] = [
        (of(missing), {}),
        (of(outer, nested=True), {digest_of(outer): outer}),
        (of(missing), {digest_of(missing): b"other"}),
    ]
    for value, objects in cases:
        entry = entry_of("a", value)
        assert not put(store, entry, objects)
    assert not store.put(digest_of(b"m"), encode_marker(Marker("p", "r", "s")), nowhere)
    assert not any(name.startswith("entries") for name in files(store.folder))
    assert len(said) == 1, "of the one whose bytes are others"


def test_keys_are_no_paths(store: ResultStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    for key in ("../../secret", "made.p.s./../../../secret", "made....", "", "a/b", "hit.a.b.c/../d"):
        assert store.get(key, Use(store)) is None
        store.delete(key)
        assert store.entries(key) == [] or not key
    assert (tmp_path / "secret").exists()


def test_what_is_listed_is_what_can_be_had(store: ResultStore) -> None:
    entries = [entry_of("a"), entry_of("b", step="other"), entry_of("c")]
    for entry in entries:
        put(store, entry)
    hit = Hit(entries[0].fingerprint, "q", "s" * 20, "use=1")
    store.put(hit_key(hit), encode_hit(hit), nowhere)
    store.put(hit_key(hit), encode_hit(hit), nowhere)

    def keys(under: str) -> list[str]:
        return [kept.key for kept in store.entries(under)]

    made = [made_key("p", entry.step, entry.fingerprint) for entry in entries]
    assert keys("made") == keys("made.p") == made
    assert keys("made.p.fit") == [made[0], made[2]]
    assert keys("made.q") == keys("made.p.no") == keys(f"{made[0]}.more") == []
    assert keys("hit") == keys(f"hit.{hit.fingerprint}") == [hit_key(hit)] * 2
    assert [Kept(*kept).value for kept in store.entries("hit")] == [encode_hit(hit)] * 2
    assert set(keys("")) == {*(entry.fingerprint for entry in entries), *made, hit_key(hit)}
    store.delete(entries[0].fingerprint)
    assert keys("made") == made[1:]
    store.delete(hit_key(hit))
    assert keys("hit") == []


def test_hits_are_forgotten_and_bounded(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hit = Hit(digest_of(b"a"), "p", "r" * 20, "fit")
    store.put(hit_key(hit), encode_hit(hit), nowhere)
    file = store.folder / "hits" / hit.fingerprint
    file.write_text(f"{time.time() - HIT_TTL_S - 1:.3f} p run fit\ngarbage\n\xff x y z\n" + file.read_text())
    assert len(store.entries("hit")) == 1
    monkeypatch.setattr("evpipe.bus.results.HITS_BYTES_MAX", 1_000)
    for _ in range(60):
        store.put(hit_key(hit), encode_hit(hit), nowhere)
    assert file.stat().st_size < 2_000
    assert 10 < len(store.entries("hit")) < 40


def test_what_was_not_used_for_the_longest_time_makes_room(tmp_path: Path, said: list[str]) -> None:
    size = 100_000
    most = 10 * (size + 10_000)
    store = ResultStore(tmp_path / "results", said.append, bytes_max=most)
    shared = b"s" * size
    entries: list[CacheEntry] = []
    for number in range(6):
        data = bytes([number]) * size
        entry = entry_of(str(number), [of(data), of(shared)] if number < 2 else of(data))
        assert put(store, entry, {digest_of(data): data, digest_of(shared): shared})
        # As if long ago, one after the other.
        os.utime(store.folder / "entries" / entry.fingerprint[:2] / entry.fingerprint, (number + 1, number + 1))
        entries.append(entry)
    held = Use(store)
    assert store.get(entries[0].fingerprint, held) is not None
    unused = Use(store)
    more = [entry_of(f"more {number}", of(bytes([100 + number]) * size)) for number in range(4)]
    for number, entry in enumerate(more):
        data = bytes([100 + number]) * size
        assert put(store, entry, {digest_of(data): data})
    on_disk = sum(file.stat().st_size for file in (store.folder / "objects").rglob("*") if file.is_file())
    assert on_disk <= most
    there = [store.get(entry.fingerprint, unused) is not None for entry in entries]
    assert there[0], "it was used last"
    assert not there[1]
    assert not there[2]
    assert there[5]
    assert all(store.get(entry.fingerprint, unused) for entry in more)
    # Nothing is left of what went.
    assert len(store.entries("made")) == sum(there) + len(more)
    # What a process has taken it has, also when it goes.
    for entry in [*entries, *more]:
        store.delete(entry.fingerprint)
    store.sweep()
    assert not any(name.startswith(("objects", "entries", "made", "hits")) for name in files(store.folder))
    taken = held.file(digest_of(shared))
    assert taken is not None
    assert taken.read_bytes() == shared
    assert not said


def test_what_has_no_room_is_not_put(tmp_path: Path, said: list[str]) -> None:
    store = ResultStore(tmp_path / "results", said.append, bytes_max=100_000)
    kept, large = entry_of("a"), b"l" * int(100_000 * KEPT_AFTER_CUT)
    assert put(store, kept)
    entry = entry_of("b", of(large))
    assert not put(store, entry, {digest_of(large): large})
    assert store.get(kept.fingerprint, Use(store)) is not None
    assert not said


def test_what_was_left_by_who_was_killed_goes(store: ResultStore) -> None:
    data = b"x" * 100_000
    entry = entry_of("a", of(data))
    put(store, entry, {digest_of(data): data})
    lived = Use(store)
    assert store.get(entry.fingerprint, lived) is not None
    code = (
        "import os, sys; from pathlib import Path; from evpipe.bus.results import *\n"
        "store = ResultStore(Path(sys.argv[1]), print); use = Use(store)\n"
        "assert store.get(sys.argv[2], use) is not None\n"
        "os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.folder), entry.fingerprint], check=False)
    draft = store.folder / "objects" / "aa" / ".0123.part"
    draft.parent.mkdir(exist_ok=True)
    draft.write_bytes(b"half")
    assert len(list((store.folder / "uses").glob("*.lock"))) == 2
    store.sweep()
    assert not draft.exists()
    assert len(list((store.folder / "uses").glob("*.lock"))) == 1
    assert lived.file(digest_of(data)) is not None
    assert store.get(entry.fingerprint, Use(store)) is not None
    del lived
    assert not [name for name in files(store.folder) if name.startswith("uses")]


def test_it_is_said_once_when_nothing_can_be_written(store: ResultStore, said: list[str]) -> None:
    # A file where a folder is to be: who runs the tests may be allowed everything.
    (store.folder / "entries").write_bytes(b"")
    (store.folder / "hits").write_bytes(b"")
    entry = entry_of("a")
    for _ in range(2):
        assert not put(store, entry)
        hit = Hit(entry.fingerprint, "p", "run", "fit")
        assert not store.put(hit_key(hit), encode_hit(hit), nowhere)
        assert store.get(entry.fingerprint, Use(store)) is None
        assert store.entries() == []
        store.sweep()
    assert len(said) == 1
    assert said[0].startswith("results of cached steps are not kept for other runs: ")


def test_a_folder_that_cannot_be_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path / "file" / "data"))
    assert kept_results(said.append) is None
    monkeypatch.setenv("EVPIPE_DATA_DIR", "~nobody-of-that-name/x")
    assert kept_results(said.append) is None
    assert len(said) == 2
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EVPIPE_NATS_CREDENTIALS", "/nowhere")
    found = kept_results(said.append)
    assert found is not None, "what concerns a bus does not concern it"
    assert found.folder == tmp_path / "data" / "results"


def test_who_cannot_have_the_lock_does_without(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evpipe.bus.results.LOCK_WAIT_S", 0.0)
    lock = FileLock.try_take(store.folder / "lock")
    assert lock is not None
    assert not put(store, entry_of("a"))
    lock.release()
    assert put(store, entry_of("a"))


def test_a_file_system_without_locks(store: ResultStore, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    """It is said once, and a run with many results does not run out of descriptors."""

    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def refuse(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse)
        before = descriptors()
        for name in "abcdefgh":
            assert not put(store, entry_of(name))
        assert descriptors() == before
    assert len(said) == 1
    assert put(store, entry_of("a"))


def test_many_at_once_find_whole_results_or_none(tmp_path: Path, said: list[str]) -> None:
    """Several write, take and make room at the same time: whatever is found is whole."""
    folder = tmp_path / "results"
    wrong: list[str] = []

    def work(seed: int) -> None:
        # A store of its own is what another process has.
        store = ResultStore(folder, said.append, bytes_max=600_000)
        for turn in range(25):
            number = (turn * 7 + seed) % 10
            data = bytes([number]) * 60_000
            entry = entry_of(str(number), of(data))
            use = Use(store)
            if store.get(entry.fingerprint, use) is None:
                put(store, entry, {digest_of(data): data})
                continue
            taken = use.file(digest_of(data))
            if taken is None or taken.read_bytes() != data:
                wrong.append(f"{seed} {turn}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert said == []
    store = ResultStore(folder, said.append)
    store.sweep()
    assert all(store.get(kept.key, Use(store)) for kept in store.entries() if "." not in kept.key)
