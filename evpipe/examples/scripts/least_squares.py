"""Polynomials by least squares, with the standard library alone."""

from collections.abc import Sequence


def fitted(points: Sequence[tuple[float, float]], degree: int) -> list[float]:
    """Give the coefficients, lowest power first."""
    size = degree + 1
    rows = [[sum(x ** (i + j) for x, _ in points) for j in range(size)] for i in range(size)]
    rows = [[*row, sum(y * x**i for x, y in points)] for i, row in enumerate(rows)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(size):
            if k != i:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [rows[i][size] / rows[i][i] for i in range(size)]


def value(coefficients: Sequence[float], x: float) -> float:
    return sum(c * x**i for i, c in enumerate(coefficients))
