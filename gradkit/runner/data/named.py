"""The data sets that a config can name: each a function, its arguments those of the config.

A generated one follows from its arguments alone, `seed` among them, which is not the run's seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gradkit.runner.data import arrays, files, installed
from gradkit.runner.data.dataset import Examples
from gradkit.runner.errors import UserError


def digits(classes: int = 10) -> Examples:
    """1,797 handwritten digits of 8 × 8 pixels, 10 classes; or those of the first so many classes.

    Source: scikit-learn; Alpaydin and Kaynak (1998).
    """
    from sklearn.datasets import load_digits

    if not 2 <= classes <= 10:
        raise ValueError(f"classes: expected 2 to 10, got {classes}")
    x, y = load_digits(n_class=classes, return_X_y=True)
    return _classified(np.reshape(x, (-1, 8, 8)) / 16, y)  # pixels are 0 to 16


def breast_cancer() -> Examples:
    """569 tumors by 30 measurements, benign or malignant.

    Source: scikit-learn; Wolberg, Street and Mangasarian (1995).
    """
    from sklearn.datasets import load_breast_cancer

    return _classified(*load_breast_cancer(return_X_y=True))


def wine() -> Examples:
    """178 wines by 13 measurements, from 3 growers.

    Source: scikit-learn; Aeberhard and Forina (1992).
    """
    from sklearn.datasets import load_wine

    return _classified(*load_wine(return_X_y=True))


def diabetes() -> Examples:
    """442 patients by 10 measurements: the progression of their diabetes, a number.

    Source: scikit-learn; Efron, Hastie, Johnstone and Tibshirani (2004).
    """
    from sklearn.datasets import load_diabetes

    return _regressed(*load_diabetes(return_X_y=True))


def fashion_mnist() -> Examples:
    """70,000 articles of clothing of 28 × 28 pixels, 10 classes; 10,000 of them to test on.

    Source: Xiao, Rasul and Vollgraf (2017).
    """
    if words := installed.missing("fashion_mnist"):
        raise UserError(f"data.source: fashion_mnist: {words}")
    return files.idx(str(installed.found("fashion_mnist")))


def line(
    examples: int = 30,
    slope: float = 3.0,
    intercept: float = 2.0,
    noise: float = 0.1,
    seed: int = 0,
) -> Examples:
    """A noisy line: x uniform in [−1, 1], y = slope · x + intercept + uniform noise."""
    return polynomial(examples, (intercept, slope), noise, seed)


def polynomial(
    examples: int = 21,
    coefficients: Sequence[float] = (0.0, 0.0, 1.0),
    noise: float = 0.1,
    seed: int = 0,
) -> Examples:
    """A noisy polynomial: x uniform in [−1, 1], y = c₀ + c₁x + c₂x² + … + uniform noise."""
    rng = _generator("polynomial", examples, seed)
    x = rng.uniform(-1, 1, (examples, 1))
    y = np.polynomial.polynomial.polyval(x, np.array(coefficients, float))
    return _regressed(x, y + rng.uniform(-noise, noise, x.shape))


def linear_regression(
    eigenvalues: Sequence[float] = (1.0, 10.0, 100.0),
    examples: int = 200,
    noise: float = 0.0,
    seed: int = 0,
) -> Examples:
    """A linear regression whose squared error has a Hessian of these very eigenvalues.

    Inputs are such that XᵀX/m is a random rotation of diag(eigenvalues), and y = X1 plus normal
    noise; ½ mean (Xw − y)² of a linear model without bias is then a quadratic with that spectrum.
    To be exact on them all, the examples to test on are those to train on.
    """
    n = len(eigenvalues)
    if n > examples or not n or min(eigenvalues) < 0:
        raise UserError(
            f"data.source.eigenvalues: expected from 1 to examples={examples} of them, none below "
            f"0; got {n}, the smallest {min(eigenvalues, default=None)}"
        )
    rng = _generator("linear_regression", examples, seed)
    U, _ = np.linalg.qr(rng.normal(size=(examples, n)))
    V, _ = np.linalg.qr(rng.normal(size=(n, n)))
    X = U * np.sqrt(examples * np.array(eigenvalues, float)) @ V.T
    y = X.sum(axis=1, keepdims=True) + noise * rng.normal(size=(examples, 1))
    found = _regressed(X, y)
    return found._replace(test=(found.x, found.y))


def xor() -> Examples:
    """Exclusive or: the four corners of a square, also to test on."""
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    found = _classified(x, x[:, 0] ^ x[:, 1])
    return found._replace(test=(found.x, found.y))


def spirals(
    examples: int = 400, classes: int = 2, turns: float = 1.5, noise: float = 0.05, seed: int = 0
) -> Examples:
    """Spirals wound into each other in the plane, one a class, with normal noise."""
    if classes < 2:
        raise UserError(f"data.source: spirals: classes: expected 2 or more, got {classes}")
    rng = _generator("spirals", examples, seed)
    y = np.arange(examples) % classes
    radius = np.sqrt(rng.uniform(0.01, 1, examples))  # as dense outside as inside
    angle = 2 * np.pi * (turns * radius + y / classes)
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _classified(x + noise * rng.normal(size=x.shape), y)


_STROKES = np.array(  # how far right the pen is while it draws a digit: 12 moments of each
    [
        [0, 3, 5, 6, 6, 6, 6, 6, 5, 3, 1, 0],
        [0, -5, -4, -3, -2, -1, 0, 1, 2, 3, 0, 0],
        [0, 3, 5, 5, 3, 1, -2, -4, -5, -4, -2, 0],
        [0, 4, 5, 3, 1, 0, 0, 1, 3, 5, 4, 0],
        [0, -1, -3, -5, -6, -6, 0, 0, 0, 0, 0, 0],
        [0, -5, -5, -4, -4, 1, 4, 5, 5, 4, 1, 0],
        [0, -2, -4, -5, -6, -6, -6, -5, -4, -2, 0, 0],
        [0, 6, 6, 5, 3, 2, 0, -1, -2, -4, -5, 0],
        [0, -3, -4, -3, 0, 3, 4, 3, 0, -3, -3, 0],
        [0, -3, -5, -5, -3, 0, 0, 0, -1, -2, -3, 0],
    ],
    float,
)


def mnist1d(examples: int = 5000, noise: float = 0.02, seed: int = 0) -> Examples:
    """Ten digits as curves of 40 numbers, shifted, scaled, sheared and noisy: a small hard task.

    Source: Greydanus (2020), "Scaling down deep learning".

    Differs: the ten templates and the smoothing are our own, so figures are not comparable.
    """
    rng = _generator("mnist1d", examples, seed)
    length, longest = 40, 72
    y = np.arange(examples) % 10
    x = np.zeros((examples, longest))
    times = np.arange(longest)
    for row, digit in zip(x, y.tolist(), strict=True):
        width = rng.integers(24, 40)  # of the digit in the frame, the rest is blank
        begins = rng.integers(longest - width + 1)
        shape = _STROKES[digit] / 6 * rng.uniform(0.6, 1.4)
        moments = begins + np.linspace(0, width, len(shape))
        row += np.interp(times, moments, shape, left=0, right=0)
    drift = rng.normal(size=x.shape) @ _smoothing(longest)
    shear = rng.uniform(-0.75, 0.75, (examples, 1)) * np.linspace(-0.5, 0.5, longest)
    x += 0.25 * drift + shear + noise * rng.normal(size=x.shape)
    seen = np.linspace(0, longest - 1, length)
    x = np.stack([np.interp(seen, times, row) for row in x])
    return _classified(x, y)


def python_text(length: int = 64, characters: int = 400_000) -> Examples:
    """The language reference of this Python, by its characters: predict the next one.

    Each example is `length` characters in a row and, as targets, the ones after each. The text is
    that of `pydoc_data.topics` and follows the version of Python.
    """
    from pydoc_data.topics import topics

    return arrays.characters("".join(topics[name] for name in sorted(topics))[:characters], length)


def _smoothing(n: int, width: float = 2.0) -> np.ndarray:
    """The matrix of a normal kernel, such that smoothed unit noise has deviation 1."""
    times = np.arange(n)
    kernel = np.exp(-((times[:, None] - times) ** 2) / (2 * width**2))
    return kernel / np.linalg.norm(kernel, axis=0)


def _generator(name: str, examples: int, seed: int) -> np.random.Generator:
    if examples < 2:
        raise UserError(f"data.source: {name}: examples: expected 2 or more, got {examples}")
    return np.random.default_rng(seed)


def _classified(x: ArrayLike, y: ArrayLike) -> Examples:
    return Examples(np.asarray(x, np.float32), np.asarray(y, np.int32), int(np.max(y)) + 1)


def _regressed(x: ArrayLike, y: ArrayLike) -> Examples:
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    return Examples(x, y.reshape(len(y), -1), None)
