"""A record as figures, each one SVG text."""

from __future__ import annotations

from gradkit.report.curves import accuracy_figure, dynamics_figure, loss_figure
from gradkit.report.spectrum import spectrum_figure
from gradkit.runner.record import Record


def figures(record: Record) -> dict[str, str]:
    """The figures that the record has data for, by name, as `<svg>` elements.

    The names are `loss`, `accuracy`, `dynamics` (gradient norm and learning rate) and `spectrum`.
    The same record gives the same bytes.
    """
    made = {
        "loss": loss_figure(record),
        "accuracy": accuracy_figure(record),
        "dynamics": dynamics_figure(record),
        "spectrum": spectrum_figure(record),
    }
    return {name: svg for name, svg in made.items() if svg is not None}
