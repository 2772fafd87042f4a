"""The race on the page: it runs nothing else, and goes where gradkit's own optimizers go."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline, RectBivariateSpline

import gradkit as gk
from gradkit.report.page import write_report
from gradkit.report.race import POLICY, SCRIPT
from gradkit.runner.record import (
    UserError,
    open_record,
    slice_array,
    write_arrays,
    write_json,
    write_text,
)

STEPS = (3, 40)
AXIS = 2 * np.linspace(-1, 1, 33)
OPTIONS = {"momentum": 0.8, "damping": 0.3}
# Surface: start and learning rate; in the order of `losses`.
CASES = {
    "slice": ([-0.3, -0.2], 0.15),
    "ravine": ([-2.6, 1.1], 0.02),
    "rosenbrock": ([-1.2, 1.0], 0.0005),
    "saddle": ([-1.5, 0.1], 0.1),
    "himmelblau": ([3.6, 2.9], 0.003),
}


def height(x, y):
    return np.log(np.cosh(1.5 * x) + 0.3 * np.sin(2 * y) + y**2 + 0.1 * x * y)


def make_run(folder, **changes):
    """A run whose spectrum has a slice; `changes` replace its arrays or remove them."""
    folder.mkdir(parents=True)
    write_text(folder / "config.yaml", "seed: 0\n")
    arrays = {"a": AXIS, "b": AXIS, "loss": height(AXIS[:, None], AXIS).astype(np.float32)}
    arrays = {slice_array(name): array for name, array in (arrays | changes).items()}
    grid = np.linspace(-1, 3, 2000)
    arrays |= {"grid": grid, "density": np.exp(-(grid**2)), "spread": 0 * grid}
    write_arrays(
        folder / "spectrum.npz", **{n: array for n, array in arrays.items() if array is not None}
    )
    pairs = {"residuals": [1e-6, 1e-6], "converged": [True, True]}
    values = {"step": 300, "operator": "hessian", "data": "</script><i>", "parameters": 2000}
    values |= {"largest": pairs | {"values": [2.25, 2.0]}, "smallest": pairs | {"values": [0, 0.1]}}
    values |= {"slice": {"eigenvalues": [2.25, 2.0], "points": 33, "reach": 2.0}}
    write_json(folder / "spectrum.json", values)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run with a slice, as text."""
    return written(make_run(tmp_path_factory.mktemp("runs") / "raced"))


def written(folder):
    return write_report(open_record(folder)).read_text("utf-8")


def embedded(page):
    return json.loads(re.search(r'id="race-data">(.*?)</script>', page, re.DOTALL)[1])


def digest(script):
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# The page


def test_the_page_allows_the_one_script_it_brings(page):
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert scripts == [SCRIPT]
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; {POLICY}"
    assert f"script-src '{digest(SCRIPT)}'" == POLICY
    assert "unsafe" not in POLICY
    assert len(page.encode()) < 500_000
    assert not re.findall(r"https?://(?!www\.w3\.org/)", page)
    assert not re.findall(r"\son\w+=", page)


def test_what_a_record_holds_cannot_end_the_data(page):
    assert embedded(page)["where"] == "at step 300, data: </script><i>"
    assert page.count("<script") == page.count("</script>") == 2
    assert "<i>" not in page
    assert embedded(page)["slice"]["loss"][3][5] == pytest.approx(height(AXIS[3], AXIS[5]))


def test_every_control_has_a_label_and_every_figure_words(page):
    controls = re.findall(r'<(?:input|select)[^>]*id="([^"]*)"', page)
    assert len(controls) == 5
    assert set(controls) <= set(re.findall(r'<label for="([^"]*)"', page))
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    for attribute in ("aria-describedby", "aria-labelledby"):
        assert set(re.findall(rf'{attribute}="([^"]*)"', page)) <= set(ids)
    assert 'aria-live="polite"' in page
    assert {f"race-{name}" for name in re.findall(r'byId\("(\w+)"\)', SCRIPT)} <= set(ids)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": None},
        {"loss": np.full((33, 33), np.nan)},
        {"loss": np.ones((33, 33))},
        {"loss": np.ones((33, 5))},
        {"a": AXIS[:3], "b": AXIS[:3], "loss": np.eye(3)},
    ],
    ids=["none", "not finite", "flat", "other shape", "too small"],
)
def test_without_a_sound_slice_there_is_no_race_and_no_script(tmp_path, changes):
    page = written(make_run(tmp_path / "run", **changes))
    assert "<script" not in page
    assert "script-src" not in page
    assert "race" not in page


def test_a_slice_of_wrong_shape_is_named(tmp_path):
    folder = make_run(tmp_path / "run", loss=np.ones(33))
    with pytest.raises(UserError, match=r"2 axes.*slice/loss"):
        open_record(folder)


# In a browser


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --enable-logging=stderr "
    "--window-size=1280,1400 --virtual-time-budget=20000 --dump-dom"
)


def opened(page, folder, script=None, *flags, allowed=True):
    """The document as a browser has it after a script of the test ran, and the console's lines."""
    if script is not None:
        page = page.replace("</body>", f"<script>{script}</script></body>")
        if allowed:
            page = page.replace(POLICY, f"{POLICY} '{digest(script)}'")
    file = Path(folder) / "page.html"
    file.write_text(page, "utf-8")
    command = [
        CHROMIUM,
        *FLAGS.split(),
        *flags,
        f"--user-data-dir={folder / 'profile'}",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    console = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
    return done.stdout.decode(), console


def result(document):
    return json.loads(unescape(re.search(r'<pre id="result">(.*?)</pre>', document)[1]))


RUN = """
const found = {}, cases = %s, options = %s;
for (const [name, [start, rate]] of Object.entries(cases)) {
  for (const method of Object.keys(METHODS)) {
    found[`${name} ${method}`] = %s.map((steps) =>
      run(surfaces[name], method, start, { rate, ...options }, steps));
  }
}
const words = (id) => byId(id).textContent;
const press = (key, more) => byId("plot").dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
const table = () => [...byId("rows").rows].map((row) => [...row.cells].map((c) => c.textContent));
const slide = (id, value) => {
  byId(id).value = value;
  byId(id).dispatchEvent(new Event("input"));
};
(async () => {
  const seen = { first: words("summary"), convex: curvatures().atStart[1] };
  seen.options = [...byId("surface").options].map((option) => option.value);
  byId("surface").value = "saddle";
  byId("surface").dispatchEvent(new Event("change"));
  press("ArrowRight"); press("ArrowDown", { shiftKey: true });
  seen.moved = race.start;
  seen.before = race.walkers[0].steps;
  press("Enter");
  seen.playing = words("play");
  await new Promise((done) => setTimeout(done, 1000));
  seen.later = race.walkers[0].steps;
  press(" ");
  seen.paused = words("play");
  byId("reset").click();
  byId("step").click();
  seen.stepped = table();
  byId("whole").click();
  seen.end = table();
  seen.summary = words("summary");
  slide("rate", 0.5);
  seen.says = words("says");
  seen.limits = words("limits");
  seen.fast = table();
  const box = byId("plot").getBoundingClientRect();
  const [clientX, clientY] = [box.left + box.width * 140.5 / 440, box.top + box.height * 302 / 440];
  byId("plot").dispatchEvent(new MouseEvent("click", { clientX, clientY }));
  seen.clicked = race.start;
  seen.running = race.running;
  add(document.body, "pre", { id: "result", text: JSON.stringify({ found, seen }) });
})();
"""


@pytest.fixture(scope="module")
def raced(page, tmp_path_factory):
    """What a browser found on the page, driven by a script, and what its console said."""
    script = RUN % (json.dumps(CASES), json.dumps(OPTIONS), list(STEPS))
    document, console = opened(page, tmp_path_factory.mktemp("browser"), script)
    assert console == []
    return result(document)


@browser
def test_the_page_loads_without_a_word_on_the_console(page, tmp_path):
    document, console = opened(page, tmp_path)
    assert console == []
    assert document.count("<option value=") == 5 + 4
    assert len(re.findall(r'<path d="M[^"]{200,}', document)) >= 12  # contours
    assert "is below 2/\u2060η" in document
    assert "NaN" not in re.sub(r"<script.*?</script>", "", document, flags=re.DOTALL)


@browser
def test_no_other_script_runs(page, tmp_path):
    script = 'document.body.id = "taken"'
    document, console = opened(page, tmp_path, script, allowed=False)
    assert 'id="taken"' not in document
    assert "Content Security Policy" in console[0]


@browser
def test_the_reader_moves_starts_pauses_and_slides(raced):
    seen = raced["seen"]
    assert seen["options"] == list(CASES)
    assert "Surface: This run: its loss at step 300" in seen["first"]
    assert seen["convex"] > 0
    np.testing.assert_allclose(seen["moved"], [-1.5 + 0.08, 0.1 - 0.4])
    assert (seen["before"], seen["playing"], seen["paused"]) == (0, "Pause", "Go on")
    assert seen["later"] == pytest.approx(20, abs=2)  # a second later
    assert {row[2] for row in seen["stepped"]} == {"1"}
    status = {row[0]: row[1] for row in seen["end"]}
    assert status["Newton"] == "at a saddle"
    assert status["Gradient descent"] == status["Saddle-free Newton"] == "at a minimum"
    assert "Newton: at a saddle after" in seen["summary"]
    assert seen["says"].startswith("λ₁ = 2 at the minimum (0, −1) is above 2/\u2060η = 1.26: ")
    assert "with growing amplitude" in seen["says"]
    assert "2(1 + μ)/η = 2.4: Momentum" in seen["limits"]
    assert seen["fast"][0][1] != "at a minimum"
    np.testing.assert_allclose(seen["clicked"], [-1, -1], atol=0.01)
    assert seen["running"]


@browser
def test_where_motion_is_not_wanted_the_race_is_drawn_at_once(page, tmp_path):
    script = 'byId("play").click(); document.title = race.walkers.map((one) => one.done).join()'
    document, console = opened(page, tmp_path, script, "--force-prefers-reduced-motion")
    assert console == []
    assert f"<title>{','.join(['true'] * 8)}</title>" in document


# Against gradkit


def splined(data):
    """The spline through the slice in jax, its moments by SciPy."""
    a, b, F = (np.asarray(data[name]) for name in ("a", "b", "loss"))
    across = CubicSpline(b, F, axis=1)(b, 2)
    tables = [[F, across], [CubicSpline(a, F, axis=0)(a, 2), CubicSpline(a, across, axis=0)(a, 2)]]
    tables = jnp.asarray(tables)
    h = a[1] - a[0]

    def basis(x):
        i = jnp.clip(jnp.floor((x - a[0]) / h), 0, len(a) - 2).astype(int)
        t = (x - a[0]) / h - i
        ends = jnp.stack([1 - t, t])
        return i, jnp.stack([ends, h**2 / 6 * (ends**3 - ends)])

    def value(p):
        (i, P), (j, Q) = basis(p[0]), basis(p[1])
        block = jax.lax.dynamic_slice(tables, (0, 0, i, j), (2, 2, 2, 2))
        return jnp.einsum("kc,ld,klcd->", P, Q, block)

    return value


def losses(data):
    return [
        splined(data),
        lambda p: (p[0] ** 2 + 25 * p[1] ** 2) / 2,
        lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2,
        lambda p: p[0] ** 2 / 2 - p[1] ** 2 / 2 + p[1] ** 4 / 4,
        lambda p: (p[0] ** 2 + p[1] - 11) ** 2 + (p[0] + p[1] ** 2 - 7) ** 2,
    ]


METHODS = {
    "gd": lambda rate: gk.sgd(rate),
    "momentum": lambda rate: gk.sgd(rate, momentum=OPTIONS["momentum"]),
    "nesterov": lambda rate: gk.sgd(rate, momentum=OPTIONS["momentum"], nesterov=True),
    "rmsprop": lambda rate: gk.rmsprop(rate),
    "adam": lambda rate: gk.adam(rate),
    "newton": lambda _: gk.newton(1.0),
    "damped": lambda _: gk.newton(1.0, damping=OPTIONS["damping"]),
    "saddle_free": lambda _: gk.saddle_free(1.0, damping=OPTIONS["damping"], tol=0.0),
}


@browser
@pytest.mark.parametrize("method", METHODS)
def test_the_race_ends_where_gradkit_ends(raced, page, method):
    with jax.enable_x64(True):
        surfaces = losses(embedded(page)["slice"])
        problem = gk.Problem(lambda p, which: jax.lax.switch(which, surfaces, p))

        @jax.jit
        def end(start, rate, which, steps):
            tx = METHODS[method](rate)

            def step(_, carry):
                params, state = carry
                point = gk.observe(problem, params, which, curvature=gk.hessian)
                updates, state = tx.update(point.grad, state, params, **point.extras)
                return params + updates, state

            params, _ = jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))
            return params, problem.value(params, which)

        for which, (name, (start, rate)) in enumerate(CASES.items()):
            for steps, found in zip(STEPS, raced["found"][f"{name} {method}"], strict=True):
                params, value = end(jnp.array(start), jnp.array(rate), which, steps)
                np.testing.assert_allclose(found["at"], params, 1e-10, 1e-12, err_msg=name)
                np.testing.assert_allclose(found["f"], value, 1e-10, 1e-12, err_msg=name)


@browser
def test_the_slice_is_the_spline_of_scipy(raced, page):
    data = embedded(page)["slice"]
    spline = RectBivariateSpline(data["a"], data["b"], data["loss"], s=0)
    orders = {"f": [(0, 0)], "g": [(1, 0), (0, 1)], "h": [(2, 0), (1, 1), (0, 2)]}
    for method in METHODS:
        one = raced["found"][f"slice {method}"][0]
        for name, pairs in orders.items():
            expected = [spline(*one["at"], dx=dx, dy=dy).item() for dx, dy in pairs]
            np.testing.assert_allclose(np.ravel(one[name]), expected, rtol=1e-10, atol=1e-10)
