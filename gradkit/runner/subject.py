"""What a spectrum is of: a run at a checkpoint, or a model that was trained elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit.core import Problem
from gradkit.runner import checkpoint, config, elsewhere, record, train
from gradkit.runner.devices import Devices
from gradkit.runner.errors import UserError
from gradkit.runner.setting import BEST, CHECKPOINTS, reopen, state_at
from gradkit.runner.stability import stability
from gradkit.runner.tasks import Task
from gradkit.tree import path_name

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Subject:
    """Parameters, and the loss through which they are looked at.

    Attributes:
        label: what it is called in messages.
        folder: where results are kept.
        problem, params, batch: as `gk.hessian` takes them, all finite.
        data: what the batch is: "train", "training", "test", "batch" (a user's own), or "100 of
            train".
        step: of training; None for a model trained elsewhere.
        plain: whether this is what `gradkit spectrum` looks at when nothing else is asked for.
        defaults: how it is looked at when nothing else is asked for.
        seed: of all random numbers.
        likelihood: from which the Fisher matrix draws labels; None where it is not known.
        stability: see `gradkit.runner.stability`; None where it does not apply.
        fingerprint: a hash of parameters, batch and the task's file, where no step says which.
        environment: what `env.json` of a new folder says; None in a run's own folder.
        pieces: what of the batch lies where, with its share of the loss; the batch by default.
    """

    label: str
    folder: Path
    problem: Problem
    params: PyTree
    batch: PyTree
    data: str
    step: int | None
    plain: bool
    defaults: config.Spectrum
    seed: int
    likelihood: str | None
    stability: dict[str, Any] | None = None
    fingerprint: str | None = None
    environment: dict[str, Any] | None = None
    pieces: tuple[tuple[float, PyTree], ...] | None = None

    def on(self, devices: Devices) -> Subject:
        """Returns the same with the examples split over devices, and all else on each of them.

        What cannot be split evenly is on each of them, and so is a batch whose arrays do not share
        a first axis.
        """
        if devices.mesh is None:
            return self
        n, params = self.examples or 0, devices.on_each(self.params)
        even, host = n - n % devices.count, jax.tree.map(np.asarray, self.batch)
        pieces = []
        if even:
            rows = np.arange(even)
            pieces.append((even / n, jax.tree.map(lambda x: devices.read(x, rows), host)))
        if even < n or not n:
            rest = jax.tree.map(lambda x: x[even:], host) if n else self.batch
            pieces.append((1 - even / max(n, 1), devices.on_each(rest)))
        return dataclasses.replace(self, params=params, pieces=tuple(pieces))

    def parts(self, micro_batch: int | None = None) -> Iterator[tuple[float, PyTree]]:
        """Yields batches of at most so many examples, each with its share of the loss."""
        for share, batch in self.pieces or ((1.0, self.batch),):
            n = _examples(batch)
            if micro_batch is None or n is None:
                yield share, batch
                continue
            for start, stop in itertools.pairwise([*range(0, n, micro_batch), n]):
                part = jax.tree.map(lambda x, start=start, stop=stop: x[start:stop], batch)
                yield share * (stop - start) / n, part

    @property
    def dimension(self) -> int:
        """The number of parameters."""
        return int(optax.tree.size(self.params))

    @property
    def examples(self) -> int | None:
        """The number of examples in the batch; None where its arrays do not share one."""
        return _examples(self.batch)

    def file_name(self, operator: str) -> str:
        """The name of the files of a result, below the folder and without their endings."""
        if self.plain and operator == "hessian":
            return "spectrum"
        return file_name(self.step, operator, self.data)


def file_name(step: int | None, operator: str, data: str) -> str:
    """The name of the files of a spectrum other than the plain one: `spectra/000200-hessian-test`.

    Args:
        step: of training, None without.
        operator: such as "hessian".
        data: as in `Subject`.
    """
    parts = [operator, data.partition(" ")[0]]
    return f"{record.SPECTRA}/" + "-".join([f"{step:06d}", *parts] if step is not None else parts)


def of_run(
    run: record.Record,
    steps: str = "last",
    data: str = "train",
    known: dict[str, Task] | None = None,
) -> Iterator[Subject]:
    """Yields the subject of each checkpoint that is asked for, in the order of their steps.

    Args:
        run: the run.
        steps: "last", "all" (the start among them), "best", or a step: of a checkpoint, or 0, whose
            parameters follow from the config.
        data: "train", "test", "training" (the training set as a training step sees it:
            normalized by the batch, with dropout), or how many of the training set to draw.
        known: tasks of other runs; see `setting.reopen`.

    Raises:
        UserError: there is no such checkpoint or a damaged one, the data or the config have
            changed, or there are not so many examples.
    """
    place = BEST if steps == "best" else CHECKPOINTS
    there = checkpoint.steps(run.path / place)
    if not run.config_text:
        raise UserError(
            f"{run.path}: has no {record.CONFIG}: a model trained elsewhere is looked at by "
            "gradkit spectrum --task FILE.py:FUNCTION --params FILE"
        )
    if not there and steps != "0":
        raise UserError(f"{run.path}: {_why_no_checkpoint(run, steps)}")
    known_steps = [0, *there]
    choices = {"last": there[-1:], "all": known_steps, "best": there}
    chosen = choices.get(steps) or [int(steps)]
    if not set(chosen) <= set(known_steps):
        raise UserError(
            f"{run.path}: no checkpoint at step {steps}; there are: "
            f"{', '.join(map(str, known_steps))}"
        )
    setting = reopen(run, known)
    task = setting.task
    whole = task.data.test if data == "test" else task.data.train
    batch, part = _part(whole, data, "train", setting.config.seed)
    batch = jax.device_put(batch)
    last = checkpoint.steps(run.path / CHECKPOINTS)[-1:]
    for step in chosen:
        state = state_at(setting, run.path, step, place)[0] if step else setting.initial()
        label = f"{run.path}: step {step}"
        _check_finite(label, state.params)
        more = {} if task.init_state is None else {"state": state.model}
        if data == "training":
            more["key"] = jax.random.fold_in(setting.key, step)
        yield Subject(
            label=label,
            folder=run.path,
            problem=task.problem,
            params=state.params,
            batch=batch | more,
            data=part,
            step=step,
            plain=[step] == last and part == "train",
            defaults=setting.config.spectrum,
            seed=setting.config.seed,
            likelihood=task.likelihood,
            stability=None if data == "test" else stability(setting.config.optimizer),
        )


def of_task(
    spec: str,
    params_file: str | None,
    *,
    out: str | None,
    data: str,
    likelihood: str | None,
    command: Sequence[str],
) -> Subject:
    """Returns the subject of a user's task.

    Args:
        spec: `path/to/file.py:function` or `module:function`.
        params_file: see `elsewhere.load`.
        out: the folder for the results; `spectra/NAME` by default.
        data: "batch", or how many of its examples to draw.
        likelihood: from which the Fisher matrix draws labels.
        command: the command line, to be kept.

    Raises:
        UserError: see `elsewhere.load`; or the folder holds something else, or there are not so
            many examples, or a parameter is not finite.
    """
    name = Path(params_file or spec.rpartition(":")[0]).stem
    folder = Path(out or Path(record.SPECTRA) / name)
    problem, params, batch, source = elsewhere.load(spec, params_file)
    _check_finite(params_file or spec, params)
    place, _, function = spec.rpartition(":")
    environment = train.environment(params) | {
        "task": f"{os.path.normpath(place)}:{function}",
        "params": params_file,
        "sha256": _fingerprint(params),
        "command": list(command),
    }
    _check_folder(folder, environment)
    batch, part = _part(batch, data, "batch", seed=0)
    return Subject(
        label=params_file or spec,
        folder=folder,
        problem=problem,
        params=params,
        batch=batch,
        data=part,
        step=None,
        plain=part == "batch",
        defaults=config.Spectrum(),
        seed=0,
        likelihood=likelihood,
        fingerprint=_fingerprint((params, batch), source.read_bytes() if source.is_file() else b""),
        environment=environment,
    )


def _why_no_checkpoint(run: record.Record, steps: str) -> str:
    if steps == "best":
        return (
            "kept no best checkpoint; its config has no best.metric, or nothing was evaluated; "
            "name a step"
        )
    if run.summary is not None and run.summary.get("status") == "diverged":
        return (
            "diverged before its first checkpoint: there are no parameters to look at. Run it "
            "again with a lower optimizer.learning_rate or checkpoint_every."
        )
    return f"has no checkpoint yet; finish it by gradkit run --resume {run.path}"


def _part(batch: PyTree, data: str, whole: str, seed: int) -> tuple[PyTree, str]:
    """The whole batch, or so many examples drawn from it, and what that is in words."""
    if not data.isdecimal():
        return batch, data
    drawn, examples = int(data), _examples(batch)
    if examples is None:
        raise UserError(
            f"--data {data}: the arrays of the batch have no common first axis to draw examples "
            "from; let the task return fewer"
        )
    if not 1 <= drawn <= examples:
        raise UserError(f"--data: expected 1 to {examples}, the examples there are, got {drawn}")
    if drawn == examples:
        return batch, whole
    chosen = np.sort(np.random.default_rng(seed).permutation(examples)[:drawn])
    return jax.tree.map(lambda x: x[chosen], batch), f"{drawn} of {whole}"


def _examples(batch: PyTree) -> int | None:
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
    return next(iter(lengths))[0] if len(lengths) == 1 and () not in lengths else None


def _check_finite(where: str, params: PyTree) -> None:
    if not jax.tree.leaves(params):
        raise UserError(f"{where}: there are no parameters")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path).removesuffix(".value") or "the only leaf"
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise UserError(
                f"{where}: {name}: expected floating-point parameters, got {leaf.dtype}; hold what "
                "is not trained in the batch or in the function"
            )
        lost = int(jnp.sum(~jnp.isfinite(leaf)))
        if lost:
            raise UserError(
                f"{where}: not finite: {lost} of the {leaf.size} numbers of {name} are NaN or "
                "infinite: there is no curvature to look at"
            )


def _fingerprint(tree: PyTree, text: bytes = b"") -> str:
    digest = hashlib.sha256(text)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{path_name(path)} {leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _check_folder(folder: Path, environment: dict[str, Any]) -> None:
    """Refuses a folder that holds anything but spectra of these very parameters."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    other = "exists already and is not the folder of a spectrum"
    if (folder / record.ENV).is_file() and not (folder / record.CONFIG).is_file():
        began = record.open_record(folder).env
        if all(began.get(name) == environment[name] for name in ("task", "sha256")):
            return
        other = f"holds spectra of {began.get('task')} at other parameters, {began.get('params')}"
        if began.get("task") != environment["task"]:
            other = f"holds spectra of another task, {began.get('task')}"
    raise UserError(f"{folder}: {other}; name another by --out FOLDER")
