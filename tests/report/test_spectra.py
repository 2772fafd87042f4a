"""Several spectra in a report: over training, layer by layer, over their decades, side by side."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from gradkit.report.blocks import blocks_sentence
from gradkit.report.evolution import drawn_as_ridges, evolution_sentence, threshold_words
from gradkit.report.figures import figures
from gradkit.report.magnitude import _per_decade, magnitude_sentence, reach_of
from gradkit.report.page import write_report
from gradkit.report.series import inverse_unit, series, unit
from gradkit.report.svg import outline
from gradkit.runner.record import (
    Spectrum,
    block_array,
    open_record,
    write_arrays,
    write_json,
    write_text,
)

DIMENSION = 300
SGD = {"threshold": 20.0, "formula": "2/η", "words": "η = 0.1"}
ADAM = {"threshold": None, "formula": None, "words": "adam is not plain gradient descent"}


def eigenvalues(largest):
    """A bulk over five decades about zero, and two outliers."""
    rng = np.random.default_rng(0)
    bulk = 10 ** rng.uniform(-6, -1, DIMENSION - 2) * np.where(
        rng.random(DIMENSION - 2) < 0.3, -1, 1
    )
    return np.sort(np.concatenate([0.01 * largest * bulk, [largest / 2, largest]]))


def lanczos_rule(values, seed, steps=40):
    """Nodes and weights of the Lanczos quadrature of diag(values) from a random vector."""
    v = np.random.default_rng(seed).normal(size=len(values))
    V, alpha, beta = [v / np.linalg.norm(v)], [], []
    for _ in range(steps):
        w = values * V[-1]
        alpha.append(w @ V[-1])
        for _ in range(2):
            w = w - np.array(V).T @ (np.array(V) @ w)
        beta.append(np.linalg.norm(w))
        V.append(w / beta[-1])
    nodes, S = np.linalg.eigh(np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1))
    return nodes, S[0] ** 2, V[0]


def content(largest, *, step=None, stability=None, operator="hessian", data="train", probes=4):
    """Numbers and arrays of a spectrum with that largest eigenvalue."""
    values = eigenvalues(largest)
    rules = [lanczos_rule(values, seed)[:2] for seed in range(probes)]
    nodes, weights = (np.array(rows) for rows in zip(*rules, strict=True))
    width = largest / 200
    grid = np.linspace(-0.05 * largest, 1.03 * largest, 500)
    kernel = np.exp(-(((grid[:, None, None] - nodes) / width) ** 2) / 2)
    curves = (kernel * weights).sum(axis=2) / (width * math.sqrt(2 * math.pi))
    arrays = {"nodes": nodes, "weights": weights, "grid": grid, "density": curves.mean(axis=1)}
    arrays["spread"] = curves.std(axis=1) / math.sqrt(probes)
    ends = {"residuals": [1e-6] * 3, "converged": [True, True, False]}
    numbers = {
        "operator": operator,
        "data": data,
        "step": step,
        "examples": 100,
        "parameters": DIMENSION,
        "loss": 0.5,
        "gradient_norm": 0.01,
        "stability": stability,
        "largest": {"values": values[::-1][:3].tolist(), **ends},
        "smallest": {"values": values[:3].tolist(), **ends},
        "condition": {"value": 60.0, "lower": 60.0, "upper": None, "basis": "Ritz values"},
        "negative": {"at_least": 7, "estimate": 90.0, "stderr": 5.0, "resolution": 1e-6},
        "trace": {"value": 3.25, "stderr": 0.25},
        "frobenius": {"value": 2.5, "stderr": 0.125},
        "density": {"probes": probes, "steps": 40, "width": width, "w1_bound": 0.1},
        "products": 500,
        "seconds": 2.0,
    }
    return numbers, arrays


def keep(folder, name, numbers, arrays):
    (folder / "spectra").mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", numbers)
    write_arrays(folder / f"{name}.npz", **arrays)


@pytest.fixture
def run(tmp_path):
    """A run folder without any spectrum."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_text(folder / "config.yaml", "seed: 0\n")
    return folder


def one_series(folder, tops, **more):
    """A Hessian spectrum each 100 steps, with those largest eigenvalues."""
    for number, top in enumerate(tops, start=1):
        last = number == len(tops)
        name = "spectrum" if last else f"spectra/{100 * number:06d}-hessian-train"
        keep(folder, name, *content(top, step=100 * number, **more))
    return series(open_record(folder))[0]


def texts(svg):
    root = ElementTree.fromstring(svg)
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def text_of(folder):
    page = write_report(open_record(folder)).read_text("utf-8")
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


# Over training


@pytest.mark.slow
def test_the_evolution_says_what_the_largest_eigenvalue_does(run):
    found = one_series(run, [8.0, 19.0, 5.0, 4.0], stability=SGD)
    assert [one.step for one in found.spectra] == [100, 200, 300, 400]
    sentence = (
        "Largest eigenvalue falls from 8 at step 100 to 4 at step 400, with 19 at step 200; below "
        "2/η = 20 throughout"
    )
    assert evolution_sentence(found) == sentence
    assert "The dotted line is 2/η with η = 0.1" in threshold_words(found)
    svg = figures(open_record(run))["evolution"]
    assert {sentence, "2/η = 20", "3 largest", "3 smallest", "step", "400"} <= set(texts(svg))
    assert "eigenvalue [loss/param²]" in texts(svg)
    assert sentence in text_of(run)


def test_eigenvalues_beyond_the_line_of_stability_are_counted(run):
    found = one_series(run, [8.0, 21.0, 24.0], stability=SGD)
    assert evolution_sentence(found).endswith("step 300; above 2/η = 20 at 2 of 3 steps")


@pytest.mark.slow
def test_without_a_line_of_stability_the_reason_is_told(run):
    found = one_series(run, [1.0, 2.0], stability=ADAM)
    assert (
        evolution_sentence(found) == "Largest eigenvalue rises from 1 at step 100 to 2 at step 200"
    )
    assert "2/η" not in texts(figures(open_record(run))["evolution"])
    words = "No line of stability is drawn: adam is not plain gradient descent."
    assert threshold_words(found) == words
    assert words in text_of(run)


@pytest.mark.parametrize("top", [0.001, 500.0])
def test_a_line_of_stability_far_away_is_drawn_as_well(run, top):
    one_series(run, [top, 2 * top], stability=SGD)
    assert "2/η = 20" in texts(figures(open_record(run))["evolution"])


@pytest.mark.slow
def test_one_checkpoint_has_no_evolution(run):
    one_series(run, [3.0])
    assert "evolution" not in figures(open_record(run))
    assert "Over training" not in text_of(run)


@pytest.mark.slow
def test_many_checkpoints_make_a_page_of_bearable_size(run):
    found = one_series(run, [1 + step for step in range(25)], stability=SGD)
    assert [one.step for one in drawn_as_ridges(found)][::11] == [100, 2500]
    assert len(drawn_as_ridges(found)) == 12
    drawn = figures(open_record(run))
    assert len(drawn["evolution"]) < 250_000
    assert text_of(run).count("Hessian train") == 25


def test_an_outline_is_close_to_its_curve():
    x = np.linspace(0, 20, 900)
    y = np.exp(-((x - 7) ** 2) * 4) + 0.5 * np.exp(-((x - 15) ** 2))
    kept = outline(x, y, tolerance=0.01)
    assert np.abs(np.interp(x, x[kept], y[kept]) - y).max() <= 0.01
    assert len(kept) < 60
    assert (kept[0], kept[-1]) == (0, 899)
    assert [list(outline(x[:n], y[:n])) for n in range(3)] == [[], [0], [0, 1]]


# Layer by layer


def with_blocks(folder, tops):
    numbers, arrays = content(4.0, step=100)
    numbers["blocks"] = {}
    for name, top in tops.items():
        block, block_arrays = content(top)
        numbers["blocks"][name] = {key: block[key] for key in block if key != "operator"}
        arrays |= {block_array(name, key): array for key, array in block_arrays.items()}
    keep(folder, "spectrum", numbers, arrays)
    return open_record(folder)


@pytest.mark.slow
def test_blocks_are_read_back_and_the_sharpest_is_named(run):
    record = with_blocks(run, {"layers.0": 1.0, "layers.1": 3.0, "": 0.5})
    blocks = record.main.blocks
    assert list(blocks) == ["layers.0", "layers.1", ""]
    assert sorted(blocks["layers.1"].arrays) == ["density", "grid", "nodes", "spread", "weights"]
    np.testing.assert_array_equal(blocks[""].arrays["nodes"], content(0.5)[1]["nodes"])
    sentence = "layers.1 is the sharpest layer: its block reaches 3, 75 % of the 4 of the whole"
    assert blocks_sentence(record.main) == sentence
    labels = texts(figures(record)["blocks"])
    assert {sentence, "layers.0", "layers.1", "all parameters", "most negative"} <= set(labels)
    text = text_of(run)
    assert "Layer by layer" in text
    assert "layers.1 300 3.000000 ± 0.000001" in text


def test_a_semidefinite_block_has_no_most_negative_eigenvalue(run):
    record = with_blocks(run, {"a": 1.0})
    values = record.main.values
    values["blocks"]["a"]["smallest"]["values"] = [-1e-9, 0.0, 1e-9]
    write_json(run / "spectrum.json", values)
    assert "most negative" not in texts(figures(open_record(run))["blocks"])


# Over the decades


def spectrum_of(largest):
    numbers, arrays = content(largest)
    return Spectrum(numbers, arrays)


def test_at_least_the_share_that_is_told_lies_near_zero():
    spectrum = spectrum_of(10.0)
    found = reach_of(spectrum)
    values = eigenvalues(10.0)
    for seed in range(4):  # of the measure that each probe sees, the share within is at least so
        nodes, weights, v = lanczos_rule(values, seed)
        around = int(np.searchsorted(nodes, 0.0))
        told = weights[around - 1 : around + 1].sum()
        assert (v**2)[np.abs(values) <= found.near].sum() >= told - 1e-12
    assert found.within == pytest.approx(np.mean(np.abs(values) <= found.near), abs=0.2)
    assert found.largest == pytest.approx(10.0)
    assert 1.5 < found.decades < 6
    assert magnitude_sentence(spectrum).startswith("At least ")
    assert magnitude_sentence(spectrum).endswith(" decades below the largest of 10")


def test_eigenvalues_per_decade_add_up_to_their_number():
    spectrum, grid = spectrum_of(10.0), np.linspace(-12, 4, 4000)
    total = 0.0
    for sign in (1, -1):
        mean, error = _per_decade(spectrum, sign, grid, DIMENSION)
        assert (error >= 0).all()
        total += np.trapezoid(mean, grid)
    assert total == pytest.approx(DIMENSION, rel=1e-3)


def test_a_spectrum_within_a_decade_has_no_such_figure(run):
    numbers, arrays = content(1.0)
    arrays["nodes"] = np.tile(np.linspace(1, 2, 40), (4, 1))
    keep(run, "spectrum", numbers, arrays)
    assert "magnitude" not in figures(open_record(run))
    assert magnitude_sentence(open_record(run).main) == ""
    zero = Spectrum(numbers, arrays | {"nodes": np.zeros((4, 40))})
    assert reach_of(zero) is None


def test_the_figure_over_decades_has_its_labels(run):
    keep(run, "spectrum", *content(10.0))
    labels = texts(figures(open_record(run))["magnitude"])
    axes = {"magnitude of the eigenvalue [loss/param²]", "eigenvalues per decade"}
    assert axes | {"positive", "negative"} <= set(labels)


# Side by side


@pytest.mark.slow
def test_every_series_is_shown_the_main_one_first(run):
    one_series(run, [2.0, 3.0])
    for step, top in ((100, 1.0), (200, 1.5)):
        more = {"operator": "fisher", "data": "40 of train"}
        keep(run, f"spectra/{step:06d}-fisher-40", *content(top, step=step, **more))
    record = open_record(run)
    first, second = series(record)
    assert (first.title, second.title) == ("Hessian, train", "Fisher matrix, 40 of train")
    assert record.spectrum["step"] == 200
    names = {"spectrum", "magnitude", "evolution"}
    names |= {"spectrum-fisher-40-of-train", "evolution-fisher-40-of-train"}
    assert set(figures(record)) == names
    assert "eigenvalue [1/param²]" in texts(figures(record)["spectrum-fisher-40-of-train"])
    text = text_of(run)
    assert "Fisher matrix, 40 of train, over training" in text
    assert text.count("Fisher matrix 40 of train 200 300 1.500000 ± 0.000001") == 1
    assert (unit(second.last), inverse_unit(second.last)) == ("1/param²", "param²")


def test_a_name_in_a_record_cannot_leave_the_folder(run):
    one_series(run, [2.0])
    keep(run, "spectra/odd", *content(1.0, step=3, operator="../../up", data="<b>"))
    before = {path.name for path in run.parent.iterdir()}
    text_of(run)
    assert {path.name for path in run.parent.iterdir()} == before
    assert (run / "plots" / "spectrum--up-b-.svg").is_file()


def test_the_figures_of_all_eigenvalues_together(run):
    numbers, arrays = content(4.0, step=100)
    numbers["point"] = {"kind": "saddle", "evidence": "two signs"}
    keep(run, "spectrum", numbers, arrays)
    text = text_of(run)
    for words in (
        "The point is saddle: two signs.",
        "At least 7 eigenvalues are negative, below −1×10⁻⁶ loss/param²; the density estimates "
        "90 ± 5 of 300",
        "The trace is 3.25 ± 0.25 loss/param².",
        "The Frobenius norm is 2.50 ± 0.12 loss/param².",
        "The loss there is 0.5, the norm of its gradient 0.01.",
        "2 listed eigenvalues have not converged",
    ):
        assert words in text


def test_the_folder_of_a_model_trained_elsewhere(tmp_path):
    folder = tmp_path / "trained"
    folder.mkdir()
    env = {"task": "model.py:task", "params": "trained.npz", "parameters": DIMENSION}
    write_json(folder / "env.json", env)
    keep(folder, "spectrum", *content(4.0, data="batch"))
    text = text_of(folder)
    assert "Curvature of the task model.py:task at trained.npz." in text
    assert "The Hessian of the loss over 100 examples (batch) in 300 parameters" in text
    for section in ("Training", "Config", "Unfinished"):
        assert section not in text
    assert "task model.py:task" in text


def test_a_spectrum_without_a_density(run):
    numbers, _ = content(4.0, step=100)
    numbers |= {"density": None, "trace": None, "frobenius": None}
    keep(run, "spectrum", numbers, {})
    text = text_of(run)
    assert "The density is not drawn: none was asked for." in text
    assert "How far to trust the density" not in text
    assert set(figures(open_record(run))) == {"spectrum"}
