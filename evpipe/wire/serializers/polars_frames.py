"""Frames and series of polars (kind "polars"): through Arrow, see `arrow_streams.py`.

polars hands its columns to Arrow as they are. A dtype that does not come back from there, such as objects, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import Refused, named
from evpipe.wire.serializers.arrow_streams import read_table, write_table
from evpipe.wire.serializers.borders import meta_value, reading, refusing
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, Stored


class PolarsSerializer:
    """Writes and reads frames and series."""

    name = "polars"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        with refusing(named(type(value)), "cast what Arrow has no type for"):
            polars = import_module("polars")
            if isinstance(value, polars.LazyFrame):
                raise Refused(f"{named(type(value))}, which has not run", "pass value.collect()")
            form = {polars.DataFrame: "frame", polars.Series: "series"}.get(type(value))
            if form is None:
                raise Refused(named(type(value)), "pass it as a plain frame of polars, or write an @serializer")
            frame = value if form == "frame" else value.to_frame()
            # Its newest types of text are none that Arrow can take apart everywhere.
            table = frame.to_arrow(compat_level=polars.CompatLevel.oldest())
            again = polars.from_arrow(table.slice(0, 0))
            for name, dtype in frame.schema.items():
                if again.schema[name] != dtype:
                    hint = "cast it to another dtype"
                    raise Refused(f"the column {name!r:.100} of the dtype {dtype}, which comes back as another", hint)
            if frame.height and not frame.width:
                raise Refused("a frame of rows without columns", "pass the number of rows")
            write_table(table, file)
            return {"form": form}

    def read(self, stored: Stored) -> Any:
        with reading(self.name, "polars", "pyarrow"):
            polars = import_module("polars")
            form = meta_value(stored.meta, "form", str)
            with stored.open() as file:
                frame = polars.from_arrow(read_table(file, stored.size_bytes))
            if form == "series" and frame.width == 1:
                return frame.to_series()
            if form != "frame":
                raise ArtifactUnreadable(f"there is no {form!r:.100} in this frame of {frame.width} columns")
            return frame


SERIALIZERS: Final[dict[str, Serializer]] = {"polars": PolarsSerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value of polars; None if it is neither a frame nor a series."""
    polars = import_module("polars")
    classes = (polars.DataFrame, polars.LazyFrame, polars.Series)
    return SERIALIZERS["polars"] if isinstance(value, classes) else None
