"""Spectra as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

_FIGURES = ("loss", "largest", "residual", "smallest", "trace")


def overview(results: Sequence[Result]) -> str:
    """Returns one spectrum in full; of several the last one, after a line for each step."""
    *before, last = results
    return "\n\n".join([_steps(results), spectrum(last)] if before else [spectrum(last)])


def of_runs(results: Mapping[str, Sequence[Result]]) -> str:
    """Returns a line for each step of each run, by their names."""
    rows = [
        (name, str(result["step"]), *_row(result))
        for name, several in results.items()
        for result in several
    ]
    return _columns([("run", "step", *_FIGURES), *rows])


def spectrum(result: Result) -> str:
    """Returns the eigenvalues of a result with their residuals, and its other figures."""
    step = "" if result["step"] is None else f" at step {result['step']}"
    lines = [
        f"{result['operator']}{step} of {result['parameters']} parameters, data: {result['data']}"
    ]
    if result.get("loss") is not None:
        lines.append(f"loss {result['loss']:.6g}, gradient norm {result['gradient_norm']:.2e}")
    lines.append(f"{'':10}{'eigenvalue':>14}{'residual':>12}  converged")
    for name in ("largest", "smallest"):
        pairs = result[name]
        for row in zip(pairs["values"], pairs["residuals"], pairs["converged"], strict=True):
            value, residual, converged = row
            flag = "yes" if converged else "no"
            lines.append(f"{name:10}{_text(value):>14}{_text(residual, '.1e'):>12}  {flag}")
    condition = result["condition"]
    lower, upper = (condition[end] for end in ("lower", "upper"))
    upper = _text(upper, ".4g") if _known(upper) else "inf"
    lines.append(f"condition number in [{_text(lower, '.4g')}, {upper}]: {condition['basis']}")
    point = result.get("point") or {}
    if point.get("kind") not in (None, "not_critical"):
        lines.append(f"{point['kind']}: {point['evidence']}")
    if (share := _gradient_share(result)) is not None:
        count = len(result["largest"]["values"])
        lines.append(f"the {count} largest eigenvectors hold {share:.1%} of the squared gradient")
    lines += _totals(result)
    if result.get("blocks"):
        lines += ["", _blocks(result)]
    return "\n".join(lines)


def _gradient_share(result: Result) -> float | None:
    """Returns the share of the squared gradient that the largest eigenvectors hold, if known."""
    shares: list[float | None] = result["largest"].get("gradient") or []
    known = [share for share in shares if share is not None and math.isfinite(share)]
    return sum(known) if known and len(known) == len(shares) else None


def _totals(result: Result) -> list[str]:
    """What is known of all eigenvalues together."""
    lines = []
    if negative := result.get("negative"):
        line = f"negative eigenvalues: at least {negative['at_least']}"
        if negative.get("resolution") is not None:
            line += f" below -{_text(negative['resolution'], '.1e')}"
        if _known(negative.get("estimate")):
            line += f", about {_with_error(negative['estimate'], negative.get('stderr'))}"
            line += f" give or take {_rounded(negative.get('quadrature'))} by the quadrature"
        lines.append(line)
    parts = [
        f"{words} {_with_error(result[name]['value'], result[name]['stderr'])}"
        for name, words in (("trace", "trace"), ("frobenius", "Frobenius norm"))
        if result.get(name)
    ]
    lines += [", ".join(parts)] if parts else []
    if density := result.get("density"):
        lines.append(
            f"density: {density['probes']} probes of {density['steps']} steps, Wasserstein-1 error "
            f"at most {density['w1_bound']:.3g} with probability 0.95"
        )
    if memory := result.get("memory"):
        lines.append(
            f"memory: {memory['strategy']}, {memory['vectors']} at most, "
            f"{memory['bytes'] / 1e6:,.1f} MB with the products"
        )
    return lines


def _steps(results: Sequence[Result]) -> str:
    return _columns(
        [("step", *_FIGURES), *((str(result["step"]), *_row(result)) for result in results)]
    )


def _blocks(result: Result) -> str:
    head = ("block", "parameters", *_FIGURES[1:])
    rows = [
        (name, str(block["parameters"]), *_row(block)[1:])
        for name, block in result["blocks"].items()
    ]
    return _columns([head, *rows])


def _row(result: Result) -> tuple[str, ...]:
    largest, smallest, trace = result["largest"], result["smallest"], result.get("trace")
    return (
        _text(result.get("loss"), ".4g"),
        _text(largest["values"][0]),
        _text(largest["residuals"][0], ".1e"),
        _text(smallest["values"][0]),
        "" if not trace else _with_error(trace["value"], trace["stderr"]),
    )


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def _with_error(value: float | None, error: float | None) -> str:
    return f"{_text(value, '.4g')} ± {_rounded(error, 1)}"


def _rounded(value: float | None, digits: int = 2) -> str:
    """A number to so many digits, without an exponent where it needs none."""
    return f"{float(f'{value:.{digits}g}'):g}" if value is not None and _known(value) else "–"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _text(value: float | None, form: str = ".6g") -> str:
    """A number; a dash for one that is not finite, or not known."""
    return format(value, form) if value is not None and math.isfinite(value) else "–"
