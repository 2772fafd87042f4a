"""Large models on one accelerator: optimizer updates, curvature products, a spectrum, probes.

    python benchmarks/accelerator.py [update] [products] [spectrum] [probes]

The transformer is GPT-2 small: 12 layers, width 768, 50,257 tokens, 124 million parameters, the
embedding tied to the output, no dropout. Its layers are one `scan` over stacked weights, which
compiles fast; `--unroll` writes them out. ResNet-50 has batch norm with frozen statistics, so that
its loss is a function of the parameters alone. Tokens and images are random: times do not depend
on them. Parameters are float32, matrix products in JAX's default precision, on NVIDIA's TF32.

The floor of an update is the bytes that it must move: AdamW reads g, m, v, p and writes m, v, p, 28
a parameter. Its share is of the bandwidth of a copy, x + 1 in place, timed in turn with it; the
aim is 90%.

The floor of a product is its matrix products, of which a gradient has 3 a layer: 8 for the Hessian
from scratch and 6 linearized, for Gauss–Newton 5 and 4; the aim is 1.15 times that. To be exact,
the two products of an attention, which have no weights, take 9 instead of 8, and a first layer
takes 2, 3 and 2: 2.71 gradients from scratch for the transformer, 2.64 for ResNet-50. XLA's count
of FLOPs has the body of a loop once.

A first call has compiling in it. Peak memory is the process's so far: name one section for its own.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from measure import compile_seconds, machine, medians, timed

import gradkit as gk
from gradkit import tree

RATE = 1e-3
UPDATES = {  # ours and optax's, each with its floor [bytes a parameter]
    "adamw": ((gk.adamw(RATE), 28), (optax.adamw(RATE), 28)),
    "clip + adamw": (
        (gk.chain(gk.clip_by_global_norm(1.0), gk.adamw(RATE)), 32),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE)), 32),
    ),
    "sgd, momentum": ((gk.sgd(RATE, 0.9), 20), (optax.sgd(RATE, 0.9), 20)),
    "adam, bfloat16 moments": ((gk.low_precision(gk.adam(RATE)), 20), (optax.adam(RATE), 28)),
    "adam, int8 moments": ((gk.low_precision(gk.adam(RATE), jnp.int8), 16), (optax.adam(RATE), 28)),
}
PRODUCTS = {  # whether linearized, and the floor in gradients
    "Hessian, from scratch": (gk.hessian, False, 8 / 3),
    "Hessian, linearized": (gk.hessian, True, 6 / 3),
    "Gauss–Newton, from scratch": (gk.gauss_newton, False, 5 / 3),
    "Gauss–Newton, linearized": (gk.gauss_newton, True, 4 / 3),
}
IN_TURN = 10  # updates of one timing
CALLS = 3  # products of one timing
TOP, TOL = 10, 1e-2  # the products of TF32 are right to 1e-3
BASIS = gk.Basis(30)  # vectors of 0.5 GB; a compiled loop holds them twice
MOST = 200  # products
PROBES, STEPS = 2, 40
TOGETHER = 8  # probes
CHUNKS = (2, 4)


class Block(nn.Module):
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x, _):
        kind, width = {"dtype": self.dtype}, x.shape[-1]
        h = nn.LayerNorm(**kind)(x)
        h = nn.DenseGeneral((3, self.heads, width // self.heads), **kind)(h)
        q, k, v = jnp.moveaxis(h, -3, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) / q.shape[-1] ** 0.5
        past = jnp.tri(x.shape[1], dtype=bool)
        weights = nn.softmax(jnp.where(past, scores, -1e9)).astype(v.dtype)
        h = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        x = x + nn.DenseGeneral(width, axis=(-2, -1), **kind)(h)
        h = nn.gelu(nn.Dense(4 * width, **kind)(nn.LayerNorm(**kind)(x)))
        return x + nn.Dense(width, **kind)(h), None


class Transformer(nn.Module):
    layers: int = 12
    width: int = 768
    heads: int = 12
    tokens: int = 50257
    length: int = 1024
    dtype: Any = jnp.float32
    unroll: bool = False

    @nn.compact
    def __call__(self, x):
        embed = functools.partial(
            nn.Embed,
            features=self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
        )
        tokens = embed(num_embeddings=self.tokens)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=self.layers if self.unroll else 1,
        )
        h = tokens(x) + embed(num_embeddings=self.length)(jnp.arange(x.shape[1]))
        h, _ = blocks(self.heads, self.dtype, name="blocks")(h, None)
        return tokens.attend(nn.LayerNorm(dtype=self.dtype)(h))


class Bottleneck(nn.Module):
    channels: int
    strides: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c, strides = self.channels, (self.strides, self.strides)
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.BatchNorm, use_running_average=True, dtype=self.dtype)
        h = nn.relu(norm()(conv(c, (1, 1))(x)))
        h = nn.relu(norm()(conv(c, (3, 3), strides)(h)))
        # Frozen statistics do not normalize: a small scale keeps 16 sums from growing.
        h = norm(scale_init=nn.initializers.constant(0.2))(conv(4 * c, (1, 1))(h))
        if x.shape != h.shape:
            x = norm()(conv(4 * c, (1, 1), strides)(x))
        return nn.relu(x + h)


class ResNet(nn.Module):
    blocks: Sequence[int] = (3, 4, 6, 3)
    channels: int = 64
    classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        kind = {"dtype": self.dtype}
        x = nn.Conv(self.channels, (7, 7), (2, 2), use_bias=False, **kind)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, **kind)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                strides = 2 if stage and i == 0 else 1
                x = Bottleneck(self.channels * 2**stage, strides, **kind)(x)
        return nn.Dense(self.classes, **kind)(jnp.mean(x, axis=(1, 2)))


class Subject(NamedTuple):
    """`published`: products of compiled PyTorch in gradients, of the Hessian and Gauss–Newton."""

    title: str
    problem: gk.Problem
    params: Any
    batch: Any
    published: dict[Callable, float]


def transformer(asked) -> Subject:
    sizes: Any = {"layers": 2, "width": 64, "heads": 2, "tokens": 256, "length": 16}
    model = Transformer(**sizes if asked.small else {}, dtype=asked.dtype, unroll=asked.unroll)
    x, y = jax.random.randint(
        jax.random.key(0), (2, asked.batch, model.length), 0, model.tokens, jnp.int32
    )
    title = f"transformer of {model.layers} layers, width {model.width}, on {x.shape} tokens"
    return subject(title, model, x, y, {gk.hessian: 2.90, gk.gauss_newton: 2.12})


def resnet(asked) -> Subject:
    sizes: Any = {"blocks": (1, 1), "channels": 8, "classes": 10}
    model = ResNet(**sizes if asked.small else {}, dtype=asked.dtype)
    side, key = 32 if asked.small else 224, jax.random.key(0)
    x = jax.random.normal(key, (16 * asked.batch, side, side, 3))
    y = jax.random.randint(key, (len(x),), 0, model.classes, jnp.int32)
    title = f"ResNet of {3 * sum(model.blocks) + 2} layers on {x.shape} numbers"
    return subject(title, model, x, y, {gk.hessian: 2.78, gk.gauss_newton: 2.17})


def subject(title, model, x, y, published) -> Subject:
    def predict(params, batch):
        scores = model.apply({"params": params, **batch["fixed"]}, batch["x"])
        return scores.astype(jnp.float32)

    def criterion(scores, batch):
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(scores, batch["y"])
        return jnp.mean(losses)

    fixed = dict(jax.jit(model.init)(jax.random.key(1), x[:1]))
    params = fixed.pop("params")
    title = f"{title}, {optax.tree.size(params):,} parameters"
    problem = gk.Problem(predict=predict, criterion=criterion)
    return Subject(title, problem, params, {"x": x, "y": y, "fixed": fixed}, published)


def table(title: str, columns: str, rows: dict[str, Callable[[], list[str]]]) -> int:
    """Prints each row when it is measured, and returns how many failed."""
    failures = 0
    print(f"\n{title}\n\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}", flush=True)
    for name, row in rows.items():
        try:
            cells = row()
        except Exception as error:  # most likely the device's memory was too small
            cells, failures = [f"failed: {reason(error)}"], failures + 1
            gc.collect()
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return failures


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    first, *_ = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {first[:200]}".replace("|", "/")


def updates(asked) -> int:
    stacked = transformer(asked).params
    apart = stacked | {"blocks": jax.tree.map(list, stacked["blocks"])}
    failures = 0
    for like, title, names in ((stacked, "stacked", UPDATES), (apart, "apart", ("adamw",))):
        grads = jax.jit(tree.hashed_normal)(jnp.uint32(0), like)
        failures += table(
            f"updates of {optax.tree.size(grads):,} parameters, layers {title}, "
            f"{len(jax.tree.leaves(grads))} leaves",
            "update | time | optax | time / optax | floor | GB/s of it | copy, GB/s "
            "| share | optax's share | compile | optax, compile | temporary bytes a parameter",
            {name: functools.partial(updated, asked, grads, *UPDATES[name]) for name in names},
        )
    return failures


def updated(asked, grads, ours, theirs) -> list[str]:
    """One update beside optax's and a copy, each going on from its last result."""
    n, copied = optax.tree.size(grads), 2**20 if asked.small else 2**28
    made = {
        "ours": carried_on(*update_of(ours[0], grads), grads),
        "optax": carried_on(*update_of(theirs[0], grads), grads),
        "copy": carried_on(lambda x, one: x + one, jnp.zeros(copied), jnp.float32(1)),
    }
    runs = {name: run for name, (run, _, _) in made.items()}
    time = medians(runs, rounds=asked.rounds, calls=1)
    time = {name: seconds / IN_TURN for name, seconds in time.items()}
    moved = {"ours": ours[1] * n, "optax": theirs[1] * n, "copy": 8 * copied}  # bytes
    rate = {name: moved[name] / time[name] for name in made}
    return [
        f"{1e3 * time['ours']:.3f} ms",
        f"{1e3 * time['optax']:.3f} ms",
        f"{time['ours'] / time['optax']:.2f}",
        f"{ours[1]} bytes",
        f"{rate['ours'] / 1e9:,.0f}",
        f"{rate['copy'] / 1e9:,.0f}",
        f"{rate['ours'] / rate['copy']:.0%}",
        f"{rate['optax'] / rate['copy']:.0%}",
        f"{made['ours'][1]:.1f} s",
        f"{made['optax'][1]:.1f} s",
        f"{made['ours'][2] / n:.2f}",
    ]


def update_of(tx, grads):
    """The update as a pure function of what it carries, and what it carries at first."""

    def begin():
        params = jax.tree.map(jnp.zeros_like, grads)
        return params, tx.init(params)

    def step(carried, grads):
        params, state = carried
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step, jax.jit(begin)()


def carried_on(step, carried, fixed):
    """A run of some steps from where the last one ended, in place; of compiling the time, of a
    step the temporary memory.
    """
    compiled, seconds = compile_seconds(step, carried, fixed, donate=(0,))

    def run():
        nonlocal carried
        for _ in range(IN_TURN):
            carried = compiled(carried, fixed)
        return carried

    memory: Any = compiled.memory_analysis()
    return run, seconds, memory.temp_size_in_bytes


def products(asked, made: Subject) -> int:
    gradient, compiling = compile_seconds(
        jax.value_and_grad(made.problem.value), made.params, made.batch
    )

    def alone() -> list[str]:
        run = {"gradient": lambda: gradient(made.params, made.batch)}
        time = medians(run, rounds=asked.rounds, calls=CALLS)["gradient"]
        return [f"{1e3 * time:.2f} ms", "1", "1", "1", "1", "–", f"{compiling:.1f} s", "–", "–"]

    rows: dict[str, Callable] = {"value and gradient": alone}
    for name, product in PRODUCTS.items():
        rows[name] = functools.partial(multiplied, asked, made, gradient, *product)
    columns = (
        "what | time | gradients | floor | gradients / floor | FLOPs by XLA, in gradients "
        "| PyTorch, published | compile | linearize, first call | residuals"
    )
    return table(made.title, columns, rows)


def multiplied(asked, made: Subject, gradient, curvature, linearize, floor) -> list[str]:
    """One product, in turn with the gradient."""
    _, problem, params, batch, published = made
    A, linearizing = timed(lambda: curvature(problem, params, batch, linearize=linearize))
    product, compiling = compile_seconds(lambda A, v: A.matvec(v), A, params)
    runs = {"gradient": lambda: gradient(params, batch), "product": lambda: product(A, params)}
    time = medians(runs, rounds=asked.rounds, calls=CALLS)
    gradients = time["product"] / time["gradient"]
    return [
        f"{1e3 * time['product']:.2f} ms",
        f"{gradients:.2f}",
        f"{floor:.2f}",
        f"{gradients / floor:.2f}",
        f"{flops(product) / flops(gradient):.2f}",
        "–" if asked.small else f"{published[curvature]:.2f}",
        f"{compiling:.1f} s",
        f"{linearizing:.1f} s" if linearize else "–",
        held(A) if linearize else "–",
    ]


def held(A: gk.Operator) -> str:
    """The memory of what an operator keeps: of its residuals, or of parameters and batch."""
    return f"{sum(x.nbytes for x in jax.tree.leaves(A)) / 1e9:.2f} GB"


def flops(compiled) -> float:
    """Of one call as XLA counts them, the body of a loop once; NaN where it does not tell."""
    return (compiled.cost_analysis() or {}).get("flops", float("nan"))


def spectrum(asked) -> int:
    made = transformer(asked)
    H = gk.hessian(made.problem, made.params, made.batch)
    key, most = jax.random.key(0), 50 if asked.small else MOST
    probes, steps = (1, 5) if asked.small else (PROBES, STEPS)

    def largest():
        return gk.eigsh(H, TOP, key=key, tol=TOL, basis=BASIS, max_products=most)

    def density():
        return gk.density(H, key=key, probes=probes, steps=steps)

    return table(
        f"spectrum of the Hessian, which holds {held(H)}, {made.title}",
        "what | time | first call | products | of a product | peak memory | answer",
        {
            f"{TOP} largest, a basis of {BASIS.size}": lambda: read(largest, eigenvalues),
            f"density, {probes} probes of {steps} steps": lambda: read(density, ends),
        },
    )


def read(run: Callable, judge: Callable) -> list[str]:
    """What a spectrum took, the first time and again."""
    first = timed(run)[1]
    answer, seconds = timed(run)
    count = int(answer.products)
    told = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return [
        f"{seconds:.2f} s",
        f"{first:.2f} s",
        f"{count}",
        f"{1e3 * seconds / count:.2f} ms",
        f"{told / 1e9:.1f} GB" if told else "not told",
        judge(answer),
    ]


def eigenvalues(pairs: gk.Eigenpairs) -> str:
    largest, last = float(pairs.values[-1]), float(pairs.values[0])
    residual = float(pairs.residuals.max()) / largest
    return (
        f"λ₁ {largest:.3e}, λ₁₀ {last:.3e}; {int(pairs.converged.sum())} of {TOP} converged, "
        f"residuals of at most {residual:.0e} λ₁"
    )


def ends(density: gk.Density) -> str:
    low, high = density.support
    return f"from {float(low):.3e} to {float(high):.3e}; W₁ bound {float(density.w1_bound):.1e}"


def probes(asked) -> int:
    fewer = argparse.Namespace(**vars(asked) | {"batch": -(-asked.batch // 4)})
    made = transformer(fewer)  # as all probes at once take the memory of so many batches
    H = gk.hessian(made.problem, made.params, made.batch)
    one, _ = compile_seconds(sample, H, jax.random.key(0))

    def mapped(batch_size):
        return lambda H, keys: jax.lax.map(lambda k: sample(H, k), keys, batch_size=batch_size)

    ways = {
        "one by one": mapped(None),
        **{f"{size} at once": mapped(size) for size in CHUNKS},
        "all at once": jax.vmap(sample, in_axes=(None, 0)),
    }
    return table(
        f"zᵀHz of {TOGETHER} random z, H holds {held(H)}, {made.title}",
        "way | time of all | of one | over a product alone | compile | temporary memory",
        {name: functools.partial(probed, asked, H, one, way) for name, way in ways.items()},
    )


def sample(H: gk.Operator, key) -> jax.Array:
    z = tree.random_signs(key, H.domain)
    return tree.inner(z, H.matvec(z))


def probed(asked, H, one, way) -> list[str]:
    """Some probes in one call, in turn with a single one."""
    keys = jax.random.split(jax.random.key(0), TOGETHER)
    compiled, compiling = compile_seconds(way, H, keys)
    runs = {"one": lambda: one(H, keys[0]), "all": lambda: compiled(H, keys)}
    time = medians(runs, rounds=asked.rounds, calls=1)
    each = time["all"] / TOGETHER
    memory: Any = compiled.memory_analysis()
    return [
        f"{1e3 * time['all']:.1f} ms",
        f"{1e3 * each:.2f} ms",
        f"{each / time['one']:.2f}",
        f"{compiling:.1f} s",
        f"{memory.temp_size_in_bytes / 1e9:.2f} GB",
    ]


SECTIONS: dict[str, tuple[Callable[[Any], int], ...]] = {
    "update": (updates,),
    "products": (lambda a: products(a, transformer(a)), lambda a: products(a, resnet(a))),
    "spectrum": (spectrum,),
    "probes": (probes,),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if a row or a section failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each candidate")
    parser.add_argument("--batch", type=int, help="sequences, and a sixteenth of the images; 4")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--unroll", action="store_true", help="layers written out, not scanned")
    parser.add_argument("--small", action="store_true", help="narrow models: a smoke test")
    asked = parser.parse_args(arguments)
    for name in asked.sections:
        if name not in SECTIONS:
            parser.error(f"no section {name!r}; there are {', '.join(SECTIONS)}")
    asked.batch = asked.batch or (1 if asked.small else 4)
    print(
        f"{machine('flax')}, {jax.local_devices()[0].device_kind}; parameters in float32, "
        f"activations in {asked.dtype}",
        flush=True,
    )
    failures = 0
    for name in asked.sections or SECTIONS:
        for part in SECTIONS[name]:
            try:
                failures += part(asked)
            except Exception as error:
                print(f"\n{name} failed: {reason(error)}", flush=True)
                failures += 1
            gc.collect()
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
