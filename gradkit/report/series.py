"""The spectra of a record in series: the same operator on the same data, step by step."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gradkit.runner.record import Record, Spectrum

_OPERATORS = {
    "hessian": "Hessian",
    "gauss_newton": "Gauss–Newton matrix",
    "fisher": "Fisher matrix",
    "empirical_fisher": "empirical Fisher matrix",
}
_UNITS = {"fisher": "1/param²", "empirical_fisher": "loss²/param²"}
_INVERSE = {"1/param²": "param²", "loss²/param²": "param²/loss²"}


@dataclass(frozen=True)
class Series:
    """Spectra of one operator on the same data, in the order of their steps."""

    spectra: tuple[Spectrum, ...]

    @property
    def last(self) -> Spectrum:
        """The spectrum of the last step."""
        return self.spectra[-1]

    @property
    def slug(self) -> str:
        """What tells it from other series, in letters that a file and an identifier can have."""
        return re.sub(r"\W+", "-", "-".join(_kind(self.last)))

    @property
    def title(self) -> str:
        """Such as `Gauss–Newton matrix, test`."""
        return f"{operator_words(self.last)}, {data_words(self.last)}"


def series(record: Record) -> list[Series]:
    """All spectra of a record, that of the main spectrum first."""
    by_kind: dict[tuple[str, str], list[Spectrum]] = {}
    if record.main is not None:
        by_kind[_kind(record.main)] = []
    for spectrum in record.spectra:
        by_kind.setdefault(_kind(spectrum), []).append(spectrum)
    return [Series(tuple(spectra)) for spectra in by_kind.values()]


def operator_words(spectrum: Spectrum) -> str:
    """The operator by its usual name."""
    operator = str(spectrum.values.get("operator", "curvature"))
    return _OPERATORS.get(operator, operator)


def data_words(spectrum: Spectrum) -> str:
    """What it was computed on."""
    return str(spectrum.values.get("data", "data not named"))


def unit(spectrum: Spectrum) -> str:
    """The unit of its eigenvalues."""
    return _UNITS.get(str(spectrum.values.get("operator")), "loss/param²")


def inverse_unit(spectrum: Spectrum) -> str:
    """The unit of its density."""
    return _INVERSE.get(unit(spectrum), "param²/loss")


def _kind(spectrum: Spectrum) -> tuple[str, str]:
    return str(spectrum.values.get("operator", "curvature")), data_words(spectrum)
