"""Values as pickles."""

from __future__ import annotations

import fractions
import io
import threading

import pytest

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.pickles import SERIALIZERS, serializer_of
from evpipe.wire.serializers.registry import ArtifactUnreadable
from tests.serializers.helpers import StoredBytes, read

_PICKLES = SERIALIZERS["pickle"]


def test_values_come_back() -> None:
    """What pickle can, in the protocol that every Python here reads."""
    file = io.BytesIO()
    assert _PICKLES.write({"a": fractions.Fraction(1, 3)}, file) == {}
    assert file.getvalue()[:2] == b"\x80\x05"
    assert _PICKLES.read(StoredBytes(file.getvalue(), {})) == {"a": fractions.Fraction(1, 3)}


def test_nothing_is_pickled_unasked() -> None:
    """It is in the registry for who asks for it by name."""
    assert serializer_of(object()) is None


def test_what_pickle_cannot_is_refused() -> None:
    """With what pickle says."""
    with pytest.raises(Refused, match="cannot pickle"):
        _PICKLES.write(threading.Lock(), io.BytesIO())


@pytest.mark.parametrize("data", [b"", b"\x80\x05", b"nonsense", b"\x80\x05cno_such_module\nname\n."])
def test_bad_bytes_are_unreadable(data: bytes) -> None:
    """Also if a package is missing."""
    with pytest.raises(ArtifactUnreadable):
        read("pickle", data, {})
