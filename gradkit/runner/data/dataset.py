"""A data set: examples to learn from and to test on, frozen, with a hash of its content."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gradkit.runner.errors import UserError

SPLIT_SEED = 0  # not the run's seed: runs that differ in it are tested on the same examples


class Examples(NamedTuple):
    """What a source holds before it is split.

    Attributes:
        x: inputs (examples, ...), float32, or whole numbers for the tokens of a text.
        y: classes (examples, ...) as whole numbers from 0, or numbers (examples, outputs) to
            predict, float32.
        classes: how many; None where `y` are numbers.
        test: inputs and targets of a test set of its own, where it has one.
        ordered: whether neighbors belong together, as in a text, so that the test set is the end.
    """

    x: np.ndarray
    y: np.ndarray
    classes: int | None
    test: tuple[np.ndarray, np.ndarray] | None = None
    ordered: bool = False


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples to learn from and examples to test on.

    Attributes:
        x_train, x_test: inputs (examples, ...), float32, or whole numbers for tokens.
        y_train, y_test: classes (examples, ...) as whole numbers from 0, or numbers (examples,
            outputs) to predict, float32.
        meta: what else is known: `source` and, for classes, their number `classes`.
        x_validation, y_validation: examples to choose by, such as the step to stop at; may be none.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    x_validation: np.ndarray | None = None
    y_validation: np.ndarray | None = None

    @classmethod
    def none(cls) -> Dataset:
        """Returns one example of nothing, for a loss of the parameters alone."""
        nothing = np.zeros((1, 0), np.float32)
        return cls(nothing, nothing, nothing, nothing, {"source": "none"})

    @property
    def classes(self) -> int | None:
        """The number of classes; None where numbers are to be predicted."""
        return self.meta.get("classes")

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for each target: a score a class, or the prediction."""
        return self.classes or self.y_train.shape[-1]

    @property
    def train(self) -> dict[str, np.ndarray]:
        """The full training set as one batch."""
        return {"x": self.x_train, "y": self.y_train}

    @property
    def test(self) -> dict[str, np.ndarray]:
        """The full test set as one batch."""
        return {"x": self.x_test, "y": self.y_test}

    @property
    def parts(self) -> dict[str, dict[str, np.ndarray]]:
        """Every part by its name, each as one batch."""
        found = {"train": self.train, "test": self.test}
        if self.x_validation is not None and self.y_validation is not None:
            found["validation"] = {"x": self.x_validation, "y": self.y_validation}
        return found

    def first(self, examples: int) -> Dataset:
        """Returns the data set with so many training examples, the first, and all others.

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

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the content: equal for equal arrays."""
        digest = hashlib.sha256()
        for array in self._arrays():
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _arrays(self) -> Iterator[np.ndarray]:
        for part in self.parts.values():
            yield from part.values()

    def describe(self) -> dict[str, Any]:
        """What a run folder keeps of the data set."""
        return {
            **self.meta,
            "sha256": self.sha256,
            **{name: len(part["y"]) for name, part in self.parts.items()},
            "features": int(np.prod(self.x_train.shape[1:])),
            **({} if self.classes else {"outputs": self.y_train.shape[-1]}),
        }


def split(
    found: Examples, source: str, test_fraction: float, validation_fraction: float = 0.0
) -> Dataset:
    """Returns a data set of training, test and, where asked for, validation examples.

    A test set of the source's own is kept; otherwise examples are drawn for it, class by class, or
    taken from the end where their order matters. Validation examples come out of those to train on.

    Raises:
        UserError: there are not enough examples of each class.
    """
    x, y = found.x, found.y
    x_test, y_test = found.test or (None, None)
    if x_test is None or y_test is None:
        train, test = _drawn(found, y, test_fraction, "data.test_fraction", source)
        x, y, x_test, y_test = x[train], y[train], x[test], y[test]
    dataset = Dataset(x, y, x_test, y_test, {"source": source})
    if found.classes is not None:
        dataset.meta["classes"] = found.classes
    if validation_fraction:
        train, kept = _drawn(found, y, validation_fraction, "data.validation_fraction", source)
        return dataclasses.replace(
            dataset, x_train=x[train], y_train=y[train], x_validation=x[kept], y_validation=y[kept]
        )
    return dataset


def _drawn(
    found: Examples, y: np.ndarray, fraction: float, key: str, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the examples that stay and of those that are held out."""
    from sklearn.model_selection import train_test_split

    by_class = y if found.classes is not None and y.ndim == 1 else None
    try:
        kept, held_out = train_test_split(
            np.arange(len(y)),
            test_size=fraction,
            random_state=None if found.ordered else SPLIT_SEED,
            shuffle=not found.ordered,
            stratify=None if found.ordered else by_class,
        )
        return np.asarray(kept), np.asarray(held_out)
    except ValueError as error:
        sides = "" if by_class is None else " with each class on both sides"
        raise UserError(
            f"{key}: {fraction} of the {len(y)} examples of {source} cannot be held out{sides}: "
            f"{error}; choose another share"
        ) from None
