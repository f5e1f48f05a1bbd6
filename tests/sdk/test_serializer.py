"""Which `@serializer` counts, and which are refused when they are written."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pytest

from evpipe import UsageError, serializer
from evpipe.wire.serializers import registry


class Grid:
    pass


class Mesh:
    pass


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    by_class, by_name = dict(registry._by_class), dict(registry._by_name)
    yield
    registry._by_class.clear()
    registry._by_class.update(by_class)
    registry._by_name.clear()
    registry._by_name.update(by_name)


class Form:
    @staticmethod
    def write(value: Any, file: BinaryIO) -> None: ...

    @staticmethod
    def read(file: BinaryIO) -> Any: ...


class OtherForm(Form):
    pass


@pytest.mark.parametrize(
    "cls",
    [int, str, bool, type(None), float, bytes, list, dict, tuple, set, bytearray, complex, datetime.date, np.float64],
)
def test_one_that_would_never_be_used_is_refused(cls: type) -> None:
    with pytest.raises(UsageError, match=r"would never be used: evpipe writes every .* by itself; write one for a"):
        serializer(cls, name="mine")(Form)


def test_one_counts_before_that_of_the_library() -> None:
    serializer(pd.DataFrame, name="my-frames")(Form)
    found = registry.serializer_of(pd.DataFrame())
    assert found is not None
    assert found.name == "my-frames"


def test_one_of_a_subclass_of_a_plain_type_is_used() -> None:
    class Celsius(float):
        pass

    serializer(Celsius, name="celsius")(Form)
    assert registry.is_registered(Celsius)


@pytest.mark.parametrize(
    ("cls", "name"), [(Grid, "grid"), (Grid, "other"), (Mesh, "grid")], ids=["both", "the class", "the name"]
)
def test_a_second_one_is_refused_and_the_first_stays(cls: type, name: str) -> None:
    serializer(Grid, name="grid")(Form)
    sentence = (
        f"{__name__}.OtherForm cannot be the serializer {name!r} of {cls.__qualname__}: "
        f"{__name__}.Form is the serializer 'grid' of Grid"
    )
    with pytest.raises(UsageError, match=re.escape(sentence)):
        serializer(cls, name=name)(OtherForm)
    assert registry._by_class[Grid] is registry._by_name["grid"]
    assert not registry.is_registered(Mesh)


def test_one_class_for_two() -> None:
    """It may have two names, and not one."""
    serializer(Grid, name="grid")(Form)
    with pytest.raises(UsageError, match=r"Form cannot be the serializer 'grid' of Mesh: .*Form is the serializer"):
        serializer(Mesh, name="grid")(Form)
    serializer(Mesh, name="mesh")(Form)
    assert registry._by_class[Grid].name == "grid"


CELL = """
class Cell: pass

@serializer(Cell, name={name!r}, version={version})
class CellForm:
    @staticmethod
    def write(value, file): pass
    @staticmethod
    def read(file): pass
"""


def test_a_cell_that_is_run_again_replaces_what_it_made() -> None:
    """With another version or name, too: that is what cells are changed for."""
    namespace: dict[str, Any] = {"__name__": "__main__", "serializer": serializer}
    exec(CELL.format(name="cell", version=1), namespace)
    first = namespace["Cell"]
    exec(CELL.format(name="cell", version=2), namespace)
    assert registry.is_registered(namespace["Cell"])
    assert not registry.is_registered(first)
    assert registry.serializer_named("cell", 2)
    exec(CELL.format(name="renamed", version=2), namespace)
    assert "cell" not in registry._by_name
