"""Fit a polynomial to points, and say how well it fits those that it has not seen."""

import argparse
import csv
import json
from pathlib import Path

from least_squares import fitted, value

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("points", type=Path)
parser.add_argument("--degree", type=int, default=1)
given = parser.parse_args()

with given.points.open(newline="") as file:
    points = [(float(x), float(y)) for x, y in csv.reader(file)]
coefficients = fitted(points[::2], given.degree)
error = sum((value(coefficients, x) - y) ** 2 for x, y in points[1::2]) / len(points[1::2])
print(f"degree {given.degree}: error {error:.3f}")
Path("model.json").write_text(json.dumps({"degree": given.degree, "error": error, "coefficients": coefficients}))
