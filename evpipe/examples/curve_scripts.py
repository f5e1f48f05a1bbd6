"""Scripts as steps: three scripts that know nothing of evpipe draw points and fit curves, and the best is chosen.

    evpipe run evpipe.examples.curve_scripts:best_curve -p points=400

The scripts are in the folder `scripts` beside this file and travel with the run, with what they import. Each runs in a
folder of its own; what it leaves there is what the next one gets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evpipe import command, pipeline, step

draw = command(
    "python scripts/draw_points.py --points {points} --seed {seed}", name="draw", outputs=Path("points.csv"), cache=True
)
fit = command(
    "python scripts/fit_curve.py {points} --degree {degree}",
    name="fit",
    outputs={"model": Path("model.json"), "said": "lines"},
    cache=True,
    timeout_s=60,
)


@step
def best(models: list[Path]) -> dict[str, Any]:
    found: list[dict[str, Any]] = [json.loads(model.read_text()) for model in models]
    return min(found, key=lambda model: float(model["error"]))


@pipeline(version="1.0.0")
def best_curve(points: int = 200, seed: int = 1, degrees: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    drawn = draw(points=points, seed=seed)
    fits = [fit(points=drawn, degree=degree) for degree in degrees]
    return best([found["model"] for found in fits])


if __name__ == "__main__":
    print(best_curve.run().value)
