"""The figure of the sharpness says where it stays, and is not there where nothing was measured."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from gradkit.report.figures import figures
from gradkit.report.page import write_report
from gradkit.report.sharpness import sharpness_sentence
from gradkit.runner.record import append_metrics, open_record, write_text


@pytest.fixture
def run(tmp_path):
    """Makes a record of metrics lines, a step each."""

    def make(*lines):
        folder = tmp_path / "run"
        folder.mkdir()
        write_text(folder / "config.yaml", "seed: 0\n")
        for step, line in enumerate(lines, start=1):
            append_metrics(folder / "metrics.jsonl", {"step": step, "loss": 1.0, **line})
        return open_record(folder)

    return make


def hovering(ratio, limit=20.0, **more):
    """100 measurements, each in two lines: from half the limit to near `ratio` times it."""
    lines = []
    for k in range(100):
        value = limit * (ratio + 0.01 * (-1) ** k if k >= 50 else 0.5 + ratio * k / 100)
        line = {"sharpness": value, "sharpness_residual": 0.1, "sharpness_step": 20 * k}
        lines += 2 * [line | {"sharpness_limit": limit} | more]
    return lines


def texts(svg):
    return [" ".join(element.itertext()) for element in ElementTree.fromstring(svg).iter()]


def test_the_title_says_where_the_sharpness_stays(run):
    record = run(*hovering(1.004))
    sentence = sharpness_sentence(record)
    assert sentence == (
        "Sharpness hovers at 1.004 times its limit of 20 from step 1,000 on, 90 % of it between "
        "0.994 and 1.014"
    )
    svg = figures(record)["sharpness"]
    for words in (sentence, "limit of stability: 20", "sharpness [loss/param²]", "step"):
        assert words in texts(svg)
    assert svg == figures(record)["sharpness"]
    page = write_report(record).read_text("utf-8")
    assert f'aria-label="{sentence}"' in page
    assert page.index("Sharpness figure") < page.index("<h2>Config</h2>")


def test_far_from_its_limit_it_hovers_nowhere(run):
    assert sharpness_sentence(run(*hovering(0.4))).startswith("Sharpness is 0.400 times its limit")


def test_the_preconditioned_sharpness_has_a_panel_and_the_title_where_it_has_the_limit(run):
    more = {"preconditioned_sharpness": 37900.0, "preconditioned_sharpness_limit": 38000.0}
    lines = [{k: v for k, v in (h | more).items() if k != "sharpness_limit"} for h in hovering(1)]
    record = run(*lines)
    assert "Preconditioned sharpness hovers at 0.997 times its limit of 38,000" in (
        sharpness_sentence(record)
    )
    found = texts(figures(record)["sharpness"])
    assert {"preconditioned sharpness", "sharpness [loss/param²]"} <= set(found)
    assert found.count("limit of stability: 38,000") >= 1
    assert not any("limit of stability: 20" in text for text in found)


def test_without_a_limit_it_says_from_where_to_where(run):
    lines = [{"sharpness": 3.0, "sharpness_step": 0}, {"sharpness": 4.5, "sharpness_step": 20}]
    record = run(*lines)
    assert sharpness_sentence(record) == "Sharpness goes from 3 at step 0 to 4.5 at step 20"
    assert "sharpness" in figures(record)


def test_what_is_not_finite_is_left_out(run):
    bad = {"sharpness": math.nan, "sharpness_residual": math.nan, "sharpness_step": 2000}
    record = run(*hovering(1), bad)
    assert "from step 1,000 on" in sharpness_sentence(record)
    numbers = re.findall(r"[ \"MLV](nan|inf)[ \"]", figures(record)["sharpness"])
    assert numbers == []


@pytest.mark.parametrize("line", [{}, {"sharpness": None, "sharpness_step": 0}])
def test_without_a_measurement_there_is_no_figure(run, line):
    record = run(line)
    assert "sharpness" not in figures(record)
    assert "Sharpness figure" not in write_report(record).read_text("utf-8")
