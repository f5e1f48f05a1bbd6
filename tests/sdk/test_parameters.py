"""Types of parameters from annotations, and values from text."""

# ruff: noqa: ISC004 - a sentence in a table

import enum
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, Union

import pytest

from evpipe import UsageError, pipeline
from evpipe.core.parameters import Parameter
from evpipe.sdk.parameter_types import parameter_type
from evpipe.sdk.parameters import parse_parameter
from tests.sdk import sample


class Unknown:
    pass


class Color(enum.Enum):
    RED = "red"


UserId = NewType("UserId", int)

TYPES: list[tuple[Any, str]] = [
    (str, "str"),
    (int, "int"),
    (float, "float"),
    (bool, "bool"),
    (bytes, "bytes"),
    (Path, "path"),
    ("Path | None", "path | none"),
    (None, "none"),
    ("int", "int"),
    ("'int'", "int"),
    ("no_such_name", "any"),
    ("list[pd.DataFrame]", "list[any]"),
    ("no_such_name | None", "any | none"),
    ("not an annotation", "any"),
    (Any, "any"),
    (object, "any"),
    (Unknown, "any"),
    (list, "list"),
    (list[int], "list[int]"),
    (list["int"], "list[int]"),
    (typing.List[str], "list[str]"),  # noqa: UP006 - as found in users' code
    (tuple[int, ...], "tuple[int, ...]"),
    (tuple[int, str], "tuple[int | str, ...]"),
    (tuple[int, int], "tuple[int, ...]"),
    (dict[str, list[float]], "dict[str, list[float]]"),
    (Mapping[str, int], "dict[str, int]"),
    (Sequence[int], "list[int] | tuple[int, ...]"),
    (sample.Fit, "dict"),
    (int | None, "int | none"),
    (Optional[str], "str | none"),  # noqa: UP045 - as found in users' code
    (Union[int, list[int]], "int | list[int]"),  # noqa: UP007 - as found in users' code
    (Literal["a", 1], "'a' or 1"),
    (Annotated[int, "rows"], "int"),
    (UserId, "int"),
]


@pytest.mark.parametrize(("annotation", "shown"), TYPES, ids=repr)
def test_an_annotation_becomes_a_type_that_travels(annotation: Any, shown: str) -> None:
    """What is known is checked; what is not known takes anything."""
    assert str(parameter_type(annotation, globals(), "parameter 'x'")) == shown


WRONG_TYPES: list[tuple[Any, str]] = [
    (
        Color,
        "parameter 'x' cannot be the enum Color: values of an enum are not kept; use Literal['a', 'b'] of plain values",
    ),
    (
        Literal[Color.RED],
        "parameter 'x' cannot be a Literal of enum members: values of an enum are not kept; "
        "use Literal['a', 'b'] of plain values",
    ),
    (dict[int, str], "parameter 'x' cannot be dict[int, str]: the keys of a dict must be str"),
]


@pytest.mark.parametrize(("annotation", "sentence"), WRONG_TYPES, ids=repr)
def test_a_type_whose_values_cannot_travel_is_refused(annotation: Any, sentence: str) -> None:
    """Better at the first build than at the submit of a value."""
    with pytest.raises(UsageError) as caught:
        parameter_type(annotation, globals(), "parameter 'x'")
    assert str(caught.value) == sentence


def test_a_default_of_the_wrong_type_is_refused_at_the_first_look() -> None:
    """It would be refused in every run that uses it."""

    @pipeline
    def wrong(rows: int = "5") -> int:  # type: ignore[assignment]  # the case under test
        return rows

    with pytest.raises(UsageError) as caught:
        wrong.build({"rows": 5})
    assert str(caught.value) == ("the default of parameter 'rows' of pipeline 'wrong' must be int, not '5' (str)")


TEXTS: list[tuple[Any, str, Any]] = [
    (str, "5", "5"),
    (str, "", ""),
    (int, "5", 5),
    (int, "-12", -12),
    (float, "5", 5.0),
    (float | int, "5", 5),
    (list[float], "[1]", [1.0]),
    (Path, "a/b.csv", Path("a/b.csv")),
    (Path | None, "a", Path("a")),
    (list[Path], '["a"]', [Path("a")]),
    (dict[str, Path | int], '{"a": "b", "c": 1}', {"a": Path("b"), "c": 1}),
    (float, "1e3", 1000.0),
    (bool, "true", True),
    (bool, "false", False),
    (bytes, "é", b"\xc3\xa9"),
    (None, "null", None),
    (int | None, "null", None),
    (int | str, "5", 5),
    (int | str, "five", "five"),
    (str | int, "5", "5"),
    (list[int], "[1, 2]", [1, 2]),
    (tuple[int, ...], "[1, 2]", (1, 2)),
    (list[tuple[int, ...]], "[[1], [2, 3]]", [(1,), (2, 3)]),
    (dict[str, tuple[int, ...]], '{"a": [1]}', {"a": (1,)}),
    (tuple[int, ...] | None, "[1]", (1,)),
    (Literal["a", 1], "a", "a"),
    (Literal["a", 1], "1", 1),
    (Any, "[1]", [1]),
    (Any, "plain text", "plain text"),
]


@pytest.mark.parametrize(("annotation", "text", "value"), TEXTS, ids=repr)
def test_text_becomes_a_value_of_the_type(annotation: Any, text: str, value: Any) -> None:
    """A command line gives what a typed call would give, to the type."""
    kind = parameter_type(annotation, globals(), "x")
    found = parse_parameter(Parameter(name="x", type=kind), text)
    assert (found, type(found)) == (value, type(value))


WRONG_TEXTS: list[tuple[Any, str, str]] = [
    (int, "abc", "parameter 'x' must be int: 'abc' is not (write a whole number, as in 5)"),
    (int, "1.5", "parameter 'x' must be int: '1.5' is not (write a whole number, as in 5)"),
    (int, "true", "parameter 'x' must be int: 'true' is not (write a whole number, as in 5)"),
    (float, "x", "parameter 'x' must be float: 'x' is not (write a number, as in 0.5)"),
    (bool, "True", "parameter 'x' must be bool: 'True' is not (write true or false)"),
    (Path, "", "parameter 'x' must be path: '' is not (write the path of a file or a folder)"),
    (bool, "1", "parameter 'x' must be bool: '1' is not (write true or false)"),
    (list[int], "1,2", "parameter 'x' must be list[int]: '1,2' is not (write JSON, as in [1, 2])"),
    (list[int], '["a"]', "parameter 'x' must be list[int]: '[\"a\"]' is not (write JSON, as in [1, 2])"),
    (dict[str, int], "a=1", "parameter 'x' must be dict[str, int]: 'a=1' is not (write JSON, as in {\"a\": 1})"),
    (Literal["a", "b"], "c", "parameter 'x' must be 'a' or 'b': 'c' is not (write one of them)"),
    (int | None, "none", "parameter 'x' must be int | none: 'none' is not (write one of these as JSON)"),
    (int, "[" * 100_000, f"parameter 'x' must be int: '{'[' * 57}…' is not (write a whole number, as in 5)"),
]


@pytest.mark.parametrize(("annotation", "text", "sentence"), WRONG_TEXTS, ids=lambda value: repr(value)[:30])
def test_text_that_is_no_value_of_the_type_is_refused(annotation: Any, text: str, sentence: str) -> None:
    """The sentence names the parameter, the text, the type and how its values are written."""
    kind = parameter_type(annotation, globals(), "x")
    with pytest.raises(UsageError) as caught:
        parse_parameter(Parameter(name="x", type=kind), text)
    assert str(caught.value) == sentence
