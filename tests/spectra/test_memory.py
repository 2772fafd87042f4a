"""What a spectrum takes of memory, as XLA tells, and how it is kept within a limit."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.krylov import drivers, lanczos
from gradkit.spectra import extremes, memory

N = 3000
KEY = jax.random.key(0)
ENDS = {"top": 3, "bottom": 2}
TREE = 4 * (N + 8)  # bytes


def diagonal(n=N):
    """An operator on a nested tree, its five outermost eigenvalues apart from the others."""
    values = jnp.linspace(-1, 1, n).at[:2].set(jnp.array([-5.0, -4.0]))
    values = values.at[-3:].set(jnp.array([4.0, 6.0, 9.0]))
    matvec = jax.tree_util.Partial(lambda d, v: {"a": d * v["a"], "b": [0.5 * v["b"][0]]}, values)
    return gk.Operator(matvec, {"a": jnp.zeros(n), "b": [jnp.zeros((2, 4))]})


def peak(compiled):
    """The bytes that a compiled function has at once, arguments included."""
    found = compiled.memory_analysis()
    inside = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return inside - found.alias_size_in_bytes


def search_state(A, rows):
    krylov = lanczos.init(A, None, KEY, rows=rows)
    none = jnp.zeros((), jnp.int32)
    return extremes.Search(krylov, jnp.array(1e-5), jnp.zeros((), bool), none, none + 100)


@pytest.mark.parametrize("rows", [16, 40])
def test_the_model_is_what_xla_tells(rows):
    A = diagonal()
    need = memory.Need(TREE, 0, **ENDS)
    wanted = extremes.Wanted(smallest=2, largest=3)
    state = search_state(A, rows)
    held = TREE  # the operator's own array
    step = drivers._in_place.lower(
        extremes._advance(wanted, True), A, state, until=extremes._stops
    ).compile()
    theta, S, began = jax.eval_shape(
        lambda s: extremes._worth_keeping(s, wanted=wanted), state.krylov
    )
    kept = lanczos._kept.lower(state.krylov, S).compile()
    parts = jax.eval_shape(lanczos._kept, state.krylov, S)
    begun = lanczos._begun_with.lower(state.krylov, theta, *parts, began).compile()
    told = max(peak(step) - held, peak(kept), peak(begun))
    assert told <= need.restarted(rows) <= 1.3 * told
    grown = peak(lanczos.extended.lower(search_state(A, 96).krylov, rows=100).compile())
    assert grown <= 1.05 * need.kept_whole(100) <= 1.2 * grown  # H is not of the model


def test_a_large_limit_changes_nothing():
    A = diagonal()
    expected = gk.spectrum(A, key=KEY, probes=2, steps=10, **ENDS)
    found = gk.spectrum(A, key=KEY, probes=2, steps=10, memory_limit=1e9, **ENDS)
    assert expected.memory is None
    assert found.memory.strategy == "all vectors"
    np.testing.assert_array_equal(found.largest.values, expected.largest.values)
    np.testing.assert_array_equal(found.density.nodes, expected.density.nodes)


@pytest.mark.parametrize("trees", [30, 45])
def test_a_small_one_keeps_as_many_vectors_as_fit_and_finds_the_same(trees):
    found = gk.spectrum(diagonal(), key=KEY, probes=0, memory_limit=trees * TREE, **ENDS)
    kept = found.memory
    assert kept.strategy == "restarted"
    assert kept.bytes <= trees * TREE
    more = memory.Need(TREE, kept.product, **ENDS).restarted(kept.basis.size + 1)
    assert more > trees * TREE
    np.testing.assert_allclose(found.largest.values, [4, 6, 9], rtol=1e-5)
    np.testing.assert_allclose(found.smallest.values, [-5, -4], rtol=1e-5)
    assert found.largest.converged.all()


def test_what_does_not_fit_is_refused_with_what_would():
    A = diagonal()
    expected = r"memory_limit: expected at least ([\d,]+) bytes, for 12 vectors of 12,032 and"
    with pytest.raises(ValueError, match=expected) as refusal:
        gk.spectrum(A, key=KEY, memory_limit=10 * TREE, **ENDS)
    least = int(str(refusal.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    found = gk.spectrum(A, key=KEY, probes=0, memory_limit=least, **ENDS)
    assert found.memory.basis.size == 12
    with pytest.raises(ValueError, match=f"got {least - 1:,}"):
        gk.spectrum(A, key=KEY, probes=0, memory_limit=least - 1, **ENDS)


def test_it_chooses_the_basis_outside_jit():
    A = diagonal()
    with pytest.raises(ValueError, match="got it with basis"):
        gk.spectrum(A, key=KEY, basis=20, memory_limit=1e9)
    with pytest.raises(ValueError, match="got it within jit"):
        jax.jit(lambda A: gk.spectrum(A, key=KEY, memory_limit=1e9).largest)(A)


def test_an_accelerator_has_the_memory_of_its_host_and_bfloat16(monkeypatch):
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "gpu")
    A = diagonal()
    limit = memory.Need(TREE, memory.product_bytes(A), **ENDS).outside()
    found = gk.spectrum(A, key=KEY, probes=0, memory_limit=limit, **ENDS)
    assert found.memory.strategy == "restarted on the host"
    np.testing.assert_allclose(found.largest.values, [4, 6, 9], rtol=1e-5)
    limit = memory.Need(TREE, memory.product_bytes(A), **ENDS).restarted(12) - TREE
    kept, drive = memory.fitting(A, limit, top=3, bottom=2, most=None, drive=gk.on_host)
    assert (kept.strategy, kept.basis.dtype) == ("restarted in bfloat16", jnp.bfloat16)
    assert drive is gk.on_host


def test_a_product_is_counted_with_what_it_takes():
    assert memory.product_bytes(diagonal()) <= TREE
    x = jnp.ones((64, 500))
    A = gk.hessian(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2), jnp.ones((500, 300)), x)
    assert memory.product_bytes(A) >= 4 * 64 * 300
    batches = [np.ones((4, 3), np.float32)]
    streamed = gk.streamed(gk.hessian)(lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones(3), batches)
    assert memory.product_bytes(streamed) == 0


def test_layers_that_are_rematerialized_keep_less():
    """As `gk.micro_batched` says: of a deep model the inputs of its layers alone."""
    w, x = jnp.ones((16, 64, 64)) / 64, jnp.ones((256, 64))

    def layer(x, w):
        return jnp.tanh(jnp.tanh(jnp.tanh(x @ w) @ w) @ w), None

    def loss_with(layer):
        return lambda w, x: jnp.mean(jax.lax.scan(layer, x, w)[0] ** 2)

    build = gk.micro_batched(gk.hessian, 128)
    plain, less = (build(loss_with(f), w, x) for f in (layer, jax.checkpoint(layer)))
    v = jax.random.normal(KEY, w.shape)
    np.testing.assert_allclose(plain @ v, less @ v, rtol=1e-4, atol=1e-6 * jnp.max(jnp.abs(v)))
    assert memory.product_bytes(less) < 0.75 * memory.product_bytes(plain)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_process_stays_within_the_limit():
    """Measured by the system: all that is resident beyond what was before; some for the code."""
    program = r"""if True:
        import pathlib, sys
        import jax, jax.numpy as jnp, gradkit as gk

        def operator(n):
            values = jnp.linspace(-1, 1, n).at[:3].set(-9 - jnp.arange(3.0))
            values = values.at[-3:].set(9 + jnp.arange(3.0))
            return gk.Operator(jax.tree_util.Partial(lambda d, v: d * v, values), values)

        def run(n, trees):
            A, limit = operator(n), trees * 4 * n
            kw = dict(top=3, bottom=3, probes=1, steps=4, max_products=60, memory_limit=limit)
            return jax.block_until_ready(gk.spectrum(A, key=jax.random.key(0), **kw))

        status = pathlib.Path("/proc/self/status")

        def resident():
            # Not `ru_maxrss`: a child's begins at the most that its parent had at the fork.
            return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])

        n, trees = 2**22, int(sys.argv[1])
        run(1000, trees)
        before = resident() + 4 * n  # and the operator
        kept = run(n, trees).memory
        print(kept.strategy, kept.bytes, resident() - before)
    """
    for trees, expected in ((33, "restarted"), (100, "all vectors")):
        done = subprocess.run(
            [sys.executable, "-c", program, str(trees)], capture_output=True, text=True, check=True
        )
        *strategy, told, measured = done.stdout.split()
        assert " ".join(strategy) == expected
        # Rows of the basis that are not reached are not resident.
        assert 0.4 * int(told) <= int(measured) <= 1.05 * int(told) + 2**26
