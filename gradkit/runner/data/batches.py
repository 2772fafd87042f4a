"""Which examples a step sees: a pure function of the seed and the step's number."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from gradkit.runner.errors import UserError


@dataclasses.dataclass(frozen=True)
class Batches:
    """The order in which a run sees its examples.

    A batch of all examples has them in their order, so that the loss is one function.

    Attributes:
        examples: how many there are.
        size: of a batch.
        seed: of the run.
        sampling: "shuffled": every epoch a new order, without replacement, of which the last
            examples that do not fill a batch are left for other epochs. "replacement": each example
            drawn by itself. "cyclic": the order of the data set, over and over. "balanced": of
            every class equally many, or one more, each class in shuffled orders of its own.
        labels: the class of each example, for "balanced".
    """

    examples: int
    size: int
    seed: int
    sampling: str = "shuffled"
    labels: np.ndarray | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        if self.size > self.examples:
            raise UserError(
                f"batch_size: expected at most {self.examples}, the number of training examples, "
                f"got {self.size}"
            )
        if self.sampling == "balanced" and (self.labels is None or self.labels.ndim != 1):
            raise UserError(
                "sampling: balanced needs a class for each example, which these data do not have; "
                "choose shuffled, replacement or cyclic"
            )

    @property
    def whole(self) -> bool:
        """Whether a batch is all examples."""
        return self.size == self.examples

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return self.examples // self.size

    def rows(self, start: int, count: int) -> np.ndarray:
        """Returns the positions of the examples of so many steps, shape (count, size)."""
        if self.sampling != "shuffled" or self.whole:
            return np.stack([self.indices(step) for step in range(start, start + count)])
        epochs = range(start // self.per_epoch, (start + count - 1) // self.per_epoch + 1)
        full = self.per_epoch * self.size
        orders = [_order(self.seed, epoch, self.examples)[:full] for epoch in epochs]
        first = start % self.per_epoch
        return np.concatenate(orders).reshape(-1, self.size)[first : first + count]

    def indices(self, step: int) -> np.ndarray:
        """Returns the positions of the examples of a step, shape (size,)."""
        if self.whole:
            return np.arange(self.size)
        return getattr(self, f"_{self.sampling}")(step)

    def _shuffled(self, step: int) -> np.ndarray:
        return self.rows(step, 1)[0]

    def _replacement(self, step: int) -> np.ndarray:
        return np.random.default_rng([self.seed, step]).integers(self.examples, size=self.size)

    def _cyclic(self, step: int) -> np.ndarray:
        return np.arange(step * self.size, (step + 1) * self.size) % self.examples

    def _balanced(self, step: int) -> np.ndarray:
        place = np.arange(step * self.size, (step + 1) * self.size)  # in the stream of all draws
        rounds, which = np.divmod(place, len(self._classes))
        rows = np.empty(self.size, int)
        for c, members in enumerate(self._classes):
            n, mine = len(members), which == c
            epochs, positions = np.divmod(rounds[mine], n)
            orders = [_order_of_class(self.seed, c, epoch, n) for epoch in epochs.tolist()]
            rows[mine] = [members[o[i]] for o, i in zip(orders, positions, strict=True)]
        return rows

    @functools.cached_property
    def _classes(self) -> list[np.ndarray]:
        labels = np.asarray(self.labels)
        return [np.flatnonzero(labels == c) for c in np.unique(labels)]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


@functools.lru_cache(maxsize=1024)
def _order_of_class(seed: int, c: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([seed, c, epoch]).permutation(examples)
