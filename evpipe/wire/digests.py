"""The digest of a value: what a fingerprint and a look-up by content go by.

Equal values of equal types have equal digests, in every process and on every Python, whatever the order of a set or a
dict; values that differ in anything else, the type of any node included, have different ones. NaN equals NaN.
"""

from __future__ import annotations

import hashlib
from typing import Any

from evpipe.errors import EncodingError
from evpipe.wire.limits import ITEMS_MAX
from evpipe.wire.lowering import lowered
from evpipe.wire.values import pack_unchecked

#: Digests of another form of this encoding must not be taken for these.
_FORM = b"evpipe value 1\0"


def value_digest(value: Any, what: str = "the value", *, items_max: int = ITEMS_MAX) -> str:
    """Give the SHA-256 of the value's canonical form, in hex.

    Args:
        what: names the value in messages.
        items_max: lists, maps and entries that it may have.

    Raises:
        EncodingError, LimitExceeded: as `values.pack`.

    """
    try:
        data = pack_unchecked(lowered(value, what, canonical=True, items_max=items_max))
    except (TypeError, ValueError, OverflowError, UnicodeError) as error:
        lowered(value, what, checked=True, items_max=items_max)
        raise EncodingError(f"{what} cannot be encoded: {error}") from error
    return hashlib.sha256(_FORM + data).hexdigest()
