"""From the config's section on data to the data set."""

from __future__ import annotations

from gradkit.runner.data.dataset import Dataset, split
from gradkit.runner.data.preprocessing import preprocessed
from gradkit.runner.making import made
from gradkit.runner.schema import Data


def load(given: Data) -> Dataset:
    """Returns the data set that a config describes: read, split, cut and preprocessed, in order.

    Raises:
        UserError: a file is missing or unreadable, or what it holds cannot be learned from.
    """
    source = given.source
    found = made(source, kind="data set")
    label = source.arguments.get("path", source.name)
    dataset = split(found, label, given.test_fraction, given.validation_fraction)
    if given.examples is not None:
        dataset = dataset.first(given.examples)
    if given.preprocess is not None:
        dataset = preprocessed(dataset, given.preprocess)
    return dataset
