"""Write points of a noisy curve as CSV. An ordinary script: it knows nothing of pipelines."""

import argparse
import csv
import random
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--points", type=int, default=200)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--out", type=Path, default=Path("points.csv"))
given = parser.parse_args()

rng = random.Random(given.seed)
with given.out.open("w", newline="") as file:
    writer = csv.writer(file)
    for i in range(given.points):
        x = 4 * i / given.points - 2
        writer.writerow([x, x**3 - 2 * x + rng.gauss(0, 0.4)])
print(f"{given.points} points in {given.out}")
