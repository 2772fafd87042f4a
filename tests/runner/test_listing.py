"""What a config can name is listed in full, and each name with its arguments."""

import pytest

from gradkit.runner.catalog import catalog
from gradkit.runner.errors import UserError
from gradkit.runner.listing import entry, overview


def test_the_overview_has_every_name_of_the_catalog():
    words = set(overview().replace(",", " ").split())
    assert set(catalog()) <= words
    assert {"digits", "npz", "mlp"} <= words


def test_the_overview_has_a_line_for_each_of_gradkits_own():
    lines = overview().splitlines()
    for name, found in catalog().items():
        if found.library == "gradkit":
            assert f"  {name:26}{found.summary}" in lines


def test_an_entry_has_summary_source_and_arguments():
    lines = entry("adam").splitlines()
    assert lines[0] == "adam (optimizer, gradkit)"
    assert catalog()["adam"].summary in lines[1]
    assert lines[2].strip().startswith("Source: Kingma & Ba (2015)")
    rows = [line.split(maxsplit=2) for line in lines[4:]]
    assert rows[0] == ["argument", "default", "takes"]
    assert ["learning_rate", "1e-3", "a number or a schedule"] in rows
    assert ["b1", "0.9", "a number or a schedule"] in rows


@pytest.mark.parametrize("name", sorted(catalog()))
def test_an_entrys_columns_never_touch(name):
    found = catalog()[name]
    rows = entry(name).splitlines()[-len(found.parameters) :] if found.parameters else []
    for parameter, row in zip(found.parameters, rows, strict=True):
        default = "required" if parameter.default is None else parameter.default
        if parameter.kind in ("activation", "initializer"):
            default = default.removesuffix("()")
        assert row.startswith(f"  {parameter.name}  ")
        assert f"  {default}  " in row


def test_a_schedule_a_foreign_optimizer_and_a_data_set_have_entries():
    assert entry("cosine_decay_schedule").startswith("optax.cosine_decay_schedule (schedule, optax")
    assert "required" in entry("lion")
    assert "takes no arguments" in entry("wine")
    assert "required" in entry("csv")


def test_code_is_said_to_be_for_python_only():
    assert "nothing in a file: Python only" in entry("optax.adamw")


def test_an_unknown_name_has_the_nearest():
    with pytest.raises(UserError, match=r"'adamm'; did you mean adam"):
        entry("adamm")
