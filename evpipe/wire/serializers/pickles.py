"""Values as pickles (kind "pickle"), for what has no other serializer.

Reading one runs whatever its bytes name. This module does not decide whether one may be written or read: that takes
the consent of both sides, `@step(pickle=True)` and `evpipe worker --allow-pickle`, and is asked for before anybody
comes here. For the same reason `serializer_of` never chooses it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import named
from evpipe.wire.serializers.borders import reading, refusing
from evpipe.wire.serializers.registry import Serializer, Stored

#: Read by every Python that evpipe runs on; a later default would shut out the earlier ones.
_PROTOCOL: Final = 5


class PickleSerializer:
    """Writes and reads whatever pickle can; equal values may have other bytes."""

    name = "pickle"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        with refusing(f"{named(type(value))} as a pickle"):
            pickle.dump(value, file, protocol=_PROTOCOL)
        return {}

    def read(self, stored: Stored) -> Any:
        with reading(self.name, "the packages that it was made with"), stored.open() as file:
            return pickle.load(file)  # noqa: S301 - who calls this has the consent of both sides


SERIALIZERS: Final[dict[str, Serializer]] = {"pickle": PickleSerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give None: nothing is pickled unless it is asked for."""
    return None
