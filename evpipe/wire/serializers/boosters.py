"""Boosters of XGBoost, LightGBM and CatBoost (kinds by their names): each in its library's own format of models.

Around the models is a small stream of ours: what the object is beside them. The classes that follow scikit-learn keep
their parameters and what they learnt as attributes; those are plain values, arrays and boosters, and everything else,
such as an objective that is a function, is refused. A model of CatBoost says when it was trained, and is not written
in the same bytes after it was read: the fingerprints of two of them differ though they predict alike.

    length of the head (8 bytes, big-endian) · the head (an encoded value) · the models, one after another
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import Refused, named
from evpipe.wire.limits import LARGE_ITEMS_MAX
from evpipe.wire.serializers.borders import read_exactly, reading, refusing
from evpipe.wire.serializers.numpy_arrays import read_array, write_array
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, Stored
from evpipe.wire.values import pack, unpack

_LENGTH: Final = struct.Struct(">Q")
#: A head has the parameters, the classes, and the scores of each round.
_HEAD_BYTES_MAX: Final = 256 * 1024 * 1024
_DEPTH_MAX: Final = 50
_LEAVES: Final = (bool, int, float, str, bytes, type(None))
_OWN: Final = "write an @serializer for it"


class BoosterSerializer:
    """Writes and reads the boosters of one library."""

    version = 1

    def __init__(self, name: str, boosters: tuple[str, ...], estimators: tuple[str, ...]) -> None:
        self.name = name
        #: Classes that are a model, and those that have models among their attributes.
        self._boosters = boosters
        self._estimators = estimators

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        name = type(value).__name__
        with refusing(named(type(value)), _OWN):
            library = import_module(self.name)
            if name not in self._boosters + self._estimators or type(value) is not getattr(library, name):
                raise Refused(f"{named(type(value))}, which is none of {self.name}'s own models", _OWN)
            models: list[bytes] = []
            if name in self._boosters:
                tree = self._lowered(value, models, "")
            else:
                tree = [[key, self._lowered(each, models, key)] for key, each in sorted(vars(value).items())]
            sizes = [[len(model), hashlib.sha256(model).digest()] for model in models]
            head = pack([name, tree, sizes], "what it has learnt", items_max=LARGE_ITEMS_MAX)
            file.write(_LENGTH.pack(len(head)))
            file.write(head)
            file.writelines(models)
        return {}

    def read(self, stored: Stored) -> Any:
        with reading(self.name, self.name):
            library = import_module(self.name)
            with stored.open() as file:
                name, tree, models = _read(file, stored.size_bytes)
            if name in self._boosters:
                return self._raised(tree, models)
            if name not in self._estimators:
                raise ArtifactUnreadable(f"there is no model {name!r:.100} in {self.name}")
            cls = getattr(library, name)
            # As scikit-learn has it: nothing happens in __init__ but that attributes are set.
            made = cls.__new__(cls)
            made.__dict__.update({key: self._raised(each, models) for key, each in tree})
            return made

    def _lowered(self, value: Any, models: list[bytes], where: str, depth: int = 0) -> Any:
        """Give a value as leaves and as pairs of a tag and what it takes."""
        np = import_module("numpy")
        cls = type(value)
        if depth > _DEPTH_MAX:
            raise Refused(f"a model whose attribute {where!r} is nested deeper than {_DEPTH_MAX} levels", _OWN)
        if cls in _LEAVES or isinstance(value, np.generic):
            return value
        if cls in {list, tuple}:
            return [cls.__name__, [self._lowered(each, models, where, depth + 1) for each in value]]
        if cls in {dict, OrderedDict, defaultdict}:
            pairs = [[self._lowered(each, models, where, depth + 1) for each in pair] for pair in value.items()]
            factory = getattr(value, "default_factory", None)
            if factory not in {None, dict, list, OrderedDict}:
                raise Refused(f"a model whose attribute {where!r} makes what is missing by {factory!r}", _OWN)
            return [cls.__name__, pairs, factory and factory.__name__]
        if cls is np.ndarray:
            array = io.BytesIO()
            write_array(value, array)
            return ["ndarray", array.getvalue()]
        if cls.__module__.startswith("sklearn.") and cls.__name__ == "LabelEncoder":
            return ["LabelEncoder", self._lowered(vars(value), models, where, depth + 1)]
        if (self.name, cls.__name__) in _MODELS and cls is getattr(import_module(self.name), cls.__name__):
            model, more = _MODELS[self.name, cls.__name__][0](value)
            models.append(model)
            return [cls.__name__, len(models) - 1, self._lowered(more, models, where, depth + 1)]
        raise Refused(f"a model whose attribute {where!r} is {named(cls)}", _OWN)

    def _raised(self, tree: Any, models: list[bytes]) -> Any:
        if type(tree) is not list:
            return tree
        tag, content = tree[:2]
        if tag in {"list", "tuple"}:
            values = [self._raised(each, models) for each in content]
            return values if tag == "list" else tuple(values)
        if tag in {"dict", "OrderedDict", "defaultdict"}:
            pairs = [(self._raised(key, models), self._raised(each, models)) for key, each in content]
            if tag == "defaultdict":
                return defaultdict({"dict": dict, "list": list, "OrderedDict": OrderedDict}.get(tree[2]), pairs)
            return dict(pairs) if tag == "dict" else OrderedDict(pairs)
        if tag == "ndarray":
            return read_array(io.BytesIO(content), len(content))
        if tag == "LabelEncoder":
            encoder = import_module("sklearn.preprocessing").LabelEncoder()
            encoder.__dict__.update(self._raised(content, models))
            return encoder
        if (self.name, tag) not in _MODELS:
            raise ArtifactUnreadable(f"there is no {tag!r:.100} in a model of {self.name}")
        return _MODELS[self.name, tag][1](tag, models[content], self._raised(tree[2], models))


def _read(file: BinaryIO, size_bytes: int) -> tuple[Any, Any, list[bytes]]:
    length = _LENGTH.unpack(read_exactly(file, _LENGTH.size))[0]
    left = size_bytes - _LENGTH.size - length
    if left < 0 or length > _HEAD_BYTES_MAX:
        raise ArtifactUnreadable(f"a head of {length:,} bytes")
    name, tree, sizes = unpack(read_exactly(file, length), items_max=LARGE_ITEMS_MAX)
    if sum(size for size, _ in sizes) != left or any(size < 0 for size, _ in sizes):
        raise ArtifactUnreadable(f"models of other sizes than the {left:,} bytes that are there")
    models = [read_exactly(file, size) for size, _ in sizes]
    # The libraries' readers are made for files that are whole.
    if any(hashlib.sha256(model).digest() != digest for model, (_, digest) in zip(models, sizes, strict=True)):
        raise ArtifactUnreadable("a model that is damaged")
    return name, tree, models


# ---- models: what gives their bytes and what else they have, and what makes one of those


def _xgboost_bytes(booster: Any) -> tuple[bytes, dict[str, Any]]:
    return bytes(booster.save_raw("ubj")), {}


def _xgboost_booster(name: str, model: bytes, more: dict[str, Any]) -> Any:
    booster = import_module("xgboost").Booster()
    booster.load_model(bytearray(model))
    return booster


def _lightgbm_bytes(booster: Any) -> tuple[bytes, dict[str, Any]]:
    more = {"best_iteration": booster.best_iteration, "best_score": booster.best_score}
    return booster.model_to_string(num_iteration=-1).encode(), more


def _lightgbm_booster(name: str, model: bytes, more: dict[str, Any]) -> Any:
    booster = import_module("lightgbm").Booster(model_str=model.decode())
    booster.best_iteration, booster.best_score = more["best_iteration"], more["best_score"]
    return booster


def _catboost_bytes(model: Any) -> tuple[bytes, dict[str, Any]]:
    return model._serialize_model() if model.is_fitted() else b"", model.get_params()


def _catboost_model(name: str, model: bytes, more: dict[str, Any]) -> Any:
    cls = getattr(import_module("catboost"), name)
    made = cls(more) if name == "CatBoost" else cls(**more)
    if model:
        made.load_model(blob=model)
        # Those that it was made with, not all that the model names.
        made._init_params = more
    return made


_CATBOOST: Final = ("CatBoost", "CatBoostClassifier", "CatBoostRanker", "CatBoostRegressor")
_MODELS: Final[
    dict[
        tuple[str, str],
        tuple[Callable[[Any], tuple[bytes, dict[str, Any]]], Callable[[str, bytes, dict[str, Any]], Any]],
    ]
] = {
    ("xgboost", "Booster"): (_xgboost_bytes, _xgboost_booster),
    ("lightgbm", "Booster"): (_lightgbm_bytes, _lightgbm_booster),
    **{("catboost", name): (_catboost_bytes, _catboost_model) for name in _CATBOOST},
}

SERIALIZERS: Final[dict[str, Serializer]] = {
    "xgboost": BoosterSerializer(
        "xgboost",
        ("Booster",),
        ("XGBClassifier", "XGBModel", "XGBRFClassifier", "XGBRFRegressor", "XGBRanker", "XGBRegressor"),
    ),
    "lightgbm": BoosterSerializer(
        "lightgbm", ("Booster",), ("LGBMClassifier", "LGBMModel", "LGBMRanker", "LGBMRegressor")
    ),
    "catboost": BoosterSerializer("catboost", _CATBOOST, ()),
}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a value of one of the libraries; None if it is no model."""
    for cls in type(value).__mro__:
        name = cls.__module__.partition(".")[0]
        if name in SERIALIZERS and cls.__name__ in {"Booster", "XGBModel", "LGBMModel", "CatBoost"}:
            return SERIALIZERS[name]
    return None
