"""Frames of polars."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import pytest

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.registry import ArtifactUnreadable
from tests.serializers.helpers import check_corrupted, fingerprint, fingerprints_elsewhere, read, round_trip, written

pl: Any = pytest.importorskip("polars", reason="polars is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def _frames() -> list[Any]:
    day = dt.date(2024, 2, 29)
    frame = pl.DataFrame(
        {
            "int": pl.Series([1, None, 3], dtype=pl.Int8),
            "float": [1.5, None, -0.0],
            "text": ["a text of more than twelve bytes", None, ""],
            "bytes": [b"\0", None, b""],
            "bool": [True, None, False],
            "day": [day, None, day],
            "time": [dt.time(12, 30), None, dt.time(0)],
            "moment": pl.Series([dt.datetime(2024, 1, 1), None, None], dtype=pl.Datetime("ms", "Europe/Berlin")),  # noqa: DTZ001
            "duration": [dt.timedelta(1), None, None],
            "decimal": [decimal.Decimal("1.50"), None, None],
            "list": [[1, None], None, []],
            "array": pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.Int16, 2)),
            "struct": [{"a": 1, "b": ["x"]}, {"a": None, "b": None}, {"a": 2, "b": []}],
            "enum": pl.Series(["b", None, "a"], dtype=pl.Enum(["b", "a", "unused"])),
            "category": pl.Series(["b", None, "a"], dtype=pl.Categorical),
            "null": [None, None, None],
        }
    )
    return [frame, frame.head(0), pl.DataFrame(), *frame.get_columns(), frame[::2], pl.Series("n", [1, 2])]


@pytest.mark.parametrize("number", range(len(_frames())))
def test_frames_and_series_come_back_as_they_were(number: int) -> None:
    """Dtypes, names and nulls."""
    frame = _frames()[number]
    again = round_trip(frame)
    assert type(again) is type(frame)
    assert again.equals(frame)
    if isinstance(frame, pl.Series):
        assert (again.name, again.dtype) == (frame.name, frame.dtype)
    else:
        assert again.schema == frame.schema


def test_equal_frames_have_equal_bytes() -> None:
    """How it was put together, and the process, make no difference."""
    frame = pl.DataFrame({"a": [1, 2, 3]})
    assert fingerprint(pl.concat([frame.head(1), frame.tail(2)], rechunk=False)) == fingerprint(frame)
    assert fingerprints_elsewhere(__name__, "_frames") == [fingerprint(frame) for frame in _frames()]


def test_what_would_not_come_back_is_refused() -> None:
    """Objects, and what has not run."""
    with pytest.raises(Refused, match="has not run") as caught:
        written(pl.LazyFrame({"a": [1]}))
    assert "collect" in caught.value.hint
    with pytest.raises(Refused):
        written(pl.Series([object()], dtype=pl.Object))


def test_bad_bytes_are_unreadable() -> None:
    """No other exception comes out, whatever is broken."""
    frame = _frames()[0]
    _, data, _ = written(frame)
    for meta in ({}, {"form": "series"}, {"form": "lazy"}):
        with pytest.raises(ArtifactUnreadable):
            read("polars", data, meta)
    assert check_corrupted(frame, tries=150) > 50
