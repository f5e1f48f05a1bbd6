"""Hypothesis strategies for values that have an encoding, and a comparison that sees types."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import strategies as st

from evpipe.core.bindings import OutputRef, ParameterRef


class Fit(NamedTuple):
    model: Any
    score: Any


class Empty(NamedTuple):
    pass


LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([-(2**63), 2**64 - 1, 0, -1, 127, 128, 2**32]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    st.just(Empty()),
)

REFERENCES: st.SearchStrategy[Any] = st.one_of(
    st.builds(ParameterRef, st.sampled_from(["rows", "depth"])),
    st.builds(OutputRef, st.sampled_from(["a", "b"]), st.lists(st.text(max_size=2) | st.integers(-3, 3)).map(tuple)),
)


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of all types around leaves."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=4),
            st.builds(Fit, inner, inner),
        ),
        max_leaves=12,
    )


VALUES = trees(LEAVES)


def typed(value: Any) -> Any:
    """A value with the type of every node beside it, so that 1, 1.0 and True differ and NaN equals itself."""
    if isinstance(value, dict):
        return dict, [(key, typed(child)) for key, child in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [typed(child) for child in value]
    return type(value), repr(value)
