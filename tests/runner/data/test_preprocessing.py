"""Features are mapped by what the training examples alone say."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradkit.runner.data.dataset import Dataset
from gradkit.runner.data.preprocessing import METHODS, preprocessed
from gradkit.runner.errors import UserError


def correlated(shape=(200, 6), seed=0):
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape[1:]))
    x = rng.normal(size=(shape[0], n)) @ rng.normal(size=(n, n)) + 5 * rng.normal(size=n)
    return x.reshape(shape).astype(np.float32)


def dataset(train, test):
    y = np.zeros(1, np.int32)
    return Dataset(train, y, test, y, {"source": "here", "classes": 2}, train[:3], y)


def test_min_max_is_0_to_1_in_training():
    found = preprocessed(dataset(correlated(), correlated(seed=1)), "min_max")
    np.testing.assert_allclose(found.x_train.min(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.x_train.max(axis=0), 1, atol=1e-6)
    assert found.x_test.min() < 0 or found.x_test.max() > 1  # not fitted on it


def test_standardized_features_have_mean_0_and_deviation_1_in_training():
    x = correlated() * np.float32([1, 1e-3, 1e3, 0, 1, 1]) + np.float32([0, 5, -2, 0.7, 0, 0])
    found = preprocessed(dataset(x, x[:5] + 1), "standardize")
    np.testing.assert_allclose(found.x_train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found.x_train.std(axis=0), [1, 1, 1, 0, 1, 1], atol=1e-5)
    wide = x.astype(float)
    expected = (x[:5] + 1 - wide.mean(axis=0))[:, 0] / wide.std(axis=0)[0]
    np.testing.assert_allclose(found.x_test[:, 0], expected, 1e-5)


@pytest.mark.parametrize("shape", [(200, 6), (300, 2, 3)])
def test_whitened_features_have_the_identity_as_covariance(shape):
    found = preprocessed(dataset(correlated(shape), correlated(shape, seed=1)), "whiten")
    assert found.x_train.shape == shape
    rows = found.x_train.reshape(len(found.x_train), -1).astype(float)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-4)


def test_whitening_turns_features_as_little_as_possible():
    x = correlated()
    wide = x.astype(float) - x.astype(float).mean(axis=0)
    found = preprocessed(dataset(x, x), "whiten").x_train
    W = np.linalg.lstsq(wide, found.astype(float), rcond=None)[0]
    np.testing.assert_allclose(W, W.T, atol=1e-4 * np.abs(W).max())  # ZCA: a symmetric matrix
    assert np.linalg.eigvalsh((W + W.T) / 2).min() > 0


def test_directions_without_variance_become_0_when_whitened():
    x = correlated((100, 3))
    x = np.concatenate([x, x[:, :1] + x[:, 1:2], np.full((100, 1), 7, np.float32)], axis=1)
    found = preprocessed(dataset(x, x), "whiten").x_train.astype(float)
    values = np.linalg.eigvalsh(found.T @ found / len(found))
    np.testing.assert_allclose(values, [0, 0, 1, 1, 1], atol=1e-3)


@given(arrays.arrays(np.float32, (7, 3), elements=st.floats(-1e3, 1e3, width=32)))
def test_every_method_gives_finite_numbers_and_leaves_the_original(x):
    before = x.copy()
    for method in METHODS:
        found = preprocessed(dataset(x, x[:2]), method)
        for part in (found.x_train, found.x_test, found.x_validation):
            assert part.dtype == np.float32
            assert np.isfinite(part).all()
    np.testing.assert_array_equal(x, before)


def test_tokens_have_no_mean():
    tokens = dataclasses.replace(dataset(correlated(), correlated()), x_train=np.ones((3, 4), int))
    with pytest.raises(UserError, match="the inputs of here are tokens; leave it out"):
        preprocessed(tokens, "whiten")
