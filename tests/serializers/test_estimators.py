"""Estimators of scikit-learn."""

from __future__ import annotations

import io
import json
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.estimator_types import TRUSTED
from evpipe.wire.serializers.estimators import serializer_of
from evpipe.wire.serializers.registry import ArtifactUnreadable
from tests.serializers.helpers import check_corrupted, fingerprint, fingerprints_elsewhere, read, round_trip, written

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
skops: Any = pytest.importorskip("skops.io", reason="skops is not installed")

from sklearn import (  # noqa: E402
    base,
    calibration,
    cluster,
    compose,
    decomposition,
    ensemble,
    feature_extraction,
    feature_selection,
    gaussian_process,
    impute,
    linear_model,
    metrics,
    model_selection,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore::FutureWarning")

_DICE = np.random.default_rng(0)
_X = _DICE.random((60, 4))
_CLASSES = np.array(["no", "yes"])[(_X[:, 0] + _X[:, 1] > 1).astype(int)]
_NUMBERS = _X[:, 0] * 3 + _X[:, 1]
_TEXTS = [" ".join(np.array(["tree", "leaf", "root", "bark"])[(row * 4).astype(int)]) for row in _X]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in the last bit, and several threads for 60 rows wait for each other."""
    with import_module("threadpoolctl").threadpool_limits(1):
        yield


def _mixed() -> Any:
    numbers = pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler())
    columns = compose.ColumnTransformer(
        [("n", numbers, [0, 1]), ("c", preprocessing.OneHotEncoder(handle_unknown="ignore"), [2])],
        remainder="passthrough",
    )
    return pipeline.Pipeline([("columns", columns), ("model", linear_model.LogisticRegression())])


def _classifiers() -> list[Any]:
    return [
        linear_model.LogisticRegression(),
        linear_model.SGDClassifier(random_state=0),
        tree.DecisionTreeClassifier(random_state=0),
        ensemble.RandomForestClassifier(5, random_state=0),
        ensemble.ExtraTreesClassifier(5, random_state=0),
        ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
        ensemble.HistGradientBoostingClassifier(max_iter=5, random_state=0, categorical_features=None),
        ensemble.AdaBoostClassifier(n_estimators=3, random_state=0),
        ensemble.BaggingClassifier(n_estimators=3, max_features=2, random_state=0),
        ensemble.VotingClassifier(
            [("a", linear_model.LogisticRegression()), ("b", tree.DecisionTreeClassifier(random_state=0))]
        ),
        svm.SVC(probability=False),
        svm.LinearSVC(),
        neighbors.KNeighborsClassifier(),
        neighbors.KNeighborsClassifier(algorithm="ball_tree", metric="manhattan"),
        neural_network.MLPClassifier((4,), max_iter=5, random_state=0),
        gaussian_process.GaussianProcessClassifier(
            gaussian_process.kernels.RBF() + gaussian_process.kernels.WhiteKernel(), random_state=0
        ),
        calibration.CalibratedClassifierCV(linear_model.LogisticRegression(), cv=2),
        model_selection.GridSearchCV(tree.DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2]}, cv=2),
        pipeline.make_pipeline(preprocessing.FunctionTransformer(np.log1p), linear_model.LogisticRegression()),
        pipeline.make_pipeline(preprocessing.FunctionTransformer(partial(np.clip, a_min=0, a_max=1)), svm.SVC()),
        pipeline.make_pipeline(feature_selection.SelectKBest(feature_selection.chi2, k=2), svm.SVC()),
        _mixed(),
    ]


def _others() -> list[Any]:
    vectors = feature_extraction.text.TfidfVectorizer(stop_words=["root", "the", "of", "a"])
    odd = tree.DecisionTreeRegressor(random_state=np.random.RandomState(3))
    return [
        ensemble.RandomForestRegressor(5, random_state=0).fit(_X, _NUMBERS),
        ensemble.HistGradientBoostingRegressor(max_iter=3, random_state=0).fit(_X, _NUMBERS),
        linear_model.LassoCV(cv=2).fit(_X, _NUMBERS),
        linear_model.TweedieRegressor().fit(_X, _NUMBERS),
        preprocessing.SplineTransformer().fit(_X),
        preprocessing.KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf").fit(_X),
        cluster.KMeans(2, random_state=0, n_init=1).fit(_X),
        cluster.DBSCAN().fit(_X),
        decomposition.PCA(2).fit(_X),
        ensemble.IsolationForest(n_estimators=5, random_state=0).fit(_X),
        neighbors.KernelDensity().fit(_X),
        vectors.fit(_TEXTS),
        feature_extraction.text.CountVectorizer(vocabulary={"tree", "leaf"}).fit(_TEXTS),
        feature_extraction.DictVectorizer().fit([{"a": 1, "b": 2}]),
        odd.fit(_X, _NUMBERS),
        model_selection.GridSearchCV(
            linear_model.Ridge(), {"alpha": [1, 2]}, scoring="r2", cv=model_selection.KFold(3)
        ).fit(_X, _NUMBERS),
        linear_model.LogisticRegression(C=3),
        preprocessing.LabelEncoder().fit(["b", "a"]),
        gaussian_process.kernels.Matern() * 2,
        model_selection.StratifiedKFold(4),
    ]


def _all() -> list[Any]:
    models = [model.fit(_X, _CLASSES) for model in _classifiers()] + _others()
    # A search notes how long it took.
    return [model for model in models if not isinstance(model, model_selection.GridSearchCV)]


@pytest.mark.parametrize("number", range(len(_classifiers())), ids=[type(model).__name__ for model in _classifiers()])
def test_classifiers_predict_as_before(number: int) -> None:
    """The parameters and the predictions are the same, to the last bit."""
    model = _classifiers()[number].fit(_X, _CLASSES)
    again = round_trip(model)
    assert type(again) is type(model)
    assert repr(again) == repr(model)
    assert again.predict(_X).tolist() == model.predict(_X).tolist()
    if hasattr(model, "predict_proba"):
        np.testing.assert_array_equal(again.predict_proba(_X), model.predict_proba(_X))
    assert base.clone(again).fit(_X, _CLASSES).predict(_X).tolist() == model.predict(_X).tolist()


def test_other_estimators_come_back() -> None:
    """Regressors, transformers, vectorisers of text, searches, kernels, and those that were not fitted."""
    for model in _others():
        again = round_trip(model)
        assert type(again) is type(model)
        if not isinstance(model, feature_extraction.text.CountVectorizer):
            # A set is shown in the order of its hashes.
            assert repr(again).partition(" at 0x")[0] == repr(model).partition(" at 0x")[0]
        rows = _TEXTS if "text" in type(model).__module__ else _X
        for method in ("predict", "transform", "score_samples"):
            if (
                hasattr(model, method)
                and type(model).__name__ not in {"LabelEncoder", "DictVectorizer"}
                and hasattr(model, "n_features_in_")
            ):
                ours, theirs = getattr(again, method)(rows), getattr(model, method)(rows)
                np.testing.assert_array_equal(getattr(ours, "data", ours), getattr(theirs, "data", theirs))


def test_equal_estimators_have_equal_bytes() -> None:
    """Addresses, the order of sets, what is in memory and the time make no difference."""
    assert fingerprints_elsewhere(__name__, "_all") == [fingerprint(model) for model in _all()]


def test_texts_that_are_one_object_make_no_difference() -> None:
    """Whether two equal texts or numbers are one object depends on the interpreter."""
    one = preprocessing.FunctionTransformer(kw_args={"a": "a text", "b": "a text", "c": 1234567, "d": 1234567})
    other = preprocessing.FunctionTransformer(kw_args=json.loads(json.dumps(one.kw_args)))
    assert fingerprint(one) == fingerprint(other)
    shared, apart = [1], [[1], [1]]
    again = round_trip(preprocessing.FunctionTransformer(kw_args={"a": shared, "b": shared})).kw_args
    assert again["a"] is again["b"]
    assert fingerprint(preprocessing.FunctionTransformer(kw_args={"a": apart[0], "b": apart[1]}))


def test_skops_reads_what_is_written() -> None:
    """It is an archive like any other to skops itself."""
    _, data, _ = written(_classifiers()[3].fit(_X, _CLASSES))
    again = skops.loads(data, trusted=sorted(TRUSTED))
    assert len(again.estimators_) == 5
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_every_estimator_is_written_or_refused() -> None:
    """All that scikit-learn has, fitted where that is possible, come back; those that do not are known."""
    all_estimators = import_module("sklearn.utils").all_estimators
    instances = import_module("sklearn.utils._test_common.instance_generator")._construct_instances
    refused = {}
    for name, cls in all_estimators():
        if name == "FrozenEstimator":
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = next(iter(instances(cls)))
            for y in ((_X[:20, 0] > 0.5).astype(int), np.c_[_X[:20, 0], _X[:20, 1]], None):
                try:
                    model.fit(_X[:20], y)
                    break
                except Exception:  # noqa: BLE001 - some want other data: those are written as they are
                    continue
        try:
            assert type(round_trip(model)) is cls
        except Refused as problem:
            refused[name] = str(problem)
    assert refused.keys() == {"Birch"}


class _Own(base.BaseEstimator):  # type: ignore[misc]
    def fit(self, X: Any, y: Any = None) -> Any:
        return self


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (_Own(), "_Own"),
        (pipeline.make_pipeline(_Own()), "_Own"),
        (preprocessing.FunctionTransformer(lambda rows: rows), "lambda"),
        (preprocessing.FunctionTransformer(subprocess.run), "subprocess.run"),
        (preprocessing.FunctionTransformer(np.load), "numpy.load"),
        (preprocessing.FunctionTransformer(_Own().fit), "_Own"),
        (cluster.Birch(), "Birch"),
        (preprocessing.FunctionTransformer(kw_args={"a": object()}), "builtins.object"),
        (preprocessing.FunctionTransformer(kw_args={"a": np.zeros(2, np.longdouble)}), "float128"),
    ],
)
def test_what_is_not_trusted_is_refused(model: Any, problem: str) -> None:
    """It says what in it that is, and what to write for it."""
    with pytest.raises(Refused) as caught:
        written(model)
    assert problem in caught.value.problem
    assert "@serializer" in caught.value.hint or "float64" in caught.value.hint
    assert serializer_of(metrics.accuracy_score) is None


def _archive(
    schema: dict[str, Any], files: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("schema.json", json.dumps({"protocol": 2} | schema))
        for name, data in (files or {}).items():
            archive.writestr(name, data)
    return file.getvalue()


def _node(loader: str, name: str, **more: Any) -> dict[str, Any]:
    module, _, cls = name.rpartition(".")
    return {"__loader__": loader, "__module__": module, "__class__": cls, **more}


_TEXT = _node("JsonNode", "builtins.str", content='"exit 1"', is_json=True)
_ARGS = _node("TupleNode", "builtins.tuple", content=[_TEXT])
_NONE = _node("JsonNode", "builtins.str", content="null", is_json=True)


@pytest.mark.parametrize(
    "schema",
    [
        _node("FunctionNode", "os.system"),
        _node("TypeNode", "os.system"),
        _node("ObjectNode", "os.system"),
        _node("ConstructorFromReduceNode", "os.system", content=_ARGS),
        _node("ConstructorFromReduceNode", "sklearn.utils._bunch.Bunch", content=_ARGS),
        _node("LossNode", "os.system", content=_NONE, __reduce__={"args": _ARGS}),
        _node("LossNode", "numpy.mean", content=_NONE, __reduce__={"args": _ARGS}),
        _node("TreeNode", "os.system", content=_NONE, __reduce__={"args": _ARGS}),
        _node("OperatorFuncNode", "operator.methodcaller", attrs=_ARGS),
        _node("MethodNode", "sklearn.utils._bunch.Bunch", content={"func": "pop", "obj": _ARGS}),
        _node(
            "PartialNode",
            "functools.partial",
            content=dict.fromkeys(("args", "kwds", "namespace"), _NONE) | {"func": _node("FunctionNode", "os.system")},
        ),
        _node("DictNode", "os.system", content={}, key_types=_node("ListNode", "builtins.list", content=[])),
        _node(
            "DictNode",
            "builtins.dict",
            content={"exit 1": _NONE},
            key_types=_node("ListNode", "builtins.list", content=[_node("FunctionNode", "os.system")]),
        ),
        _node("ListNode", "builtins.exec", content=[_TEXT]),
        _node("NdArrayNode", "os.system", type="numpy", file="0.npy"),
        _node("CachedNode", "builtins.list"),
        _node("NoSuchNode", "builtins.list"),
        _node("FunctionNode", "os.system", protocol=0, content={"module_path": "os", "function": "system"}),
        _node("FunctionNode", "os.system", protocol=True),
        _node("ObjectNode", "no_such_module.Thing"),
        {"__loader__": "ListNode"},
        {},
    ],
)
def test_what_names_other_code_is_unreadable(schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is named is called, or imported."""
    monkeypatch.setattr("os.system", lambda _: pytest.fail("it was run"))
    with pytest.raises(ArtifactUnreadable):
        read("sklearn", _archive(schema, {"0.npy": b""}), {})


def test_bombs_are_unreadable() -> None:
    """Compressed entries, arrays that are not there, and one file for many objects."""
    scaler = preprocessing.StandardScaler().fit(_X)
    with pytest.raises(ArtifactUnreadable, match="compressed"):
        read("sklearn", skops.dumps(scaler, compression=zipfile.ZIP_DEFLATED), {})
    array = _node("NdArrayNode", "numpy.ndarray", type="numpy", file="0.npy")
    huge = (
        b"\x93NUMPY\x01\x00\x40\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}".ljust(74)
        + b"\n"
    )
    with pytest.raises(ArtifactUnreadable):
        read("sklearn", _archive(array, {"0.npy": huge}), {})
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    assert read("sklearn", _archive(array, {"0.npy": file.getvalue()}), {}).tolist() == [0, 0, 0]
    many = _node("ListNode", "builtins.list", content=[array] * 3)
    with pytest.raises(ArtifactUnreadable, match="several"):
        read("sklearn", _archive(many, {"0.npy": file.getvalue()}), {})
    deep = '{"a":' * 100_000
    with pytest.raises(ArtifactUnreadable):
        read("sklearn", _archive({}).replace(b'{"protocol": 2}', deep.encode()), {})


def _broken(model: Any, change: Callable[[Any], None]) -> bytes:
    change(model)
    return written(model)[1]


def _change_tree(field: str, value: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        state = model.tree_.__getstate__()
        state["nodes"][field][0] = value
        model.tree_.__setstate__(state)

    return change


def test_trees_that_lead_outside_themselves_are_unreadable() -> None:
    """Their types are trusted, and their indices would be followed."""
    for field, value in [("left_child", 10**6), ("right_child", 0), ("left_child", -5), ("feature", 99)]:
        data = _broken(tree.DecisionTreeClassifier().fit(_X, _CLASSES), _change_tree(field, value))
        with pytest.raises(ArtifactUnreadable, match="a tree that"):
            read("sklearn", data, {})
    for field, value in [("left", 10**6), ("right", 0)]:
        boosted = ensemble.HistGradientBoostingRegressor(max_iter=1).fit(_X, _NUMBERS)
        boosted._predictors[0][0].nodes[field][0] = value
        with pytest.raises(ArtifactUnreadable, match="a tree that"):
            read("sklearn", written(boosted)[1], {})
    for algorithm in ("kd_tree", "ball_tree"):
        near = neighbors.KNeighborsClassifier(algorithm=algorithm).fit(_X, _CLASSES)
        state = list(near._tree.__getstate__())
        state[1] = np.array(state[1])
        state[1][0] = 10**9
        near._tree.__setstate__(tuple(state))
        with pytest.raises(ArtifactUnreadable, match="neighbours"):
            read("sklearn", written(near)[1], {})


@pytest.mark.parametrize("number", [0, 3, 12])
def test_corrupted_bytes_are_unreadable_or_a_value(number: int) -> None:
    """No other exception comes out, whatever is broken."""
    assert check_corrupted(_classifiers()[number].fit(_X, _CLASSES), tries=120) > 60
