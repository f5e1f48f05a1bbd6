"""Code that has travelled: fetched by digest, put where nobody can change it, run from there; or a sentence why not."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import nats
import pytest
from nats.js.object_store import ObjectStore

from evpipe import Client, Controller, Worker, connect
from evpipe.bus.embedded import EmbeddedServer
from evpipe.bus.memory import MemoryBus, MemoryServer
from evpipe.bus.protocol import Bus
from evpipe.bus.server import ServerProcess
from evpipe.client.bundle import KIND
from evpipe.client.source import Source
from evpipe.core.events import StepFailed
from evpipe.wire.bundles import pack_bundle
from evpipe.wire.messages import LaunchOrder, decode_event, encode_launch
from evpipe.worker import bundles
from evpipe.worker.bundles import KEPT_S, BundleStore
from evpipe.worker.code import CodeNotFound
from tests.e2e.helpers import until_async
from tests.support.logs import captured_logs
from tests.wire.test_bundles import HOSTILE, of_files
from tests.worker.helpers import in_loop

FILES = {"job.py": b"x = 1\n", "pkg/__init__.py": b"", "pkg/sub/mod.py": b"y = 2\r\n"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if sys.platform == "darwin":
        monkeypatch.setenv("HOME", str(tmp_path / "cache"))
        return tmp_path / "cache" / "Library" / "Caches" / "evpipe" / "bundles"
    return tmp_path / "cache" / "evpipe" / "bundles"


async def stored(bus: Bus, data: bytes) -> dict[str, Any]:
    """Put a bundle, or whatever it is, into the object store; gives how a launch names it."""
    digest = hashlib.sha256(data).hexdigest()
    await bus.objects.put(digest, data)
    return {"kind": KIND, "digest": digest}


def in_folder(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def names(folder: Path) -> set[str]:
    """What is in a folder, if it is there."""
    return {path.name for path in folder.glob("*")}


# ---- on the disk


def test_written(cache: Path) -> None:
    """The files are there to the byte; nobody may write to them, or beside them, and only their user may read them."""

    async def body() -> None:
        async with MemoryBus() as bus:
            digest, data = pack_bundle(FILES)
            await bus.objects.put(digest, data)
            found = {"kind": KIND, "digest": digest, "files": {"__main__": "job.py"}, "main": "x"}
            source = await BundleStore(bus).source_of(found)
            folder = cache / digest
            assert source == Source((str(folder),), {"__main__": str(folder / "job.py")}, "x")
            assert in_folder(folder) == FILES
            modes = {stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")] if path.is_dir()}
            assert modes == {0o500}
            assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o400}
            assert names(cache) == {digest}
            # The second time nothing is fetched: another worker finds it there.
            del bus.server.objects[digest]
            assert await BundleStore(bus).source_of(found) == source

    in_loop(body)


def test_nothing_to_fetch(cache: Path) -> None:
    """A run of installed code names no bundle."""

    async def body() -> None:
        async with MemoryBus() as bus:
            assert await BundleStore(bus).source_of({}) == Source()
        assert names(cache) == set()

    in_loop(body)


DIGEST = "a" * 64


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"kind": "path", "paths": ["/x"]}, "the launch names its code as 'path': this worker knows 'bundle'"),
        ({"kind": KIND}, "the launch names its code as 'bundle': this worker knows 'bundle' with digest"),
        ({"digest": DIGEST}, "the launch names its code as 'None'"),
        ({"kind": KIND, "digest": 5}, "the launch names its code as 'bundle'"),
        ({"kind": KIND, "digest": "../" * 21 + "x"}, "the launch names its code as 'bundle'"),
        ({"kind": KIND, "digest": DIGEST.upper()}, "the launch names its code as 'bundle'"),
        ({"kind": [KIND] * 100, "digest": DIGEST}, "the launch names its code as \"['bundle',"),
        ({"kind": KIND, "digest": DIGEST, "files": []}, "the launch does not say which module is which file"),
        ({"kind": KIND, "digest": DIGEST, "main": 1}, "the launch does not say which module is which file"),
        ({"kind": KIND, "digest": DIGEST}, f"the bundle {DIGEST} of the run's code is not in the object store, or is"),
    ],
)
def test_garbage(cache: Path, found: dict[str, Any], sentence: str) -> None:
    async def body() -> None:
        async with MemoryBus() as bus:
            with pytest.raises(CodeNotFound) as caught:
                await BundleStore(bus).source_of(found)
        assert str(caught.value).startswith(sentence)
        assert not list(cache.parent.rglob("*.py"))

    in_loop(body)


@pytest.mark.parametrize(
    "inside",
    ["..", "../x.py", "a/../../x.py", "/etc/x.py", "//x.py", "a//b.py", "./a.py", "a/.", "", "a\0.py", 5, None],
)
def test_hostile_place_of_a_module(inside: object) -> None:
    """A launch names files of its bundle, and no others."""

    async def body() -> None:
        async with MemoryBus() as bus:
            found = await stored(bus, pack_bundle(FILES)[1])
            with pytest.raises(CodeNotFound, match="the launch says that the module 'm' is "):
                await BundleStore(bus).source_of({**found, "files": {"m": inside}})

    in_loop(body)


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_bundle(tmp_path: Path, cache: Path, path: str) -> None:
    """Nothing is written of a bundle that names one file that it must not."""

    async def body() -> None:
        async with MemoryBus() as bus:
            found = await stored(bus, of_files(["good.py", b""], [path, b"bad"]))
            with pytest.raises(CodeNotFound, match="the bundle has a file with the path "):
                await BundleStore(bus).source_of(found)
        assert (in_folder(tmp_path), names(cache)) == ({}, set())

    in_loop(body)


def test_at_once(cache: Path) -> None:
    """Several workers of one user that unpack the same bundle, each more than once: one folder, and nothing beside."""

    async def body() -> None:
        async with MemoryBus() as bus:
            files = {f"m{i}.py": b"x" * i for i in range(50)}
            found = await stored(bus, pack_bundle(files)[1])
            stores = [BundleStore(bus) for _ in range(6)]
            sources = []

            async def fetch(store: BundleStore) -> None:
                sources.append(await store.source_of(found))

            async with anyio.create_task_group() as task_group:
                for store in stores * 2:
                    task_group.start_soon(fetch, store)
            assert {source.key for source in sources} == {Source((str(cache / found["digest"]),)).key}
            assert len(sources) == 12
            assert in_folder(cache / found["digest"]) == files
            assert names(cache) == {found["digest"]}

    in_loop(body)


@pytest.mark.parametrize("why", ["a file", "another's"])
def test_folder_that_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str) -> None:
    """Where the cache cannot be written, or is not this user's, it is a temporary folder, and that is told."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if why == "a file":
        cache.parent.parent.mkdir(parents=True)
        cache.parent.touch()
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)

    async def body() -> None:
        async with MemoryBus() as bus:
            found = await stored(bus, pack_bundle(FILES)[1])
            store = BundleStore(bus)
            with captured_logs() as logs:
                (place,) = (await store.source_of(found)).paths
            assert Path(place).parent.parent == tmp_path
            assert in_folder(Path(place)) == FILES
            assert [(line["event"], line["log_level"]) for line in logs if line["log_level"] == "warning"] == [
                ("no_cache_folder", "warning")
            ]
            assert (await store.source_of(found)).paths == (place,)

    in_loop(body)


def test_disk_is_full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that cannot be written is not left behind half."""

    async def body() -> None:
        async with MemoryBus() as bus:
            found = await stored(bus, pack_bundle(FILES)[1])
            store = BundleStore(bus)
            with monkeypatch.context() as patch:
                patch.setattr(Path, "write_bytes", _full)
                with pytest.raises(OSError, match="No space left"):
                    await store.source_of(found)
            assert names(cache) == set()
            await store.source_of(found)
            assert in_folder(cache / found["digest"]) == FILES

    in_loop(body)


def _full(path: Path, content: bytes) -> int:
    if path.name == "mod.py":
        raise OSError(28, "No space left on device")
    with path.open("wb") as file:
        return file.write(content)


def test_old_ones(cache: Path) -> None:
    """What nobody needed for 30 days goes when a worker starts; what is in use stays, however old it is."""

    async def body() -> None:
        async with MemoryBus() as bus:
            used, unused, young = [await stored(bus, pack_bundle({f"{i}.py": b""})[1]) for i in range(3)]
            lives = BundleStore(bus)
            for found in (used, unused, young):
                await lives.source_of(found)
            now = time.time()
            (cache / ".half").mkdir()
            (cache / "link").symlink_to(cache / young["digest"])
            for name, age_s in ((used["digest"], KEPT_S + 9), (unused["digest"], KEPT_S + 9), (".half", KEPT_S + 9)):
                os.utime(cache / name, (now - age_s, now - age_s))
            os.utime(cache / young["digest"], (now - KEPT_S + 3600, now - KEPT_S + 3600))
            # A worker that has lived for so long, and runs it now.
            await lives.source_of(used)
            await BundleStore(bus).source_of(young)
            assert names(cache) == {used["digest"], young["digest"], "link"}

    in_loop(body)


def test_cleared_away(cache: Path) -> None:
    """Whoever clears the cache may do so while a worker lives: the bundle is fetched again."""

    async def body() -> None:
        async with MemoryBus() as bus:
            found = await stored(bus, pack_bundle(FILES)[1])
            store = BundleStore(bus)
            await store.source_of(found)
            bundles._make_writable(cache / found["digest"])
            shutil.rmtree(cache / found["digest"])
            await store.source_of(found)
            assert in_folder(cache / found["digest"]) == FILES

    in_loop(body)


# ---- on a bus


class Code:
    """A folder of a user's, with a module `job`-something that is imported here, as in a script that submits."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        folder.mkdir()

    def write(self, text: str, **beside: str) -> None:
        (self.folder / f"{self.name}.py").write_text(text)
        for name, other in beside.items():
            (self.folder / f"{name}.py").write_text(other)
        importlib.invalidate_caches()

    @property
    def target(self) -> Any:
        return importlib.import_module(self.name).job


JOB = """
import os, time
from pathlib import Path
from evpipe import pipeline, step
import words_beside

def where():
    return [words_beside.WORD, os.path.dirname(__file__), os.getpid()]

@step
def in_process(gate: str) -> list:
    if gate:
        Path(gate).with_name(f"{words_beside.WORD} is here").touch()
    while gate and words_beside.WORD == "one" and not Path(gate).exists():
        time.sleep(0.005)
    return where()

@step(executor="thread")
def in_thread() -> list:
    return where()

@step
async def inline() -> list:
    return where()

@pipeline
def job(gate: str = "") -> list:
    return [in_process(gate), in_thread(), inline()]
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Code]:
    code = Code(tmp_path / "code", "job_that_travels")
    monkeypatch.syspath_prepend(code.folder)
    yield code
    for name in (code.name, "words_beside"):
        sys.modules.pop(name, None)


@asynccontextmanager
async def hosted(server: ServerProcess, *, local_code: bool = False, controller: bool = True) -> AsyncIterator[Client]:
    """A client, a controller and a worker on a real bus."""
    async with connect(server.url) as client, Worker(client, slots=4, local_code=local_code):
        if not controller:
            yield client
            return
        async with Controller(client):
            yield client


async def count(server: ServerProcess | EmbeddedServer) -> int:
    """Objects that are stored on a server."""
    raw = await nats.connect(server.url, token=server.token)
    try:
        return len(await (await _store(raw)).list())
    finally:
        await raw.close()


async def _store(raw: Any) -> ObjectStore:
    found: ObjectStore = await raw.jetstream().object_store("evpipe-objects")
    return found


def bundle_folder(cache: Path) -> str:
    (folder,) = cache.iterdir()
    return str(folder)


def test_folder_is_gone(server: ServerProcess, code: Code, cache: Path) -> None:
    """All kinds of steps run from the bundle, though the submitter's folder was deleted."""

    async def body() -> None:
        async with hosted(server) as client:
            code.write(JOB, words_beside="WORD = 'one'")
            target = code.target
            handle = await client.submit(target)
            shutil.rmtree(code.folder)
            result = await handle.result()
            assert result.status == "succeeded", result.error
            assert [value[:2] for value in result.value] == [["one", bundle_folder(cache)]] * 3
            assert os.getpid() not in {value[2] for value in result.value}

    in_loop(body)


def test_edited(server: ServerProcess, code: Code, tmp_path: Path) -> None:
    """Each run has the code of its own submit, on a worker that is warm from another's, also while that still runs."""
    gate = tmp_path / "gate"

    async def body() -> None:
        async with hosted(server) as client:
            code.write(JOB, words_beside="WORD = 'one'")
            target = code.target
            first = await client.submit(target, {"gate": str(gate)})
            await until_async(_there(tmp_path / "one is here"), "the first runs")
            code.write(JOB, words_beside="WORD = 'two'")
            second = await (await client.submit(target, {"gate": str(gate)})).result()
            assert not gate.exists()
            assert [value[0] for value in second.value] == ["two"] * 3
            gate.touch()
            assert [value[0] for value in (await first.result()).value] == ["one"] * 3
            # Back to what it was: the same bundle, and its children are still warm.
            code.write(JOB, words_beside="WORD = 'one'")
            third = (await (await client.submit(target, {"gate": str(gate)})).result()).value
            assert third == (await first.result()).value
        assert await count(server) == 3, "two bundles and a graph"

    in_loop(body)


def _there(path: Path) -> Any:
    async def there() -> bool:
        return await anyio.Path(path).exists()

    return there


def test_stored_once(server: ServerProcess, code: Code) -> None:
    """The second submit of the same code stores nothing, whichever client it is of."""

    async def body() -> None:
        code.write(JOB, words_beside="WORD = 'x'")
        for _ in range(2):
            async with connect(server.url) as client:
                await client.submit(code.target)
                await client.submit(code.target)
        assert await count(server) == 2, "a bundle and a graph"

    in_loop(body)


def test_same_key(server: ServerProcess, code: Code) -> None:
    """Code is no part of what a run is: a submit with the key of a run is that run, with the code that it has."""

    async def body() -> None:
        async with hosted(server) as client:
            code.write(JOB, words_beside="WORD = 'first'")
            target = code.target
            first = await client.submit(target, key="monday")
            value = (await first.result()).value
            code.write(JOB, words_beside="WORD = 'second'")
            again = await client.submit(target, key="monday")
            assert again.id == first.id
            assert (await again.result()).value == value
            assert value[0][0] == "first"
            assert (await (await client.submit(target, key="tuesday")).result()).value[0][0] == "second"

    in_loop(body)


@pytest.mark.parametrize("how", ["deleted", "flipped", "stream deleted"])
def test_not_in_the_store(server: ServerProcess, code: Code, cache: Path, how: str) -> None:
    """A bundle that is missing or damaged fails the attempt in a sentence, and nothing runs; what was deleted
    is stored by the next submit.
    """

    async def body() -> None:
        async with connect(server.url) as client:
            code.write(JOB, words_beside="WORD = 'x'")
            handle = await client.submit(code.target)
            submitted = await client.bus.last(client.bus.subjects.events_of_step(handle.id, "_", "submitted"))
            assert submitted is not None
            digest = _digest_in(submitted.payload)
            await _harm(server, digest, how)
            async with Controller(client), Worker(client, slots=4, local_code=False):
                result = await handle.result()
                assert result.status == "failed"
                if how != "stream deleted":
                    # There the graph is gone, too.
                    errors = {step.error for step in result.steps.values() if step.error}
                    assert errors == {
                        f"the bundle {digest} of the run's code is not in the object store, or is damaged"
                    }
                assert names(cache) == set()
                if how != "flipped":
                    again = await client.submit(code.target)
                    assert (await again.result()).status == "succeeded"

    in_loop(body)


def _digest_in(submit: bytes) -> str:
    import msgpack

    source = msgpack.unpackb(submit)["source"]
    assert source["kind"] == KIND
    return str(source["digest"])


async def _harm(server: ServerProcess, digest: str, how: str) -> None:
    raw = await nats.connect(server.url)
    try:
        if how == "stream deleted":
            await raw.jetstream().delete_stream("OBJ_evpipe-objects")
            return
        store = await _store(raw)
        if how == "deleted":
            await store.delete(digest)
            return
        found = await store.get(digest)
        data = bytearray(found.data or b"")
        data[len(data) // 2] ^= 1
        subject = f"$O.evpipe-objects.C.{found.info.nuid}"
        await raw.jetstream().purge_stream("OBJ_evpipe-objects", subject=subject)
        await raw.jetstream().publish(subject, bytes(data))
    finally:
        await raw.close()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            {"kind": "zip", "url": "http://x"},
            "the launch names its code as 'zip': this worker knows 'bundle' with digest",
        ),
        ({"kind": KIND, "digest": DIGEST, "files": {"a": "../../x"}}, "the bundle"),
        ("text", "the launch: field 'source' is of type str, it must be a map"),
    ],
)
def test_launch_with_garbage(server: ServerProcess, cache: Path, source: Any, sentence: str) -> None:
    """Somebody publishes a launch whose source is none: the attempt has failed, and says why."""

    async def body() -> None:
        async with hosted(server, controller=False) as client:
            bus = client.bus
            run = "garbage234567"
            order = LaunchOrder(
                pipeline="p",
                code={"kind": "path", "module": "m", "name": "f"},
                executor="process",
                arguments={},
                source=source,
            )
            # What is unreadable says no pipeline: its run's submit does.
            await bus.append_wait(bus.subjects.event("p", run, None, "submitted"), b"anything")
            bus.launch(bus.subjects.launch("default", run, "s", 1), encode_launch(order, "s"))
            subject = bus.subjects.events_of_step(run, "s", "failed")

            async def failed() -> bool:
                return await bus.last(subject) is not None

            await until_async(failed, "the attempt has failed")
            record = await bus.last(subject)
            assert record is not None
            event = decode_event(bus.subjects.parse_event(record.subject), record.payload, 0.0)
            assert isinstance(event, StepFailed)
            assert event.failure.message.startswith(sentence)
            assert names(cache) == set()

    in_loop(body)


def test_local_code(server: ServerProcess, code: Code, cache: Path) -> None:
    """A worker that has the code itself fetches none: it runs what it has."""

    async def body() -> None:
        async with hosted(server, local_code=True) as client:
            code.write(JOB, words_beside="WORD = 'x'")
            target = code.target
            found = (await (await client.submit(target)).result()).value
            assert [value[1] for value in found] == [str(code.folder)] * 3
            assert found[1][2] == found[2][2] == os.getpid()
        assert names(cache) == set()

    in_loop(body)


def test_memory_bus(code: Code) -> None:
    """What all is in one process does not travel."""

    async def body() -> None:
        code.write(JOB, words_beside="WORD = 'x'")
        memory = MemoryServer()
        async with MemoryBus(memory) as bus:
            client = Client(bus=bus)
            async with Controller(client), Worker(client):
                assert (await (await client.submit(code.target)).result()).status == "succeeded"
        assert len(memory.objects) == 1, "the graph"

    in_loop(body)


def test_embedded_bus(code: Code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Nor does what a script runs itself."""
    code.write(JOB, words_beside="WORD = 'x'")
    monkeypatch.setenv("EVPIPE_DATA_DIR", str(tmp_path / "data"))
    with EmbeddedServer.start(tmp_path / "data") as server:
        assert code.target.run().value[0][:2] == ["x", str(code.folder)]
        assert anyio.run(count, server) == 1, "the graph"
    assert names(cache) == set()


WRITES = """
import os
from evpipe import pipeline, step

def tried(path, do):
    try:
        do(path)
    except OSError as error:
        return type(error).__name__
    return "done"

@step
def writes() -> list:
    here = os.path.dirname(__file__)
    return [
        tried(here, lambda path: open(os.path.join(path, "new.py"), "w")),
        tried(__file__, lambda path: open(path, "a")),
        tried(__file__, os.unlink),
        tried(os.path.join(here, "pkg_inside"), lambda path: open(os.path.join(path, "new.py"), "w")),
    ]

@pipeline
def job() -> list:
    import pkg_inside
    return writes()
"""


def test_read_only(server: ServerProcess, code: Code, tmp_path: Path) -> None:
    """A step that writes into its own bundle does not change what others run."""
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")

    async def body() -> None:
        (code.folder / "pkg_inside").mkdir()
        (code.folder / "pkg_inside" / "__init__.py").touch()
        code.write(WRITES)
        async with hosted(server) as client:
            result = await (await client.submit(code.target)).result()
            assert result.value == ["PermissionError"] * 4

    in_loop(body)
