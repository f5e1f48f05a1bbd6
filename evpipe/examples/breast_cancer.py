"""Which model tells benign from malignant tumours best? scikit-learn's breast-cancer data, several models in parallel.

    evpipe run evpipe.examples.breast_cancer:choose_model

    load ─▶ split ─┬▶ train (logistic) ─▶ evaluate ─┐
                   ├▶ train (forest)   ─▶ evaluate ─┼▶ best ─▶ plot
                   └▶ train (boosting) ─▶ evaluate ─┘

It shows arrays and fitted models that travel from step to step (without pickle), steps that are cached (run it again,
or with another -p test_share=0.3: the closing line says what ran and why), and a plot as an artifact.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from evpipe import pipeline, step

if TYPE_CHECKING:
    import numpy as np

MODELS = ("logistic", "forest", "boosting")


class Split(TypedDict):
    """The data, in two parts."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


class Score(NamedTuple):
    """How a model did on data that it has not seen."""

    name: str
    accuracy: float
    #: Area under the ROC curve, and the curve's points: false and true positive rates.
    auc: float
    curve: tuple[list[float], list[float]]


@step(cache=True)
def load() -> dict[str, Any]:
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    return {"x": found.data, "y": found.target}


@step(cache=True, outputs=("train_x", "train_y", "test_x", "test_y"))
def split(data: dict[str, Any], test_share: float, seed: int) -> Split:
    from sklearn.model_selection import train_test_split

    train_x, test_x, train_y, test_y = train_test_split(
        data["x"], data["y"], test_size=test_share, random_state=seed, stratify=data["y"]
    )
    return {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}


@step(cache=True)
def train(name: str, x: np.ndarray, y: np.ndarray, seed: int) -> Any:
    """Give the fitted model: a scikit-learn pipeline, which travels as such."""
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifiers = {
        "logistic": LogisticRegression(max_iter=1_000),
        "forest": RandomForestClassifier(n_estimators=100, random_state=seed),
        "boosting": HistGradientBoostingClassifier(max_iter=60, random_state=seed),
    }
    return make_pipeline(StandardScaler(), classifiers[name]).fit(x, y)


@step(cache=True)
def evaluate(name: str, model: Any, x: np.ndarray, y: np.ndarray) -> Score:
    from sklearn.metrics import roc_auc_score, roc_curve

    likely = model.predict_proba(x)[:, 1]
    false_rate, true_rate, _ = roc_curve(y, likely)
    return Score(
        name,
        round(float(model.score(x, y)), 4),
        round(float(roc_auc_score(y, likely)), 4),
        (false_rate.tolist(), true_rate.tolist()),
    )


@step
def best(scores: list[Score]) -> Score:
    return max(scores, key=lambda score: (score.auc, score.accuracy))


@step(cache=True)
def plot(scores: list[Score], chosen: Score) -> Path:
    """Draw the ROC curves; the picture travels as a file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 5), layout="constrained")
    for score in scores:
        false_rate, true_rate = score.curve
        width = 2.5 if score.name == chosen.name else 1.2
        axes.plot(false_rate, true_rate, linewidth=width, label=f"{score.name}  AUC {score.auc:.4f}")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="Breast cancer, test data")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    file = Path(tempfile.mkdtemp()) / "roc.png"
    figure.savefig(file, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return file


@pipeline(version="1.0.0")
def choose_model(models: tuple[str, ...] = MODELS, test_share: float = 0.25, seed: int = 7) -> dict[str, Any]:
    """Give the best model's name and scores, the model itself, and the plot."""
    parts = split(load(), test_share, seed)
    fitted = {
        name: train.options(name=f"train-{name}")(name, parts["train_x"], parts["train_y"], seed) for name in models
    }
    scores = [
        evaluate.options(name=f"evaluate-{name}")(name, model, parts["test_x"], parts["test_y"])
        for name, model in fitted.items()
    ]
    chosen = best(scores)
    return {"chosen": chosen.name, "accuracy": chosen.accuracy, "auc": chosen.auc, "plot": plot(scores, chosen)}


if __name__ == "__main__":
    result = choose_model.run()
    print(f"{result.value['chosen']}: accuracy {result.value['accuracy']}, AUC {result.value['auc']}")
    print(f"the plot and the models: evpipe runs show {result.id} --save outputs")
