"""What a step returned, in the shape that it declared."""

from __future__ import annotations

from typing import Any

from evpipe.errors import UsageError


class OutputMismatch(UsageError):
    """A step returned something else than the outputs that it declares."""


def shape_output(value: Any, outputs: tuple[str, ...] | None, step: str) -> Any:
    """Give the value as it travels: with named outputs a dict of those keys, or a tuple with those fields.

    Raises:
        OutputMismatch: if it has not the declared outputs; says what it has.
    """
    if outputs is None:
        return value
    declared = ", ".join(outputs)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        if tuple(value._fields) == outputs:
            return value
        raise OutputMismatch(f"step {step!r} has the outputs {declared}, but returned {', '.join(value._fields)}")
    if isinstance(value, dict):
        missing = [name for name in outputs if name not in value]
        extra = [str(name) for name in value if name not in outputs]
        if missing or extra:
            found = ", ".join(map(str, value)) or "an empty dict"
            raise OutputMismatch(f"step {step!r} has the outputs {declared}, but returned {found}")
        return value
    if isinstance(value, tuple):
        if len(value) == len(outputs):
            return dict(zip(outputs, value, strict=True))
        raise OutputMismatch(f"step {step!r} has the outputs {declared}, but returned a tuple of {len(value)}")
    raise OutputMismatch(f"step {step!r} has the outputs {declared}, but returned a {type(value).__name__}")
