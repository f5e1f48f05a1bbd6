"""Artifacts on this machine: fetched, checked, kept, cut, cleared away, and never taken for what they are not."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from evpipe import Client, Controller, Worker, pipeline, run, step
from evpipe.bus.memory import MemoryBus
from evpipe.bus.server import ServerProcess
from evpipe.bus.settings import BusSettings
from evpipe.client.artifact_store import ArtifactStore, is_intact
from evpipe.core.artifact import Artifact
from evpipe.wire.serializers.registry import ArtifactUnreadable


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evpipe" / "artifacts"


def artifact(data: bytes) -> Artifact:
    return Artifact(kind="file", digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data), meta={"name": "x"})


def on_memory(body: Callable[[MemoryBus, ArtifactStore], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with MemoryBus() as bus:
            await body(bus, ArtifactStore(bus.objects, **options))

    anyio.run(main)


async def put(bus: MemoryBus, *contents: bytes) -> list[Artifact]:
    found = [artifact(data) for data in contents]
    for data, named in zip(contents, found, strict=True):
        await bus.objects.put(named.digest, data)
    return found


def test_many_at_once_and_the_same_ones_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty attempts that need one artifact move it over the bus once."""

    async def body(bus: MemoryBus, store: ArtifactStore) -> None:
        artifacts = await put(bus, b"a" * 1_000, b"b" * 1_000)
        fetched: list[str] = []
        get_file = type(bus.objects).get_file

        async def counted(self: Any, digest: str, file: Path) -> bool:
            fetched.append(digest)
            return await get_file(self, digest, file)

        monkeypatch.setattr(type(bus.objects), "get_file", counted)
        async with anyio.create_task_group() as task_group:
            for i in range(20):
                task_group.start_soon(store.fetch, artifacts, tmp_path / str(i))
        assert sorted(fetched) == sorted(found.digest for found in artifacts)
        for i in range(20):
            assert (tmp_path / str(i) / artifacts[0].digest).read_bytes() == b"a" * 1_000

    on_memory(body)


def test_a_cache_that_is_smaller_than_what_is_needed(tmp_path: Path) -> None:
    """What was linked stays with the attempt; the cache is cut behind it."""

    async def body(bus: MemoryBus, store: ArtifactStore) -> None:
        artifacts = await put(bus, *(bytes([i]) * 100_000 for i in range(12)))
        # What is cut when is chance: in one of three times something was cut before it was linked, four times in a row.
        for i in range(20):
            await store.fetch(artifacts, tmp_path / str(i))
            assert len(list((tmp_path / str(i)).iterdir())) == 12

    on_memory(body, kept_bytes_max=250_000)


def test_a_cache_that_is_cleared_away_comes_again(tmp_path: Path, cache: Path) -> None:
    async def body(bus: MemoryBus, store: ArtifactStore) -> None:
        artifacts = await put(bus, b"a" * 1_000)
        await store.fetch(artifacts, tmp_path / "1")
        shutil.rmtree(cache)
        await store.fetch(artifacts, tmp_path / "2")
        shutil.rmtree(cache.parent)
        assert (await store.load([artifacts[0]]))[0].read_bytes() == b"a" * 1_000

    on_memory(body)


def test_a_file_of_the_cache_that_was_changed_is_fetched_anew(tmp_path: Path, cache: Path) -> None:
    async def body(bus: MemoryBus, store: ArtifactStore) -> None:
        artifacts = await put(bus, b"a" * 1_000)
        await store.fetch(artifacts, tmp_path / "1")
        file = cache / artifacts[0].digest[:2] / artifacts[0].digest
        file.chmod(0o600)
        file.write_bytes(b"b" * 1_000)
        os.utime(file, (1, 1))
        await store.fetch(artifacts, tmp_path / "2")
        assert (tmp_path / "2" / artifacts[0].digest).read_bytes() == b"a" * 1_000

    on_memory(body)


def test_what_a_step_left_under_a_digest_that_is_not_its_own(tmp_path: Path) -> None:
    """The store has the right bytes already, so nobody reads these; who needs the artifact gets the right ones."""

    async def body(bus: MemoryBus, store: ArtifactStore) -> None:
        good = (await put(bus, b"good" * 100))[0]
        out = tmp_path / "out"
        out.mkdir()
        (out / good.digest).write_bytes(b"evil" * 100)
        await store.store(bus.objects, {good.digest: out / good.digest})
        await store.fetch([good], tmp_path / "in")
        assert (tmp_path / "in" / good.digest).read_bytes() == b"good" * 100

    on_memory(body)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    async def body(_: MemoryBus, store: ArtifactStore) -> None:
        with pytest.raises(ArtifactUnreadable, match="is missing in the object store, or damaged"):
            await store.fetch([artifact(b"gone")], tmp_path / "1")

    on_memory(body)


def test_whether_all_of_a_value_is_there_is_asked_once_for_each_part() -> None:
    """A value that names the same thing again and again, at every level, is looked at in a moment."""
    from evpipe.wire.values import pack

    async def body(bus: MemoryBus, store: ArtifactStore) -> None:
        inner = (await put(bus, b"leaf" * 10))[0]
        for _ in range(20):
            data = pack([inner, inner], "a value")
            digest = hashlib.sha256(data).hexdigest()
            await bus.objects.put(digest, data)
            inner = Artifact(kind="value", digest=digest, size_bytes=len(data), nested=True)
        assert await is_intact(bus, inner, read_bytes_max=10_000_000)
        await bus.objects.remove(inner.digest)
        assert not await is_intact(bus, inner, read_bytes_max=10_000_000)

    on_memory(body)


# ---- runs


@step
def files(n: int) -> dict[str, Any]:
    """Give files where nobody looks for them: as a key, in a set, in a tuple."""
    paths = []
    for i in range(n):
        path = Path(f"file-{i}.txt").absolute()
        path.write_text(f"{i}" * 100_000)
        paths.append(path)
    return {"keys": {(path, "x"): i for i, path in enumerate(paths)}, "set": set(paths), "many": dict.fromkeys("ab", 1)}


@step
def read(keys: dict[Any, int], paths: set[Path]) -> list[str]:
    return sorted(path.read_text()[:1] for path in {path for path, _ in keys} | paths)


@step
def large() -> dict[str, Any]:
    folder = Path("made").absolute()
    folder.mkdir(exist_ok=True)
    (folder / "a.bin").write_bytes(b"a" * 100_000)
    return {**{f"k{i}": [i] * 40 for i in range(1_500)}, "folder": folder}


@step
def use(value: Any) -> str:
    return type(value).__name__


@step(cache=True)
def total(*numbers: int) -> int:
    return sum(numbers)


@pipeline
def odd_places(n: int = 2) -> list[str]:
    made = files(n)
    return read(made["keys"], made["set"])


@pipeline
def no_such_part() -> str:
    return use(large()["nope"])


@pipeline
def one_part() -> str:
    return use(large()["folder"])


@pipeline
def very_many(count: int = 20_000) -> int:
    return total(*range(count))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_artifacts_in_sets_and_keys(mode: Any, folder: Path) -> None:
    result = run(odd_places, mode=mode)
    assert result.error == ""
    # Each is there twice: every value that comes back is a file of its own.
    assert result.value == ["0", "0", "1", "1"]


@pytest.mark.parametrize("mode", ["local", "debug"])
def test_a_part_that_is_not_there_fails_the_step_once(mode: Any, folder: Path) -> None:
    result = run(no_such_part, mode=mode)
    step_result = result.steps["use"]
    assert (step_result.status, step_result.reason) == ("failed", "output")
    assert "has no 'nope': it has keys 'k0'" in step_result.error
    assert run(one_part, mode=mode).value in {"PosixPath", "WindowsPath"}


def test_a_cached_step_with_very_many_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of them in launches and in the cache stays small: nobody is cut off for sending too much."""
    with ServerProcess(tmp_path / "nats") as server:
        monkeypatch.setenv("EVPIPE_NATS_URL", server.url)

        async def main() -> list[str]:
            async with Client(BusSettings(url=server.url)) as client, Controller(client), Worker(client):
                found = []
                for _ in range(2):
                    handle = await client.submit(very_many)
                    result = await handle.result(timeout_s=30)
                    assert result.value == sum(range(20_000))
                    found.append(str(result.steps["total"].status))
                explained = await client.cache.explain(handle.id, "total")
                assert "cached" in explained.sentence
                return found

        assert anyio.run(main) == ["succeeded", "cached"]


def test_a_result_is_read_on_another_machine_after_its_client_has_gone(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is in this machine's cache: several artifacts are fetched, over a connection made for that."""

    async def main(server: ServerProcess) -> Any:
        async with Client(BusSettings(url=server.url)) as client, Controller(client), Worker(client):
            handle = await client.submit(odd_places, {"n": 3})
            return await handle.result(timeout_s=30)

    with ServerProcess(tmp_path / "nats") as server:
        result = anyio.run(main, server)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        value = result.steps["files"].value
        assert sorted(path.read_text()[0] for path in value["set"]) == ["0", "1", "2"]

        async def in_a_loop() -> Any:
            # As in a notebook, where a loop runs already.
            return result.steps["files"].value["keys"]

        assert len(anyio.run(in_a_loop)) == 3


def test_nothing_of_an_attempt_stays(tmp_path: Path, folder: Path) -> None:
    """Neither what it needed nor what it made: the folders of attempts go with them."""
    run(odd_places, mode="local")
    attempts = tmp_path / "cache" / "evpipe" / "attempts"
    assert list(attempts.iterdir()) == []
