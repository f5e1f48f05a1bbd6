"""What all modules of serializers have in common."""

from __future__ import annotations

import collections
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from evpipe.wire.serializers.registry import (
    KINDS,
    LIBRARIES,
    RESERVED,
    ArtifactUnreadable,
    serializer_named,
    serializer_of,
)
from tests.serializers.helpers import StoredBytes


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_has_its_serializer(kind: str) -> None:
    """Under its own name, with a module that says what it writes."""
    module = import_module(KINDS[kind])
    serializer = serializer_named(kind, 1)
    assert serializer is module.SERIALIZERS[kind]
    assert serializer.name == kind
    assert kind in RESERVED
    assert set(LIBRARIES.values()) >= set(KINDS.values()) - {KINDS["pickle"]}


def test_values_of_no_library_have_no_serializer() -> None:
    """Also those whose classes are in a module that the registry knows."""
    for value in (collections.OrderedDict(a=1), collections.deque(), collections.Counter("a"), object()):
        assert serializer_of(value) is None


def test_modules_import_no_library() -> None:
    """A worker that meets no frame does not wait for pandas."""
    code = (
        "import sys\nfrom importlib import import_module\n"
        "from evpipe.wire.serializers.registry import KINDS\n"
        "for module in KINDS.values(): import_module(module)\n"
        "known = {'numpy', 'scipy', 'pandas', 'polars', 'pyarrow', 'PIL', 'sklearn', 'skops', 'torch', 'lightgbm'}\n"
        "print(sorted(known & set(sys.modules)))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert child.stdout == "[]\n"


@pytest.mark.parametrize(
    ("kind", "missing", "install"),
    [
        ("numpy", "numpy", "numpy"),
        ("scipy-sparse", "scipy.sparse", "scipy and numpy"),
        ("pandas", "pandas", "pandas and pyarrow"),
        ("pandas", "pyarrow", "pandas and pyarrow"),
        ("polars", "polars", "polars and pyarrow"),
        ("arrow", "pyarrow", "pyarrow"),
        ("image", "PIL.Image", "pillow"),
        ("sklearn", "skops.io", "scikit-learn and skops"),
        ("torch", "torch", "torch and safetensors"),
        ("xgboost", "xgboost", "xgboost"),
        ("lightgbm", "lightgbm", "lightgbm"),
        ("catboost", "catboost", "catboost"),
    ],
)
def test_a_missing_library_is_named(kind: str, missing: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads an artifact without it is told what to install."""
    monkeypatch.setitem(sys.modules, missing, None)
    meta = {"form": "frame", "class": "csr_array", "shape": [1, 1], "mode": "L"}
    with pytest.raises(ArtifactUnreadable, match=f"install {install}"):
        serializer_named(kind, 1).read(StoredBytes(b"", {} if kind == "numpy" else meta))
