"""`@serializer`: how values of a user's class travel between steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from evpipe.errors import UsageError

if TYPE_CHECKING:
    from evpipe.wire.serializers.registry import Stored

C = TypeVar("C", bound=type)


def serializer(cls: type, *, name: str, version: int = 1) -> Callable[[C], C]:
    """Give values of a class a way to travel: decorates a class with `write` and `read`.

        @serializer(Grid, name="grid", version=1)
        class GridSerializer:
            @staticmethod
            def write(grid: Grid, file: BinaryIO) -> None: ...

            @staticmethod
            def read(file: BinaryIO) -> Grid: ...

    Equal values must be written as equal bytes, or the cache takes them for different ones. Where a value is read, the
    module that has the decorator must be imported: it is best where the class is.

    Args:
        cls: values of it, and of its subclasses, are written by this. It may be of a library that needs no
            `@serializer`, like pandas.DataFrame: this one counts then. Plain values (int, str, list, dict, dates, …)
            never come to a serializer.
        name: names the form on the wire: letters, digits, '_' and '-'.
        version: of the form; what was written in another version is refused.

    Raises:
        UsageError: if there is no such class, name or version, `write` or `read` is missing, `cls` is the class of
            plain values, or the class or the name has another serializer; the same one again, as when a cell of a
            notebook is run again, replaces itself.
    """

    def decorate(found: C) -> C:
        write, read = getattr(found, "write", None), getattr(found, "read", None)
        if not callable(write) or not callable(read):
            raise UsageError(f"the serializer {name!r} needs write(value, file) and read(file) as static methods")
        # Here, so that a file with a `@step` loads nothing of the wire.
        from evpipe.wire.serializers.registry import register_serializer

        register_serializer(cls, _Users(name, version, write, read, found))
        return found

    return decorate


class _Users:
    """A user's serializer; see `registry.Serializer`."""

    def __init__(
        self,
        name: str,
        version: int,
        write: Callable[[Any, BinaryIO], None],
        read: Callable[[BinaryIO], Any],
        written_as: type,
    ) -> None:
        self.name = name
        #: The class that the user decorated.
        self.written_as = written_as
        self.version = version
        self._write = write
        self._read = read

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        self._write(value, file)
        return {}

    def read(self, stored: Stored) -> Any:
        with stored.open() as file:
            return self._read(file)
