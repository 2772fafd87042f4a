"""The spectrum of a curvature operator, computed part by part and kept in a folder.

A computation that is cut short leaves the state of its Krylov methods beside its results, in
`NAME.HASH.krylov`, and the same command goes on from there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import operator
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from gradkit.processes import by_first, first
from gradkit.runner import part, record
from gradkit.runner.errors import UserError
from gradkit.runner.slice import loss_slice
from gradkit.runner.subject import Subject, file_name
from gradkit.tree import norm

PyTree = Any

LOSS_CURVATURES = ("hessian", "gauss_newton")  # in the unit of the loss, as bounds on η are


@dataclasses.dataclass(frozen=True)
class Options:
    """How a subject is looked at; None stands for what its config says.

    Attributes:
        operator: the name of a function of gradkit: "hessian", "gauss_newton", "fisher".
        top, bottom: how many of the largest and of the smallest eigenvalues.
        density: whether to estimate the density, and with it trace and Frobenius norm.
        blocks: whether to look at the diagonal block of each layer as well.
        micro_batch: most examples in memory at a time; None for all.
        memory_limit: of `gk.spectrum`, in bytes.
    """

    operator: str = "hessian"
    top: int | None = None
    bottom: int | None = None
    density: bool = True
    blocks: bool = False
    micro_batch: int | None = None
    memory_limit: float | None = None


def compute(subject: Subject, options: Options) -> dict[str, Any]:
    """Returns the spectrum of a subject, from its folder or else computed and written there.

    What is there already, computed with the same settings, is not computed again.

    Raises:
        UserError: an option out of range, a loss or an operator that cannot be looked at, or an
            earlier result that cannot be read.
    """
    settings = _settings(subject, options)
    name = subject.file_name(options.operator)
    kept = by_first(lambda: _found(subject, name))
    result = kept.values if kept and _covers(kept.values.get("settings"), settings) else None
    if result is not None:
        settings = result["settings"]  # one for all parts
    arrays = dict(kept.arrays) if result and kept else {}
    krylov = subject.folder / f"{name}.{_digest(settings)}.krylov"
    if result is not None and not options.blocks:
        by_first(lambda: _remove(krylov))  # of one killed when all but this was done
        return result
    _say(subject, settings)
    A = _operator(subject, settings)
    operators = _operators(A, options.blocks)
    done = [None, *result["blocks"]] if result else []
    missing = {block: B for block, B in operators.items() if block not in done}
    began, gradient = _opening(subject, settings, A) if missing else ({}, None)
    for block, B in missing.items():
        place = krylov / ("whole" if block is None else f"block-{list(operators).index(block)}")
        at = gradient if block is None and settings["operator"] == "hessian" else None
        found, sampled, largest = part.measure(B, settings, place, label=block, gradient=at)
        if block is None:
            result = began | found | {"blocks": {}}
            arrays = sampled | _slice(subject, settings, result, largest, at)
        else:
            assert result is not None
            result = result | {"blocks": result["blocks"] | {block: found}}
            arrays |= {record.block_array(block, n): array for n, array in sampled.items()}
        by_first(functools.partial(_keep, subject, name, result, arrays))
        by_first(functools.partial(_remove, place))
    by_first(lambda: _remove(krylov))
    return result or {}


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _found(subject: Subject, name: str) -> record.Spectrum | None:
    if subject.plain:
        _make_room(subject)
    return _kept(subject.folder, name)


def _settings(subject: Subject, options: Options) -> dict[str, Any]:
    """What a result depends on besides parameters and data, in words that JSON keeps."""
    n, defaults = subject.dimension, subject.defaults
    for end in ("top", "bottom"):
        asked = getattr(options, end)
        if asked is not None and not 1 <= asked <= n:
            raise UserError(f"--{end}: expected 1 to {n}, the number of parameters, got {asked}")
    if options.micro_batch is not None and subject.examples is None:
        raise UserError("--micro-batch: the arrays of the batch have no common first axis to cut")
    if options.operator == "fisher" and subject.likelihood is None:
        raise UserError(
            "--operator fisher draws labels from the model: say how by --likelihood categorical "
            "(a cross-entropy), bernoulli, or normal (half a squared error)"
        )
    return {
        "operator": options.operator,
        "top": min(options.top or defaults.top, n),
        "bottom": min(options.bottom or defaults.bottom, n),
        "probes": defaults.probes if options.density else 0,
        "steps": defaults.steps if options.density else 0,
        "tol": defaults.tol,
        "seed": subject.seed,
        "micro_batch": options.micro_batch,
        "memory_limit": options.memory_limit,
        "likelihood": subject.likelihood if options.operator == "fisher" else None,
        "sha256": subject.fingerprint,
    }


def _covers(kept: Any, wanted: dict[str, Any]) -> bool:
    """Whether a result with some settings has all that is wanted; a density may be more."""
    if not isinstance(kept, dict):
        return False
    free = () if wanted["probes"] else ("probes", "steps")
    return all(kept.get(key) == value for key, value in wanted.items() if key not in free)


def _kept(folder: Path, name: str) -> record.Spectrum | None:
    found = record.read_spectra(folder)
    return next((spectrum for spectrum in found if spectrum.name == Path(name).name), None)


def _make_room(subject: Subject) -> None:
    """A plain spectrum of an earlier checkpoint goes to the others before a later one is kept."""
    folder = subject.folder
    kept = _kept(folder, "spectrum")
    if kept is None or kept.step in (None, subject.step):
        return
    values = kept.values
    name = file_name(kept.step, values.get("operator", "hessian"), values.get("data", "train"))
    (folder / record.SPECTRA).mkdir(exist_ok=True)
    for ending in (".npz", ".json"):
        if (folder / f"spectrum{ending}").exists():
            os.replace(folder / f"spectrum{ending}", folder / f"{name}{ending}")


def _operator(subject: Subject, settings: dict[str, Any]) -> gk.Operator:
    build, options = getattr(gk, settings["operator"]), {}
    if settings["operator"] == "fisher":
        key = jax.random.fold_in(jax.random.key(settings["seed"]), 1)
        options = {"key": key, "likelihood": settings["likelihood"]}
    if settings["micro_batch"] is not None:
        build = gk.micro_batched(build, settings["micro_batch"])
    try:
        whole = [
            build(subject.problem, subject.params, batch, **options)
            if share == 1
            else share * build(subject.problem, subject.params, batch, **options)
            for share, batch in subject.parts()
        ]
        return functools.reduce(operator.add, whole)
    except (TypeError, ValueError) as error:
        raise UserError(f"{subject.label}: {error}") from error


def _operators(A: gk.Operator, blocks: bool) -> dict[str | None, gk.Operator]:
    """The whole, by None, and the diagonal block of each layer by its name."""
    operators: dict[str | None, gk.Operator] = {None: A}
    if blocks:
        operators.update(gk.blocks(A))
    return operators


def _opening(
    subject: Subject, settings: dict[str, Any], A: gk.Operator
) -> tuple[dict[str, Any], PyTree]:
    """What a result begins with, what it is of and the loss there; and the gradient.

    Raises:
        UserError: the loss is not finite, or the operator is not one.
    """
    value, gradient = _loss(subject, settings["micro_batch"])
    if not np.isfinite(value):
        raise UserError(f"{subject.label}: the loss is {value}: there is no curvature to look at")
    check = gk.check_operator(A, key=jax.random.key(settings["seed"]))
    if not check.ok:
        raise UserError(
            f"{subject.label}: the {settings['operator']} is not a symmetric linear map that "
            f"repeats itself:\n{check.report()}"
        )
    result = {
        "step": subject.step,
        "operator": settings["operator"],
        "data": subject.data,
        "examples": subject.examples,
        "loss": value,
        "gradient_norm": float(norm(gradient)),
        "tol": settings["tol"],
        "settings": settings,
        "stability": subject.stability if settings["operator"] in LOSS_CURVATURES else None,
    }
    return result, gradient


def _loss(subject: Subject, micro_batch: int | None) -> tuple[float, PyTree]:
    """The loss and its gradient."""
    value, gradient = 0.0, None
    for share, batch in subject.parts(micro_batch):
        v, g = _value_and_gradient(subject.problem, subject.params, batch)
        value += share * float(v)
        g = jax.tree.map(lambda x, share=share: share * x, g)
        gradient = g if gradient is None else jax.tree.map(jnp.add, gradient, g)
    return value, gradient


@jax.jit
def _value_and_gradient(problem: gk.Problem, params: PyTree, batch: PyTree):
    point = gk.observe(problem, params, batch)
    return point.value, point.grad


def _slice(
    subject: Subject, settings: dict[str, Any], result: dict[str, Any], pairs: Any, gradient: PyTree
) -> dict[str, Any]:
    """The arrays of the slice of the loss, of which `result` tells; of the plain spectrum alone."""
    if not subject.plain or gradient is None:
        return {}
    result["slice"], arrays = loss_slice(
        subject, pairs, gradient=gradient, micro_batch=settings["micro_batch"]
    )
    return {record.slice_array(name): array for name, array in arrays.items()}


def _keep(subject: Subject, name: str, result: dict[str, Any], arrays: dict[str, Any]) -> None:
    path = subject.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if subject.environment is not None and not (subject.folder / record.ENV).exists():
        record.write_json(subject.folder / record.ENV, subject.environment)
    record.write_arrays(path.with_name(f"{path.name}.npz"), **arrays)
    record.write_json(path.with_name(f"{path.name}.json"), result)


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _say(subject: Subject, settings: dict[str, Any]) -> None:
    if not first():
        return
    examples = "" if subject.examples is None else f"{subject.examples:,} examples, "
    print(
        f"{subject.label}: {settings['operator']}, {examples}{subject.dimension:,} parameters",
        file=sys.stderr,
        flush=True,
    )
