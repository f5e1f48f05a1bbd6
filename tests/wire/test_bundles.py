"""A bundle holds source files and nothing else: what is made is read again, what is hostile is refused by name."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpipe.errors import LimitExceeded, RemoteProtocolError, UsageError
from evpipe.wire.bundles import PATH_CHARS_MAX, pack_bundle, unpack_bundle
from evpipe.wire.limits import BUNDLE_BYTES_MAX, BUNDLE_FILES_MAX, BUNDLE_UNPACKED_BYTES_MAX, VERSION
from tests.core.budget import examples

FILES = {
    "job.py": b"import pkg.mod\r\n",
    "pkg/__init__.py": b"",
    "pkg/mod.py": "# -*- coding: latin-1 -*-\nx = 'é'".encode("latin-1"),
}
NAMES = st.text("abc_-éß中 ", min_size=1, max_size=6)


def made(content: Any) -> bytes:
    """A bundle of whatever somebody packs."""
    return zlib.compress(msgpack.packb(content))


def of_files(*files: Any) -> bytes:
    return made({"v": VERSION, "files": list(files)})


def test_round_trip() -> None:
    """Contents come back to the byte, and the digest is that of the bytes."""
    digest, data = pack_bundle(FILES)
    assert unpack_bundle(data) == FILES
    assert digest == hashlib.sha256(data).hexdigest()


@given(st.dictionaries(NAMES.map(lambda name: f"{name}.py"), st.binary(max_size=50), max_size=8), st.randoms())
@examples(100)
def test_order_does_not_matter(files: dict[str, bytes], order: random.Random) -> None:
    names = list(files)
    order.shuffle(names)
    digest, data = pack_bundle(files)
    assert pack_bundle({name: files[name] for name in names}) == (digest, data)
    assert unpack_bundle(data) == files


def test_same_in_another_process() -> None:
    """Also with another seed of the hashes."""
    code = (
        "import json, sys; from evpipe.wire.bundles import pack_bundle; "
        "print(pack_bundle({path: bytes.fromhex(text) for path, text in json.loads(sys.argv[1]).items()})[0])"
    )
    argument = json.dumps({path: text.hex() for path, text in reversed(FILES.items())})
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, argument],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == pack_bundle(FILES)[0]


# ---- limits


def test_too_many_files() -> None:
    with pytest.raises(LimitExceeded) as caught:
        pack_bundle({f"m{i}.py": b"" for i in range(BUNDLE_FILES_MAX + 1)})
    assert str(caught.value) == "the code has 5,001 files: 5,000 are allowed"
    assert caught.value.limit == "BUNDLE_FILES_MAX"
    pack_bundle({f"m{i}.py": b"" for i in range(BUNDLE_FILES_MAX)})


def test_too_large_unpacked() -> None:
    """The largest files are named, the largest first."""
    half = BUNDLE_UNPACKED_BYTES_MAX // 2
    with pytest.raises(LimitExceeded) as caught:
        pack_bundle({"a.py": bytes(half), "b.py": b"xyz", "c.py": bytes(half + 1), "d.py": b"x"})
    assert caught.value.limit == "BUNDLE_UNPACKED_BYTES_MAX"
    assert str(caught.value) == (
        "the code of the steps has 67,108,869 bytes, 67,108,864 are allowed; the largest files are "
        "c.py (33,554,433 bytes), a.py (33,554,432 bytes), b.py (3 bytes)"
    )


def test_too_large_packed() -> None:
    noise = random.Random(0).randbytes(BUNDLE_BYTES_MAX)
    with pytest.raises(LimitExceeded, match=r"10,485,760 are allowed; the largest files are noise\.py") as caught:
        pack_bundle({"noise.py": noise, "small.py": b"x"})
    assert caught.value.limit == "BUNDLE_BYTES_MAX"


def test_largest_that_is_made_is_read() -> None:
    """Also with as many files as there may be, and paths as long as they may be."""
    long = "é" * (PATH_CHARS_MAX - 8)
    each = BUNDLE_UNPACKED_BYTES_MAX // BUNDLE_FILES_MAX
    files = {f"{long}{i:04}.py": bytes(each) for i in range(BUNDLE_FILES_MAX)}
    assert unpack_bundle(pack_bundle(files)[1]) == files


HOSTILE = [
    "..",
    "../x.py",
    "a/../../x.py",
    "a/..",
    "/etc/x.py",
    "/",
    "//x.py",
    "a//b.py",
    "a/",
    ".",
    "./a.py",
    "a/./b.py",
    "",
    "a\\b.py",
    "..\\x.py",
    "C:/x.py",
    "C:x.py",
    "a.py:stream",
    "a\0.py",
    "a\n.py",
    "a\x1b[2J.py",
    "a\u202e.py",
    "a" * (PATH_CHARS_MAX + 1),
]


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_path(path: str) -> None:
    """A path that leads elsewhere, or that no module has, is refused on both sides."""
    with pytest.raises(RemoteProtocolError, match="the bundle has a file with the path "):
        unpack_bundle(of_files(["good.py", b""], [path, b""]))
    with pytest.raises(UsageError, match="which cannot travel"):
        pack_bundle({"good.py": b"", path: b""})


def test_path_that_is_no_text_of_unicode() -> None:
    with pytest.raises(UsageError, match="cannot travel"):
        pack_bundle({"a\udcff.py": b""})


DIGEST, GOOD = pack_bundle(FILES)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (of_files(["a", b""], ["a/b.py", b""]), "the bundle has a file that is a folder as well"),
        (of_files(["a/b.py", b""], ["a", b""]), "the bundle has a file that is a folder as well"),
        (of_files(["a.py", b"1"], ["a.py", b"2"]), "the bundle has a file twice"),
        (of_files(["a.py", "text"]), "the bundle has a file without content"),
        (of_files(["a.py", None]), "the bundle has a file without content"),
        (of_files([5, b""]), "the bundle has a file with the path '5'"),
        (of_files([b"a.py", b""]), "the bundle has a file with the path \"b'a.py'\""),
        (of_files(["a.py"]), "the bundle cannot be read: ValueError: not enough values to unpack"),
        (of_files(["a.py", b"", 1]), "the bundle cannot be read: ValueError: too many values"),
        (of_files(5), "the bundle cannot be read: TypeError"),
        (made({"v": VERSION, "files": 5}), "the bundle cannot be read: TypeError"),
        (made({"v": VERSION}), "the bundle cannot be read: KeyError: 'files'"),
        (made({"v": VERSION + 1, "files": []}), "the bundle is of another version"),
        (made({"files": []}), "the bundle is of another version"),
        (made([1, 2]), "the bundle is of another version"),
        (made([[[1]] * 3] * 3), "the bundle cannot be read: ValueError: too many lists"),
        (made({"v": {}, "files": {}}), "the bundle cannot be read: ValueError: too many maps"),
        (made({str(i): 1 for i in range(9)}), "the bundle cannot be read: ValueError: 9 exceeds max_map_len"),
        (of_files(*[["a.py", b""]] * (BUNDLE_FILES_MAX + 1)), "the bundle cannot be read: ValueError: 5001 exceeds"),
        (zlib.compress(b"\xdd\xff\xff\xff\xff"), "the bundle cannot be read: ValueError"),
        (zlib.compress(b"\xc6\xff\xff\xff\xff"), "the bundle cannot be read: ValueError"),
        (zlib.compress(b"\x91" * 100_000), "the bundle cannot be read: "),
        (zlib.compress(b""), "the bundle cannot be read: "),
        (zlib.compress(zlib.decompress(GOOD)[:-1]), "the bundle cannot be read: "),
        (zlib.compress(zlib.decompress(GOOD) + b"\0"), "the bundle cannot be read: ExtraData"),
        (GOOD[:-1], "the bundle is cut, too large or followed by something else"),
        (GOOD[: len(GOOD) // 2], "the bundle is cut, too large or followed by something else"),
        (GOOD + b"\0", "the bundle is cut, too large or followed by something else"),
        (GOOD + GOOD, "the bundle is cut, too large or followed by something else"),
        (GOOD[:-4] + bytes(4), "the bundle cannot be read: error: "),
        (b"", "the bundle is cut, too large or followed by something else"),
        (b"PK\x03\x04", "the bundle cannot be read: error: "),
        (bytes(BUNDLE_BYTES_MAX + 1), "the bundle has 10,485,761 bytes: 10,485,760 are allowed"),
        (
            of_files(["a.py", bytes(BUNDLE_UNPACKED_BYTES_MAX + 1)]),
            "the bundle's files have more than 67,108,864 bytes",
        ),
        (zlib.compress(bytes(2 * BUNDLE_UNPACKED_BYTES_MAX)), "the bundle is cut, too large or followed by something"),
    ],
    ids=range(35),
)
def test_hostile(data: bytes, sentence: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack_bundle(data)
    assert str(caught.value).startswith(sentence)


def test_more_than_it_may_hold() -> None:
    with pytest.raises(RemoteProtocolError, match=r"the bundle's files have more than 67,108,864 bytes"):
        unpack_bundle(of_files(["a.py", bytes(BUNDLE_UNPACKED_BYTES_MAX + 1)]))
    with pytest.raises(RemoteProtocolError, match="the bundle is cut, too large or followed by something else"):
        unpack_bundle(zlib.compress(bytes(2 * BUNDLE_UNPACKED_BYTES_MAX)))


def _gigabytes() -> bytes:
    """4 GiB of zeros, as a deflate stream of 4 MB: blocks that know nothing of each other."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\x9c" + block * 4096


def _lists(item: bytes, count: int = BUNDLE_FILES_MAX) -> bytes:
    """A bundle whose files are lists of as many items as a list may have."""
    inner = b"\xdc" + count.to_bytes(2, "big") + item * count
    return zlib.compress(b"\x82\xa1v\x01\xa5files\xdc" + count.to_bytes(2, "big") + inner * count, 9)


@pytest.mark.parametrize("make", [_gigabytes, partial(_lists, b"\x90"), partial(_lists, b"\xc0")], ids=range(3))
def test_bomb(make: Callable[[], bytes]) -> None:
    """Little that becomes much is refused before it has: the memory stays bounded."""
    data = make()
    assert len(data) < BUNDLE_BYTES_MAX
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            unpack_bundle(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # What it unpacks may be there twice for a moment.
    assert peak < 2.5 * BUNDLE_UNPACKED_BYTES_MAX


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.binary(max_size=3) | st.just("a.py"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["v", "files", "x"]), inner),
    max_leaves=8,
)


@given(
    st.binary(max_size=200)
    | st.binary(max_size=200).map(zlib.compress)
    | JSON.map(made)
    | st.fixed_dictionaries({"v": st.just(VERSION), "files": st.lists(st.tuples(st.text(max_size=3), JSON))}).map(made)
    | st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=3)).map(
        lambda at: GOOD[: at[0]] + at[1] + GOOD[at[0] :]
    )
)
@examples(500)
def test_anything(data: bytes) -> None:
    """Whatever comes: files by legal paths, or our error."""
    try:
        files = unpack_bundle(data)
    except RemoteProtocolError:
        return
    assert all(isinstance(content, bytes) for content in files.values())
    assert pack_bundle(files)
