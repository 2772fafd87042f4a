"""A run folder, read and written: the one noun that the runner and the report share.

```
RUN/
  config.yaml       the resolved config
  env.json          versions, device, data hash, command
  metrics.jsonl     one JSON object a line, each with its step: the truth about the run
  summary.json      written at the end of the run
  spectrum.json     the Hessian at the last checkpoint, with spectrum.npz beside it, in which are
                    densities, and the loss on the plane of two eigenvectors
  spectra/          every other spectrum: STEP-OPERATOR-DATA.json and .npz
```
The folder of a model trained elsewhere has its `env.json` and spectra alone.
Every file but `metrics.jsonl` is written whole or not at all. `metrics.jsonl` grows by a line at a
time, so a crash can cut its last line short; that line is dropped, and `Record.truncated` says so.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradkit.files import replacing
from gradkit.runner.errors import UserError

CONFIG = "config.yaml"
ENV = "env.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
SPECTRUM = "spectrum.json"
ARRAYS = "spectrum.npz"
SPECTRA = "spectra"

_SHAPES = {
    ("nodes", "weights"): 2,
    ("grid", "density", "spread"): 1,
    ("slice/a", "slice/b"): 1,
    ("slice/loss",): 2,
}


@dataclass(frozen=True)
class Spectrum:
    """One spectrum that was computed, of the whole operator or of one of its blocks.

    Attributes:
        values: the numbers of its `.json` file.
        arrays: the arrays of its `.npz` file by name; empty when there are none.
        name: of its files, such as `spectrum` or `000200-hessian-train`.
    """

    values: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    name: str = "spectrum"

    @property
    def step(self) -> int | None:
        """The step of training that it belongs to; None for a model trained elsewhere."""
        step = self.values.get("step")
        return step if isinstance(step, int) else None

    @property
    def blocks(self) -> dict[str, Spectrum]:
        """The spectra of its diagonal blocks, by layer."""
        listed = self.values.get("blocks")
        common = {key: self.values[key] for key in ("operator", "data") if key in self.values}
        return {
            name: Spectrum(common | values, arrays_of_block(self.arrays, name), self.name)
            for name, values in (listed if isinstance(listed, dict) else {}).items()
            if isinstance(values, dict)
        }


@dataclass(frozen=True)
class Record:
    """What a run folder says, read once.

    Attributes:
        path: the run folder.
        config_text: the resolved config, as written; empty for a model trained elsewhere.
        env: versions, device, data and command; empty when `env.json` is missing.
        metrics: one dictionary a line, in the order written; every one has its `step`.
        truncated: whether a last metrics line, cut short by a crash, was dropped.
        summary: how the run ended; None while it is unfinished.
        spectra: every spectrum in the folder, in the order of their steps.
    """

    path: Path
    config_text: str
    env: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    truncated: bool = False
    summary: dict[str, Any] | None = None
    spectra: tuple[Spectrum, ...] = ()

    @property
    def name(self) -> str:
        """The folder's own name, also when it was opened as `.`."""
        return self.path.resolve().name

    @property
    def main(self) -> Spectrum | None:
        """The spectrum of `spectrum.json`, or else the last of the others; None without any."""
        named = [spectrum for spectrum in self.spectra if spectrum.name == "spectrum"]
        return [*self.spectra, *named][-1] if self.spectra else None

    @property
    def spectrum(self) -> dict[str, Any] | None:
        """The numbers of the main spectrum; None when no spectrum was computed."""
        return None if self.main is None else self.main.values

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the main spectrum by name; empty when there are none."""
        return {} if self.main is None else self.main.arrays


def open_record(folder: str | os.PathLike[str]) -> Record:
    """The record in a run folder.

    Args:
        folder: the run folder; it holds a `config.yaml`, or the `env.json` of a model trained
            elsewhere, and everything else may be missing.

    Returns:
        The record as it is on disk now.

    Raises:
        UserError: no such folder, not a run folder, or a file in it that cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file, not a run folder" if path.exists() else "no such run folder"
        raise UserError(f"{path}: {what}.{_suggestion(path)}")
    has_config = (path / CONFIG).is_file()
    if not has_config and not (path / ENV).is_file():
        raise UserError(f"{path}: not a run folder, it has no {CONFIG}.{_suggestion(path)}")
    metrics, truncated = read_metrics(path / METRICS)
    return Record(
        path=path,
        config_text=_read_text(path / CONFIG) if has_config else "",
        env=_read_object(path / ENV) or {},
        metrics=metrics,
        truncated=truncated,
        summary=_read_object(path / SUMMARY),
        spectra=read_spectra(path),
    )


def read_spectra(folder: Path) -> tuple[Spectrum, ...]:
    """Every spectrum in a run folder, in the order of their steps.

    Raises:
        UserError: a file cannot be read.
    """
    files = [folder / SPECTRUM, *sorted((folder / SPECTRA).glob("[!.]*.json"))]
    read = [(file, _read_object(file)) for file in files]
    found = [
        Spectrum(values, _read_arrays(file.with_suffix(".npz")), file.stem)
        for file, values in read
        if values is not None
    ]
    return tuple(sorted(found, key=lambda spectrum: (spectrum.step or 0, spectrum.name)))


def arrays_of_block(arrays: dict[str, np.ndarray], block: str) -> dict[str, np.ndarray]:
    """The arrays of one block of a spectrum, by their names in that of the whole."""
    prefix = block_array(block, "")
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.rpartition("/")[0] + "/" == prefix
    }


def block_array(block: str, name: str) -> str:
    """The name in an `.npz` file of an array of a block."""
    return f"blocks/{block}/{name}"


def slice_array(name: str) -> str:
    """The name in an `.npz` file of an array of the slice of the loss: of `a`, `b`, `loss`."""
    return f"slice/{name}"


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines of a metrics file, and whether a last line cut short was dropped.

    Raises:
        UserError: a line other than a cut last one is not a JSON object with a `step`.
    """
    kept, truncated = _metrics_lines(path)
    return [line for line, _ in kept], truncated


def gradient_equivalents(line: dict[str, Any]) -> float | None:
    """The work done up to a metrics line, in gradients.

    A loss evaluation counts as a third of a gradient and a Hessian-vector product, linearized once
    and then applied, as one. None when the line does not count its gradients.
    """
    gradients = line.get("gradients")
    if gradients is None:
        return None
    return gradients + (line.get("evaluations") or 0) / 3 + (line.get("products") or 0)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file, whole or not at all, with null for every number that is not finite."""
    text = json.dumps(_plain(value), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_arrays(path: str | os.PathLike[str], /, **arrays: Any) -> None:
    """Writes an `.npz` file of named arrays, whole or not at all."""
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in named.items():
        if array.dtype.hasobject:
            raise TypeError(f"{name}: expected an array of numbers, got dtype {array.dtype}")
    with replacing(path) as file:
        np.savez_compressed(file, **named)


def append_metrics(path: str | os.PathLike[str], line: dict[str, Any]) -> None:
    """Appends one line to a metrics file and flushes it.

    A file that a crash cut short must go through `truncate_metrics` first.
    """
    text = json.dumps(_plain(line), allow_nan=False) + "\n"
    try:
        with open(path, "ab") as file:
            file.write(text.encode("utf-8"))
    except OSError as error:  # of a write it does not name the file
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def truncate_metrics(path: str | os.PathLike[str], step: int) -> None:
    """Keeps the metrics up to and including `step`, byte for byte; what a crash cut is dropped."""
    if not Path(path).exists():
        return
    kept, _ = _metrics_lines(Path(path))
    with replacing(path) as file:
        file.writelines(text + b"\n" for line, text in kept if line["step"] <= step)


def metrics_size(path: str | os.PathLike[str], step: int) -> int:
    """Returns the bytes of the metrics lines up to and including `step`."""
    return sum(
        len(text) + 1 for line, text in _metrics_lines(Path(path))[0] if line["step"] <= step
    )


def _metrics_lines(path: Path) -> tuple[list[tuple[dict[str, Any], bytes]], bool]:
    if not path.exists():
        return [], False
    raw = _read_bytes(path)
    lines = raw.split(b"\n")
    kept = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            kept.append((_metrics_line(text), text))
        except ValueError as error:
            if number == len(lines):  # no newline after it: cut short
                return kept, True
            raise UserError(
                f"{path}:{number}: {error}. Put the file back as it was, or delete this line and "
                "all below it"
            ) from None
    return kept, False


def _metrics_line(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError:
        raise ValueError("not text in UTF-8") from None
    if not isinstance(line, dict):
        raise ValueError(f"expected a JSON object, got {type(line).__name__}")
    step = line.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise ValueError(f'expected "step" to be a whole number, got {json.dumps(step)}')
    return line


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(_read_text(path), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}. {_way_out(path)}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}. {_way_out(path)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}:1: expected a JSON object, got {type(value).__name__}")
    return value


def _way_out(path: Path) -> str:
    """What to do about a damaged file."""
    if path.name == SUMMARY:
        return f"Delete it: gradkit run --resume {path.parent} writes it again."
    return "Put it back as it was." if path.name == ENV else "Delete it and compute it again."


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zip, zlib and numpy each have their own for a damaged file
        raise UserError(f"{path}: not a readable .npz file: {error}") from None
    for prefix in {name[: name.rfind("/") + 1] for name in found} | {""}:
        for names, axes in _SHAPES.items():
            shapes = {n: found[prefix + n].shape for n in names if prefix + n in found}
            if len(set(shapes.values())) > 1 or any(len(s) != axes for s in shapes.values()):
                raise UserError(
                    f"{path}: expected arrays of one shape with {axes} axes, got {shapes}"
                )
    return found


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8") from None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _refuse_constant(name: str):
    raise ValueError(f"not JSON: {name}; a number that is not finite is written as null")


def _plain(value: Any) -> Any:
    """The value in JSON's own types; arrays of any library become lists."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str | int | float | None) and hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):  # NumPy's float64 is one, and prints as itself
        return float(value) if math.isfinite(value) else None
    return value


def _suggestion(path: Path) -> str:
    """A sentence naming the run folders nearest to a path that is none; empty without any."""
    places = [path, path.parent, path.parent / "runs", Path("runs")]
    found: dict[str, Path] = {}
    for place in places:
        for run in _runs_in(place):
            found.setdefault(run.name, run)
        if found and place == path:
            break
    if not found:
        return " There are no run folders near it; gradkit run CONFIG makes one."
    nearest = difflib.get_close_matches(path.name, found, n=3, cutoff=0.0)
    return f" Nearest run folders: {', '.join(str(found[name]) for name in nearest)}"


def _runs_in(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(child for child in place.iterdir() if (child / CONFIG).is_file())
