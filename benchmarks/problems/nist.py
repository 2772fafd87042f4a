"""The 27 nonlinear regressions of the NIST Statistical Reference Datasets.

Source: National Institute of Standards and Technology, Statistical Reference Datasets, Nonlinear
Regression (1999). The files hold the level of difficulty with the certified residual sum of
squares, then for each parameter both starts and the certified value, then rows of y and x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from .problem import like

Array = jax.Array


@dataclass(frozen=True)
class Regression:
    """A model to be fitted to data by least squares, with certified results.

    Attributes:
        name: name of the data set, in lower case.
        model: (parameters, x) to predictions of y.
        x: predictors; of Nelson's data two columns.
        y: responses; of Nelson's data their logarithms, which the model predicts.
        starts: the far and the near starting point.
        certified: parameters to eleven digits.
        rss: certified residual sum of squares, to eleven digits.
        level: "lower", "average" or "higher" level of difficulty.
    """

    name: str
    model: Callable[[Array, Array], Array]
    x: np.ndarray
    y: np.ndarray
    starts: tuple[np.ndarray, np.ndarray]
    certified: np.ndarray
    rss: float
    level: str


def misra1a(b: Array, x: Array) -> Array:
    return -b[0] * jnp.expm1(-b[1] * x)


def misra1b(b: Array, x: Array) -> Array:
    return b[0] * (1 - (1 + b[1] * x / 2) ** -2)


def misra1c(b: Array, x: Array) -> Array:
    return b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5)


def misra1d(b: Array, x: Array) -> Array:
    return b[0] * b[1] * x / (1 + b[1] * x)


def chwirut(b: Array, x: Array) -> Array:
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def lanczos(b: Array, x: Array) -> Array:
    return sum((b[k] * jnp.exp(-b[k + 1] * x) for k in (0, 2, 4)), jnp.zeros_like(x))


def gauss(b: Array, x: Array) -> Array:
    bells = [b[k] * jnp.exp(-((x - b[k + 1]) ** 2) / b[k + 2] ** 2) for k in (2, 5)]
    return b[0] * jnp.exp(-b[1] * x) + bells[0] + bells[1]


def danwood(b: Array, x: Array) -> Array:
    return b[0] * x ** b[1]


def kirby2(b: Array, x: Array) -> Array:
    return (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2)


def hahn1(b: Array, x: Array) -> Array:
    """Also the model of Thurber's data."""
    over = b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3
    return over / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def nelson(b: Array, x: Array) -> Array:
    return b[0] - b[1] * x[:, 0] * jnp.exp(-b[2] * x[:, 1])


def mgh17(b: Array, x: Array) -> Array:
    return b[0] + b[1] * jnp.exp(-x * b[3]) + b[2] * jnp.exp(-x * b[4])


def roszman1(b: Array, x: Array) -> Array:
    return b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / math.pi


def enso(b: Array, x: Array) -> Array:
    turn = 2 * math.pi * x
    year = b[1] * jnp.cos(turn / 12) + b[2] * jnp.sin(turn / 12)
    waves = [b[k + 1] * jnp.cos(turn / b[k]) + b[k + 2] * jnp.sin(turn / b[k]) for k in (3, 6)]
    return b[0] + year + waves[0] + waves[1]


def mgh09(b: Array, x: Array) -> Array:
    return b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3])


def mgh10(b: Array, x: Array) -> Array:
    return b[0] * jnp.exp(b[1] / (x + b[2]))


def bennett5(b: Array, x: Array) -> Array:
    return b[0] * (b[1] + x) ** (-1 / b[2])


def eckerle4(b: Array, x: Array) -> Array:
    return b[0] / b[1] * jnp.exp(-(((x - b[2]) / b[1]) ** 2) / 2)


def rat42(b: Array, x: Array) -> Array:
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x))


def rat43(b: Array, x: Array) -> Array:
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3])


MODELS: dict[str, Callable[[Array, Array], Array]] = {
    "misra1a": misra1a,
    "chwirut2": chwirut,
    "chwirut1": chwirut,
    "lanczos3": lanczos,
    "gauss1": gauss,
    "gauss2": gauss,
    "danwood": danwood,
    "misra1b": misra1b,
    "kirby2": kirby2,
    "hahn1": hahn1,
    "nelson": nelson,
    "mgh17": mgh17,
    "lanczos1": lanczos,
    "lanczos2": lanczos,
    "gauss3": gauss,
    "misra1c": misra1c,
    "misra1d": misra1d,
    "roszman1": roszman1,
    "enso": enso,
    "mgh09": mgh09,
    "thurber": hahn1,
    "boxbod": misra1a,
    "rat42": rat42,
    "mgh10": mgh10,
    "eckerle4": eckerle4,
    "rat43": rat43,
    "bennett5": bennett5,
}


def regressions() -> list[Regression]:
    """All 27 regressions, from the lower to the higher level of difficulty."""
    return [_read(name, model) for name, model in MODELS.items()]


def residuals(regression: Regression) -> Callable[[Array], Array]:
    """Predictions less responses as a function of the parameters, in their dtype."""

    def terms(b: Array) -> Array:
        return regression.model(b, like(regression.x, b)) - like(regression.y, b)

    return terms


def _read(name: str, model: Callable[[Array, Array], Array]) -> Regression:
    text = (Path(__file__).parent / "nist_data" / f"{name}.txt").read_text()
    (level, rss), *rows = (line.split() for line in text.splitlines())
    split = rows.index([])
    far, near, certified = np.array(rows[:split], dtype=np.float64).T
    y, *x = np.array(rows[split + 1 :], dtype=np.float64).T
    if name == "nelson":
        y = np.log(y)
    predictors = x[0] if len(x) == 1 else np.stack(x, axis=1)
    return Regression(name, model, predictors, y, (far, near), certified, float(rss), level)
