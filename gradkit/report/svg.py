"""A matplotlib figure as SVG text: the same bytes each time, at home in any page.

Text stays text, the background is transparent, and whatever was drawn in `INK` takes the color of
the text around it, so that one figure serves a light and a dark page. Identifiers carry the
figure's name, so that several figures can stand in one page.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

INK = "#010203"

_STYLE = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.2,
    "lines.solid_capstyle": "round",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def drawing(name: str, *, math: bool = False) -> Iterator[None]:
    """The style in which a figure is made and saved; matplotlib's settings are restored after.

    Args:
        name: of the figure.
        math: whether dollars enclose mathematics; as it is, a dollar in a name is a dollar.
    """
    own = {"svg.hashsalt": name, "text.parse_math": math}
    style = matplotlib.style.context(["default", _STYLE | own])
    with style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page's fonts have it
        yield


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element; call it within `drawing`."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = _style_on_root(text)
    text = _own_ids(text, name)
    text = text.replace(INK, "currentColor")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r' (d|x|y|transform)="[^"]*"', _rounded, text)
    text = re.sub(r"\s*<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", "\n", text)


def envelope(values: np.ndarray, bins: int = 200) -> np.ndarray:
    """The indices of a few hundred points that draw like all of them.

    Of each bin the lowest and the highest value stay, so that peaks survive, and so does one value
    that is not finite, so that a gap stays a gap.
    """
    if len(values) <= 3 * bins:
        return np.arange(len(values))
    kept = []
    for part in np.array_split(np.arange(len(values)), bins):
        known = part[np.isfinite(values[part])]
        kept += part[~np.isfinite(values[part])][:1].tolist()
        if len(known):
            kept += [known[np.argmin(values[known])], known[np.argmax(values[known])]]
    return np.unique(kept)


def outline(x: np.ndarray, y: np.ndarray, tolerance: float = 4e-3) -> np.ndarray:
    """The indices of the points of a curve that straight lines between them follow.

    Source: Ramer (1972), with distances along y.

    Args:
        x: ascending places, on the scale of the axis.
        y: heights.
        tolerance: most distance of a point left out from the lines.
    """
    kept, pending = {0, len(x) - 1} if len(x) else set(), [(0, len(x) - 1)]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        inside = slice(first + 1, last)
        line = np.interp(x[inside], x[[first, last]], y[[first, last]])
        distances = np.abs(y[inside] - line)
        middle = first + 1 + int(np.argmax(distances))
        if distances.max() > tolerance:
            kept.add(middle)
            pending += [(first, middle), (middle, last)]
    return np.array(sorted(kept), dtype=int)


def _style_on_root(text: str) -> str:
    """matplotlib's default line style moves to the root: as a rule it would reach a whole page."""
    pattern = r"<defs>\s*<style[^>]*>\*\{([^}]*)\}</style>\s*</defs>"
    rule = re.search(pattern, text)
    if rule is None:
        return text
    text = text.replace(rule[0], "", 1)
    return text.replace("<svg", f'<svg style="{rule[1]}"', 1)


def _rounded(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point, on one line: half the bytes, and no eye sees it."""
    numbers = re.sub(r"-?\d+\.\d+", lambda match: f"{round(float(match[0]), 2):g}", attribute[0])
    return " " + " ".join(numbers.split())


def _own_ids(text: str, name: str) -> str:
    """Identifiers that nothing refers to go, the others get the figure's name in front."""
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    referenced = {identifier for pair in used for identifier in pair if identifier}
    text = re.sub(
        r' id="([^"]+)"',
        lambda match: f' id="{name}-{match[1]}"' if match[1] in referenced else "",
        text,
    )
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
