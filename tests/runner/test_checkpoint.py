"""A checkpoint comes back bit for bit, or says what is wrong with it."""

import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradkit as gk
from gradkit.runner import checkpoint
from gradkit.runner.errors import UserError


class Pair(NamedTuple):
    left: object
    right: object


def random_bits(dtype, shape=()):
    dtype = jnp.dtype(dtype)
    size = dtype.itemsize * max(1, int(np.prod(shape)))
    return jnp.asarray(
        np.frombuffer(np.random.default_rng(0).bytes(size), dtype).reshape(shape), dtype
    )


def everything():
    params = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    return {
        "params": params,
        "optimizer": gk.chain(gk.clip_by_global_norm(1.0), gk.adam(1e-3)).init(params),
        "pair": Pair(None, [random_bits("float32", (5,)), None]),
        "nans": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "half": (random_bits("bfloat16", (3, 2)), random_bits("float16", (4,))),
        "scalars": [random_bits("float32"), random_bits("int32"), jnp.array(True)],
        "bytes": random_bits("uint8", (2, 1, 3)),
        "complex": random_bits("complex64", (2,)),
        "empty": jnp.zeros((0, 3)),
        "keys": [jax.random.key(1), jax.random.split(jax.random.key(2, impl="rbg"), 3)],
        "numpy": np.random.default_rng(0).normal(size=(2, 2)),
        "python": (3, 2.5, True),
        "numbered": {0: jnp.ones(2), 10: jnp.zeros(2)},
    }


def blank(state):
    """The same structure with other values."""

    def other(leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                jnp.zeros_like(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        if isinstance(leaf, jax.Array):
            return jnp.zeros_like(leaf)
        return np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else type(leaf)(0)

    return jax.tree.map(other, state)


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)).tobytes()
    return type(leaf), str(np.asarray(leaf).dtype), np.shape(leaf), np.asarray(leaf).tobytes()


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    state = everything()
    checkpoint.save(tmp_path, 7, state, seconds=1.5, origin={"seed": "0"})
    restored, meta = checkpoint.restore(tmp_path, 7, blank(state))
    assert meta == {"seconds": 1.5, "origin": {"seed": "0"}}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert isinstance(restored["pair"], Pair)
    assert type(restored["params"]) is type(state["params"])
    assert type(restored["optimizer"][1][0]) is type(state["optimizer"][1][0])
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert bits(one) == bits(other)


def test_the_state_that_comes_back_can_be_given_up_to_a_step(tmp_path):
    state = {"a": jnp.arange(1000.0), "b": jnp.zeros(3)}
    checkpoint.save(tmp_path, 1, state)
    restored, _ = checkpoint.restore(tmp_path, 1, state)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    once = step(restored)
    again, _ = checkpoint.restore(tmp_path, 1, state)
    np.testing.assert_array_equal(once["a"], np.arange(1000) + 1)
    np.testing.assert_array_equal(again["a"], np.arange(1000))


def test_steps_are_found_in_order_and_drafts_are_none(tmp_path):
    assert checkpoint.steps(tmp_path / "none") == []
    for step in (1_000_000, 20, 3):
        checkpoint.save(tmp_path, step, {"x": jnp.ones(2)})
    (tmp_path / ".000040.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    assert checkpoint.steps(tmp_path) == [3, 20, 1_000_000]


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path.relative_to(tmp_path) / "here", 1, {"x": jnp.ones(2)})
    restored, _ = checkpoint.restore(tmp_path / "here", 1, {"x": jnp.zeros(2)})
    np.testing.assert_array_equal(restored["x"], np.ones(2))


def test_saving_again_replaces_and_clears_a_draft(tmp_path):
    (tmp_path / ".000002.tmp" / "arrays").mkdir(parents=True)
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, 2, {"x": jnp.array(value)})
    restored, _ = checkpoint.restore(tmp_path, 2, {"x": jnp.array(0.0)})
    assert restored["x"] == 2.0
    assert [child.name for child in tmp_path.iterdir()] == ["000002"]


def refusal(folder, step, like):
    with pytest.raises(UserError) as error:
        checkpoint.restore(folder, step, like)
    return str(error.value)


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"a": jnp.ones(3), "b": jnp.zeros(4)}, "expected b float32[4], got b float32[2]"),
        ({"a": jnp.ones(3), "b": jnp.zeros(2, int)}, "expected b int32[2], got b float32[2]"),
        ({"a": jnp.ones(3), "c": jnp.zeros(2)}, "expected c float32[2], got b float32[2]"),
        ({"a": jnp.ones(3)}, "expected no further leaf, got b float32[2]"),
        (
            {"a": jnp.ones(3), "b": {"x": jnp.zeros(2)}},
            "expected b.x float32[2], got b float32[2]",
        ),
        (
            {"a": jnp.ones(3), "b": jnp.zeros(2), "c": 1},
            "expected c int[], got no further leaf",
        ),
    ],
)
def test_a_different_structure_names_the_first_leaf_that_differs(tmp_path, like, words):
    checkpoint.save(tmp_path, 5, {"a": jnp.ones(3), "b": jnp.zeros(2)})
    message = refusal(tmp_path, 5, like)
    assert message.startswith(f"{tmp_path / '000005'}: saved by a different model or optimizer: ")
    assert words in message


@pytest.mark.parametrize(
    "other", [gk.sgd(0.1), optax.adamw(1e-3), gk.adam(1e-3, mu_dtype="bfloat16")]
)
def test_adams_state_is_refused_for_another_structure(tmp_path, other):
    params = {"w": jnp.ones((3, 2))}
    checkpoint.save(tmp_path, 5, gk.adam(1e-3).init(params))
    assert "different model or optimizer" in refusal(tmp_path, 5, other.init(params))


def test_a_missing_checkpoint_names_those_that_there_are(tmp_path):
    assert refusal(tmp_path, 9, {}).endswith("no such checkpoint; there are: none")
    for step in (10, 20):
        checkpoint.save(tmp_path, step, {"x": jnp.ones(2)})
    assert refusal(tmp_path, 9, {}).endswith("no such checkpoint; there are: 10, 20")


STATE = {"w": jnp.arange(5000.0) ** 0.5, "b": jnp.zeros(3)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint.save(folder, 1, STATE, seconds=0.0)
    return folder


def arrays_in(folder):
    files = [path for path in (folder / "000001" / "arrays").rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_size)


DAMAGES = ("cut", "flipped", "lost", "added", "no structure", "cut structure", "edited", "list")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_the_way_out(tmp_path, sound, damage):
    folder = tmp_path / "checkpoints"
    shutil.copytree(sound, folder)
    largest = arrays_in(folder)[-1]
    content = bytearray(largest.read_bytes())
    structure = folder / "000001" / "structure.json"
    named = largest.relative_to(folder / "000001").as_posix()
    match damage:
        case "cut":
            largest.write_bytes(content[: len(content) // 2])
        case "flipped":
            content[len(content) // 2] ^= 0x10
            largest.write_bytes(content)
        case "lost":
            largest.unlink()
        case "added":
            largest.with_name("more").write_bytes(b"1")
            named = "more is not what was saved"
        case "no structure":
            structure.unlink()
            named = "structure.json is missing"
        case "cut structure":
            structure.write_text(structure.read_text()[:-20])
            named = "structure.json: "
        case "edited":
            structure.write_text(structure.read_text().replace('"float32"', '"int32"', 1))
            named = "structure.json is not what was saved"
        case "list":
            structure.write_text("[1]")
            named = "structure.json is not what was saved"
    message = refusal(folder, 1, STATE)
    assert message.startswith(f"{folder / '000001'}: damaged checkpoint: ")
    assert named in message
    assert message.endswith("Delete this folder to begin from the start.")
    assert len(message.splitlines()) == 1


def test_a_renamed_checkpoint_is_refused(tmp_path, sound):
    shutil.copytree(sound / "000001", tmp_path / "000400")
    assert "damaged checkpoint: holds step 1." in refusal(tmp_path, 400, STATE)


def test_the_structure_file_can_be_read_by_others(sound):
    structure = json.loads((sound / "000001" / "structure.json").read_text())
    assert structure["step"] == 1
    assert structure["leaves"] == [
        {"path": "b", "shape": [3], "dtype": "float32"},
        {"path": "w", "shape": [5000], "dtype": "float32"},
    ]
