"""Runs side by side on one page: means with their errors, what was spent, and nothing hidden."""

import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from gradkit.report.bands import alone, band, bands_figure, drawn_rows
from gradkit.report.comparison import comparison, write_comparison
from gradkit.report.curves import AGAINST
from gradkit.report.palette import COLORS, looks, optimizer_looks, optimizer_of
from gradkit.report.sensitivity import sensitivity_figures, swept
from gradkit.report.verdict import headline, lead, notes
from gradkit.runner.compare import compared
from gradkit.runner.errors import UserError
from gradkit.runner.record import (
    append_metrics,
    open_record,
    write_arrays,
    write_json,
    write_text,
)
from gradkit.runner.rows import Mean, budget_words, judge, short_names

STEP, TIME, WORK = (getter for _, getter in AGAINST)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(
    *,
    seed=0,
    rate=0.1,
    name="adam",
    end=0.1,
    steps=40,
    status="finished",
    accuracy=True,
    work=1,
    **settings,
):
    """A run folder whose test loss falls to `end`, evaluated every 10 steps."""
    folder = Path(f"runs/{len([*Path('runs').glob('*')])}")
    folder.mkdir(parents=True)
    optimizer = {"name": name, "learning_rate": rate}
    config = {"name": "x", "seed": seed, "optimizer": optimizer, **settings}
    write_text(folder / "config.yaml", json.dumps(config))
    env = {"gradkit": "0.1.0", "python": "3.11.7", "packages": {"jax": "0.10.2"}}
    write_json(folder / "env.json", env | {"device": "cpu", "command": [str(folder)]})
    for step in range(10, steps + 1, 10):
        loss = end + math.exp(-step / 10)
        line = {"step": step, "time": step / (8 + seed), "gradients": work * step, "loss": loss}
        line |= {"train_loss": loss / 2, "test_loss": loss}
        line |= {"test_accuracy": 1 - loss} if accuracy else {"test_mean_error": loss**0.5}
        append_metrics(folder / "metrics.jsonl", line)
    if status:
        write_json(folder / "summary.json", {"status": status, "steps": steps, "seconds": 1.0})
    return folder


def rows(*folders):
    return compared([open_record(folder) for folder in folders])


def page(*folders):
    """The page of some runs, checked for what all pages are."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = comparison(rows(*folders))
    assert len(text) < 500_000
    links = set(re.findall(r"https?:[^\"' <]*", text))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<script" not in text
    assert "default-src 'none'" in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    return text


def words(text):
    plain = re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL)
    return " ".join(plain.split())


def test_a_band_is_the_mean_and_its_standard_error_at_every_step():
    ends = [0.1, 0.2, 0.6]
    (row,) = rows(*(run(seed=seed, end=end) for seed, end in enumerate(ends)))
    found = band(row.records, "test_loss", TIME)
    steps = np.array([10, 20, 30, 40])
    np.testing.assert_allclose(found.x, np.mean([steps / (8 + seed) for seed in range(3)], axis=0))
    np.testing.assert_allclose(found.mean, np.mean(ends) + np.exp(-steps / 10))
    np.testing.assert_allclose(found.stderr, np.std(ends, ddof=1) / math.sqrt(3))
    np.testing.assert_allclose(band(row.records, "test_loss", STEP).x, steps)


def test_a_band_is_of_the_steps_that_runs_share_and_a_single_run_has_no_error():
    (row,) = rows(run(steps=40), run(seed=1, steps=20))
    assert band(row.records, "test_loss", STEP).x.tolist() == [10, 20]
    one = band(row.records[:1], "test_loss", STEP)
    assert one.stderr is None
    assert len(one.x) == 4
    assert band(row.records, "absent", STEP) is None


def test_a_row_says_its_figures_costs_and_seeds():
    (row,) = rows(run(end=0.1, work=2), run(seed=5, end=0.3, work=3))
    assert row.seeds == (0, 5)
    assert row.figures["test_loss"].value == pytest.approx(0.2 + math.exp(-4))
    assert row.budget["gradients"] == Mean(100.0, pytest.approx(20.0), 2)
    assert row.budget["steps"] == Mean(40.0, 0.0, 2)


def test_the_title_is_the_finding():
    good = [run(seed=s, end=0.1 + s / 1000) for s in range(5)]
    bad = [run(seed=s, end=0.5 + s / 1000, rate=0.01) for s in range(5)]
    found = rows(*bad, *good)
    assert headline(found) == "Lowest test loss: learning_rate=0.1, 0.12032 ± 0.00071 over 5 seeds"
    assert lead(found).endswith("more than two standard errors of the difference behind.")
    text = page(*bad, *good)
    assert f"<h1>{headline(found)}</h1>" in text
    assert f"<title>{headline(found)} – gradkit</title>" in text
    assert text.count("★") == 4  # the key and three columns


def test_what_seeds_do_not_tell_apart_is_said():
    one = [run(seed=s, end=0.1 + s / 10) for s in range(3)]
    other = [run(seed=s, end=0.11 + s / 10, rate=0.01) for s in range(3)]
    assert "within two standard errors, so that the seeds do not tell it apart" in lead(
        rows(*one, *other)
    )
    single = lead(rows(one[0], other[0]))
    assert "of a single run it is not known how much the seed matters" in single


def test_what_the_best_row_lost_is_in_the_title():
    folders = [run(seed=seed, status=status) for seed, status in enumerate(["finished"] * 3)]
    folders += [run(seed=7, status="diverged"), run(rate=0.3, end=0.9)]
    assert headline(rows(*folders)).endswith("over 3 seeds, 1 diverged")
    assert headline(rows(*folders[:2])) == "Test loss 0.1183 over 2 seeds"


def test_of_very_many_rows_the_best_are_listed():
    folders = [run(rate=place / 100, end=place / 100, steps=10) for place in range(1, 71)]
    text = words(page(*folders))
    assert "the 60 best of 70 rows" in text
    assert "learning_rate=0.6 " in text.partition("Budgets")[2]
    assert "learning_rate=0.61 " not in text


def test_one_row_and_one_run():
    text = words(page(run()))
    assert "Test loss 0.1183 in one run: 0" in text
    assert "Sensitivity" not in text
    assert "All runs have this in common" not in text
    assert "learning_rate" in text  # of the config


def test_runs_without_accuracy_have_a_page_with_their_own_figures():
    text = words(page(run(accuracy=False), run(accuracy=False, rate=0.3, end=0.4)))
    assert "accuracy" not in text
    assert "test mean error" in text
    assert text.startswith("Lowest test loss: learning_rate=0.1")


def test_the_loss_on_a_validation_set_decides_where_there_is_one():
    folders = [run(), run(rate=0.3, end=0.4)]
    for folder, loss in zip(folders, (0.9, 0.2), strict=True):
        append_metrics(folder / "metrics.jsonl", {"step": 41, "validation_loss": loss})
    found = rows(*folders)
    assert judge(found) == "validation_loss"
    assert headline(found) == "Lowest validation loss: learning_rate=0.3, 0.2 in one run"
    assert "validation set" in page(*folders)


def test_diverged_and_unfinished_runs_are_drawn_alone_and_told():
    folders = [run(), run(seed=1, status="diverged", steps=20), run(seed=2, status=None, steps=10)]
    (row,) = rows(*folders)
    together, single = alone(row)
    assert [one.name for one in together] == ["0"]
    assert [one.name for one in single] == ["1", "2"]
    text = words(page(*folders, run(rate=9.0, status="diverged", steps=0)))
    assert "2 of 4 runs diverged; means are of those that finished." in text
    assert "1 of 4 runs is unfinished" in text
    assert "Dotted: a run that diverged, up to its last finite evaluation" in text
    assert "1, 1 diverged, 1 unfinished" in text
    assert "0, 1 diverged" in text
    assert "× at the edge: here runs diverged" in text


def test_of_runs_that_all_go_on_the_mean_is_drawn():
    (row,) = rows(run(status=None), run(seed=1, status=None))
    assert len(alone(row)[0]) == 2
    text = words(page(run(seed=2, status=None)))
    assert text.startswith("No loss at the end of this run")


def test_nothing_recorded_is_no_mistake():
    text = words(page(run(steps=0, status=None), run(rate=1.0, steps=0, status="diverged")))
    assert "No losses have been recorded." in text
    assert "No loss at the end of any of 2 runs" in text
    assert bands_figure(rows(run(steps=0))) is None


def test_unequal_budgets_are_a_warning():
    same = [run(), run(rate=0.3)]
    assert budget_words(rows(*same)) == "Budget: 40 gradient-equivalents a run."
    assert notes(rows(*same)) == []
    found = rows(*same, run(rate=1.0, work=2))
    assert "from 40 to 80 gradient-equivalents a run" in budget_words(found)
    assert notes(found) == [budget_words(found)]
    assert "not compared at equal work" in words(page(run(), run(name="sgd", work=3)))


@pytest.mark.slow
def test_thirty_rows_are_listed_and_the_best_drawn():
    folders = [
        run(seed=seed, rate=place / 10, end=0.1 + abs(place - 17) / 100 + seed / 1000)
        for place in range(1, 31)
        for seed in range(2)
    ]
    found = rows(*folders)
    drawn = drawn_rows(found)
    assert (
        sorted(row.settings["optimizer.learning_rate"] for row in drawn)
        == [
            *(1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0),
        ]
        or len(drawn) == 8
    )
    text = page(*folders)
    assert "The 8 best of 30 rows." in words(text)
    assert "learning_rate: lowest test loss at 1.7<" in text
    assert text.count('<th scope="row">') > 60


@pytest.mark.slow
def test_a_long_hard_comparison_is_a_small_page():
    rng, folders = np.random.default_rng(0), []
    for place in range(12):
        for seed in range(3):
            folder = run(
                seed=seed, rate=10.0 ** -(place % 4), steps=0, batch_size=2 ** (place // 4)
            )
            noise = rng.lognormal(size=(500, 2))
            for step, (train, test) in enumerate(noise, start=1):
                line = {"step": step, "time": step * 0.1, "gradients": step}
                line |= {"train_loss": train, "test_loss": test, "test_accuracy": 1 / (1 + test)}
                line |= {"validation_loss": test}
                append_metrics(folder / "metrics.jsonl", line)
            folders.append(folder)
    assert len(page(*folders)) < 480_000


def test_hostile_names_are_text():
    evil = "</code><script>alert(1)</script>$\\frac{$ _& 中"
    folders = [run(task=evil, end=0.3), run(task="_plain", end=0.2), run(task="$x$")]
    write_json(folders[0] / "env.json", {"gradkit": "<i>", "odd": evil})
    text = page(*folders)
    assert "<i>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "$x$" in text


def test_settings_varied_alone_are_found_with_their_lines():
    folders = [
        run(name=name, rate=rate, **extra)
        for name, extra in (("adam", {"b1": 0.9}), ("sgd", {}))
        for rate in (0.01, 0.1)
    ]
    by_key = {one.key: one for one in swept(rows(*folders))}
    assert list(by_key) == ["optimizer.name", "optimizer.learning_rate"]
    rate, name = by_key["optimizer.learning_rate"], by_key["optimizer.name"]
    assert (rate.numeric, rate.values) == (True, (0.01, 0.1))
    assert [words for words, _ in rate.lines] == ["optimizer=adam b1=0.9", "optimizer=sgd"]
    assert (name.numeric, name.values) == (False, ("adam", "sgd"))
    assert [words for words, _ in name.lines] == ["learning_rate=0.01", "learning_rate=0.1"]
    drawn = sensitivity_figures(rows(*folders))
    assert list(drawn) == ["sensitivity-0", "sensitivity-1"]
    assert "final test accuracy" in drawn["sensitivity-0"]
    best = run(name="sgd", rate=0.01, end=0.01, seed=1)
    text = words(page(*folders[:3], best))
    assert "learning_rate: lowest test loss at 0.01, the smallest tried" in text
    assert "optimizer: lowest test loss at sgd" in text


def test_settings_that_change_together_are_not_called_varied():
    folders = [run(rate=0.1, epochs=1), run(rate=0.2, epochs=2)]
    assert swept(rows(*folders)) == []
    assert "No setting was varied with all others as they were." in words(page(*folders))


def test_lists_and_truth_values_are_words_on_the_axis():
    folders = [run(hidden=[8]), run(hidden=[8, 8]), run(hidden=[16])]
    (one,) = swept(rows(*folders))
    assert (one.numeric, one.values) == (False, ([8], [8, 8], [16]))
    assert ">[8, 8]<" in page(*folders)


def test_an_optimizer_has_its_color_in_all_company():
    color = optimizer_looks(["sgd"])["sgd"].color
    assert optimizer_looks(["lion", "sgd", "adam", "adamw"])["sgd"].color == color
    some = looks(["adam", "sgd", "lion", "sgd"])
    assert some[1].color == some[3].color == color
    assert some[1].dashes != some[3].dashes
    assert len({look.color for look in some}) == 3
    alike = looks(["adam"] * 10)
    assert tuple(look.color for look in alike[:8]) == COLORS
    assert len({(look.color, str(look.dashes)) for look in alike}) == 10
    first = optimizer_looks(["sgd", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "adamw"])
    assert len({look.color for look in first.values()}) == 7
    assert optimizer_of({"optimizer.0.name": "clip", "optimizer.1.name": "adam"}) == "adam"
    assert optimizer_of({"model.name": "mlp"}) == ""
    assert optimizer_of({"optimizer.name": "optax.lion"}) == "optax.lion"
    assert optimizer_looks(["optax.sgd"])["optax.sgd"].color == color
    both = optimizer_looks(["optax.sgd", "sgd"])
    assert both["optax.sgd"].color != both["sgd"].color == color


def test_short_names_call_a_thing_by_itself():
    keys = ["optimizer.name", "optimizer.0.eps", "optimizer.1.eps", "model.hidden"]
    assert list(short_names(keys).values()) == ["optimizer", "0.eps", "1.eps", "hidden"]
    assert short_names(["optimizer", "optimizer.name"])["optimizer"] == "optimizer"


def test_machines_that_differ_are_told():
    folders = [run(), run(seed=1)]
    env = {"gradkit": "0.1.0", "python": "3.11.7", "packages": {"jax": "0.11.0"}, "device": "cpu"}
    write_json(folders[1] / "env.json", env)
    text = words(page(*folders))
    assert "packages.jax 0.10.2 (1 of 2 runs), 0.11.0 (1 of 2 runs)" in text
    assert "their times do not compare" in text
    assert "All runs have this in common" in words(page(folders[0], run(seed=2)))


def test_runs_of_one_seed_are_no_sample():
    assert any("the same seed" in note for note in notes(rows(run(), run())))


def test_spectra_are_listed():
    folders = [run(), run(rate=0.2)]
    one = {"values": [12.5], "residuals": [1e-3], "converged": [True]}
    low = {"values": [-0.25], "residuals": [1e-3], "converged": [True]}
    condition = {"value": None, "lower": 50.0, "upper": 60.0}
    values = {"operator": "hessian", "data": "train", "largest": one, "smallest": low}
    write_json(folders[1] / "spectrum.json", values | {"condition": condition})
    write_arrays(folders[1] / "spectrum.npz", nodes=[[1.0]], weights=[[1.0]])
    text = words(page(*folders))
    assert "learning_rate=0.2 0 Hessian train 12.500 ± 0.001 −0.250 ± 0.001 – 50 to 60" in text
    assert "Spectra" not in words(page(run(), run(rate=0.2)))


def test_the_page_is_written_and_no_other_file_lost():
    found = rows(run())
    path = Path("a.html")
    assert write_comparison(found, path) == path
    first = path.read_text()
    write_comparison(found, path)
    assert path.read_text() == first
    Path("mine.html").write_text("<p>mine</p>")
    for other in ("mine.html", "runs"):
        with pytest.raises(UserError, match="is no comparison of runs, and is not overwritten"):
            write_comparison(found, Path(other))
    assert Path("mine.html").read_text() == "<p>mine</p>"
