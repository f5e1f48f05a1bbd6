"""The types that an archive of skops may name, reviewed: which, and why no harm comes of making one.

skops makes objects of the types that an archive names, sets their attributes, and calls some of them with arguments
from the archive. So a type is here only if making it, with whatever arguments and attributes, does nothing but hold
them, and a function only if it computes. What opens files, runs commands, imports, or calls what it is given is not:
no `PyFuncDistance`, nothing of `sklearn.datasets`, of `joblib` or of `scipy.stats`, no `operator.methodcaller`, no
bound method. Found with `skops.io.get_untrusted_types` over all of `sklearn.utils.all_estimators()`, fitted; skops
adds scikit-learn's own public estimators, its losses and links, and numpy's and scipy's ufuncs by itself.
"""

from __future__ import annotations

from typing import Final

#: Trees as arrays. Their indices are checked after an archive is read, see `estimator_trees.py`: skops leaves these
#: types out because scikit-learn follows the indices without a look at them.
_TREES: Final = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._ball_tree.BallTree32",
    "sklearn.neighbors._ball_tree.BallTree64",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neighbors._kd_tree.KDTree32",
    "sklearn.neighbors._kd_tree.KDTree64",
    "sklearn.tree._tree.Tree",
)

#: Distances: formulas with at most a vector of parameters. `PyFuncDistance` calls a function of the archive's.
_DISTANCES: Final = tuple(
    f"sklearn.metrics._dist_metrics.{name}Distance{bits}"
    for name in (
        "BrayCurtis", "Canberra", "Chebyshev", "Dice", "Euclidean", "Hamming", "Haversine", "Jaccard", "Kulsinski",
        "Mahalanobis", "Manhattan", "Matching", "Minkowski", "RogersTanimoto", "RussellRao", "SEuclidean",
        "SokalMichener", "SokalSneath",
    )
    for bits in (32, 64)
)  # fmt: skip

#: Estimators that all_estimators() leaves out, and parts of fitted ones: attributes, read by methods of scikit-learn.
_PARTS: Final = (
    "sklearn._loss.loss.HalfTweedieLoss",
    "sklearn._loss.loss.HalfTweedieLossIdentity",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.cluster._bisect_k_means._BisectingTree",
    "sklearn.compose._column_transformer._RemainderColsList",
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    "sklearn.model_selection._search_successive_halving.HalvingGridSearchCV",
    "sklearn.model_selection._search_successive_halving.HalvingRandomSearchCV",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
)

#: Kernels of Gaussian processes: formulas with parameters.
_KERNELS: Final = tuple(
    f"sklearn.gaussian_process.kernels.{name}"
    for name in (
        "CompoundKernel", "ConstantKernel", "DotProduct", "ExpSineSquared", "Exponentiation", "Matern",
        "PairwiseKernel", "Product", "RBF", "RationalQuadratic", "Sum", "WhiteKernel",
    )
)  # fmt: skip

#: Ways to split data: parameters only.
_SPLITS: Final = tuple(
    f"sklearn.model_selection._split.{name}"
    for name in (
        "GroupKFold", "GroupShuffleSplit", "KFold", "LeaveOneGroupOut", "LeaveOneOut", "LeavePGroupsOut", "LeavePOut",
        "PredefinedSplit", "RepeatedKFold", "RepeatedStratifiedKFold", "ShuffleSplit", "StratifiedGroupKFold",
        "StratifiedKFold", "StratifiedShuffleSplit", "TimeSeriesSplit",
    )
)  # fmt: skip

#: Scorers hold a function, which has to be in this module, too.
_SCORERS: Final = tuple(
    f"sklearn.metrics._scorer.{name}"
    for name in ("_CurveScorer", "_MultimetricScorer", "_PassthroughScorer", "_Scorer")
)

#: Functions of arrays that give numbers: metrics, and scores of features.
_METRICS: Final = (
    *(
        f"sklearn.metrics._classification.{name}"
        for name in (
            "accuracy_score", "balanced_accuracy_score", "brier_score_loss", "cohen_kappa_score", "d2_brier_score",
            "d2_log_loss_score", "f1_score", "fbeta_score", "hamming_loss", "hinge_loss", "jaccard_score", "log_loss",
            "matthews_corrcoef", "precision_score", "recall_score", "zero_one_loss",
        )
    ),
    *(
        f"sklearn.metrics._ranking.{name}"
        for name in (
            "average_precision_score", "coverage_error", "dcg_score", "label_ranking_average_precision_score",
            "label_ranking_loss", "ndcg_score", "roc_auc_score", "top_k_accuracy_score",
        )
    ),
    *(
        f"sklearn.metrics._regression.{name}"
        for name in (
            "d2_absolute_error_score", "d2_pinball_score", "d2_tweedie_score", "explained_variance_score", "max_error",
            "mean_absolute_error", "mean_absolute_percentage_error", "mean_gamma_deviance", "mean_pinball_loss",
            "mean_poisson_deviance", "mean_squared_error", "mean_squared_log_error", "mean_tweedie_deviance",
            "median_absolute_error", "r2_score", "root_mean_squared_error", "root_mean_squared_log_error",
        )
    ),
    *(
        f"sklearn.metrics.cluster._supervised.{name}"
        for name in (
            "adjusted_mutual_info_score", "adjusted_rand_score", "completeness_score", "fowlkes_mallows_score",
            "homogeneity_score", "mutual_info_score", "normalized_mutual_info_score", "rand_score", "v_measure_score",
        )
    ),
    "sklearn.metrics._scorer.negative_likelihood_ratio",
    "sklearn.metrics._scorer.positive_likelihood_ratio",
    "sklearn.feature_selection._mutual_info.mutual_info_classif",
    "sklearn.feature_selection._mutual_info.mutual_info_regression",
    "sklearn.feature_selection._univariate_selection.chi2",
    "sklearn.feature_selection._univariate_selection.f_classif",
    "sklearn.feature_selection._univariate_selection.f_oneway",
    "sklearn.feature_selection._univariate_selection.f_regression",
    "sklearn.feature_selection._univariate_selection.r_regression",
)  # fmt: skip

#: Other functions of arrays that estimators keep: they compute, and call nothing that they are given.
_FUNCTIONS: Final = (
    "scipy._lib.array_api_compat.numpy._aliases.asarray",
    "scipy._external.array_api_compat.numpy._aliases.asarray",
    "sklearn.cluster._kmeans._kmeans_single_elkan",
    "sklearn.cluster._kmeans._kmeans_single_lloyd",
    "sklearn.preprocessing._function_transformer._identity",
    *(
        f"numpy.{name}"
        for name in (
            "amax", "amin", "argmax", "argmin", "clip", "cumsum", "diff", "max", "mean", "median", "min", "nan_to_num",
            "nanmax", "nanmean", "nanmedian", "nanmin", "nanstd", "nansum", "nanvar", "prod", "ravel", "round",
            "squeeze", "std", "sum", "transpose", "var",
        )
    ),
)  # fmt: skip

#: Containers, and what arrays are made of: dtypes, and sparse matrices, which are checked after reading.
_ARRAYS: Final = (
    "collections.OrderedDict",
    # Holds a function that has to be listed here, and is not called while it is read.
    "functools.partial",
    "numpy.dtype",
    "scipy.interpolate._bsplines.BSpline",
    "scipy.interpolate._bsplines._BSpline",
    *(
        f"scipy.sparse._{name}.{name}_{kind}"
        for name in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
        for kind in ("array", "matrix")
    ),
)

#: All of them.
TRUSTED: Final = frozenset(
    {*_TREES, *_DISTANCES, *_PARTS, *_KERNELS, *_SPLITS, *_SCORERS, *_METRICS, *_FUNCTIONS, *_ARRAYS}
)

#: How skops may make what it finds. Left out are bound methods, calls with arguments of the archive's choice, and
#: makers of `operator`'s functions: nothing of scikit-learn needs them.
LOADERS: Final = frozenset(
    f"{name}Node"
    for name in (
        "Bytes", "DType", "DefaultDict", "Dict", "Function", "Json", "List", "Loss", "MaskedArray", "NdArray",
        "Object", "Partial", "RandomGenerator", "RandomState", "Set", "Slice", "SparseMatrix", "Tree", "Tuple", "Type",
    )
)  # fmt: skip
#: Loaders that call what they make with arguments of the archive's: the modules of which that may be.
CALLED: Final = {
    "LossNode": ("sklearn._loss._loss", "sklearn.linear_model._sgd_fast"),
    "TreeNode": ("sklearn.tree._tree",),
    "NdArrayNode": ("numpy",),
    "RandomStateNode": ("numpy.random.mtrand", "numpy.random"),
    "RandomGeneratorNode": ("numpy.random._generator",),
}
