"""Artifacts on the wire, and what writes and reads their bytes.

An artifact's form is a list (see `extensions.ARTIFACT`). Who encodes a value may have an `ArtifactWriter`, which takes
what has no form of its own; who decodes one may have an `ArtifactReader`, which puts values where artifacts stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from evpipe.core.artifact import LENGTHS_MAX, LEVELS_MAX, Artifact, Lengths
from evpipe.errors import RemoteProtocolError
from evpipe.wire.limits import ARTIFACT_META_BYTES_MAX, INLINE_BYTES_MAX, LARGE_ITEMS_MAX, WHOLE_MAX

#: The kind of artifacts that are values of the protocol itself, too large for an event.
VALUE: Final = "value"
_KIND_CHARS_MAX: Final = 64
_DIGITS: Final = frozenset("0123456789abcdef")


class ArtifactWriter(Protocol):
    """Stores values that have a serializer."""

    def write(self, value: Any) -> Artifact | None:
        """Store a value.

        Returns:
            What stands for it; None if it has no serializer.

        Raises:
            Refused: if it has one that cannot write this value.
        """

    def write_bytes(
        self,
        data: bytes,
        *,
        content: str = "",
        length: int | None = None,
        is_list: bool = False,
        lengths: Lengths = (),
        nested: bool = False,
    ) -> Artifact:
        """Store an encoded value of the protocol (kind "value")."""

    def keep(self, artifact: Artifact) -> Artifact:
        """Store the bytes that an artifact carries, and give it without them."""


class ArtifactReader(Protocol):
    """Gives the values that artifacts stand for."""

    def read(self, artifact: Artifact) -> Any:
        """Give the value, or the part of it that is meant.

        Raises:
            ArtifactUnreadable, BindingError: if it cannot be read, or has no such part.
        """


def artifact_form(artifact: Artifact) -> list[Any]:
    """Give the artifact as it travels."""
    # What only lists have stands last and only with them: digests of launches made before hold.
    return [
        artifact.kind,
        artifact.version,
        artifact.digest,
        artifact.size_bytes,
        artifact.data,
        dict(artifact.meta),
        artifact.content,
        artifact.length,
        artifact.nested,
        list(artifact.path),
        *([_list_form(artifact)] if artifact.is_list else ()),
    ]


def _list_form(artifact: Artifact) -> Any:
    """Give what is known of the lists in a list: lengths, or `True` where nobody knows how long what is meant is."""
    if artifact.lengths or (artifact.path and artifact.length is not None):
        return [level if isinstance(level, int) else list(level) for level in artifact.lengths]
    return True


def canonical_form(artifact: Artifact) -> list[Any]:
    """Give what two artifacts have in common if they stand for equal values."""
    return [
        artifact.kind,
        artifact.version,
        artifact.content or artifact.digest,
        _sorted(artifact.meta),
        list(artifact.path),
    ]


def artifact_of(form: Any) -> Artifact:
    """Give the artifact of a form.

    Raises:
        RemoteProtocolError: if it is none.
    """
    if not isinstance(form, list) or len(form) not in {10, 11}:
        raise RemoteProtocolError("an artifact that is none")
    kind, version, digest, size, data, meta, content, length, nested, path, *is_list = form
    if not isinstance(kind, str) or not 0 < len(kind) <= _KIND_CHARS_MAX:
        raise RemoteProtocolError("an artifact without a kind")
    if not is_whole(version) or not is_whole(size):
        raise RemoteProtocolError(f"an artifact of the kind {kind!r} whose version or size is none")
    if not is_digest(digest) or not (content == "" or is_digest(content)):
        raise RemoteProtocolError(f"an artifact of the kind {kind!r} without a digest")
    if data is not None and (type(data) is not bytes or len(data) != size or size > INLINE_BYTES_MAX):
        raise RemoteProtocolError(f"an artifact of the kind {kind!r} whose bytes are not as many as it says")
    if not isinstance(meta, dict) or not (length is None or is_whole(length)) or type(nested) is not bool:
        raise RemoteProtocolError(f"an artifact of the kind {kind!r} that says of itself what is none")
    if not isinstance(path, list) or not all(map(is_key, path)):
        raise RemoteProtocolError(f"an artifact of the kind {kind!r} of which no part is meant")
    of_list = is_list[0] if is_list else None
    if of_list is True and path:
        # Of the whole list.
        length = None
    return Artifact(
        kind=kind,
        version=version,
        digest=digest,
        size_bytes=size,
        data=data,
        meta=meta,
        content=content,
        length=length,
        is_list=of_list is True or isinstance(of_list, list),
        lengths=_lengths(of_list, length, kind) if isinstance(of_list, list) else (),
        nested=nested,
        path=tuple(path),
    )


def _lengths(found: list[Any], length: int | None, kind: str) -> Lengths:
    """Check the lengths of the lists in a list of this length."""
    wrong = RemoteProtocolError(f"an artifact of the kind {kind!r} with lists whose lengths are none")
    if length is None or len(found) >= LEVELS_MAX:
        raise wrong
    lists, numbers = length, 0
    made: list[int | tuple[int, ...]] = []
    for level in found:
        each = level if type(level) is list else [level]
        if not all(type(one) is int and 0 <= one <= LARGE_ITEMS_MAX for one in each):
            raise wrong
        if type(level) is list and len(level) != lists:
            raise wrong
        numbers += len(each)
        lists = sum(each) if type(level) is list else lists * level
        if numbers > LENGTHS_MAX or lists > LARGE_ITEMS_MAX:
            raise wrong
        made.append(tuple(level) if type(level) is list else level)
    return tuple(made)


def check_meta(meta: Mapping[str, Any], packed_bytes: int) -> None:
    """Refuse what a serializer says beside the bytes if it is more than goes into an event.

    Raises:
        ValueError: says how much it may be.
    """
    if packed_bytes > ARTIFACT_META_BYTES_MAX:
        raise ValueError(f"its meta is {packed_bytes:,} bytes: at most {ARTIFACT_META_BYTES_MAX:,} are allowed")


def is_whole(found: Any) -> bool:
    """Say whether it is a number of something."""
    return type(found) is int and 0 <= found <= WHOLE_MAX


def is_key(found: Any) -> bool:
    """Say whether it can name a part of a value."""
    return isinstance(found, str) or (isinstance(found, int) and -WHOLE_MAX <= found <= WHOLE_MAX)


def is_digest(text: Any) -> bool:
    """Say whether it is a SHA-256 in hex."""
    return isinstance(text, str) and len(text) == 64 and _DIGITS.issuperset(text)


def _sorted(node: Any) -> Any:
    if isinstance(node, Mapping):
        return [[key, _sorted(node[key])] for key in sorted(node)]
    if isinstance(node, (list, tuple)):
        return [_sorted(child) for child in node]
    return node
