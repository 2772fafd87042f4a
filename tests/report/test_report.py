"""A report is one page that stands alone, says what the record says, and hides nothing."""

import math
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from gradkit.report.figures import figures
from gradkit.report.findings import outcome_sentence, read_spectrum, spectrum_sentence
from gradkit.report.page import write_report
from gradkit.report.quantities import number, percent, seconds, tick, with_error
from gradkit.report.svg import envelope
from gradkit.runner.record import append_metrics, open_record, write_arrays, write_json, write_text

TOP = (12.0, 6.0, 3.0, 1.5, 0.8)
PARAMETERS = 2000
WIDTH = 0.02


def make_run(folder, *, steps=300, diverge=None, spectrum=True, summary=True):
    folder.mkdir(parents=True)
    write_text(folder / "config.yaml", "seed: 0\noptimizer:\n  adam: {learning_rate: 0.001}\n")
    packages = {"jax": "0.10.2", "odd": "<b>&amp;</b>"}
    command = ["gradkit", "run", "configs/a b.yaml"]
    env = {"gradkit": "0.1.0", "python": "3.11.7", "packages": packages, "command": command}
    write_json(folder / "env.json", env | {"parameters": PARAMETERS, "data": {"sha256": "ab" * 32}})
    for step in range(10, steps + 1, 10):
        loss = math.nan if diverge and step >= diverge else 2.3 * math.exp(-step / 60)
        line = {"step": step, "time": 0.01 * step, "loss": loss, "accuracy": 1 - step**-0.5}
        line |= {"gradient_norm": loss, "learning_rate": 1e-3, "gradients": step, "products": step}
        if step % 100 == 0:
            line |= {"train_loss": loss, "test_loss": 2 * loss, "test_accuracy": 0.9625}
        append_metrics(folder / "metrics.jsonl", line)
    if summary:
        final = {"status": "diverged" if diverge else "finished", "steps": steps, "seconds": 3.0}
        write_json(folder / "summary.json", final | {"test_accuracy": None if diverge else 0.9625})
    if spectrum:
        write_spectrum(folder)
    return folder


def write_spectrum(folder, *, top=TOP, residual=1e-5, converged=True):
    """A bulk around zero, 5 outliers and 0.5 % of the mass at −0.2, in every probe alike."""
    places = np.array([*TOP, -0.2, -0.01, 0.01])
    shares = np.array([*[1 / PARAMETERS] * len(TOP), 0.005, 0.3, 0.0])
    shares[-1] = 1 - shares.sum()
    grid = np.linspace(-1, 13, 3001)
    kernel = np.exp(-(((grid[:, None] - places) / WIDTH) ** 2) / 2)
    density = kernel @ shares / (WIDTH * math.sqrt(2 * math.pi))
    write_arrays(
        folder / "spectrum.npz",
        nodes=np.tile(places, (3, 1)),
        weights=np.tile(shares, (3, 1)),
        grid=grid.astype(np.float32),
        density=density.astype(np.float32),
        spread=(0.1 * density).astype(np.float32),
    )
    count = len(top)
    largest = {"values": top, "residuals": [residual] * count, "converged": [converged] * count}
    smallest = {"values": [-0.2], "residuals": [1e-6], "converged": [True]}
    condition = {"value": 60.0, "lower": 60.0, "upper": None, "basis": "Ritz values <only>"}
    curve = {"probes": 3, "steps": 7, "width": WIDTH, "w1_bound": 0.53, "integral": 1.0}
    values = {"step": 300, "operator": "hessian", "data": "train", "examples": 1437}
    values |= {"parameters": PARAMETERS, "largest": largest, "smallest": smallest}
    values |= {"condition": condition, "density": curve, "products": 950, "seconds": 2.1}
    write_json(folder / "spectrum.json", values)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "digits_adam")


class Page(HTMLParser):
    """The ids, the tags left open and the text of a page."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, text):
        super().__init__()
        self.ids, self.open, self.tags, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style",):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def report(folder):
    text = write_report(open_record(folder)).read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert len(text) < 500_000
    links = set(re.findall(r"https?://[^\"' <]*", text))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    return text, page


@pytest.mark.slow
def test_figures_are_xml_with_their_axis_labels(run):
    drawn = figures(open_record(run))
    assert list(drawn) == ["loss", "accuracy", "dynamics", "spectrum"]
    labels = {
        "loss": ["loss", "step", "time [s]", "work [gradient-equivalents]", "test set"],
        "accuracy": ["accuracy [fraction]", "step"],
        "dynamics": ["gradient norm [loss/param]", "learning rate"],
        "spectrum": ["eigenvalue [loss/param²]", "density [param²/loss]", "rank from its end"],
    }
    for name, svg in drawn.items():
        root = ElementTree.fromstring(svg)
        texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
        assert set(labels[name]) <= texts
        assert len(svg) < 60_000
        assert "currentColor" in svg
        referenced = re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg)
        assert {element.get("id") for element in root.iter()} >= set(referenced)


def test_the_page_says_what_the_record_says(run):
    text, page = report(run)
    for words in (
        "digits_adam",
        "Test accuracy 96.2 % after 300 steps in 3 s.",
        "2,000",
        "12.000000 ± 0.000010",
        "−0.2000000 ± 0.0000010",
        "At least 60; no upper bound is known. This rests on: Ritz values <only>.",
        "Wasserstein-1 bound of 0.53",
        "integrates to 1.0000",
        "gradkit run 'configs/a b.yaml'",
        "ab" * 32,
        "<b>&amp;</b>",
        "5 outliers reach 12; 0.5 % of the mass lies below −0.02",
    ):
        assert words in page.text
    assert "600" in re.findall(r"Work, in gradients</dt><dd>([^<]*)", text)
    assert page.tags.count("h1") == 1
    assert text.count('role="img" aria-label="') == 4
    assert "prefers-color-scheme: dark" in text
    assert "<script" not in text
    assert sorted(file.name for file in (run / "plots").iterdir()) == [
        "accuracy.svg",
        "dynamics.svg",
        "loss.svg",
        "spectrum.svg",
    ]


@pytest.mark.slow
def test_the_same_record_gives_the_same_bytes(run):
    first, second = report(run)[0], report(run)[0]
    assert first == second


@pytest.mark.slow
def test_matplotlib_is_left_as_it_was(run):
    with matplotlib.rc_context({"font.size": 31, "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        drawn = figures(open_record(run))
        assert dict(matplotlib.rcParams) == before
    assert drawn == figures(open_record(run))
    assert "matplotlib.pyplot" not in _modules_after("import gradkit.report.page")


def test_the_report_imports_nothing_numerical():
    loaded = _modules_after("import gradkit.report.page")
    assert not loaded & {"jax", "optax", "flax", "gradkit.core", "gradkit.tree", "gradkit.krylov"}


def _modules_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_config_and_names_are_escaped(tmp_path):
    folder = make_run(tmp_path / "a<i>&b", steps=20, spectrum=False)
    write_text(folder / "config.yaml", "name: </pre><script>alert(1)</script>\n")
    _, page = report(folder)
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert "name: </pre><script>alert(1)</script>" in page.text
    assert page.text.startswith("a<i>&b")


def test_without_a_spectrum(tmp_path):
    _, page = report(make_run(tmp_path / "run", spectrum=False))
    assert "No spectrum has been computed for this run" in page.text
    assert page.tags.count("svg") == 3


@pytest.mark.parametrize("steps", [0, 10])
def test_with_no_metrics_or_one_line(tmp_path, steps):
    folder = make_run(tmp_path / "run", steps=steps, spectrum=False, summary=False)
    (folder / "env.json").unlink()
    _, page = report(folder)
    assert page.tags.count("svg") == (3 if steps else 0)
    assert ("No metrics have been recorded." in page.text) == (steps == 0)
    assert "Unfinished: " in page.text
    assert "env.json is missing" in page.text


@pytest.mark.slow
def test_a_diverged_run_says_so(tmp_path):
    folder = make_run(tmp_path / "run", diverge=150)
    _, page = report(folder)
    assert "Diverged after 300 steps in 3 s; the loss is not finite from step 150 on." in page.text
    assert "loss not finite" in figures(open_record(folder))["loss"]
    nothing = make_run(tmp_path / "nothing", diverge=1, spectrum=False)
    _, page = report(nothing)
    assert "The training loss is not finite at step 10" in page.text
    assert list(figures(open_record(nothing))) == ["accuracy", "dynamics"]


def test_a_cut_last_line_is_told(tmp_path):
    folder = make_run(tmp_path / "run", steps=20, spectrum=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    assert "The last metrics line was cut short" in report(folder)[1].text


@pytest.mark.slow
def test_unconverged_eigenvalues_are_hollow_and_told(tmp_path):
    folder = make_run(tmp_path / "run", spectrum=False)
    write_spectrum(folder, residual=0.5, converged=False)
    _, page = report(folder)
    assert "5 listed eigenvalues have not converged" in page.text
    assert "12.00 ± 0.50 no" in page.text
    assert "largest, not converged" in figures(open_record(folder))["spectrum"]


@pytest.mark.slow
def test_a_spectrum_that_is_not_finite_is_told(tmp_path):
    folder = make_run(tmp_path / "run", spectrum=False)
    write_spectrum(folder, top=[math.nan, 6.0])
    nodes = np.full((2, 3), np.nan)
    write_arrays(
        folder / "spectrum.npz", nodes=nodes, weights=nodes, grid=nodes[0], density=nodes[0]
    )
    _, page = report(folder)
    assert "1 of the computed eigenvalues are not finite" in page.text
    assert "The density is not drawn" in page.text
    (folder / "spectrum.npz").unlink()
    assert "The density is not drawn" in report(folder)[1].text


def test_the_reading_of_a_known_spectrum(run):
    reading = read_spectrum(open_record(run).main)
    assert reading.outliers == 5
    assert not reading.more
    assert reading.bulk == (-0.01, 0.01)
    assert reading.negative == pytest.approx(0.005)
    assert reading.one == pytest.approx(1 / (PARAMETERS * WIDTH * math.sqrt(2 * math.pi)))


def test_outliers_that_were_not_listed_are_not_denied(tmp_path):
    folder = make_run(tmp_path / "run", spectrum=False)

    def sentence(top):
        write_spectrum(folder, top=top)
        return spectrum_sentence(read_spectrum(open_record(folder).main))

    assert sentence(TOP[:3]).startswith("At least 3 outliers")
    assert sentence((*TOP, 0.0)).startswith("5 outliers")
    assert sentence((0.02, 0.01)).startswith("Largest eigenvalue")


def test_the_edge_of_a_broad_spectrum_is_no_outlier(tmp_path):
    folder = make_run(tmp_path / "run", spectrum=False)
    write_spectrum(folder, top=(2.0, 1.9))
    values = np.linspace(0, 2, 400)
    write_arrays(folder / "spectrum.npz", nodes=[values], weights=[np.full(400, 1 / 400)])
    reading = read_spectrum(open_record(folder).main)
    assert reading.outliers == 0
    assert reading.bulk == pytest.approx((0.02, 1.98), abs=0.01)
    assert reading.resolution == pytest.approx(2 * 2 / 400)


def test_the_outcome_of_a_regression_is_its_loss(run):
    record = open_record(run)
    summary = {"status": "finished", "steps": 1, "seconds": 250.0, "test_loss": 0.123456}
    changed = type(record)(path=record.path, config_text="", summary=summary)
    assert outcome_sentence(changed) == "Test loss 0.123 after 1 step in 4 min 10 s."


def test_a_regression_has_a_page_with_its_own_metrics(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_text(folder / "config.yaml", "seed: 0\n")
    for step in (10, 20, 30):
        line = {"step": step, "loss": 1 / step, "train_loss": 1 / step, "test_loss": 2 / step}
        line |= {"validation_loss": 3 / step, "test_mean_error": 5 / step, "train_mean_error": 0.5}
        append_metrics(folder / "metrics.jsonl", line | {"test_R²": 0.75})
    final = {"status": "finished", "steps": 30, "seconds": 1.0, "test_loss": 1 / 15}
    write_json(folder / "summary.json", final)
    _, page = report(folder)
    assert "Test loss 0.0667 after 30 steps in 1 s." in page.text
    assert "Test mean error 0.167" in page.text
    assert "Validation loss 0.1" in page.text
    assert "accuracy" not in page.text.lower()
    drawn = figures(open_record(folder))
    assert list(drawn) == ["loss", "metric-0-mean_error", "metric-1-R²"]
    assert "validation set" in drawn["loss"]


def test_a_long_run_stays_small_and_keeps_its_peaks():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(100_000)
    values[54_321], values[777] = 1e6, np.nan
    kept = envelope(values)
    assert len(kept) <= 3 * 200
    assert 54_321 in kept
    assert 777 in kept
    assert values[kept][np.isfinite(values[kept])].min() == np.nanmin(values)
    assert list(envelope(values[:10])) == list(range(10))


def test_numbers_in_words():
    assert number(1437) == "1,437"
    assert number(0.0123456) == "0.0123"
    assert number(-1.5e-7) == "−1.5×10⁻⁷"
    assert number(2.5e12) == "2.5×10¹²"
    assert number(None) == number(math.nan) == number(True) == "–"
    assert percent(0.975) == "97.5 %"
    assert seconds(0.5) == "0.5 s"
    assert seconds(7300) == "2 h 1 min"
    assert with_error(12.30412, 1.2e-5) == "12.304120 ± 0.000012"
    assert with_error(1234.0, 50.0) == "1,234 ± 50"
    assert with_error(2.0, math.inf) == "2 (error not known)"
    assert with_error(3.0, 0.0) == "3 ± 0"
    assert [tick(x) for x in (0, 1e-3, 2e-7, -1e-9, 20000.0, 1e12)] == [
        "0",
        "0.001",
        "2×10⁻⁷",
        "−10⁻⁹",
        "20,000",
        "10¹²",
    ]


def test_no_warnings_on_a_tiny_operator(tmp_path):
    folder = make_run(tmp_path / "run", steps=10, spectrum=False)
    one = {"values": [1.0], "residuals": [0.0], "converged": [True]}
    curve = {"probes": 1, "steps": 1, "width": 0.001, "w1_bound": None, "integral": 1.0}
    write_json(
        folder / "spectrum.json",
        {"parameters": 1, "largest": one, "smallest": one, "density": curve},
    )
    grid = np.linspace(0.99, 1.01, 41)
    density = np.exp(-(((grid - 1) / 0.001) ** 2) / 2) / (0.001 * math.sqrt(2 * math.pi))
    write_arrays(
        folder / "spectrum.npz",
        nodes=[[1.0]],
        weights=[[1.0]],
        grid=grid,
        density=density,
        spread=np.full_like(grid, np.nan),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, page = report(folder)
    assert "No bound on its distance" in page.text
