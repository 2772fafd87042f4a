from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk

DIAGONAL = jnp.concatenate([jnp.linspace(-1, 1, 70), jnp.array([5.0, 20.0])])


def operator(scale=1.0):
    return gk.Operator(jax.tree_util.Partial(jnp.multiply, scale * DIAGONAL), DIAGONAL)


def whole(drive, A=None, **options):
    options = {"top": 2, "bottom": 2, "probes": 2, "steps": 6, **options}
    A = operator() if A is None else A
    return gk.spectrum(A, key=jax.random.key(0), drive=drive, **options)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


class InterruptionError(Exception):
    pass


def interruptible(products):
    """A driver that stops after so many products, as a killed process would."""
    left = iter(range(products))

    def drive(step, A, state, *, until, watch):
        def interrupt(s):
            watch(s)
            if next(left, None) is None:
                raise InterruptionError

        return gk.on_host(step, A, state, until=until, watch=interrupt)

    return drive


def counting(calls):
    """A driver that appends to `calls` at each product."""

    def drive(step, A, state, *, until, watch):
        def count(s):
            watch(s)
            calls.append(1)

        return gk.on_host(step, A, state, until=until, watch=count)

    return drive


@pytest.mark.slow
@pytest.mark.parametrize("products", [0, 3, 20, 33])
def test_an_interrupted_spectrum_goes_on_to_the_same_bits(tmp_path, products):
    expected = whole(gk.on_host)
    with pytest.raises(InterruptionError):
        whole(gk.resumable(tmp_path, every=0, drive=interruptible(products)))
    calls = []
    found = whole(gk.resumable(tmp_path, drive=counting(calls)))
    assert_same(found, expected)
    assert len(calls) == int(expected.products) - 4 - products - 1


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_can_be_removed(tmp_path):
    drive = gk.resumable(tmp_path / "state")
    first = whole(drive)
    calls = []
    again = gk.resumable(tmp_path / "state", drive=counting(calls))
    assert_same(whole(again), first)
    assert not calls
    again.remove()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": operator(2.0)}, "another operator"),
        ({"top": 3, "tol": 1e-3}, "other arguments"),
    ],
)
def test_another_computation_is_refused(tmp_path, change, message):
    whole(gk.resumable(tmp_path))
    with pytest.raises(ValueError, match=message):
        whole(gk.resumable(tmp_path), **change)


def test_a_damaged_state_is_named(tmp_path):
    whole(gk.resumable(tmp_path))
    file = tmp_path / "stage-000.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"stage-000\.npz: a damaged saved state"):
        whole(gk.resumable(tmp_path))


@pytest.mark.slow
def test_a_basis_in_bfloat16_is_kept(tmp_path):
    options = {"basis": gk.Basis(8, jnp.bfloat16), "max_products": 20}
    first = whole(gk.resumable(tmp_path), **options)
    assert_same(whole(gk.resumable(tmp_path), **options), first)
