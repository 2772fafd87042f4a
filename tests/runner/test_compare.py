"""Runs side by side: grouped by config, with means, standard errors and what a target took."""

import json
from pathlib import Path

import numpy as np
import pytest

from gradkit.runner import compare, record
from gradkit.runner.cli import main
from gradkit.runner.config import dump, load
from gradkit.runner.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("optimizer: {name: adam}\n")


def run(name, losses, status="finished", **overrides):
    """A run folder whose test losses are given at steps 10, 20 …"""
    folder = Path(name)
    folder.mkdir(parents=True)
    config = load("x.yaml", [f"{key}={value}" for key, value in overrides.items()])
    record.write_text(folder / record.CONFIG, dump(config))
    for number, loss in enumerate(losses, start=1):
        line = {"step": 10 * number, "time": number / 4, "gradients": 20 * number}
        line |= {"products": 5, "test_loss": loss, "test_accuracy": 1 - loss}
        record.append_metrics(folder / record.METRICS, line)
    if status:
        record.write_json(folder / record.SUMMARY, {"status": status})
    return folder


def rows(*folders, target=None):
    found = compare.open_all([str(folder) for folder in folders])
    return compare.compared(found, compare.Target.of(target) if target else None)


def test_seeds_are_one_row_with_mean_and_standard_error():
    ends = [0.3, 0.4, 0.8]
    runs = [run(f"r{seed}", [0.9, 0.2, end], seed=seed) for seed, end in enumerate(ends)]
    (row,) = rows(*runs)
    assert row.settings == {}
    assert row.ended == {"finished": 3}
    final, best = row.figures["test_loss"], row.figures["best_test_loss"]
    assert final.value == pytest.approx(np.mean(ends))
    assert final.stderr == pytest.approx(np.std(ends, ddof=1) / 3**0.5)
    assert (best.value, best.stderr, best.runs) == (pytest.approx(0.2), pytest.approx(0), 3)
    assert row.figures["best_test_accuracy"].value == pytest.approx(0.8)


def test_what_differs_is_named_and_nothing_else():
    a = run("a", [0.5], epochs=3)
    b = run("b", [0.5], **{"optimizer.learning_rate": 0.1})
    c = run("c", [0.5], **{"optimizer.learning_rate": 0.1, "seed": 7})
    found = rows(a, b, c)
    assert [row.settings for row in found] == [
        {"epochs": 3, "optimizer.learning_rate": None},
        {"epochs": 50, "optimizer.learning_rate": 0.1},
    ]
    assert [row.runs for row in found] == [("a",), ("b", "c")]


def test_a_target_has_its_price_and_who_reached_it():
    a, b = run("a", [0.9, 0.4, 0.3]), run("b", [0.9, 0.8, 0.35], seed=1)
    never = run("never", [0.9], epochs=1)
    found = rows(a, b, never, target="test_loss=0.5")
    assert found[0].target["reached"] == 2
    assert found[0].target["steps"].value == 25
    assert found[0].target["seconds"].value == pytest.approx(0.625)
    assert found[0].target["gradients"].value == 55  # a product counts one
    assert found[1].target == {"reached": 0, "steps": None, "seconds": None, "gradients": None}
    accuracy = rows(a, b, target="test_accuracy=0.7")[0]
    assert (accuracy.target["reached"], accuracy.target["steps"].value) == (1, 30)
    shown = compare.table([accuracy])
    assert "30 (1 of 2)" in shown


def test_unfinished_and_diverged_runs_are_counted_and_have_no_end():
    good, bad = run("good", [0.5]), run("bad", [0.1], status="diverged", seed=1)
    cut = run("cut", [0.2], status=None, seed=2)
    (row,) = rows(good, bad, cut)
    assert row.ended == {"finished": 1, "diverged": 1, "unfinished": 1}
    assert row.figures["test_loss"] == compare.Mean(0.5, None, 1)
    assert "1, 1 diverged, 1 unfinished" in compare.table([row])


def test_the_table_marks_the_lowest_and_leaves_out_what_says_nothing():
    found = rows(run("a", [0.9, 0.5]), run("b", [0.9, 0.4], epochs=3))
    header, first, second = compare.table(found).splitlines()
    assert header.split() == ["epochs", "runs", "test_loss", "test_accuracy"]
    assert "lowest" not in first
    assert second.endswith("← lowest")
    (alone,) = rows(run("c", [0.2, 0.5]))
    assert "best_test_loss" in compare.table([alone])
    assert "lowest" not in compare.table([alone])


def test_a_folder_of_runs_is_all_of_them_and_json_has_all_figures(capsys):
    run("many/a", [0.5])
    run("many/b", [0.7], seed=1)
    assert main(["compare", "many", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["runs"] == ["many/a", "many/b"]
    assert row["figures"]["test_loss"]["value"] == pytest.approx(0.6)
    assert row["target"] is None


def test_no_target_of_the_name_is_raised_by_the_function_as_well():
    with pytest.raises(UserError, match="no run records 'loss'"):
        rows(run("a", [0.5]), target="loss=1")


def test_a_run_without_accuracy_is_compared_by_what_it_has():
    for name, seed in (("a", 0), ("b", 1)):
        folder = run(name, [], seed=seed)
        for step, loss in ((10, 0.5), (20, 0.25 + seed)):
            line = {"step": step, "train_loss": loss / 2, "test_mean_error": 3.0, "test_loss": loss}
            record.append_metrics(folder / record.METRICS, line)
    (row,) = rows("a", "b")
    assert row.figures["test_mean_error"] == compare.Mean(3.0, 0.0, 2)
    header, line = compare.table([row]).splitlines()
    assert header.split()[:3] == ["runs", "train_loss", "best_train_loss"]
    assert header.split()[-2:] == ["best_test_loss", "test_mean_error"]
    assert line.split()[-1] == "3"


def test_a_run_is_counted_once():
    run("many/a", [0.5])
    run("many/b", [0.7], seed=1)
    (row,) = rows("many", "many/a", "./many/../many/b")
    assert row.seeds == (0, 1)
    assert len(row.runs) == 2


def test_budgets_are_told_below_the_table(capsys):
    run("a", [0.5, 0.4])
    run("b", [0.5], epochs=3)
    assert main(["compare", "a", "b"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("Unequal budgets: from 25 to 45 gradient-equivalents a run")
    assert main(["compare", "a", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["budget"]["gradients"] == {"value": 45.0, "stderr": None, "runs": 1}
    assert row["seeds"] == [0]


@pytest.mark.slow
def test_a_page_of_several_runs(capsys):
    run("many/a", [0.5])
    run("many/b", [0.7], epochs=3)
    assert main(["report", "many"]) == 0
    assert capsys.readouterr().out == "many/report.html\n"
    assert "Lowest test loss: epochs=50, 0.5 in one run" in Path("many/report.html").read_text()
    assert main(["report", "many/a", "many/b"]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    assert main(["report", "many", "--out", "other.html"]) == 0
    pages = {Path(name).read_text() for name in ("many/report.html", "comparison.html")}
    assert pages == {Path("other.html").read_text()}
    capsys.readouterr()
    assert main(["report", "many/a"]) == 0
    assert capsys.readouterr().out == "many/a/report.html\n"
    kept = Path("many/a/report.html").read_text()
    assert main(["report", "many", "--out", "many/a/report.html"]) == 2
    assert "is no comparison of runs, and is not overwritten" in capsys.readouterr().err
    assert Path("many/a/report.html").read_text() == kept
    assert main(["report", "many/a", "--out", "x.html"]) == 2
    assert "--out is for the page of several runs" in capsys.readouterr().err
    assert main(["report", "absent", "many/a"]) == 2


def test_the_cost_to_a_level_is_on_the_line_between_two_points():
    costs, losses = np.array([10.0, 20.0, 40.0]), np.array([3.0, 2.0, 1.0])
    assert compare.crossing(costs, losses, 1.5) == pytest.approx(30)
    assert compare.crossing(costs, losses, 2.0) == pytest.approx(20)
    assert compare.crossing(costs, losses, 3.5) == 10
    assert compare.crossing(costs, losses, 0.5) == np.inf
    assert compare.crossing(costs, np.array([3.0, 1.0, 2.0]), 2.0) == pytest.approx(15)
