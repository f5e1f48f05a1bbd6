"""Images of Pillow (kind "image"): a PNG where that keeps every pixel, and bare pixels where it does not.

What is in `info` is no part of the value, except `transparency`: not the texts, the resolution, the colour profile or
the EXIF data of the file that an image was opened from. An image of an open file comes back as a plain
`PIL.Image.Image`, as a copy of it would be. The same pixels give the same bytes with the same build of Pillow; another
may compress a PNG differently.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib import import_module
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import Refused, named
from evpipe.wire.serializers.borders import meta_value, reading, refusing, said
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, Stored

#: Modes that come back from a PNG as they were. A palette does not: its colours are renumbered.
_PNG_MODES: Final = frozenset({"1", "L", "LA", "RGB", "RGBA", "I;16"})
#: Fixed, so that it does not follow Pillow's default; 6 is what zlib takes for the best balance.
_PNG_LEVEL: Final = 6
_PNG_HEAD: Final = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
#: 256 colours of 4 bytes.
_PALETTE_BYTES_MAX: Final = 1024


class ImageSerializer:
    """Writes and reads images."""

    name = "image"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        if getattr(value, "n_frames", 1) != 1:
            hint = "pass its frames: [frame.copy() for frame in PIL.ImageSequence.Iterator(value)]"
            raise Refused(f"an image of {value.n_frames} frames", hint)
        with refusing(f"{named(type(value))} of the mode {value.mode!r}"):
            try:
                value.load()
                if problem := _size_problem(*value.size):
                    raise Refused(
                        problem, "raise PIL.Image.MAX_IMAGE_PIXELS here and on the workers, or pass it as an array"
                    )
                return _write(value, file)
            except OSError as exc:
                raise Refused(f"an image that cannot be loaded ({said(exc)})", "open it again") from exc

    def read(self, stored: Stored) -> Any:
        with reading(self.name, "pillow"):
            import_module("PIL.Image")
            form, mode = meta_value(stored.meta, "form", str), meta_value(stored.meta, "mode", str)
            if form == "png":
                image = _read_png(stored, mode)
            elif form == "raw":
                image = _read_raw(stored, mode)
            else:
                raise ArtifactUnreadable(f"there is no form {form!r:.100} of images")
            _set_transparency(image, stored.meta)
            return image


SERIALIZERS: Final[dict[str, Serializer]] = {"image": ImageSerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value of Pillow; None if it is no image."""
    return SERIALIZERS["image"] if isinstance(value, import_module("PIL.Image").Image) else None


def _write(image: Any, file: BinaryIO) -> dict[str, Any]:
    meta: dict[str, Any] = {"mode": image.mode} | _transparency(image)
    if image.mode in _PNG_MODES and 0 not in image.size:
        bare = image.copy()
        # Whatever is in here would go into the file.
        bare.info = {}
        png = io.BytesIO()
        bare.save(png, "PNG", compress_level=_PNG_LEVEL)
        file.write(png.getvalue())
        return meta | {"form": "png"}
    meta |= {"form": "raw", "size": list(image.size)}
    palette = image.palette
    if image.mode in {"P", "PA"} and palette is not None:
        colours = bytes(image.getpalette(palette.mode))
        meta["palette"] = [palette.mode, len(colours)]
        file.write(colours)
    if 0 not in image.size:
        file.write(image.tobytes())
    return meta


def _transparency(image: Any) -> dict[str, Any]:
    found = image.info.get("transparency")
    if found is None:
        return {}
    return {
        "transparency": found.hex() if isinstance(found, bytes) else list(found) if isinstance(found, tuple) else found
    }


def _set_transparency(image: Any, meta: Mapping[str, Any]) -> None:
    found = meta.get("transparency")
    if type(found) is str:
        image.info["transparency"] = bytes.fromhex(found)
    elif type(found) is list and all(type(part) is int for part in found):
        image.info["transparency"] = tuple(found)
    elif type(found) is int:
        image.info["transparency"] = found
    elif found is not None:
        raise ArtifactUnreadable(f"an image with the transparency {found!r:.100}")


def _read_png(stored: Stored, mode: str) -> Any:
    with stored.open() as file:
        head = file.read(len(_PNG_HEAD) + 8)
        if head[: len(_PNG_HEAD)] != _PNG_HEAD:
            raise ArtifactUnreadable("there is no PNG")
        width, height = int.from_bytes(head[-8:-4], "big"), int.from_bytes(head[-4:], "big")
        # Pillow would only warn of an image of twice the size.
        if problem := _size_problem(width, height):
            raise ArtifactUnreadable(problem)
        file.seek(0)
        with import_module("PIL.Image").open(file, formats=["PNG"]) as opened:
            if opened.mode != mode:
                raise ArtifactUnreadable(f"a PNG of the mode {opened.mode!r} where {mode!r} was written")
            opened.load()
            image = opened.copy()
    image.info = {}
    return image


def _read_raw(stored: Stored, mode: str) -> Any:
    images = import_module("PIL.Image")
    size = meta_value(stored.meta, "size", list)
    if len(size) != 2 or not all(type(length) is int and 0 <= length < 2**31 for length in size):
        raise ArtifactUnreadable(f"an image of the size {size!r:.100}")
    if mode not in images.MODES:
        raise ArtifactUnreadable(f"there is no mode {mode!r:.100} of images")
    if problem := _size_problem(*size):
        raise ArtifactUnreadable(problem)
    # Every mode has at least a bit per pixel.
    if size[0] * size[1] > 8 * stored.size_bytes:
        raise ArtifactUnreadable(f"an image of {size[0]} times {size[1]} in {stored.size_bytes:,} bytes")
    data = stored.bytes()
    palette_mode, length = _palette(stored.meta)
    if length > len(data):
        raise ArtifactUnreadable("a palette that is cut off")
    pixels = data[length:]
    if 0 in size:
        if pixels:
            raise ArtifactUnreadable("pixels of an image without a size")
        image = images.new(mode, tuple(size))
    else:
        image = images.frombytes(mode, tuple(size), pixels)
    if palette_mode:
        image.putpalette(data[:length], palette_mode)
    return image


def _palette(meta: Mapping[str, Any]) -> tuple[str, int]:
    found = meta.get("palette", ["", 0])
    if type(found) is not list or len(found) != 2 or found[0] not in {"", "RGB", "RGBA", "L"}:
        raise ArtifactUnreadable(f"an image with the palette {found!r:.100}")
    if type(found[1]) is not int or not 0 <= found[1] <= _PALETTE_BYTES_MAX:
        raise ArtifactUnreadable(f"an image with a palette of {found[1]!r:.100} bytes")
    return found[0], found[1]


def _size_problem(width: int, height: int) -> str:
    """Say why an image is too large, or ""; Pillow's own limit counts, which a user may change."""
    pixels_max = import_module("PIL.Image").MAX_IMAGE_PIXELS
    if pixels_max is None or width * height <= pixels_max:
        return ""
    return f"an image of {width} times {height} pixels: at most {pixels_max:,} are allowed"
