"""Preprocessing: fitted on the training examples alone, applied to all.

Each method is a function of the training examples, one row each in float64, that returns the one to
apply: (examples, features) -> (examples, features).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from gradkit.runner.data.dataset import Dataset
from gradkit.runner.errors import UserError

Map = Callable[[np.ndarray], np.ndarray]

_CONSTANT = 1e-9  # a spread this small beside the values is rounding, in float64
_ROUNDING = 1e-6  # of the float32 numbers that whitening mixes


def min_max(x: np.ndarray) -> Map:
    """Returns the map of each feature to 0 at its smallest and 1 at its largest."""
    low, high = x.min(axis=0), x.max(axis=0)
    scale = _scale(high - low, np.maximum(np.abs(low), np.abs(high)))
    return lambda other: (other - low) / scale


def standardize(x: np.ndarray) -> Map:
    """Returns the map of each feature to mean 0 and deviation 1, z = (x − μ)/σ."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = _scale(deviation, np.abs(mean))
    return lambda other: (other - mean) / scale


def whiten(x: np.ndarray) -> Map:
    """Returns ZCA whitening, x ↦ C^(-1/2) (x − μ), after which the covariance C is the identity.

    Directions in which the training examples do not vary become 0.

    Source: Bell and Sejnowski (1997).
    """
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    varies = values > _ROUNDING**2 * (np.abs(mean).max() ** 2 + values.max())
    roots = np.where(varies, 1 / np.sqrt(np.where(varies, values, 1)), 0)
    return lambda other: (other - mean) @ (vectors * roots) @ vectors.T


METHODS = {"min_max": min_max, "standardize": standardize, "whiten": whiten}


def preprocessed(dataset: Dataset, method: str) -> Dataset:
    """Returns the data set with its inputs mapped; constant features are only shifted, to 0.

    Raises:
        UserError: the inputs are tokens, which have no mean.
    """
    if dataset.x_train.dtype.kind != "f":
        raise UserError(
            f"data.preprocess: {method} is for numbers, and the inputs of {dataset.meta['source']} "
            "are tokens; leave it out"
        )
    apply = METHODS[method](_rows(dataset.x_train))

    def mapped(x):
        return None if x is None else apply(_rows(x)).reshape(x.shape).astype(np.float32)

    names = ("x_train", "x_test", "x_validation")
    return dataclasses.replace(dataset, **{n: mapped(getattr(dataset, n)) for n in names})


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float64)


def _scale(spread: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.where(spread > _CONSTANT * size, spread, 1)
