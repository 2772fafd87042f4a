"""A config that extends another says what differs, and each value can be traced to its place."""

import re
from pathlib import Path

import pytest

from gradkit.runner.config import Member, dump, explained, load, resolved
from gradkit.runner.errors import UserError

BASE = """\
optimizer: {name: adam, learning_rate: 0.1, b1: 0.8}
data:
  test_fraction: 0.3
  preprocess: standardize
model: {hidden: [8, 8]}
batch_size: 32
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)


def child(text, base="base.yaml"):
    Path("child.yaml").write_text(f"extends: {base}\n{text}")
    return "child.yaml"


def message(path, *overrides):
    with pytest.raises(UserError) as error:
        load(path, overrides)
    return str(error.value)


def test_sections_are_merged_and_all_else_replaced():
    config = load(child("data: {test_fraction: 0.1}\nmodel: {hidden: [3]}\nepochs: 7"))
    assert (config.data.test_fraction, config.data.preprocess) == (0.1, "standardize")
    assert config.model == Member("mlp", {"hidden": (3,)})
    assert (config.batch_size, config.epochs, config.name) == (32, 7, "child")
    assert config.optimizer == load("base.yaml").optimizer


@pytest.mark.parametrize(
    ("written", "members"),
    [
        ("{b1: 0.5}", [("adam", {"learning_rate": 0.1, "b1": 0.5})]),
        ("{name: adam, b1: 0.5}", [("adam", {"learning_rate": 0.1, "b1": 0.5})]),
        ("{name: sgd, learning_rate: 1.0}", [("sgd", {"learning_rate": 1.0})]),
        ("lbfgs", [("lbfgs", {})]),
        ("[{name: sgd, learning_rate: 1.0}]", [("sgd", {"learning_rate": 1.0})]),
    ],
)
def test_an_optimizer_of_another_name_takes_the_place_of_the_whole(written, members):
    config = load(child(f"optimizer: {written}"))
    assert config.optimizer == tuple(Member(*member) for member in members)


def test_overrides_come_last_and_a_problem_is_at_the_file_that_has_it():
    assert load(child("epochs: 7"), ["epochs=8"]).epochs == 8
    Path("base.yaml").write_text(BASE.replace("32", "many"))
    assert re.search(r"base\.yaml:6  batch_size: expected a whole number", message(child("")))
    assert load(child("batch_size: 4")).batch_size == 4
    assert re.search(r"child\.yaml:2  epochs: expected", message(child("epochs: x\nbatch_size: 4")))


def test_the_path_is_from_the_folder_of_the_file():
    Path("inner").mkdir()
    Path("inner/child.yaml").write_text("extends: ../base.yaml\nepochs: 3")
    assert load("inner/child.yaml").batch_size == 32


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("absent.yaml", "child.yaml:1  extends: absent.yaml: no such file; "),
        ("3", "child.yaml:1  extends: expected the path of a config, from the folder of this one"),
        ("middle.yaml", "child.yaml:1  extends: middle.yaml extends base.yaml itself; expected"),
        ("broken.yaml", "child.yaml:1  extends: broken.yaml:1"),
    ],
)
def test_a_base_that_is_none_is_named(base, expected):
    Path("middle.yaml").write_text("extends: base.yaml")
    Path("broken.yaml").write_text("a: b: c")
    assert message(child("", base)).startswith(expected)


def test_a_misspelled_extends_is_answered_with_it():
    Path("child.yaml").write_text("extend: base.yaml\noptimizer: adam")
    assert "did you mean extends?" in message("child.yaml")


def test_every_value_is_shown_with_its_place():
    path = child(
        "model: {hidden: [3, 4]}\noptimizer: {learning_rate: {cosine_decay: {\n"
        "    init_value: 0.1, decay_steps: 100}}}"
    )
    text = explained(*resolved(path, ["seed=3", "spectrum={top: 2}"]))
    rows = [line.split("#") for line in text.splitlines() if "#" in line]
    origin = {key.strip(" -\n"): place.strip() for key, place in rows}
    assert origin["name: child"] == "default"
    assert origin["seed: 3"] == "command line: seed=3"
    assert origin["top: 2"] == "command line: spectrum={top: 2}"
    assert origin["bottom: 5"] == "default"
    assert origin["test_fraction: 0.3"] == "base.yaml:3"
    assert origin["examples:"] == "default"
    assert origin["name: adam"] == origin["b1: 0.8"] == "base.yaml:1"
    assert origin["3"] == origin["4"] == "child.yaml:2"
    assert origin["init_value: 0.1"] == "child.yaml:3"
    leaves = [line for line in dump(load(path)).splitlines() if not line.endswith(":")]
    nulls = [line for line in text.splitlines() if ":  " in line and "default" in line]
    assert len(rows) == len(leaves) + len(nulls)


def test_what_is_shown_is_the_config_itself():
    config, document = resolved(child("seed: 4"))
    Path("again.yaml").write_text(explained(config, document))
    assert load("again.yaml") == config
