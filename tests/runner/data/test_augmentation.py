"""Images of a training batch are changed at random, by the key alone, and those of no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.runner import programs, setting
from gradkit.runner.config import Config
from gradkit.runner.data.augmentation import augmented
from gradkit.runner.errors import UserError
from gradkit.runner.schema import Augment

KEY = jax.random.key(0)
SHAPES = [(400, 5, 4), (400, 5, 4, 3)]


def images(shape):
    return np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)


def changed(x, **given):
    return np.asarray(augmented(jnp.asarray(x), KEY, Augment(**given)))


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_changed_by_default(shape):
    np.testing.assert_array_equal(changed(images(shape)), images(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_half_of_the_images_are_mirrored(shape):
    x = images(shape)
    axes = tuple(range(1, x.ndim))
    found = changed(x, flip=True)
    same, mirrored = (found == x).all(axes), (found == x[:, :, ::-1]).all(axes)
    assert (same ^ mirrored).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(400))


@pytest.mark.parametrize("shape", SHAPES)
def test_images_are_moved_by_up_to_so_much_each_way(shape):
    x, found = images(shape), changed(images(shape), crop=2)
    seen = set()
    for before, after in zip(x, found, strict=True):
        for move in np.ndindex(5, 5):
            wide = np.zeros((9, 8, *shape[3:]), np.float32)
            wide[2:7, 2:6] = before
            if (wide[move[0] : move[0] + 5, move[1] : move[1] + 4] == after).all():
                seen.add(move)
                break
        else:
            pytest.fail("an image that is not the one before, moved")
    assert len(seen) == 25


@pytest.mark.parametrize("shape", SHAPES)
def test_each_image_is_brighter_or_darker_by_a_number_of_its_own(shape):
    ratio = (changed(images(shape), jitter=0.2) / images(shape)).reshape(400, -1)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-5)
    assert 0.8 <= ratio.min() < 0.81
    assert 1.19 < ratio.max() <= 1.2
    assert ratio[:, 0].mean() == pytest.approx(1, abs=4 * 0.2 / np.sqrt(3 * 400))


def prepared(**fields):
    return setting.prepare(Config(**{"optimizer": {"name": "sgd"}, **fields}))


@pytest.mark.slow
def test_a_step_sees_changed_images_and_an_evaluation_those_of_the_data():
    data = {"source": "digits", "examples": 64}
    plain, changing = (
        prepared(data={**data, "augment": augment}, model={"hidden": []}, batch_size=64)
        for augment in ({}, {"crop": 1})
    )
    state = plain.initial()
    losses = []
    for made in (plain, changing):
        step = jax.jit(programs._update(made))
        losses.append([step(state, made.key, made.task.data.train, i)[1]["loss"] for i in (0, 1)])
    whole = plain.task.problem.value(state.params, plain.task.data.train)
    np.testing.assert_allclose(losses[0], [whole, whole], rtol=1e-6)
    assert len({float(loss) for row in losses for loss in row}) == 3
    moved = augmented(
        jnp.asarray(changing.task.data.x_train),
        jax.random.fold_in(jax.random.fold_in(changing.key, 1), 2),
        Augment(crop=1),
    )
    expected = plain.task.problem.value(state.params, plain.task.data.train | {"x": moved})
    assert losses[1][1] == pytest.approx(float(expected), rel=1e-6)
    programs_of = programs.compiled(changing, changing.initial())
    assert programs_of.evaluate(state)["train_loss"] == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"data": {"source": "wine", "augment": {"flip": True}}},
            r"data\.augment: expected images of shape .*, got float32 of shape \(13,\) from wine",
        ),
        (
            {
                "data": {"source": "digits", "examples": 64, "augment": {"crop": 1}},
                "optimizer": "lbfgs",
                "batch_size": 64,
            },
            r"same loss; data\.augment makes another one of each",
        ),
    ],
)
def test_what_cannot_be_augmented(fields, words):
    with pytest.raises(UserError, match=words):
        prepared(**fields)
