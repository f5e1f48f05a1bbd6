"""Boosters of XGBoost, LightGBM and CatBoost."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.boosters import SERIALIZERS, serializer_of
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.values import pack
from tests.serializers.helpers import check_corrupted, fingerprint, fingerprints_elsewhere, read, round_trip, written

_X = np.random.default_rng(0).random((60, 3))
_CLASSES = np.array(["no", "yes"])[(_X[:, 0] > 0.5).astype(int)]


def _lightgbm() -> list[Any]:
    lgb: Any = pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    alone = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(_X, _X[:, 1]), num_boost_round=3)
    more = {"n_estimators": 4, "verbose": -1, "n_jobs": 1}
    watched = lgb.LGBMRegressor(**more).fit(
        _X, _X[:, 1], eval_X=_X, eval_y=_X[:, 1], callbacks=[lgb.early_stopping(2, verbose=False)]
    )
    ranks = lgb.LGBMRanker(**more).fit(_X, (_X[:, 1] * 3).astype(int), group=[30, 30])
    return [
        alone,
        lgb.LGBMClassifier(**more).fit(_X, _CLASSES),
        lgb.LGBMClassifier(**more).fit(_X, (_X[:, 0] * 3).astype(int)),
        watched,
        ranks,
        lgb.LGBMRegressor(num_leaves=7),
    ]


def _xgboost() -> list[Any]:
    xgb: Any = pytest.importorskip("xgboost", reason="xgboost is not installed")
    alone = xgb.train({"nthread": 1}, xgb.DMatrix(_X, _X[:, 1]), num_boost_round=3)
    more = {"n_estimators": 4, "n_jobs": 1, "max_depth": 2}
    watched = xgb.XGBRegressor(early_stopping_rounds=2, **more).fit(
        _X, _X[:, 1], eval_set=[(_X, _X[:, 1])], verbose=False
    )
    return [
        alone,
        xgb.XGBClassifier(**more).fit(_X, (_X[:, 0] * 3).astype(int)),
        watched,
        xgb.XGBRFRegressor(**more).fit(_X, _X[:, 1]),
        xgb.XGBRanker(**more).fit(_X, (_X[:, 1] * 3).astype(int), qid=np.repeat([0, 1], 30)),
        xgb.XGBRegressor(max_depth=3),
    ]


def _catboost() -> list[Any]:
    cat: Any = pytest.importorskip("catboost", reason="catboost is not installed")
    more = {"iterations": 3, "verbose": False, "allow_writing_files": False, "thread_count": 1}
    return [
        cat.CatBoost(more).fit(_X, _X[:, 1]),
        cat.CatBoostClassifier(**more).fit(_X, _CLASSES),
        cat.CatBoostRegressor(**more).fit(_X, _X[:, 1]),
        cat.CatBoostRegressor(depth=3),
    ]


_MADE = {"lightgbm": _lightgbm, "xgboost": _xgboost, "catboost": _catboost}


def _fitted(model: Any) -> bool:
    return bool(model.__sklearn_is_fitted__()) if hasattr(model, "__sklearn_is_fitted__") else True


def _predicted(model: Any) -> Any:
    if type(model).__module__ == "xgboost.core":
        return model.predict(pytest.importorskip("xgboost").DMatrix(_X))
    if type(model).__module__.startswith("catboost"):
        return model.predict(_X) if model.is_fitted() else None
    return model.predict(_X) if _fitted(model) else None


def _models(name: str) -> Iterator[tuple[Any, Any]]:
    for model in _MADE[name]():
        if name == "catboost":
            _, data, meta = written(model)
            yield model, read(name, data, meta)
        else:
            yield model, round_trip(model)


@pytest.mark.parametrize("name", list(_MADE))
def test_models_predict_as_before(name: str) -> None:
    """Those that are a booster, and those that follow scikit-learn, with their parameters and what they learnt."""
    for model, again in _models(name):
        assert type(again) is type(model)
        np.testing.assert_array_equal(_predicted(again), _predicted(model))
        if hasattr(model, "get_params"):
            assert repr(again.get_params()) == repr(model.get_params())
        for attribute in (
            "classes_",
            "best_iteration_",
            "best_score_",
            "best_iteration",
            "n_features_in_",
            "evals_result_",
        ):
            if name == "catboost" or not _fitted(model):
                continue
            expected = getattr(model, attribute, None)
            if expected is not None:
                assert repr(getattr(again, attribute)) == repr(expected)


def _elsewhere() -> list[Any]:
    return _lightgbm()


def test_equal_models_have_equal_bytes() -> None:
    """In other processes, too."""
    here = [fingerprint(model) for model in _elsewhere()]
    assert fingerprints_elsewhere(__name__, "_elsewhere") == here


def test_what_is_no_plain_model_is_refused() -> None:
    """An objective that is a function, and a class of somebody's own."""
    lgb: Any = pytest.importorskip("lightgbm", reason="lightgbm is not installed")

    class Own(lgb.LGBMRegressor):  # type: ignore[misc]
        pass

    with pytest.raises(Refused, match="none of lightgbm's own"):
        written(Own())
    with pytest.raises(Refused, match="objective'") as caught:
        written(lgb.LGBMRegressor(objective=lambda a, b: (a, b)))
    assert "@serializer" in caught.value.hint
    assert serializer_of(lgb.Dataset(_X)) is None


class _Bad:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was run",))


def _stream(head: Any, models: bytes = b"") -> bytes:
    packed = pack(head, "it")
    return len(packed).to_bytes(8, "big") + packed + models


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        pickle.dumps(_Bad()),
        _stream(None),
        _stream(["LGBMClassifier", [], [[2**40, b""]]]),
        _stream(["LGBMClassifier", [], [[-1, b""], [1, b""]]]),
        _stream(["LGBMClassifier", [["a", ["Booster", 0, None]]], [[1, b"x" * 32]]], b"x"),
        _stream(["os.system", [], []]),
        _stream(["LGBMClassifier", [["a", ["system", "exit 1"]]], []]),
        _stream(["LGBMClassifier", [["a", ["Booster", 3, None]]], []]),
        _stream(["Booster", ["Booster", 0, None], []]),
        _stream(["LGBMClassifier", 3, []]),
    ],
)
def test_bad_bytes_are_unreadable(data: bytes) -> None:
    """Nothing is unpickled, and no other class is made."""
    pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    with pytest.raises(ArtifactUnreadable):
        read("lightgbm", data, {})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "catboost", None)
    with pytest.raises(ArtifactUnreadable, match="install catboost"):
        read("catboost", b"", {})
    assert set(SERIALIZERS) == set(_MADE)


@pytest.mark.parametrize("name", list(_MADE))
def test_corrupted_bytes_are_unreadable_or_a_value(name: str) -> None:
    """No other exception comes out, whatever is broken, and the process lives."""
    assert check_corrupted(_MADE[name]()[1], tries=100) > 60
