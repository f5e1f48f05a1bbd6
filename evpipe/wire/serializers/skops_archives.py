"""Archives of skops: written so that equal objects give equal bytes, and gone through before skops reads them.

skops names objects and files by their addresses in memory or at random, and keeps the order of sets and what was in
memory between the fields of an array. Here ids are numbers in the order in which they appear, and only of objects
that appear twice; files are named likewise, all are stored plainly and without a time. skops reads it as any other.

An archive that is read has to be of that sort: its entries are not compressed, so that nothing becomes larger than it
is, and its schema names nothing but what `estimator_types.py` lists.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from typing import Any, BinaryIO, Final, cast

from evpipe.wire.serializers.estimator_types import CALLED, LOADERS
from evpipe.wire.serializers.numpy_arrays import check_header, write_array
from evpipe.wire.serializers.registry import ArtifactUnreadable

_SCHEMA: Final = "schema.json"
#: The description of an object, of which Python makes about ten times as much.
SCHEMA_BYTES_MAX: Final = 512 * 1024 * 1024
#: All that is in an archive.
UNPACKED_BYTES_MAX: Final = 16 * 1024**3
_ENTRIES_MAX: Final = 5_000_000
#: Since when skops checks what it calls.
_PROTOCOL_MIN: Final = 2
#: What has no identity that anyone could tell: whether two of them are one depends on the interpreter.
_ALIKE: Final = frozenset({"JsonNode", "TypeNode", "FunctionNode", "TupleNode", "DTypeNode", "SliceNode", "BytesNode"})

#: Attributes in which estimators note an address of theirs: vectorisers, to look at the same stop words once only.
_ADDRESSES: Final = frozenset({"_stop_words_id"})
_NOTHING: Final = {
    "__class__": "str",
    "__module__": "builtins",
    "__loader__": "JsonNode",
    "content": "null",
    "is_json": True,
}


def write_alike(archive: bytes, file: BinaryIO) -> None:
    """Write an archive of skops anew, so that it depends on nothing but the object."""
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        schema = json.loads(source.read(_SCHEMA))
        schema.pop("_skops_version", None)
        _settle(schema)
        names = _renumber(schema)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
            _add(target, _SCHEMA, json.dumps(schema, separators=(",", ":")).encode())
            for name, before in names.items():
                _add(target, name, _plain(before, source.read(before)))
    file.write(out.getbuffer())


def check_archive(file: BinaryIO, size_bytes: int) -> None:
    """Go through an archive before skops does.

    Raises:
        ArtifactUnreadable, Exception: if it is none that is written here, or names what is not to be made.
    """
    with zipfile.ZipFile(file) as archive:
        sizes = _check_entries(archive, size_bytes)
        if sizes.get(_SCHEMA, SCHEMA_BYTES_MAX + 1) > SCHEMA_BYTES_MAX:
            raise ArtifactUnreadable("an archive without a schema, or one that is too large")
        schema = json.loads(archive.read(_SCHEMA))
        protocol = schema.get("protocol")
        if type(protocol) is not int or protocol < _PROTOCOL_MIN:
            raise ArtifactUnreadable(f"an archive of the protocol {protocol!r:.100}")
        readers: dict[str, int] = {}
        for node in nodes(schema):
            _check_node(node)
            if "file" in node:
                _check_file(archive, node, sizes, readers)


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Give all nodes of a schema, each before what is in it."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if "__loader__" in part:
                yield part
            left.extend(reversed(part.values()))
        elif isinstance(part, list):
            left.extend(reversed(part))


# ---- writing


def _settle(schema: Any) -> None:
    """Take out what depends on the process: the order of sets, addresses, and namespaces that are not there yet."""
    for node in nodes(schema):
        loader, content = node["__loader__"], cast("Any", node.get("content"))
        if loader == "SetNode":
            content.sort(key=lambda element: json.dumps(_bare(element), sort_keys=True))
        elif loader == "PartialNode" and not content["namespace"]["content"]:
            content["namespace"] = _NOTHING
        elif loader == "DictNode":
            for key in _ADDRESSES & content.keys():
                del node["key_types"]["content"][list(content).index(key)]
                del content[key]


def _bare(part: Any) -> Any:
    """Give a part of a schema without ids."""
    if isinstance(part, dict):
        return {key: _bare(child) for key, child in part.items() if key != "__id__"}
    return [_bare(child) for child in part] if isinstance(part, list) else part


def _renumber(schema: Any) -> dict[str, str]:
    """Number ids and files anew; gives the names of the files, and those that they had."""
    times = Counter(node["__id__"] for node in nodes(schema) if _has_identity(node))
    numbers: dict[int, int] = {}
    names: dict[str, str] = {}
    files: dict[int, str] = {}
    for node in nodes(schema):
        before = node.pop("__id__", None)
        number = None
        if before is not None and times[before] > 1 and _has_identity(node | {"__id__": before}):
            # 0 would be none to skops.
            number = node["__id__"] = numbers.setdefault(before, len(numbers) + 1)
        if "file" in node:
            name = files.get(number) if number is not None else None
            if name is None:
                name = f"{len(names)}.{node['file'].rpartition('.')[2]}"
                names[name] = node["file"]
                if number is not None:
                    files[number] = name
            node["file"] = name
    return names


def _has_identity(node: dict[str, Any]) -> bool:
    loader = node["__loader__"]
    if "__id__" not in node or loader in _ALIKE:
        return False
    return loader != "NdArrayNode" or node["__class__"] in {"ndarray", "matrix"}


def _plain(name: str, data: bytes) -> bytes:
    """Give a file of an archive with nothing in it but its content."""
    np = import_module("numpy")
    out = io.BytesIO()
    if name.endswith(".npy"):
        write_array(np.load(io.BytesIO(data), allow_pickle=False), out)
        return out.getvalue()
    if not name.endswith(".npz"):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for inner in sorted(source.namelist()):
            _add(target, inner, _plain(inner, source.read(inner)))
    return out.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = 0o600 << 16
    archive.writestr(entry, data, zipfile.ZIP_STORED)


# ---- reading


def _check_entries(archive: zipfile.ZipFile, size_bytes: int) -> dict[str, int]:
    """Check that the entries are what they say and together no larger than the archive; gives their sizes."""
    entries = archive.infolist()
    sizes = {entry.filename: entry.file_size for entry in entries}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ArtifactUnreadable(f"an archive with the compressed entry {entry.filename!r:.100}")
    total = sum(sizes.values())
    if len(sizes) != len(entries) or total > min(size_bytes, UNPACKED_BYTES_MAX) or len(entries) > _ENTRIES_MAX:
        raise ArtifactUnreadable(f"an archive of {size_bytes:,} bytes that becomes {total:,}, or has a name twice")
    return sizes


def _check_node(node: dict[str, Any]) -> None:
    loader, module, name = node["__loader__"], node["__module__"], node["__class__"]
    if type(module) is not str or type(name) is not str or loader not in LOADERS:
        raise ArtifactUnreadable(f"an archive that makes {module!r:.100}.{name!r:.100} with {loader!r:.100}")
    if loader in CALLED and module not in CALLED[loader]:
        raise ArtifactUnreadable(f"an archive that calls {module!r:.100}.{name!r:.100}")


def _check_file(archive: zipfile.ZipFile, node: dict[str, Any], sizes: dict[str, int], readers: dict[str, int]) -> None:
    """Check what a node reads: one node a file, or a small archive would become a large object."""
    name = node["file"]
    # Nodes with one id are one object.
    reader = node.get("__id__") or id(node)
    if name not in sizes or readers.setdefault(name, reader) != reader:
        raise ArtifactUnreadable(f"an archive in which {name!r:.100} is not there, or read by several")
    if node["__loader__"] == "SparseMatrixNode":
        _check_npz(archive.read(name))
    elif node["__loader__"] == "NdArrayNode":
        with archive.open(name) as array:
            check_header(array, sizes[name])  # type: ignore[arg-type]  # it is read only


def _check_npz(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        for name, size in _check_entries(inner, len(data)).items():
            with inner.open(name) as array:
                check_header(array, size)  # type: ignore[arg-type]  # it is read only
