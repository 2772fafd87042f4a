"""matfree, curvlinops and PyHessian on the tasks of `spectrum.py`, each as its documents have it.

None of them is a dependency: `installed` skips those that are absent. All get the same float32
weights and data. What they leave to the caller is chosen in their favor: matfree has no tolerance
and gets the fewest steps that meet ours; a product that it would redo is linearized once a call.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

PyTree = Any
Runs = dict[str, Callable[[], Any]]
TRACE_CHUNK = 20  # probes that curvlinops multiplies at once: it keeps the activations of each


class Top(NamedTuple):
    """The largest eigenvalues, ascending, from so many products."""

    values: Any
    products: Any


class Nodes(NamedTuple):
    """A density as nodes and weights, shape (probes, steps) each."""

    nodes: Any
    weights: Any
    products: Any


class Trace(NamedTuple):
    """A trace with its standard error, None where the peer gives none."""

    value: Any
    stderr: Any
    products: Any


class Ends(NamedTuple):
    """Both ends, ascending.

    Attributes:
        negative: how many eigenvalues are negative at least; None where nothing is said of that.
        condition: gradkit's interval for the condition number; None otherwise.
    """

    smallest: Any
    largest: Any
    negative: Any
    products: Any
    condition: Any = None


class Matfree:
    """Everything jitted once; a fixed number of products each, looped over probes in turn."""

    package = "matfree"

    def __init__(self, problem, params, batch):
        self.decomp, self.eig, self.stochtrace = (
            importlib.import_module(f"matfree.{name}") for name in ("decomp", "eig", "stochtrace")
        )
        self.flat, unravel = ravel_pytree(params)
        self.batch = batch
        self.gradient = jax.grad(lambda flat, batch: problem.value(unravel(flat), batch))

    def compiled(self, function: Callable[[Callable, jax.Array], Any]) -> Callable[[], Any]:
        """`function(product, key)` in one jit, the product linearized at its beginning."""

        @jax.jit
        def run(flat, batch, key):
            _, product = jax.linearize(lambda flat: self.gradient(flat, batch), flat)
            return function(product, key)

        return lambda: run(self.flat, self.batch, jax.random.key(0))

    def top(self, k: int, tol: float, *, most: int = 200) -> Runs:
        """With the fewest steps, a multiple of 5, whose residuals meet the tolerance."""
        for steps in range(5 * ((k + 9) // 5), most + 1, 5):
            eigh = self.eig.eigh_partial(self.decomp.tridiag_sym(steps))

            def ritz(product, key, eigh=eigh):
                values, vectors = eigh(product, jax.random.normal(key, self.flat.shape))
                return values[-k:], vectors[-k:]

            def residuals(product, key, ritz=ritz):
                values, V = ritz(product, key)
                rest = jax.lax.map(product, V) - values[:, None] * V
                return jnp.linalg.norm(rest, axis=1) / values[-1]

            if jnp.all(self.compiled(residuals)() <= tol):
                run = self.compiled(ritz)
                return {"matfree": lambda run=run, steps=steps: Top(run()[0], steps)}
        return {}

    def density(self, probes: int, steps: int) -> Runs:
        def run(reortho):
            tridiag = self.decomp.tridiag_sym(steps, reortho=reortho)

            def nodes(product, key):
                def one(key):
                    v = jax.random.normal(key, self.flat.shape)
                    theta, S = jnp.linalg.eigh(tridiag(product, v).J_small)
                    return theta, S[0] ** 2

                return jax.lax.map(one, jax.random.split(key, probes))

            def answer():
                theta, weights = compiled()
                return Nodes(theta, weights, probes * steps)

            compiled = self.compiled(nodes)
            return answer

        return {"matfree": run("full"), "matfree, reortho none": run("none")}

    def trace(self, hutchinson: int, xtrace: int) -> Runs:
        s = self.stochtrace
        one = s.estimator_monte_carlo(s.monte_carlo_trace(), s.sampler_signs(self.flat, num=1))
        pairs = s.estimator_leave_one_out_mean_and_sem(
            s.leave_one_out_xtrace(), s.sampler_normal(self.flat, num=xtrace // 2)
        )

        def signs(product, key):
            each = jax.lax.map(lambda k: one(product, k), jax.random.split(key, hutchinson))
            return jnp.mean(each), jnp.std(each, ddof=1) / hutchinson**0.5

        def run(function, products):
            def answer():
                value, stderr = compiled()
                return Trace(value, stderr, products)

            compiled = self.compiled(function)
            return answer

        return {
            "matfree, Hutchinson": run(signs, hutchinson),
            "matfree, XTrace": run(pairs, 2 * (xtrace // 2)),
        }

    def ends(self, steps: int) -> Runs:
        tridiag = self.decomp.tridiag_sym(steps)

        def theta(product, key):
            return jnp.linalg.eigvalsh(
                tridiag(product, jax.random.normal(key, self.flat.shape)).J_small
            )

        def run():
            values = compiled()
            return Ends(values[:2], values[-2:], jnp.sum(values < 0), steps)

        compiled = self.compiled(theta)
        return {"matfree": run}


class Torch:
    """The perceptron in torch, with the same weights and data."""

    def __init__(self, params, batch):
        torch: Any = importlib.import_module("torch")
        layers = []
        for layer in params:
            linear = torch.nn.Linear(*layer["w"].shape)
            linear.weight.data = torch.tensor(np.asarray(layer["w"]).T.copy())
            linear.bias.data = torch.tensor(np.asarray(layer["b"]))
            layers += [linear, torch.nn.Tanh()]
        self.torch = torch
        self.model = torch.nn.Sequential(*layers[:-1])
        self.criterion = torch.nn.CrossEntropyLoss()
        x, y = np.asarray(batch["x"]), np.asarray(batch["y"], np.int64)
        self.data = (torch.tensor(x), torch.tensor(y))


class Curvlinops(Torch):
    """`HessianLinearOperator`, for eigenvalues in SciPy's `eigsh` as its documentation has it."""

    package = "curvlinops-for-pytorch"

    def __init__(self, problem, params, batch):
        super().__init__(params, batch)
        curvlinops: Any = importlib.import_module("curvlinops")
        self.spectrum: Any = importlib.import_module("curvlinops.papyan2020traces.spectrum")
        self.library = curvlinops
        parameters = list(self.model.parameters())
        self.H = curvlinops.HessianLinearOperator(
            self.model, self.criterion, parameters, [self.data]
        )

    def eigsh(self, k: int, **options) -> tuple[np.ndarray, int]:
        linalg: Any = importlib.import_module("scipy.sparse.linalg")
        H = self.H.to_scipy(dtype=np.float32)
        products = 0

        def counted(v):
            nonlocal products
            products += 1
            return H.matvec(v)

        A = linalg.LinearOperator(H.shape, matvec=counted, dtype=np.float32)
        v0 = np.random.default_rng(0).standard_normal(H.shape[0]).astype(np.float32)
        return np.sort(linalg.eigsh(A, k, v0=v0, **options)[0]), products

    def top(self, k: int, tol: float) -> Runs:
        return {"curvlinops, SciPy eigsh": lambda: Top(*self.eigsh(k, which="LA", tol=tol))}

    def density(self, probes: int, steps: int) -> Runs:
        def run():
            self.torch.manual_seed(0)
            rules = [self.spectrum.fast_lanczos(self.H, steps) for _ in range(probes)]
            nodes = np.stack([values.numpy() for values, _ in rules])
            weights = np.stack([vectors[0].numpy() ** 2 for _, vectors in rules])
            return Nodes(nodes, weights, probes * steps)

        return {"curvlinops": run}

    def trace(self, hutchinson: int, xtrace: int) -> Runs:
        def by_signs():
            self.torch.manual_seed(0)
            chunks = hutchinson // TRACE_CHUNK
            each = [
                float(self.library.hutchinson_trace(self.H, TRACE_CHUNK)) for _ in range(chunks)
            ]
            return Trace(np.mean(each), None, chunks * TRACE_CHUNK)

        def by_pairs():
            self.torch.manual_seed(0)
            products = 2 * (xtrace // 2)
            return Trace(float(self.library.xtrace(self.H, products)), None, products)

        def by_thirds():
            self.torch.manual_seed(0)
            products = 3 * (xtrace // 3)
            return Trace(float(self.library.hutchpp_trace(self.H, products)), None, products)

        return {
            "curvlinops, Hutchinson": by_signs,
            "curvlinops, XTrace": by_pairs,
            "curvlinops, Hutch++": by_thirds,
        }

    def ends(self, steps: int) -> Runs:
        def run():
            values, products = self.eigsh(4, which="BE", ncv=steps, tol=1e-2)
            return Ends(values[:2], values[2:], None, products)

        return {"curvlinops, SciPy eigsh to 1e-2": run}


class PyHessian(Torch):
    """Power iteration and Lanczos on lists of tensors.

    Its density calls `torch.eig`, which torch no longer has: a stand-in of the same answer is lent.
    """

    package = "PyHessian"

    def __init__(self, problem, params, batch):
        super().__init__(params, batch)
        self.module: Any = importlib.import_module("pyhessian.hessian")
        self.products = 0
        product = self.module.hessian_vector_product

        def counted(*arguments):
            self.products += 1
            return product(*arguments)

        self.module.hessian_vector_product = counted
        self.library = self.module.hessian(self.model, self.criterion, data=self.data, cuda=False)

    def counting(self, function: Callable[[], Any]) -> tuple[Any, int]:
        self.torch.manual_seed(0)
        before = self.products
        return function(), self.products - before

    def top(self, k: int, tol: float) -> Runs:
        """Its tolerance is of an eigenvalue's last change."""

        def run():
            values, products = self.counting(
                lambda: self.library.eigenvalues(maxIter=1000, tol=tol, top_n=k)[0]
            )
            return Top(np.sort(values), products)

        return {"PyHessian": run}

    def density(self, probes: int, steps: int) -> Runs:
        def eig(T, eigenvectors):
            values, vectors = self.torch.linalg.eigh(T)
            return self.torch.stack([values, 0 * values], dim=1), vectors

        def run():
            self.torch.eig = eig
            (nodes, weights), products = self.counting(
                lambda: self.library.density(iter=steps, n_v=probes)
            )
            return Nodes(np.array(nodes), np.array(weights), products)

        return {"PyHessian": run}

    def trace(self, hutchinson: int, xtrace: int) -> Runs:
        def run():
            each, products = self.counting(lambda: self.library.trace(maxIter=hutchinson, tol=0))
            return Trace(np.mean(each), np.std(each, ddof=1) / len(each) ** 0.5, products)

        return {"PyHessian, Hutchinson": run}

    def ends(self, steps: int) -> Runs:
        return {}


MEMBERS = (Matfree, Curvlinops, PyHessian)


def installed() -> tuple[list[type], list[str]]:
    """The peers there are, and a line for each that is not."""
    found, missing = [], []
    for member in MEMBERS:
        try:
            importlib.metadata.version(member.package)
            found.append(member)
        except importlib.metadata.PackageNotFoundError:
            name = member.package
            missing.append(f"{name} is not installed, its rows are left out: pip install {name}")
    return found, missing
