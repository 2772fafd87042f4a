"""Commands that only look: what a config says, what it means, and what it can name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradkit.runner.catalog import catalog
from gradkit.runner.cli import main
from gradkit.runner.config import load

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
COMMAND = [sys.executable, "-m", "gradkit.runner.cli"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text("optimizer: adam\n")
    Path("bad.yaml").write_text("optimizer: adamm\nepochs: 0\n")
    Path("empty.yaml").write_text("")


def test_configs_are_checked_and_all_mistakes_of_all_files_told(capsys):
    assert main(["check", "good.yaml", *map(str, CONFIGS)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "good.yaml: good"
    assert main(["check", "bad.yaml", "good.yaml", "empty.yaml"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "good.yaml: good\n"
    assert "bad.yaml:1  optimizer.name: unknown optimizer or transformation 'adamm'" in shown.err
    assert "bad.yaml:2  epochs: expected a whole number >= 1, got 0" in shown.err
    assert "empty.yaml: is empty" in shown.err


def test_looking_imports_no_numerical_library():
    program = (
        "import sys; from gradkit.runner.cli import main; main(['check', 'good.yaml']); "
        "main(['run', 'good.yaml', '--dry-run']); main(['list', '--json']); "
        "sys.exit(', '.join({'jax', 'numpy', 'optax', 'sklearn'} & {*sys.modules}) or 0)"
    )
    left = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (left.returncode, left.stderr) == (0, "")


def test_a_dry_run_prints_the_config_and_makes_nothing(capsys):
    assert main(["run", "good.yaml", "epochs=3", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# would train into runs/good\n")
    Path("again.yaml").write_text(text)
    assert load("again.yaml") == load("good.yaml", ["epochs=3"])
    assert not Path("runs").exists()
    Path("runs/good").mkdir(parents=True)
    main(["run", "good.yaml", "--dry-run"])
    assert "runs/good, which exists already: name another with --out" in capsys.readouterr().out
    assert main(["run", "--resume", "runs/good", "--dry-run"]) == 2
    assert "--dry-run is for a CONFIG" in capsys.readouterr().err


def test_the_list_is_json_for_programs(capsys):
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"optimizers", "schedules", "data_sets", "tasks", "models"} <= found.keys()
    assert {entry["name"] for kind in found.values() for entry in kind} == set(catalog())


@pytest.mark.parametrize(("name", "kind"), [("adam", "optimizer"), ("mlp", "model")])
def test_a_name_has_its_arguments_as_text_and_as_json(name, kind, capsys):
    assert main(["list", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["kind"]) == (name, kind)
    assert main(["list", name]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith(f"{name} ({kind}")
    for parameter in found["parameters"]:
        assert any(row.split()[:1] == [parameter["name"]] for row in rows)


def test_a_data_set_is_named_with_what_it_is(capsys):
    assert main(["list", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], "1,797 handwritten digits" in found["summary"]) == ("data set", True)


def test_a_reader_that_has_enough_is_no_mistake():
    listing = subprocess.Popen(
        [*COMMAND, "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listing.stdout
    assert listing.stderr
    assert listing.stdout.readline() == b"{\n"
    listing.stdout.close()
    assert (listing.stderr.read(), listing.wait()) == (b"", 0)
    listing.stderr.close()


def test_a_shell_completes_commands_and_names():
    script = subprocess.run([*COMMAND, "completion", "bash"], capture_output=True, text=True)
    assert "complete -o nospace" in script.stdout
    asked = {
        "gradkit swe": ["sweep"],
        "gradkit list adam_": [],
        "gradkit list adam": ["adam", "adamw"],
        "gradkit run --dr": ["--dry-run"],
    }
    for line, answers in asked.items():
        asking = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
        asking |= {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": "answers"}
        environment = os.environ | asking
        subprocess.run(COMMAND, env=environment, check=True)
        found = [answer.strip() for answer in Path("answers").read_text().splitlines()]
        assert found == answers
