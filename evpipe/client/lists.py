"""Elements of lists that are stored beside the log, as the values that they are.

The core hands an element of such a list on as a part of an artifact, for it opens none. Who launches opens the list
once and puts the elements in: then an element is as quick to launch as any value, its worker fetches no list of which
it wants a part, and the cache knows it by what it is, whatever the rest of the list has become.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias, TypeVar

from evpipe.core.artifact import Artifact
from evpipe.core.bindings import OutputRef, select
from evpipe.core.commands import Launch, SubmitRun
from evpipe.core.mapping import POSITIONAL
from evpipe.errors import EvpipeError
from evpipe.wire.storing import open_stored

BeginT = TypeVar("BeginT", bound=Launch | SubmitRun)

#: Larger lists stay closed: their elements are large, too, or very many.
LIST_BYTES_MAX: Final = 32 * 1024 * 1024
#: Bytes of the lists that are kept open, as they are stored.
OPEN_BYTES_MAX: Final = 64 * 1024 * 1024


#: The elements of a list or a tuple.
StoredList: TypeAlias = list[Any] | tuple[Any, ...]


def read_list(data: bytes) -> StoredList | None:
    """Read a stored list; None if it is none."""
    try:
        found = open_stored(data)
    except EvpipeError:
        return None
    return found if isinstance(found, (list, tuple)) else None


class OpenLists:
    """The lists that were opened lately."""

    def __init__(self) -> None:
        #: By digest: the elements, None for a list that cannot be opened; and the bytes of the list.
        self._lists: OrderedDict[str, tuple[StoredList | None, int]] = OrderedDict()
        self._bytes = 0

    def closed(self, arguments: Mapping[str, Any]) -> Artifact | None:
        """Give a list that has to be opened first; None if there is none, or no more."""
        return next((found for found in _elements(arguments) if found.digest not in self._lists), None)

    def open(self, artifact: Artifact, data: bytes | None) -> None:
        """Open a list; as `put`.

        Args:
            data: its bytes; None: they could not be had.
        """
        self.put(artifact, None if data is None else read_list(data))

    def put(self, artifact: Artifact, found: StoredList | None) -> None:
        """Take in a list that was read; what is none is left as it is, for whoever needs it says so.

        The one that was used longest ago may be closed for it: so what waits for several is filled as each is open.
        """
        size = 0 if found is None else artifact.size_bytes
        self._lists[artifact.digest] = (found, size)
        self._bytes += size
        while self._bytes > OPEN_BYTES_MAX and len(self._lists) > 1:
            _, (_, size) = self._lists.popitem(last=False)
            self._bytes -= size

    def filled(self, command: BeginT) -> BeginT:
        """Give a launch with the elements of the lists that are open in the places of what stood for them."""
        arguments = command.arguments
        if next(_elements(arguments), None) is None:
            return command
        made = {name: self._filled(value) for name, value in arguments.items()}
        if POSITIONAL in made:
            made[POSITIONAL] = [self._filled(value) for value in made[POSITIONAL]]
        return replace(command, arguments=made)

    def _filled(self, value: Any) -> Any:
        found = self._lists.get(value.digest) if isinstance(value, Artifact) and _is_element(value) else None
        if found is None or found[0] is None:
            return value
        self._lists.move_to_end(value.digest)
        try:
            return select(found[0], OutputRef("", value.path), "the stored value")
        except EvpipeError:
            return value


def _is_element(value: Artifact) -> bool:
    path = value.path
    return value.is_list and bool(path) and isinstance(path[0], int) and value.size_bytes <= LIST_BYTES_MAX


def _elements(arguments: Mapping[str, Any]) -> Iterator[Artifact]:
    for name, value in arguments.items():
        for one in value if name == POSITIONAL and isinstance(value, list) else (value,):
            if isinstance(one, Artifact) and _is_element(one):
                yield one
