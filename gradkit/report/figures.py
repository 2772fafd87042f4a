"""A record as figures, each one SVG text."""

from __future__ import annotations

from gradkit.report.blocks import blocks_figure
from gradkit.report.curves import accuracy_figure, dynamics_figure, loss_figure
from gradkit.report.evolution import evolution_figure
from gradkit.report.magnitude import magnitude_figure
from gradkit.report.series import series
from gradkit.report.sharpness import sharpness_figure
from gradkit.report.spectrum import spectrum_figure
from gradkit.runner.record import Record


def figures(record: Record) -> dict[str, str]:
    """The figures that the record has data for, by name, as `<svg>` elements.

    The names are `loss`, `accuracy`, `dynamics` (gradient norm and learning rate) and
    `sharpness`; of the main spectrum `spectrum`, `magnitude`, `blocks` and `evolution` (over
    checkpoints); and of every other operator and data `spectrum-`, `blocks-` and `evolution-` with
    both. The same record gives the same bytes.
    """
    made = {
        "loss": loss_figure(record),
        "accuracy": accuracy_figure(record),
        "dynamics": dynamics_figure(record),
        "sharpness": sharpness_figure(record),
    }
    if record.main is not None:
        first, *others = series(record)
        made["spectrum"] = spectrum_figure(record.main)
        made["magnitude"] = magnitude_figure(record.main)
        made["blocks"] = blocks_figure(record.main)
        made["evolution"] = evolution_figure(first)
        for one in others:
            for kind, draw, what in (
                ("spectrum", spectrum_figure, one.last),
                ("blocks", blocks_figure, one.last),
            ):
                made[f"{kind}-{one.slug}"] = draw(what, f"{kind}-{one.slug}")
            made[f"evolution-{one.slug}"] = evolution_figure(one, f"evolution-{one.slug}")
    return {name: svg for name, svg in made.items() if svg is not None}
