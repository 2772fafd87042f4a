"""The interactive part of the page: optimizers race on a slice of the loss, and on classics."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from gradkit.report.findings import extremes
from gradkit.report.markup import section
from gradkit.report.quantities import finite, number
from gradkit.report.series import data_words
from gradkit.runner.record import Record, Spectrum, slice_array

_HERE = Path(__file__).parent
_PARTS = ("descent.js", "race_drawing.js", "race.js")
SCRIPT = "\n" + "\n".join((_HERE / part).read_text("utf-8") for part in _PARTS)
STYLE = (_HERE / "race.css").read_text("utf-8").strip()
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"script-src 'sha256-{_DIGEST}'"  # this script and no other, whatever a record holds
_DENSITY_POINTS = 240

_WORDS = (
    "Click a point of the plane to start there, or move the start by the arrow keys (further with "
    "Shift) and press Enter. The first five methods take the learning rate η; Newton's methods "
    "take whole steps, and the last two add the damping α to the curvature."
)


def race_section(record: Record) -> str:
    """The race on the slice that the main spectrum has; empty where it has none.

    A page with it needs `STYLE` in its style and `POLICY` among its policies.
    """
    data = None if record.main is None else _data(record.main)
    if data is None:
        return ""
    # Of what could end the element, nothing is left: "<" stands in strings alone.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    content = (
        "<p>The methods of gradkit race on the loss of this run, "
        f"{escape(data['where'])}, along the two eigenvectors of its Hessian with the largest "
        "eigenvalues, and on surfaces that are known for what they do to optimizers. The spectrum "
        "says which of them can bear the learning rate.</p>\n"
        f"<noscript><p>This part of the page needs JavaScript.</p></noscript>\n"
        f'<div class="race">\n{_controls()}{_figures()}{_table()}'
        f'<p id="race-summary" aria-live="polite"></p>\n</div>\n'
        f'<script type="application/json" id="race-data">{text}</script>\n'
        f"<script>{SCRIPT}</script>\n"
    )
    return section("Race", content)


def _data(spectrum: Spectrum) -> dict[str, Any] | None:
    """What the script needs of a spectrum; None where there is no slice that can be drawn."""
    about, arrays = spectrum.values.get("slice"), spectrum.arrays
    a, b, loss = (arrays.get(slice_array(name)) for name in ("a", "b", "loss"))
    if not isinstance(about, dict) or a is None or b is None or loss is None:
        return None
    values = [known for x in about.get("eigenvalues") or [] if (known := finite(x)) is not None]
    sound = all(np.isfinite(x).all() for x in (a, b, loss))
    if len(values) != 2 or not values[0] > 0 or not sound or loss.shape != (len(a), len(b)):
        return None
    if len(a) < 4 or np.ptp(loss) == 0:
        return None
    listed = [value for end in ("largest", "smallest") for value, *_ in extremes(spectrum, end)]
    at = "" if spectrum.step is None else f"at step {number(spectrum.step)}, "
    return {
        "where": f"{at}data: {data_words(spectrum)}",
        "slice": {"eigenvalues": values, "a": _short(a), "b": _short(b), "loss": _short(loss)},
        "eigenvalues": listed or values,
        "density": _density(arrays),
    }


def _density(arrays: dict[str, np.ndarray]) -> list[Any]:
    """The density at fewer points, each the largest of those that it stands for."""
    grid, density = arrays.get("grid"), arrays.get("density")
    if grid is None or density is None or not (np.isfinite(grid) & np.isfinite(density)).all():
        return []
    count = min(_DENSITY_POINTS, len(grid))
    parts = zip(np.array_split(grid, count), np.array_split(density, count), strict=True)
    kept = np.array([(x[y.argmax()], y.max()) for x, y in parts])
    return _short(kept, 4) if kept[:, 1].max() > 0 else []


def _short(array: np.ndarray, digits: int = 9) -> Any:
    """Nested lists of numbers, in as many digits as float32 has."""
    if array.ndim > 1:
        return [_short(row, digits) for row in array]
    return [float(f"{x:.{digits}g}") for x in array]


def _controls() -> str:
    sliders = "".join(
        f'<div><label for="race-{name}">{label}</label> <output id="race-{name}-value" '
        f'for="race-{name}"></output>\n<input type="range" id="race-{name}" min="{low}" '
        f'max="{high}" step="{step}" value="{value}"></div>\n'
        for name, label, low, high, step, value in (
            ("rate", "Learning rate η", -4, 1, 0.01, -2),
            ("momentum", "Momentum μ", 0, 0.99, 0.01, 0.9),
            ("damping", "Damping α", -4, 3, 0.01, -1),
        )
    )
    speeds = "".join(
        f'<option value="{speed}"{" selected" if speed == 20 else ""}>{speed} steps/s</option>'
        for speed in (5, 20, 50, 250)
    )
    buttons = "".join(
        f'<button type="button" id="race-{name}">{label}</button>\n'
        for name, label in (
            ("play", "Start"),
            ("step", "Step"),
            ("whole", "To the end"),
            ("reset", "Reset"),
        )
    )
    return (
        '<div class="surface"><label for="race-surface">Surface</label>\n'
        f'<select id="race-surface"></select></div>\n<div class="controls">\n{sliders}</div>\n'
        f'<div class="buttons">\n{buttons}<label for="race-speed">Speed</label>\n'
        f'<select id="race-speed">{speeds}</select></div>\n'
    )


def _figures() -> str:
    return f"""<div class="views">
<figure>
<svg id="race-plot" viewBox="0 0 440 440" tabindex="0" role="application"
 aria-label="Surface with the ways of the methods" aria-describedby="race-help">
<clipPath id="race-clip"><rect x="44" y="8" width="386" height="392"/></clipPath>
<rect class="frame" x="44" y="8" width="386" height="392"/>
<g id="race-contours" clip-path="url(#race-clip)"></g>
<g id="race-axes"></g>
<g id="race-minima" clip-path="url(#race-clip)"></g>
<g id="race-ways" clip-path="url(#race-clip)"></g>
<g clip-path="url(#race-clip)"><path id="race-start" d="M-9 0h6M3 0h6M0 -9v6M0 3v6"/></g>
</svg>
<figcaption id="race-help">{escape(_WORDS)}</figcaption>
</figure>
<figure>
<svg id="race-spectrum" viewBox="0 0 440 190" role="img" aria-labelledby="race-says"></svg>
<p id="race-says"></p>
<ul id="race-limits"></ul>
<figcaption id="race-marks"></figcaption>
</figure>
</div>
"""


def _table() -> str:
    heads = "".join(f'<th class="number">{name}</th>' for name in ("Steps", "Loss", "‖Gradient‖"))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Methods in the race">\n'
        f"<table><caption>The race so far</caption>\n<thead><tr><th>Method</th><th>Status</th>"
        f'{heads}</tr></thead>\n<tbody id="race-rows"></tbody></table>\n</div>\n'
    )
