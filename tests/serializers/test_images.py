"""Images of Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.images import serializer_of
from evpipe.wire.serializers.registry import ArtifactUnreadable
from tests.serializers.helpers import check_corrupted, fingerprint, fingerprints_elsewhere, read, round_trip, written

Image: Any = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def _image(mode: str, size: tuple[int, int] = (17, 5)) -> Any:
    length = len(Image.new(mode, size).tobytes())
    image = Image.frombytes(mode, size, np.random.default_rng(len(mode)).integers(0, 256, length, np.uint8).tobytes())
    if mode in {"P", "PA"}:
        image.putpalette([i * 7 % 256 for i in range(120)])
    return image


def _images() -> list[Any]:
    images = [_image(mode) for mode in Image.MODES]
    clear = _image("P")
    clear.info["transparency"] = b"\0\x80\xff"
    coloured = _image("P")
    coloured.putpalette([i % 256 for i in range(400)], "RGBA")
    drawn = Image.new("P", (3, 3))
    drawn.putpixel((1, 1), drawn.palette.getcolor((10, 20, 30)))
    keyed, grey = _image("RGB"), _image("L")
    keyed.info["transparency"], grey.info["transparency"] = (1, 2, 3), 7
    return [*images, clear, coloured, drawn, keyed, grey, _image("RGB").quantize(5), Image.new("L", (0, 4))]


@pytest.mark.parametrize("image", _images(), ids=lambda image: image.mode)
def test_images_come_back_as_they_were(image: Any) -> None:
    """Mode, size, pixels, palette and transparency."""
    again = round_trip(image)
    assert type(again) is Image.Image
    assert (again.mode, again.size) == (image.mode, image.size)
    if 0 not in image.size:
        assert again.tobytes() == image.tobytes()
    assert again.info == image.info
    assert (again.palette and again.getpalette("RGBA")) == (image.palette and image.getpalette("RGBA"))
    if image.mode == "P":
        assert again.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_an_opened_file_comes_back_as_a_plain_image(tmp_path: Path) -> None:
    """Without what the file says beside the pixels."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = "a description"
    _image("RGB").save(path, dpi=(300, 300), exif=exif, comment=b"a comment")
    with Image.open(path) as photo:
        again = round_trip(photo)
        assert type(again) is Image.Image
        assert again.info == {}
        assert again.tobytes() == photo.tobytes()
        assert fingerprint(photo) == fingerprint(again)
        _, data, _ = written(photo)
        assert b"a description" not in data
    again.putpixel((0, 0), (1, 2, 3))


def test_equal_images_have_equal_bytes() -> None:
    """In other processes, too."""
    assert fingerprints_elsewhere(__name__, "_images") == [fingerprint(image) for image in _images()]


def test_what_would_not_come_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several frames, too many pixels, a file that is cut off."""
    _image("L").save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("L", (17, 5))])
    with Image.open(tmp_path / "moving.gif") as moving, pytest.raises(Refused, match="2 frames") as caught:
        written(moving)
    assert "ImageSequence" in caught.value.hint
    _image("RGB").save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-60])
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(Refused, match="cannot be loaded"):
        written(cut)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Refused, match="at most 10"):
        written(_image("RGB"))
    assert serializer_of(Image.Exif()) is None


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_bombs_are_unreadable() -> None:
    """An image is no larger than Pillow's limit and than its bytes say."""
    with pytest.raises(ArtifactUnreadable, match="at most"):
        read("image", _png(12_000, 12_000), {"form": "png", "mode": "RGB"})
    for size in ([2**30, 2**30], [9_000, 9_000], [-1, 2], [3], ["1", 1], [0, 5]):
        with pytest.raises(ArtifactUnreadable):
            read("image", b"xxx", {"form": "raw", "mode": "L", "size": size})


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"form": "png", "mode": "L"},
        {"form": "jpeg", "mode": "RGB"},
        {"form": "raw", "mode": "RGB"},
        {"form": "raw", "mode": "nonsense", "size": [1, 1]},
        {"form": "png", "mode": "RGB", "transparency": {}},
        {"form": "png", "mode": "RGB", "transparency": "no hex"},
        {"form": "raw", "mode": "P", "size": [1, 1], "palette": ["RGB", 10**9]},
        {"form": "raw", "mode": "P", "size": [1, 1], "palette": ["exec", 3]},
    ],
)
def test_bad_meta_is_unreadable(meta: dict[str, Any]) -> None:
    """It has to fit the bytes."""
    _, data, _ = written(_image("RGB"))
    with pytest.raises(ArtifactUnreadable):
        read("image", data, meta)


def test_other_files_are_not_opened_as_images() -> None:
    """Only what is written here is read: no decoder of another format is tried."""
    file = io.BytesIO()
    _image("RGB").save(file, "BMP")
    with pytest.raises(ArtifactUnreadable):
        read("image", file.getvalue(), {"form": "png", "mode": "RGB"})


@pytest.mark.parametrize("mode", ["RGB", "P", "F", "1"])
def test_corrupted_bytes_are_unreadable_or_a_value(mode: str) -> None:
    """No other exception comes out, whatever is broken."""
    assert check_corrupted(_image(mode), tries=150) > 30
