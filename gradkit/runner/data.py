"""Data sets, split once, and batches as a pure function of (seed, step)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradkit.runner.errors import UserError

SPLIT_SEED = 0  # not the run's seed: runs that differ in it are tested on the same examples


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set: `x` (examples, features) float32, `y` (examples,) int32."""

    source: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int

    @property
    def train(self) -> dict[str, np.ndarray]:
        """The full training set as one batch."""
        return {"x": self.x_train, "y": self.y_train}

    @property
    def test(self) -> dict[str, np.ndarray]:
        """The full test set as one batch."""
        return {"x": self.x_test, "y": self.y_test}

    def first(self, examples: int) -> Dataset:
        """Returns the data set with so many training examples, the first, and all test examples.

        Raises:
            UserError: there are fewer.
        """
        if examples > len(self.y_train):
            raise UserError(
                f"data.examples: expected at most {len(self.y_train)}, the number of training "
                f"examples, got {examples}"
            )
        x, y = self.x_train[:examples], self.y_train[:examples]
        return dataclasses.replace(self, x_train=x, y_train=y)

    def standardized(self) -> Dataset:
        """Returns the data set with each feature's mean 0 and deviation 1 in the training set.

        A feature that is constant there becomes 0 in training, and is only shifted in the test set.
        """
        wide = self.x_train.astype(np.float64)
        mean, deviation = wide.mean(axis=0), wide.std(axis=0)
        scale = np.where(deviation > 1e-9 * np.abs(mean), deviation, 1)
        x_train, x_test = (
            ((x - mean) / scale).astype(np.float32) for x in (self.x_train, self.x_test)
        )
        return dataclasses.replace(self, x_train=x_train, x_test=x_test)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the content: equal for equal arrays."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a run folder keeps of the data set."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "train": len(self.x_train),
            "test": len(self.x_test),
            "features": self.x_train.shape[1],
            "classes": self.classes,
        }


def load(source: str, test_fraction: float) -> Dataset:
    """Returns a data set, checked and split into training and test examples class by class.

    Args:
        source: "digits", or the path of an .npz file with `x` (examples, features) of numbers and
          `y` (examples,) of whole numbers from 0.
        test_fraction: share of the examples held out.

    Raises:
        UserError: the file is missing or unreadable, or what it holds cannot be learned from.
    """
    from sklearn.model_selection import train_test_split

    x, y = _digits() if source == "digits" else _checked(source, **_read_npz(source))
    try:
        train, test = train_test_split(
            np.arange(len(y)), test_size=test_fraction, random_state=SPLIT_SEED, stratify=y
        )
    except ValueError as error:
        raise UserError(
            f"data.test_fraction: {test_fraction} of the {len(y)} examples of {source} cannot be "
            f"held out with each class on both sides: {error}"
        ) from None
    return Dataset(source, x[train], y[train], x[test], y[test], classes=int(y.max()) + 1)


@dataclasses.dataclass(frozen=True)
class Batches:
    """Shuffled epochs without replacement: which examples a step sees, from its number alone.

    The last examples of an epoch that do not fill a batch are left for other epochs. A batch of all
    examples has them in their order: the loss is one function then.
    """

    examples: int
    size: int
    seed: int

    def __post_init__(self):
        if self.size > self.examples:
            raise UserError(
                f"batch_size: expected at most {self.examples}, the number of training examples, "
                f"got {self.size}"
            )

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return self.examples // self.size

    def indices(self, step: int) -> np.ndarray:
        """Returns the positions of the examples of a step, shape (size,)."""
        if self.size == self.examples:
            return np.arange(self.size)
        epoch, index = divmod(step, self.per_epoch)
        order = _order(self.seed, epoch, self.examples)
        return order[index * self.size : (index + 1) * self.size]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (np.asarray(x) / 16).astype(np.float32), np.asarray(y, np.int32)  # pixels are 0 to 16


def _read_npz(source: str) -> dict[str, np.ndarray]:
    path = Path(source)
    if not path.is_file():
        raise UserError(f"data.source: no such file {source}; expected an .npz file with x and y")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            names = stored.files
            arrays = {name: stored[name] for name in ("x", "y") if name in names}
    except Exception as error:  # zip, zlib and numpy each have their own for a damaged file
        raise UserError(f"{source}: not a readable .npz file: {error}") from None
    if len(arrays) < 2:
        raise UserError(f"{source}: expected arrays x and y, got {', '.join(names) or 'none'}")
    return arrays


def _checked(source: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def refuse(name: str, expected: str, got: Any):
        raise UserError(f"{source}: {name}: expected {expected}, got {got}")

    if x.ndim < 2 or x.size == 0 or x.dtype.kind not in "fiub":
        refuse("x", "numbers of shape (examples, features)", f"{x.dtype} of shape {x.shape}")
    if y.shape != (len(x),):
        refuse("y", f"shape ({len(x)},), a class for each row of x", f"shape {y.shape}")
    if y.dtype.kind not in "iu":
        refuse("y", "classes as whole numbers from 0", f"{y.dtype}; convert it, as by astype(int)")
    _check_classes(y, refuse)
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        x = x.reshape(len(x), -1).astype(np.float32)
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        refuse(
            "x",
            "finite numbers",
            f"{len(bad)} that are not, the first {x[row, column]} at row {row}, column {column}; "
            "remove or replace them",
        )
    return x, y.astype(np.int32)


def _check_classes(y: np.ndarray, refuse: Callable[[str, str, Any], None]) -> None:
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) == 1:
        refuse("y", "two classes or more", f"class {classes[0]} alone")
    missing = np.flatnonzero(classes != np.arange(len(classes)))
    if len(missing):
        got = f"class {classes[missing[0]]} and none of class {missing[0]}; number them anew"
        refuse("y", "classes 0, 1, 2 … without a gap", got)
    if counts.min() < 2:
        got = f"1 of class {counts.argmin()}; add another or leave the class out"
        refuse("y", "at least 2 examples of each class, to train and to test on", got)
