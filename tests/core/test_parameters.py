"""What a parameter of each type takes, and the sentence for what it does not."""

from __future__ import annotations

import copy
import pathlib
import pickle
from typing import Any

import pytest

from evpipe.core.artifact import Artifact
from evpipe.core.parameters import REQUIRED, Parameter, ParameterType, check_parameters
from evpipe.errors import UsageError

INT, FLOAT, BOOL, STR, NONE = (ParameterType(kind) for kind in ("int", "float", "bool", "str", "none"))
INTS = ParameterType("list", (INT,))
TUPLE = ParameterType("tuple", (INT,))
TABLE = ParameterType("dict", (INTS,))
MAYBE = ParameterType("union", (INT, NONE))


def literal(*values: Any) -> ParameterType:
    return ParameterType("literal", values=values)


def checked(type_: ParameterType, value: Any) -> Any:
    return check_parameters((Parameter(name="x", type=type_),), {"x": value}, of="p")["x"]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (ParameterType(), object),
        (INT, 3),
        (FLOAT, 3.5),
        (BOOL, True),
        (STR, ""),
        (ParameterType("bytes"), b""),
        (NONE, None),
        (INTS, []),
        (INTS, [1, 2]),
        (ParameterType("list"), ["any", 1]),
        (TABLE, {"a": [1], "b": []}),
        (MAYBE, None),
        (MAYBE, 3),
        (literal(1, "a"), "a"),
        (literal(True), True),
        (literal(1.0), 1.0),
        (ParameterType("list", (MAYBE,)), [1, None]),
    ],
    ids=str,
)
def test_a_fitting_value_is_taken_as_it_is(type_: ParameterType, value: Any) -> None:
    assert checked(type_, value) is value


def test_a_list_becomes_the_tuple_that_was_declared() -> None:
    """JSON has no tuples."""
    assert checked(TUPLE, [1, 2]) == (1, 2)
    assert checked(TUPLE, (1, 2)) == (1, 2)


@pytest.mark.parametrize(
    ("type_", "value", "taken"),
    [
        (FLOAT, 3, 3.0),
        (ParameterType("list", (FLOAT,)), [1, 2.5], [1.0, 2.5]),
        (ParameterType("dict", (FLOAT,)), {"a": 1}, {"a": 1.0}),
        (ParameterType("tuple", (FLOAT,)), [1], (1.0,)),
        (ParameterType("list", (TUPLE,)), [[1]], [(1,)]),
        (ParameterType("union", (FLOAT, NONE)), 3, 3.0),
        (ParameterType("union", (FLOAT, INT)), 3, 3),
        (ParameterType("union", (ParameterType("list", (FLOAT,)), ParameterType("list", (INT,)))), [3], [3]),
    ],
    ids=str,
)
def test_what_json_writes_alike_becomes_what_was_declared(type_: ParameterType, value: Any, taken: Any) -> None:
    """The steps, and the cache, see the same value however it was written."""
    assert repr(checked(type_, value)) == repr(taken)


def test_an_int_that_is_no_float_is_refused() -> None:
    with pytest.raises(UsageError, match=r"parameter 'x' of pipeline 'p' must be float, not 1000.* \(int\)"):
        checked(FLOAT, 10**400)
    with pytest.raises(UsageError, match=r"must be float, not a number of too many digits \(int\)"):
        checked(FLOAT, 10**5000)


def test_a_path_is_one_of_a_file_or_a_folder() -> None:
    """Where it is given it is a path; where the run is, its content is an artifact."""
    path = ParameterType("path")
    for value in (pathlib.Path("a"), Artifact(kind="file", digest="a" * 64, size_bytes=1)):
        assert checked(path, value) is value
    for wrong in ("a", b"a", Artifact(kind="numpy", digest="a" * 64, size_bytes=1)):
        with pytest.raises(UsageError, match="parameter 'x' of pipeline 'p' must be path, not "):
            checked(path, wrong)


@pytest.mark.parametrize(
    ("type_", "value", "sentence"),
    [
        (INT, "3", "parameter 'x' of pipeline 'p' must be int, not '3' (str)"),
        (INT, True, "parameter 'x' of pipeline 'p' must be int, not True (bool)"),
        (INT, 1.0, "parameter 'x' of pipeline 'p' must be int, not 1.0 (float)"),
        (INT, None, "parameter 'x' of pipeline 'p' must be int, not None (NoneType)"),
        (FLOAT, True, "parameter 'x' of pipeline 'p' must be float, not True (bool)"),
        (BOOL, 1, "parameter 'x' of pipeline 'p' must be bool, not 1 (int)"),
        (STR, b"a", "parameter 'x' of pipeline 'p' must be str, not b'a' (bytes)"),
        (INTS, (1,), "parameter 'x' of pipeline 'p' must be list[int], not (1,) (tuple)"),
        (INTS, [1, "2"], "parameter 'x' of pipeline 'p'[1] must be int, not '2' (str)"),
        (TUPLE, {1}, "parameter 'x' of pipeline 'p' must be tuple[int, ...], not {1} (set)"),
        (TABLE, {"a": [1, True]}, "parameter 'x' of pipeline 'p'['a'][1] must be int, not True (bool)"),
        (TABLE, {1: []}, "parameter 'x' of pipeline 'p' must be dict[str, list[int]], not {1: []} (dict)"),
        (MAYBE, "a", "parameter 'x' of pipeline 'p' must be int | none, not 'a' (str)"),
        (MAYBE, False, "parameter 'x' of pipeline 'p' must be int | none, not False (bool)"),
        (literal(1, 2), 3, "parameter 'x' of pipeline 'p' must be 1 or 2, not 3 (int)"),
        (literal(1), True, "parameter 'x' of pipeline 'p' must be 1, not True (bool)"),
        (literal(1), 1.0, "parameter 'x' of pipeline 'p' must be 1, not 1.0 (float)"),
        (literal(True), 1, "parameter 'x' of pipeline 'p' must be True, not 1 (int)"),
        (literal(1.0), 1, "parameter 'x' of pipeline 'p' must be 1.0, not 1 (int)"),
        (literal("a"), b"a", "parameter 'x' of pipeline 'p' must be 'a', not b'a' (bytes)"),
        (STR, [0] * 99, f"parameter 'x' of pipeline 'p' must be str, not {('[' + '0, ' * 19)[:57]}… (list)"),
    ],
)
def test_another_value_is_refused_with_its_place_and_type(type_: ParameterType, value: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked(type_, value)
    assert str(caught.value) == sentence


ROWS, DEPTH = Parameter(name="rows", type=INT), Parameter(name="depth", type=INT, default=3)


@pytest.mark.parametrize(
    ("parameters", "given", "sentence"),
    [
        ((ROWS,), {}, "pipeline 'p' needs the parameter 'rows' (int)"),
        (
            (ROWS, DEPTH),
            {"row": 1},
            "pipeline 'p' has no parameter 'row'; did you mean 'rows'? (it has rows, depth)",
        ),
        ((ROWS,), {"zzz": 1}, "pipeline 'p' has no parameter 'zzz' (it has rows)"),
        ((), {"rows": 1}, "pipeline 'p' has no parameter 'rows' (it has none)"),
        (
            (Parameter(name="n", type=INT, default="ten"),),
            {},
            "parameter 'n' of pipeline 'p' must be int, not 'ten' (str)",
        ),
    ],
)
def test_unknown_and_missing_parameters_are_named(
    parameters: tuple[Parameter, ...], given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_parameters(parameters, given, of="p")
    assert str(caught.value) == sentence


def test_the_values_come_in_the_order_of_the_parameters_with_defaults_filled_in() -> None:
    assert list(check_parameters((DEPTH, ROWS), {"rows": 5}, of="p").items()) == [("depth", 3), ("rows", 5)]


def test_none_is_a_default_like_any_other() -> None:
    assert check_parameters((Parameter(name="x", type=MAYBE, default=None),), {}, of="p") == {"x": None}


def test_an_unknown_kind_of_type_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        ParameterType("datetime")
    kinds = "bool, int, float, str, bytes, none, path, any, list, tuple, dict, union, literal"
    assert str(caught.value) == f"a parameter's type must be one of {kinds}, not 'datetime'"


def test_a_copied_parameter_is_still_required() -> None:
    required = Parameter(name="x")
    for copied in (copy.deepcopy(required), pickle.loads(pickle.dumps(required))):
        assert copied == required
        assert copied.default is REQUIRED
