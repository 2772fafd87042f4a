"""The length of a step along a direction: a fixed rate, or a search."""

from __future__ import annotations

import optax

from gradkit.transforms.chain import chain
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link


def stepping(
    direction: Link,
    learning_rate: optax.ScalarOrSchedule | None,
    search: Link,
    linesearch: optax.GradientTransformation | None = None,
) -> Link:
    """Returns the chain of a direction and what finds or scales the step along it.

    Args:
        direction: gives d, the step being −α d.
        learning_rate: α; None searches.
        search: finds α if there is neither a rate nor another search.
        linesearch: a member of gradkit in place of the rate, or one of optax after it.

    Raises:
        ValueError: there is a rate and a search of gradkit, which finds it.
    """
    if isinstance(linesearch, Link):
        if learning_rate is not None:
            raise ValueError(
                f"{linesearch.name} finds the learning rate: leave out learning_rate, got "
                f"{learning_rate!r}"
            )
        return chain(direction, linesearch)
    if linesearch is not None:
        rate = scale_by_learning_rate(1.0 if learning_rate is None else learning_rate)
        return chain(direction, rate, linesearch)
    if learning_rate is not None:
        return chain(direction, scale_by_learning_rate(learning_rate))
    return chain(direction, search)
