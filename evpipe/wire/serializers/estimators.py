"""Estimators of scikit-learn (kind "sklearn"), by skops, which makes objects of listed types and runs no code.

What is listed is in `estimator_types.py`, how the archive is written and gone through in `skops_archives.py`. An
estimator of a user's own class has to have an `@serializer`. It is read by the version of scikit-learn that is here,
which warns if another wrote it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from importlib import import_module
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import Refused, named
from evpipe.wire.serializers.borders import reading, refusing
from evpipe.wire.serializers.estimator_trees import check_trees
from evpipe.wire.serializers.estimator_types import TRUSTED
from evpipe.wire.serializers.registry import Serializer, Stored
from evpipe.wire.serializers.skops_archives import check_archive, write_alike

_TRUSTED: Final = sorted(TRUSTED)
_OWN: Final = "write an @serializer for it, or for what in it is your own"


class EstimatorSerializer:
    """Writes and reads estimators."""

    name = "sklearn"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        cls = type(value)
        if not cls.__module__.startswith("sklearn."):
            raise Refused(f"{named(cls)}, an estimator that is none of scikit-learn's own", _OWN)
        with refusing(f"{named(cls)}", _OWN):
            skops = import_module("skops.io")
            data = skops.dumps(value, compression=zipfile.ZIP_STORED)
            unknown = sorted(set(skops.get_untrusted_types(data=data)) - TRUSTED)
            if unknown:
                raise Refused(f"{named(cls)} with {', '.join(unknown)} in it, which is not among what is read", _OWN)
            write_alike(data, file)
        return {}

    def read(self, stored: Stored) -> Any:
        with reading(self.name, "scikit-learn", "skops"):
            skops = import_module("skops.io")
            with stored.open() as file:
                check_archive(file, stored.size_bytes)
                file.seek(0)
                made = skops.load(file, trusted=_TRUSTED)
            check_trees(made)
            return made


SERIALIZERS: Final[dict[str, Serializer]] = {"sklearn": EstimatorSerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value of scikit-learn; None if it is nothing that has parameters."""
    if isinstance(value, import_module("sklearn.base").BaseEstimator):
        return SERIALIZERS["sklearn"]
    cls = type(value)
    return SERIALIZERS["sklearn"] if f"{cls.__module__}.{cls.__qualname__}" in TRUSTED else None
