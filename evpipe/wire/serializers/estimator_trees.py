"""The indices in what was read of an estimator: scikit-learn and scipy follow them without a look.

An archive of trusted types may hold arrays that lead outside themselves, and whoever predicts with them reads memory
that is not theirs, or the process dies. So trees, trees of neighbours and sparse matrices are looked for in the object
and checked. That an estimator fits together in every other way is not checked: it computes nonsense, as any may.

Source: scikit-learn's pull request 34558, skops.io.exceptions.UNTRUSTED_TYPE_REASONS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

from evpipe.wire.serializers.registry import ArtifactUnreadable

#: What has nothing of the archive in it: an object may hold a module or a function, which lead to all the rest.
_LEAVES: Final = (
    str, bytes, int, float, complex, type(None), type, ModuleType, FunctionType, BuiltinFunctionType,
)  # fmt: skip


def check_trees(made: Any) -> None:
    """Look for trees in an object that was read.

    Raises:
        ArtifactUnreadable: if one leads outside itself.
    """
    for part in _parts(made):
        name = type(part).__name__
        module = type(part).__module__
        if module == "sklearn.tree._tree":
            _check_tree(part)
        elif name == "TreePredictor":
            _check_predictor(part)
        elif module in {"sklearn.neighbors._kd_tree", "sklearn.neighbors._ball_tree"}:
            _check_neighbours(part)
        elif module.startswith("scipy.sparse") and getattr(part, "format", "") in {"csr", "csc", "bsr"}:
            part.check_format(full_check=True)
        if type(getattr(part, "tree_", None)).__name__ == "Tree":
            _require(part.tree_.n_features == part.n_features_in_, "a tree of other features than its estimator's")


def _parts(made: Any) -> Iterator[Any]:
    """Give an object and all that is in it, once."""
    np = import_module("numpy")
    seen: dict[int, Any] = {}
    left = [made]
    while left:
        part = left.pop()
        if id(part) in seen or isinstance(part, _LEAVES):
            continue
        # Kept, so that no other gets its id.
        seen[id(part)] = part
        yield part
        children: Iterable[Any] = ()
        if isinstance(part, dict):
            children = [*part.keys(), *part.values()]
        elif isinstance(part, (list, tuple, set, frozenset)):
            children = part
        elif isinstance(part, np.ndarray):
            children = part.ravel().tolist() if part.dtype.hasobject else ()
        elif hasattr(part, "func") and hasattr(part, "keywords"):
            children = [part.args, part.keywords]
        left.extend(children)
        left.extend(getattr(part, "__dict__", {}).values())


def _check_tree(tree: Any) -> None:
    if type(tree).__name__ != "Tree":
        return
    inner = tree.children_left != -1
    for children in (tree.children_left, tree.children_right):
        _check_children(children[inner], inner, tree.node_count)
    features = tree.feature[inner]
    _require(bool(((features >= 0) & (features < tree.n_features)).all()), "a tree that asks for features it has not")
    _require(len(tree.value) == tree.node_count, "a tree with other values than nodes")


def _check_predictor(predictor: Any) -> None:
    nodes = predictor.nodes
    inner = nodes["is_leaf"] == 0
    for side in ("left", "right"):
        _check_children(nodes[side][inner], inner, len(nodes))
    categorical = nodes["bitset_idx"][inner & (nodes["is_categorical"] != 0)]
    for bitsets in (predictor.raw_left_cat_bitsets, predictor.binned_left_cat_bitsets):
        _require(bitsets.ndim == 2 and bitsets.shape[1] == 8, "a tree whose categories are none")
        _require(bool((categorical < len(bitsets)).all()), "a tree that asks for categories it has not")
    _require(bool((nodes["feature_idx"][inner] >= 0).all()), "a tree that asks for features it has not")


def _check_children(children: Any, inner: Any, length: int) -> None:
    """Check that every child is in the tree, and after its parent, so that a walk ends."""
    _require(bool(((children > inner.nonzero()[0]) & (children < length)).all()), "a tree that leads outside itself")


def _check_neighbours(tree: Any) -> None:
    if not hasattr(tree, "get_arrays"):
        return
    data, indices, nodes, bounds = tree.get_arrays()
    length, number = len(data), len(nodes)
    _require(
        len(indices) == length and bool(((indices >= 0) & (indices < length)).all()), "neighbours that are not there"
    )
    starts, ends = nodes["idx_start"], nodes["idx_end"]
    _require(bool(((starts >= 0) & (starts <= ends) & (ends <= length)).all()), "neighbours that are not there")
    inner = nodes["is_leaf"] == 0
    _require(bool((2 * inner.nonzero()[0] + 2 < number).all()), "a tree of neighbours that leads outside itself")
    _require(bounds.shape[1] == number, "a tree of neighbours with other bounds than nodes")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ArtifactUnreadable(problem)
