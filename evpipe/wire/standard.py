"""Values of the standard library's types: [name, …] of plain values, one form for each value.

A reader builds the value, writes it again and refuses the bytes if they are not the same: so no parser's leniency
(`Decimal(" 1_0 ")`, `24:00`, a fraction that is not reduced) becomes part of the protocol.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import re
import sys
import uuid
from collections.abc import Callable
from typing import Any, Final

from evpipe.errors import RemoteProtocolError
from evpipe.wire.extensions import Refused

#: Bits of a fraction's parts: whether it is reduced takes time with the square of them.
FRACTION_BITS_MAX: Final = 32_768
_MICROSECOND: Final = datetime.timedelta(microseconds=1)
_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}")
#: Of dates and times only the values themselves matter here: which zone they are in travels beside them.
_ZONES_KEPT: Final = 1_000

#: Zones met in this process, by key.
_zones: dict[str, datetime.tzinfo] = {}
_available: frozenset[str] | None = None


class ZoneTwin(datetime.tzinfo):
    """A time zone whose data this machine does not have: it has a name and no offset."""

    def __init__(self, key: str = "") -> None:
        self.key = key

    def utcoffset(self, dt: datetime.datetime | None, /) -> None:
        return None

    def dst(self, dt: datetime.datetime | None, /) -> None:
        return None

    def tzname(self, dt: datetime.datetime | None, /) -> str:
        return self.key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZoneTwin) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"ZoneTwin({self.key!r})"

    def __reduce__(self) -> Any:
        return ZoneTwin, (self.key,)


def standard_form(value: Any) -> list[Any] | None:
    """Give the value as it travels; None if its type is none of these.

    Raises:
        Refused: if this value of the type has no encoding.
    """
    write = _WRITE.get(type(value))
    return None if write is None else write(value)


def standard_value(name: str, parts: list[Any]) -> Any:
    """Give the value of a form.

    Raises:
        RemoteProtocolError: for an unknown name.
        ValueError, TypeError, ArithmeticError: if the parts are not those of such a value.
    """
    read = _READ.get(name)
    if read is None:
        raise RemoteProtocolError(f"a value of the unknown type {name[:40]!r}")
    return read(*parts)


def _zone_form(zone: datetime.tzinfo | None) -> list[Any]:
    if zone is None:
        return []
    if type(zone) is datetime.timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # not in the stubs
        return [offset // _MICROSECOND, *name]
    key = getattr(zone, "key", None)
    if type(zone) is ZoneTwin or (type(zone) is _zone_info() and isinstance(key, str) and _ZONE_KEY.fullmatch(key)):
        assert isinstance(key, str), "of both"
        if len(_zones) < _ZONES_KEPT and type(zone) is not ZoneTwin:
            _zones[key] = zone
        return [key]
    kind = f"{type(zone).__module__}.{type(zone).__qualname__}"
    raise Refused(
        f"a time in the zone {str(key or zone)[:40]!r} of {kind}", "use zoneinfo.ZoneInfo or datetime.timezone"
    )


def _zone_info() -> Any:
    # Whoever has a value in such a zone has loaded it.
    return getattr(sys.modules.get("zoneinfo"), "ZoneInfo", None)


def _zone(parts: tuple[Any, ...]) -> datetime.tzinfo | None:
    match parts:
        case ():
            return None
        case (str() as key,):
            return _zone_of(key)
        case (int() as offset,):
            return datetime.timezone(offset * _MICROSECOND)
        case (int() as offset, str() as name):
            return datetime.timezone(offset * _MICROSECOND, name)
    raise ValueError("no time zone")


def _zone_of(key: str) -> datetime.tzinfo:
    global _available
    if key in _zones:
        return _zones[key]
    if len(key) > 128 or not _ZONE_KEY.fullmatch(key):
        raise ValueError("no name of a time zone")
    import zoneinfo

    if _available is None:
        # Once: the search for a zone that is not there takes 0.1 ms, and bytes may name many.
        _available = frozenset(zoneinfo.available_timezones())
    if key not in _available:
        return ZoneTwin(key)
    found = zoneinfo.ZoneInfo(key)
    if len(_zones) < _ZONES_KEPT:
        _zones[key] = found
    return found


def _datetime_form(value: datetime.datetime) -> list[Any]:
    text = value.replace(tzinfo=None, fold=0).isoformat()
    return ["datetime", text, value.fold, *_zone_form(value.tzinfo)]


def _datetime(text: str, fold: int, *zone: Any) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(fold=fold, tzinfo=_zone(zone))


def _time_form(value: datetime.time) -> list[Any]:
    return ["time", value.replace(tzinfo=None, fold=0).isoformat(), value.fold, *_zone_form(value.tzinfo)]


def _time(text: str, fold: int, *zone: Any) -> datetime.time:
    return datetime.time.fromisoformat(text).replace(fold=fold, tzinfo=_zone(zone))


def _decimal_form(value: decimal.Decimal) -> list[Any]:
    # A context may ask for small letters.
    return ["decimal", str(value).replace("e", "E")]


def _decimal(text: str) -> decimal.Decimal:
    if not isinstance(text, str):
        raise TypeError("no text")
    return decimal.Decimal(text)


def _fraction_form(value: fractions.Fraction) -> list[Any]:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > FRACTION_BITS_MAX:
        raise Refused(f"a Fraction of more than {FRACTION_BITS_MAX:,} bits")
    return ["fraction", value.numerator, value.denominator]


def _fraction(numerator: int, denominator: int) -> fractions.Fraction:
    if max(numerator.bit_length(), denominator.bit_length()) > FRACTION_BITS_MAX:
        raise ValueError("a fraction that is too large")
    return fractions.Fraction(numerator, denominator)


_WRITE: Final[dict[type, Callable[[Any], list[Any]]]] = {
    complex: lambda value: ["complex", value.real, value.imag],
    range: lambda value: ["range", value.start, value.stop, value.step],
    datetime.datetime: _datetime_form,
    datetime.date: lambda value: ["date", value.isoformat()],
    datetime.time: _time_form,
    datetime.timedelta: lambda value: ["timedelta", value.days, value.seconds, value.microseconds],
    decimal.Decimal: _decimal_form,
    fractions.Fraction: _fraction_form,
    uuid.UUID: lambda value: ["uuid", value.bytes],
}
STANDARD_TYPES: Final = tuple(_WRITE)
_READ: Final[dict[str, Callable[..., Any]]] = {
    "complex": complex,
    "range": range,
    "datetime": _datetime,
    "date": datetime.date.fromisoformat,
    "time": _time,
    "timedelta": datetime.timedelta,
    "decimal": _decimal,
    "fraction": _fraction,
    "uuid": lambda data: uuid.UUID(bytes=data),
}
