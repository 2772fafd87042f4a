"""A record as figures, each one SVG text."""

from __future__ import annotations

import re

from gradkit.report.blocks import blocks_figure
from gradkit.report.curves import dynamics_figure, loss_figure, metric_figure, metrics_of
from gradkit.report.evolution import evolution_figure
from gradkit.report.magnitude import magnitude_figure
from gradkit.report.series import series
from gradkit.report.sharpness import sharpness_figure
from gradkit.report.spectrum import spectrum_figure
from gradkit.runner.record import Record

_MOST = 6  # metrics that have a figure


def figures(record: Record) -> dict[str, str]:
    """The figures that the record has data for, by name, as `<svg>` elements.

    The names are `loss`, `accuracy`, `dynamics` (gradient norm and learning rate), `metric-` with
    the name of any other metric, and `sharpness`; of the main spectrum `spectrum`, `magnitude`,
    `blocks` and `evolution` (over checkpoints); and of every other operator and data `spectrum-`,
    `blocks-` and `evolution-` with both. The same record gives the same bytes.
    """
    made = {
        "loss": loss_figure(record),
        "accuracy": metric_figure(record, "accuracy", "accuracy"),
        "dynamics": dynamics_figure(record),
        **{name: metric_figure(record, metric, name) for metric, name in other_metrics(record)},
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


def other_metrics(record: Record) -> list[tuple[str, str]]:
    """The metrics besides loss and accuracy, each with the name of its figure: a few of them."""
    others = [metric for metric in metrics_of(record) if metric != "accuracy"]
    return [
        (metric, f"metric-{place}-" + re.sub(r"\W+", "-", metric))
        for place, metric in enumerate(others[:_MOST])
    ]
