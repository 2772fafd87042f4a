"""Which examples a step sees follows from the seed and the step's number alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradkit.runner.data.batches import Batches
from gradkit.runner.errors import UserError

batches = st.integers(1, 60).flatmap(
    lambda examples: st.builds(
        Batches,
        examples=st.just(examples),
        size=st.integers(1, examples),
        seed=st.integers(0, 2**32 - 1),
    )
)


@given(batches, st.integers(0, 5))
def test_an_epoch_is_without_replacement_and_leaves_less_than_a_batch(batches, epoch):
    first = epoch * batches.per_epoch
    seen = [batches.indices(first + index) for index in range(batches.per_epoch)]
    assert all(indices.shape == (batches.size,) for indices in seen)
    seen = np.concatenate(seen)
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(range(batches.examples))
    assert batches.examples - len(seen) < batches.size


@given(batches, st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_a_batch_depends_on_seed_and_step_alone(batches, steps):
    there = [batches.indices(step).tolist() for step in steps]
    again = Batches(batches.examples, batches.size, batches.seed)
    back = [again.indices(step).tolist() for step in reversed(steps)]
    assert back[::-1] == there


def test_epochs_and_seeds_differ():
    def epoch(seed, number):
        return Batches(100, 50, seed).indices(2 * number).tolist()

    orders = [epoch(seed, number) for seed in (0, 1) for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_batch_of_all_examples_is_the_same_at_every_step():
    batches = Batches(100, 100, seed=0)
    assert batches.indices(0).tolist() == batches.indices(7).tolist() == list(range(100))


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(UserError, match=r"batch_size: expected at most 10, .* got 11"):
        Batches(10, 11, seed=0)


LABELS = np.array([0] * 12 + [1] * 5 + [2] * 3)


def order(sampling, size=4, seed=3):
    return Batches(len(LABELS), size, seed, sampling, LABELS)


@pytest.mark.parametrize("sampling", ["shuffled", "replacement", "cyclic", "balanced"])
def test_many_steps_are_each_step_by_itself(sampling):
    batches = order(sampling)
    one_by_one = [order(sampling).indices(step) for step in range(7, 30)]
    np.testing.assert_array_equal(batches.rows(7, 23), one_by_one)
    assert batches.rows(0, 40).min() == 0
    assert batches.rows(0, 40).max() == len(LABELS) - 1


@pytest.mark.parametrize(("sampling", "depends"), [("replacement", True), ("cyclic", False)])
def test_what_depends_on_the_seed(sampling, depends):
    first, second = (order(sampling, seed=seed).rows(0, 20) for seed in (0, 1))
    assert depends == (not np.array_equal(first, second))


def test_draws_with_replacement_are_uniform():
    draws = Batches(5, 4, 0, "replacement").rows(0, 5000)
    counts = np.bincount(draws.ravel(), minlength=5)
    expected, deviation = 4000, np.sqrt(20000 * 0.2 * 0.8)
    assert np.abs(counts - expected).max() < 4 * deviation
    repeated = np.mean([len(set(row)) < 4 for row in draws.tolist()])
    assert repeated == pytest.approx(1 - 5 * 4 * 3 * 2 / 5**4, abs=0.03)


def test_cyclic_batches_go_round():
    assert Batches(5, 3, 0, "cyclic").rows(0, 4).ravel().tolist() == [*range(5), *range(5), 0, 1]


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_balanced_batches_have_every_class_alike_and_every_example_of_it(size):
    rows = order("balanced", size).rows(0, 36)
    for counts in (np.bincount(LABELS[row], minlength=3) for row in rows):
        assert counts.max() - counts.min() <= 1
    seen = rows.ravel()[: 36 * (size // 1)]
    for c, members in enumerate([range(12), range(12, 17), range(17, 20)]):
        of_class = seen[LABELS[seen] == c]
        whole = len(of_class) // len(members) * len(members)
        for epoch in of_class[:whole].reshape(-1, len(members)).tolist():
            assert sorted(epoch) == list(members)


def test_balanced_batches_need_classes():
    with pytest.raises(UserError, match="sampling: balanced needs a class for each example"):
        Batches(10, 2, 0, "balanced")
