"""A config is read with its defaults, and every mistake in it is reported at its place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from gradkit.runner.catalog import catalog
from gradkit.runner.config import Config, Member, Schedule, dump, load
from gradkit.runner.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write `x.yaml` into an empty current folder; its path is then `x.yaml`."""
    monkeypatch.chdir(tmp_path)

    def write_config(text, name="x.yaml"):
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write_config


def problems(path, *overrides):
    """The lines of the message, its heading first."""
    with pytest.raises(UserError) as error:
        load(path, overrides)
    return str(error.value).splitlines()


def only_problem(path, *overrides):
    heading, line = problems(path, *overrides)
    assert heading == f"{path}: 1 problem"
    return line.strip()


# What a good config gives


def test_every_default_is_filled_in(write):
    config = load(write("optimizer: {name: adam}"))
    assert config.name == "x"
    assert config.seed == 0
    assert (config.data.source, config.data.test_fraction) == (Member("digits"), 0.2)
    assert (config.data.examples, config.data.preprocess) == (None, None)
    assert config.data.validation_fraction == 0
    assert config.model == Member("mlp")
    assert (config.loss, config.task) == (None, None)
    assert config.optimizer == (Member("adam"),)
    assert (config.batch_size, config.epochs) == (64, 50)
    assert (config.log_every, config.evaluate_every, config.checkpoint_every) == (20, 100, 200)
    assert config.sharpness_every is None
    spectrum = config.spectrum
    assert (spectrum.top, spectrum.bottom, spectrum.probes) == (5, 5, 10)
    assert (spectrum.steps, spectrum.tol) == (80, 1e-5)


def test_every_field_says_what_it_is():
    sections = [Config, *(type(getattr(small(), name)) for name in ("data", "best", "spectrum"))]
    for section in sections:
        assert all(field.description for field in section.model_fields.values())


def small(**fields):
    return Config(**{"optimizer": {"name": "adam"}, **fields})


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        small().batch_size = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_numbers_are_those_of_yaml_1_2(write):
    config = load(write("optimizer: {name: adam, learning_rate: 1e-4}\nseed: 012\nname: no\n"))
    assert config.optimizer[0].arguments == {"learning_rate": 1e-4}
    assert config.seed == 12
    assert config.name == "no"


def test_a_whole_number_is_a_number(write):
    config = load(write("optimizer: {name: adam, learning_rate: 1}\nspectrum: {tol: 1}\n"))
    assert config.spectrum.tol == 1
    assert config.optimizer[0].arguments == {"learning_rate": 1}


def test_a_list_is_a_chain_and_a_bare_name_a_member(write):
    config = load(write("optimizer:\n  - {name: clip_by_global_norm, max_norm: 1}\n  - adam\n"))
    assert config.optimizer == (Member("clip_by_global_norm", {"max_norm": 1}), Member("adam"))
    assert load(write("optimizer: adam")).optimizer == (Member("adam"),)


def test_a_name_resolves_to_the_library_it_is_found_in(write):
    config = load(write("optimizer: [adam, optax.sign_sgd, muon, optax.contrib.normalize]"), RATES)
    names = [member.name for member in config.optimizer]
    assert names == ["adam", "optax.sign_sgd", "contrib.muon", "contrib.normalize"]


RATES = ["optimizer.1.learning_rate=0.1", "optimizer.2.learning_rate=0.1"]


@pytest.mark.parametrize(
    "name", ["cosine_decay", "cosine_decay_schedule", "optax.cosine_decay_schedule"]
)
def test_a_rate_may_be_a_schedule(write, name):
    rate = f"{{{name}: {{init_value: 1e-2, decay_steps: 500}}}}"
    config = load(write(f"optimizer: {{name: adam, learning_rate: {rate}}}"))
    arguments = config.optimizer[0].arguments
    schedule = Schedule("optax.cosine_decay_schedule", {"init_value": 0.01, "decay_steps": 500})
    assert arguments == {"learning_rate": schedule}


def test_a_schedule_of_steps_and_factors(write):
    rate = "{piecewise_constant: {init_value: 0.1, boundaries_and_scales: {100: 0.1}}}"
    config = load(write(f"optimizer: {{name: sgd, learning_rate: {rate}}}"))
    schedule = config.optimizer[0].arguments["learning_rate"]
    assert schedule.arguments == {"init_value": 0.1, "boundaries_and_scales": {100: 0.1}}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("mu_dtype: bfloat16", "bfloat16"),
        ("mu_dtype: null", None),
        ("nesterov: true", True),
        ("b1: 0", 0),
        ("eps: 1e-12", 1e-12),
        ("b2: .inf", float("inf")),
    ],
)
def test_an_argument_of_each_kind(write, argument, value):
    config = load(write(f"optimizer: {{name: optax.adam, learning_rate: 1, {argument}}}"))
    assert config.optimizer[0].arguments == {"learning_rate": 1, argument.split(":")[0]: value}


def test_a_list_becomes_a_tuple(write):
    config = load(write("optimizer: {name: contrib.prodigy, betas: [0.9, 0.99]}"))
    assert config.optimizer[0].arguments == {"betas": (0.9, 0.99)}


def test_anchors_and_merges_are_followed(write):
    text = (
        "optimizer: {name: adam, nesterov: &yes true}\ndata: &d {test_fraction: 0.5}\nepochs: 2\n"
    )
    config = load(write(text))
    assert config.optimizer[0].arguments == {"nesterov": True}
    assert config.data.test_fraction == 0.5
    text = "optimizer:\n  - &a {name: adam, b1: 0.5}\n  - {<<: *a, name: adamw}\n"
    assert load(write(text)).optimizer[1] == Member("adamw", {"b1": 0.5})


def test_a_byte_order_mark_is_no_part_of_the_text(write):
    assert load(write(b"\xef\xbb\xbfoptimizer: adam\n")).optimizer == (Member("adam"),)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("digits_adam", "adam"), ("edge_of_stability", "sgd"), ("edge_of_stability_adam", "adam")],
)
def test_the_shipped_configs_are_valid(name, optimizer):
    config = load(ROOT / "configs" / f"{name}.yaml")
    assert config.name == name
    assert config.optimizer[0].name == optimizer


def test_what_may_be_null(write):
    path = write("optimizer: adam\ndata: {examples: 100}\nsharpness_every: 10\n")
    assert (load(path).data.examples, load(path).sharpness_every) == (100, 10)
    config = load(path, ["data.examples=", "sharpness_every=null"])
    assert (config.data.examples, config.sharpness_every) == (None, None)


# Overrides


def test_an_override_reaches_every_level(write):
    path = write("optimizer:\n  - {name: clip, max_delta: 1}\n  - {name: adam}\nepochs: 3\n")
    config = load(
        path,
        [
            "epochs=4",
            "model.hidden=[64, 32]",
            "spectrum.top=2",
            "optimizer.0.max_delta=2.0",
            "optimizer.1.learning_rate={cosine_decay: {init_value: 1e-3, decay_steps: 9}}",
            "optimizer.1.learning_rate.cosine_decay.decay_steps=10",
            "name=a=b",
        ],
    )
    assert config.epochs == 4
    assert config.model == Member("mlp", {"hidden": (64, 32)})
    assert config.spectrum.top == 2
    assert config.optimizer[0].arguments == {"max_delta": 2.0}
    rate = config.optimizer[1].arguments["learning_rate"]
    assert rate.arguments == {"init_value": 1e-3, "decay_steps": 10}
    assert config.name == "a=b"


def test_a_bare_name_takes_arguments_from_overrides(write):
    config = load(write("optimizer: [adam]"), ["optimizer.0.learning_rate=1e-4"])
    assert config.optimizer[0].arguments == {"learning_rate": 1e-4}
    assert load(write("optimizer: adam"), ["optimizer=sgd"]).optimizer == (Member("sgd"),)


def test_a_section_left_empty_can_be_filled_by_an_override(write):
    assert load(write("optimizer: adam\nspectrum:\n"), ["spectrum.top=2"]).spectrum.top == 2


def test_a_resolved_schedule_can_be_overridden(write):
    text = "optimizer: {name: adam, learning_rate: {optax.constant_schedule: {value: 1}}}"
    config = load(write(text), ["optimizer.learning_rate.optax.constant_schedule.value=2"])
    assert config.optimizer[0].arguments["learning_rate"].arguments == {"value": 2}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size", "batch_size: expected key.path=value, such as batch_size=128"),
        ("=3", "=3: expected key.path=value"),
        ("model..hidden=3", "expected key.path=value"),
        (
            "epochs=[1, 2",
            "epochs: not valid YAML: a ']' is missing for the bracket opened in line 1",
        ),
        ("epochs.x=1", "epochs.x: epochs is 3 (whole number) and has no keys"),
        ("epochs.x.y=1", "epochs.x.y: epochs is 3 (whole number) and has no keys"),
        ("optimizer.name.x=1", "optimizer.name.x: optimizer.name is 'adam' (text) and has no keys"),
        (
            "model.hidden.2=4",
            "model.hidden.2: model.hidden is a list; its items are model.hidden.0",
        ),
        ("model.hidden.x=4", "model.hidden is a list"),
        ("batch_size=many", "batch_size: expected a whole number >= 1, got 'many' (text)"),
        ("batch_size=", "batch_size: expected a whole number >= 1, got nothing (null)"),
        (
            "optimizer.learning_rat=1e-3",
            "optimizer.learning_rat: unknown argument of adam; did you mean learning_rate?",
        ),
        ("spectrm.top=3", "spectrm: unknown key; did you mean spectrum?"),
        (
            "spectrum.tpo=3",
            "spectrum.tpo: unknown key; did you mean top or tol? spectrum takes top, bottom, ",
        ),
    ],
)
def test_a_bad_override_is_reported_as_written(write, override, message):
    path = write("optimizer: {name: adam}\nepochs: 3\nmodel: {hidden: [8, 8]}\n")
    line = only_problem(path, override)
    assert line.startswith(f"command line: {override}  ")
    assert message in line


def test_a_value_is_blamed_on_whoever_wrote_it_last(write):
    path = write("optimizer: adam\nmodel:\n  hidden: [0]\n  activation: none\n")
    lines = problems(path, "model.hidden=[1, x]", "epochs=0", "epochs=-1")
    assert [line.split("  ")[1] for line in lines[1:]] == [
        "x.yaml:4",
        "command line: model.hidden=[1, x]",
        "command line: epochs=-1",
    ]


# Problems of the values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_siz: 3", "batch_siz: unknown key; did you mean batch_size?"),
        ("zzz: 3", "zzz: unknown key; a config takes name, seed, data"),
        ("3: 3", "3: expected a key that is text, got 3 (whole number)"),
        (
            "model:\n  hiden: 3",
            "model.hiden: unknown argument of mlp; did you mean hidden? mlp takes hidden, activat",
        ),
        (
            "model: 3",
            "model: expected a name and arguments, such as {name: mlp, hidden: [32, 32]}, got 3",
        ),
        ("spectrum:", "spectrum: expected a mapping with top, bottom"),
        ("name: 3", "name: expected text, got 3 (whole number)"),
        ("name: a/b", "name: expected a name that can name a folder, got 'a/b'"),
        ("name: ..", "name: expected a name that can name a folder"),
        ("name: ''", "name: expected a name that can name a folder"),
        ("seed: -1", "seed: expected a whole number >= 0 and < 4294967296, got -1"),
        ("seed: 4294967296", "seed: expected a whole number >= 0 and <"),
        ("batch_size: many", "batch_size: expected a whole number >= 1, got 'many' (text)"),
        ("batch_size: 3.5", "batch_size: expected a whole number >= 1, got 3.5 (number)"),
        ("batch_size: 3.0", "batch_size: expected a whole number >= 1, got 3.0 (number)"),
        ("batch_size: true", "batch_size: expected a whole number >= 1, got true (truth value)"),
        ("batch_size: '64'", "batch_size: expected a whole number >= 1, got '64' (text)"),
        ("batch_size: 2024-01-01", "batch_size: expected a whole number >= 1, got datetime"),
        ("epochs: 0", "epochs: expected a whole number >= 1, got 0"),
        ("log_every: 0", "log_every: expected a whole number >= 1"),
        ("evaluate_every: 0", "evaluate_every: expected a whole number >= 1"),
        ("checkpoint_every: 0", "checkpoint_every: expected a whole number >= 1"),
        (
            "data: {source: digit}",
            "data.source: unknown data set 'digit'; did you mean digits? `gradkit list` shows "
            "every name; or name a path ending in .npz, .csv, .txt, or a folder of images or",
        ),
        ("sharpness_every: 0", "sharpness_every: expected a whole number >= 1, or null, got 0"),
        (
            "data:\n  examples: all",
            "data.examples: expected a whole number >= 1, or null, got 'all'",
        ),
        (
            "data:\n  preprocess: 1",
            "data.preprocess: expected one of min_max, standardize, whiten, or null, got 1",
        ),
        (
            "loss: squared",
            "loss: expected one of cross_entropy, binary_cross_entropy, squared_error, or null, "
            "got 'squared' (text); did you "
            "mean squared_error?",
        ),
        ("data:\n  test_fraction: 1", "data.test_fraction: expected a number > 0 and < 1, got 1"),
        ("data:\n  test_fraction: fast", "expected a number > 0 and < 1, got 'fast' (text)"),
        ("data:\n  test_fraction: true", "expected a number > 0 and < 1, got true"),
        ("data:\n  test_fraction: .nan", "expected a number > 0 and < 1, got nan"),
        ("model:\n  name: mpl", "model.name: unknown model 'mpl'; did you mean mlp?"),
        (
            "model:\n  activation: rleu",
            "model.activation.name: unknown activation 'rleu'; did you mean relu",
        ),
        (
            "model:\n  hidden: 3",
            "model.hidden: expected a list of whole numbers, got 3",
        ),
        ("model:\n  hidden: [8, 0.5]", "model.hidden: expected a list of whole numbers, got ["),
        (
            "model:\n  activation: {name: elu, beta: 3}",
            "model.activation.beta: unknown argument of",
        ),
        ("model:\n  kernel_init: 3", "kernel_init: expected an initializer's name, or one with ar"),
        ("spectrum: {tol: 0}", "spectrum.tol: expected a number > 0, got 0"),
        ("spectrum: {tol: .inf}", "spectrum.tol: expected a number > 0, got inf"),
    ],
)
def test_a_wrong_field_in_the_last_line(write, text, message):
    text = f"optimizer: adam\n{text}"
    line = only_problem(write(text))
    assert line.startswith(f"x.yaml:{len(text.splitlines())}  ")
    assert message in line


def test_a_config_without_an_optimizer(write):
    expected = "expected one optimizer, or the members of a chain in order, such as optimizer: adam"
    assert only_problem(write("seed: 1")) == f"x.yaml:1  optimizer: missing; {expected}"


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            "3",
            "optimizer: expected a name and arguments, such as {name: adam, learning_rate: "
            "0.001}, or a list of such members, got 3",
        ),
        ("", "optimizer: expected a name and arguments"),
        ("[]", "optimizer: expected a name and arguments"),
        ("{learning_rate: 1}", "optimizer.name: missing; the name of an optimizer"),
        ("{name: 3}", "optimizer.name: expected a name, got 3 (whole number)"),
        ("adma", "optimizer.name: unknown optimizer or transformation 'adma'; did you mean adam"),
        ("{name: chain}", "optimizer.name: a chain is written as a list of its members"),
        (
            "cosine_decay_schedule",
            "optimizer.name: cosine_decay_schedule names a schedule; expected an optimizer or "
            "transformation",
        ),
        ("\n- adam\n- 3", "optimizer.1: expected a name and arguments"),
        (
            "\n- adam\n- admw",
            "optimizer.1.name: unknown optimizer or transformation 'admw'; did you mean adamw",
        ),
        (
            "\n  name: adam\n  learning_rat: 1e-3",
            "optimizer.learning_rat: unknown argument of adam; did you mean learning_rate? "
            "adam takes learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov",
        ),
        (
            "\n  name: adam\n  zzz: 1e-3",
            "optimizer.zzz: unknown argument of adam; adam takes learning_rate",
        ),
        ("\n  name: optax.set_to_zero\n  zzz: 1", "optax.set_to_zero takes no arguments"),
        (
            "{name: optax.adam}",
            "optimizer.learning_rate: missing; optax.adam needs a number or a schedule such as",
        ),
        (
            "{name: optax.flatten}",
            "optimizer.inner: missing; optax.flatten needs an optimizer such as {name: adam, "
            "learning_rate: 0.001}, or a list of them",
        ),
        ("\n  name: adamw\n  mask: true", "optimizer.mask: expected text, got true"),
        (
            "\n  name: optax.adamw\n  learning_rate: 1\n  mask: true",
            "optimizer.mask: cannot be written in a config file; use the Python API",
        ),
        (
            "\n  name: optax.adam\n  learning_rate: 1\n  b1: fast",
            "optimizer.b1: expected a number, got 'fast' (text)",
        ),
        (
            "\n  name: optax.adam\n  learning_rate: 1\n  b1: true",
            "optimizer.b1: expected a number, got true (truth value)",
        ),
        (
            "\n  name: optax.adam\n  learning_rate: 1\n  b1: .nan",
            "optimizer.b1: expected a number, got nan (number)",
        ),
        (
            "\n  name: optax.adam\n  learning_rate: 1\n  b1:",
            "optimizer.b1: expected a number, got nothing (null)",
        ),
        (
            "\n  name: optax.adam\n  learning_rate: 1\n  b1: {cosine_decay: {}}",
            "optimizer.b1: expected a number, got",
        ),
        (
            "\n  name: adam\n  nesterov: yes",
            "optimizer.nesterov: expected true or false, got 'yes' (text)",
        ),
        ("\n  name: adam\n  nesterov: 1", "optimizer.nesterov: expected true or false, got 1"),
        (
            "\n  name: adam\n  mu_dtype: float3",
            "optimizer.mu_dtype: expected one of bfloat16, float16, float32, float64, "
            "complex64, complex128, got 'float3' (text); did you mean float32",
        ),
        (
            "\n  name: low_precision\n  inner: adam\n  dtype: int4",
            "optimizer.dtype: expected one of bfloat16, int8, got 'int4' (text); did you mean int8",
        ),
        ("\n  name: adam\n  mu_dtype: [1]", "optimizer.mu_dtype: expected one of bfloat16"),
        (
            "\n  name: optax.lbfgs\n  memory_size: 3.5",
            "optimizer.memory_size: expected a whole number, got 3.5",
        ),
        (
            "\n  name: contrib.prodigy\n  betas: 0.9",
            "optimizer.betas: expected a list of numbers, got 0.9",
        ),
        (
            "\n  name: contrib.prodigy\n  betas: [0.9, x]",
            "optimizer.betas: expected a list of numbers, got [0.9, 'x'] (list)",
        ),
        (
            "\n  name: scale_by_lion\n  mode: soft",
            "optimizer.mode: expected one of hard, smooth, refined, got 'soft' (text)",
        ),
        ("\n  name: polyak_sgd\n  variant: 3", "optimizer.variant: expected text, got 3"),
        (
            "\n  name: optax.scale_by_schedule\n  step_size_fn: 3",
            "optimizer.step_size_fn: expected a schedule such as",
        ),
        (
            "\n  name: adam\n  learning_rate: {}",
            "optimizer.learning_rate: expected a schedule such as",
        ),
        (
            "\n  name: adam\n  learning_rate: {a: {}, b: {}}",
            "optimizer.learning_rate: expected a schedule such as",
        ),
        (
            "\n  name: adam\n  learning_rate: {constant: 3}",
            "optimizer.learning_rate: expected a schedule such as",
        ),
        (
            "\n  name: adam\n  learning_rate: {3: {}}",
            "optimizer.learning_rate.3: expected a name, got 3",
        ),
        (
            "\n  name: adam\n  learning_rate:\n    cosine_decy: {}",
            "optimizer.learning_rate.cosine_decy: unknown schedule 'cosine_decy'; did you mean "
            "cosine_decay",
        ),
        (
            "\n  name: adam\n  learning_rate:\n    adam: {}",
            "optimizer.learning_rate.adam: adam names an optimizer; expected a schedule",
        ),
        (
            "\n  name: adam\n  learning_rate:\n    constant:",
            "optimizer.learning_rate.constant.value: missing; optax.constant_schedule needs a "
            "number",
        ),
        (
            "\n  name: adam\n  learning_rate:\n    constant:\n      value: fast",
            "optimizer.learning_rate.constant.value: expected a number, got 'fast'",
        ),
        (
            "\n  name: adam\n  learning_rate:\n    constant:\n      value: 1\n      vale: 1",
            "optimizer.learning_rate.constant.vale: unknown argument of "
            "optax.constant_schedule; did you mean value?",
        ),
        (
            "\n  name: sgd\n  learning_rate:\n    piecewise_constant:\n      init_value: 1\n"
            "      boundaries_and_scales: {a: 1}",
            "boundaries_and_scales: expected a mapping of whole numbers to numbers",
        ),
    ],
)
def test_a_wrong_optimizer_in_the_last_line(write, optimizer, message):
    text = f"optimizer: {optimizer}"
    line = only_problem(write(text))
    assert line.startswith(f"x.yaml:{len(text.splitlines())}  ")
    assert message in line


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(write):
    path = write(
        "epochs: 0\n"
        "model: {hiden: 3, activation: rleu}\n"
        "optimizer:\n"
        "  - {name: optax.adam, b1: fast, learning_rat: 1}\n"
        "  - adma\n"
        "batch_size: many\n"
        "zzz: 1\n"
        "log_every: 5\n"
    )
    heading, *lines = problems(path, "seed=-1", "oops", "log_every.x=3")
    assert heading == "x.yaml: 12 problems"
    assert [tuple(re.split("  |: ", line.strip())[:2]) for line in lines[:9]] == [
        ("x.yaml:1", "epochs"),
        ("x.yaml:2", "model.activation.name"),
        ("x.yaml:2", "model.hiden"),
        ("x.yaml:4", "optimizer.0.b1"),
        ("x.yaml:4", "optimizer.0.learning_rat"),
        ("x.yaml:4", "optimizer.0.learning_rate"),
        ("x.yaml:5", "optimizer.1.name"),
        ("x.yaml:6", "batch_size"),
        ("x.yaml:7", "zzz"),
    ]
    assert [line.split("  ")[1] for line in lines[9:]] == [
        "command line: seed=-1",
        "command line: oops",
        "command line: log_every.x=3",
    ]


def test_a_member_built_in_python_is_checked_too():
    assert small(optimizer=(Member("adam", {"b1": 0.5}),)).optimizer[0].arguments == {"b1": 0.5}
    with pytest.raises(ValidationError, match="unknown argument of adam"):
        small(optimizer=Member("adam", {"zzz": 1}))


# Problems of the file


def test_a_missing_file_is_answered_with_its_neighbors(write):
    Path("configs").mkdir()
    write("", "configs/digits_adam.yaml")
    write("", "other.yaml")
    assert problems("configs/digit_adam.yaml") == [
        "configs/digit_adam.yaml: no such file; did you mean configs/digits_adam.yaml?"
    ]
    assert "did you mean configs/digits_adam.yaml?" in problems("digits_adam.yaml")[0]
    assert "did you mean configs/digits_adam.yaml?" in problems("digits_adam")[0]
    assert problems("zzz.yaml") == [
        "zzz.yaml: no such file; there are other.yaml, configs/digits_adam.yaml"
    ]


def test_a_missing_file_in_a_missing_folder(write):
    assert problems("no/where.yaml") == ["no/where.yaml: no such file; name a YAML file"]


def test_a_folder_is_no_config(write):
    Path("configs").mkdir()
    write("", "configs/a.yaml")
    assert problems("configs") == [
        "configs: is a folder, not a config file; there are configs/a.yaml"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\nb: \xff\n", "x.yaml:2  not UTF-8 text (byte 0xff); save it as UTF-8"),
        ("", "x.yaml: is empty; a config needs at least an optimizer"),
        ("# nothing\n", "x.yaml: is empty; a config needs at least an optimizer"),
        (
            "adam\n",
            "x.yaml:1  expected a mapping of keys to values, such as optimizer: adam, got 'adam' "
            "(text)",
        ),
        ("a: 1\nseed: 1\nseed: 2\n", "x.yaml:3:1  seed: given twice; remove one of the two"),
        ("a: b: c", "x.yaml:1:5  not valid YAML: a second ': ' in a line, or too deep"),
        ("a: 1\n  b: 2\n", "x.yaml:2:4  not valid YAML: a second ': ' in a line, or too deep"),
        ("a:\n\t- 1", "x.yaml:2:1  not valid YAML: a tab; indent with spaces"),
        ("a: @b", "x.yaml:1:4  not valid YAML: '@' cannot start a value; quote the text"),
        (
            "b:\n  a: [1, 2\nc: 3",
            "x.yaml:3:2  not valid YAML: a ']' is missing for the bracket opened in line 2",
        ),
        ("a: 'b\nc: 2", "x.yaml:2:5  not valid YAML: the quote opened in line 1 is not closed"),
        (
            "a:\n    b: 1\n  c: 2\n",
            "x.yaml:3:3  not valid YAML: indented differently from the lines above",
        ),
        ("a: 1\nb\nc: 2\n", "x.yaml:3:1  not valid YAML: the key in line 2 has no ': '"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2:1  not valid YAML: a second document; a file holds one"),
        ("a: *b", "x.yaml:1:4  not valid YAML: the alias *b has no anchor"),
        ("a: 1\nb: \x01", "x.yaml:2  not valid YAML: special characters are not allowed"),
        ("a: 2024-13-45", "x.yaml:1  not valid YAML: month must be in 1..12"),
        ("[" * 500, "x.yaml:1  not valid YAML: nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read(write, text, message):
    (line,) = problems(write(text))
    assert line.startswith(message)


# Writing


def test_the_dump_holds_every_field_and_reads_back_equal(write):
    config = load(write("optimizer: {name: adam, mu_dtype: null}"))
    written = YAML(typ="safe", pure=True).load(dump(config))
    assert list(written) == list(Config.model_fields)
    assert written["spectrum"] == config.spectrum.model_dump()
    assert load(write(dump(config), "y.yaml")) == config


numbers = st.integers(-(10**6), 10**6) | st.floats(allow_nan=False)
schedules = st.builds(
    lambda init, steps: {"cosine_decay": {"init_value": init, "decay_steps": steps}},
    numbers,
    st.integers(1, 1000),
)
adams = st.fixed_dictionaries(
    {"name": st.sampled_from(["adam", "optax.adam"]), "learning_rate": numbers | schedules},
    optional={
        "b1": numbers,
        "nesterov": st.booleans(),
        "mu_dtype": st.sampled_from([None, "float32"]),
    },
)
members = adams | st.fixed_dictionaries(
    {"name": st.just("contrib.prodigy")}, optional={"betas": st.lists(numbers, max_size=3)}
)
whole = st.integers(1, 10**9)
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)
sections = {
    "data": {
        "source": st.sampled_from(["digits", "a b.npz", "/#.npz"]),
        "test_fraction": fractions,
    },
    "model": {"hidden": st.lists(whole, max_size=4)},
    "spectrum": {"top": whole, "tol": st.floats(0, exclude_min=True, allow_infinity=False)},
}
names = st.text(min_size=1).filter(lambda name: name.isprintable() and not {*name} & {*"./\\"})
trees = st.fixed_dictionaries(
    {"optimizer": members | st.lists(members, min_size=1, max_size=3)},
    optional={
        "name": names,
        "seed": st.integers(0, 2**32 - 1),
        "epochs": whole,
        **{key: st.fixed_dictionaries({}, optional=part) for key, part in sections.items()},
    },
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_config_reads_back_equal_from_its_dump(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("dump") / "x.yaml"
    config = Config.model_validate(tree)
    path.write_text(dump(config), encoding="utf-8")
    assert load(path) == config


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["name", "learning_rate"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["optimizer", *Config.model_fields]), values)
def test_any_value_in_any_place_is_taken_or_refused_with_a_message(key, value):
    refusal = None
    try:
        Config.model_validate({"optimizer": {"name": "adam"}, key: value})
    except ValidationError as error:
        refusal = str(error)
    assert refusal is None or key in refusal


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab:-[]{}'\"&*!|>%@# \n\t0.1,~?=\\", max_size=40), st.text(max_size=12))
def test_any_text_is_taken_or_refused_with_a_message(tmp_path_factory, text, override):
    path = tmp_path_factory.mktemp("any") / "x.yaml"
    path.write_text(f"optimizer: adam\n{text}", encoding="utf-8")
    refusal = None
    try:
        load(path, [override])
    except UserError as error:
        refusal = str(error)
    assert refusal is None or str(path) in refusal


# Speed


def test_checking_a_config_imports_no_numerical_library():
    code = (
        "import sys; from gradkit.runner.config import load;"
        "from gradkit.runner.catalog import catalog;"
        "config = load('configs/digits_adam.yaml'); catalog();"
        "print(config.name, *{'jax', 'optax', 'flax', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["digits_adam"]


@pytest.mark.parametrize("name", sorted(catalog()))
def test_every_entry_of_the_catalog_is_checked_without_a_traceback(name):
    wrong = {parameter.name: {"no": "such"} for parameter in catalog()[name].parameters}
    with pytest.raises(ValidationError, match="zzz"):
        small(optimizer={"name": name, **wrong, "zzz": 1})


WRAPPED = """\
optimizer:
  name: accumulate
  every: 2
  inner:
    - {name: clip_by_global_norm, max_norm: 1.0}
    - {name: masked, mask: "*.kernel", unselected: zero, inner: {name: sgd, learning_rate: {
        step_decay: {peak: 0.5, factor: 0.5, every: 3}}}}
"""


def test_a_wrapper_wraps_what_is_written_below_it(write):
    path = write(WRAPPED)
    (wrapper,) = load(path).optimizer
    clip, masked = wrapper.arguments["inner"]
    assert (wrapper.name, wrapper.arguments["every"]) == ("accumulate", 2)
    assert clip == Member("clip_by_global_norm", {"max_norm": 1.0})
    (sgd,) = masked.arguments["inner"]
    assert sgd.arguments["learning_rate"].name == "step_decay"
    again = write(dump(load(path)), "again.yaml")
    assert load(again).optimizer == (wrapper,)
    assert load(path, ["optimizer.inner.0.max_norm=2.0"]).optimizer[0].arguments["inner"][
        0
    ].arguments == {"max_norm": 2.0}


@pytest.mark.slow
def test_a_wrapped_optimizer_is_that_of_python(write):
    import jax
    import numpy as np

    import gradkit as gk
    from gradkit.runner import optimizers

    found = optimizers.build(load(write(WRAPPED)).optimizer)
    rate = gk.step_decay(0.5, factor=0.5, every=3)
    kernels = gk.masked(gk.sgd(rate), "*.kernel", unselected="zero")
    inner = gk.chain(gk.clip_by_global_norm(1.0), kernels)
    expected = gk.accumulate(inner, every=2)
    params = {"a": {"kernel": np.ones(3, np.float32), "bias": np.ones(2, np.float32)}}
    states = [tx.init(params) for tx in (found, expected)]
    for step in range(6):
        grads = jax.tree.map(lambda x, s=step: x * (s + 1), params)
        pairs = [
            tx.update(grads, state, params)
            for tx, state in zip((found, expected), states, strict=True)
        ]
        states = [state for _, state in pairs]
        jax.tree.map(np.testing.assert_array_equal, pairs[0][0], pairs[1][0])
    assert float(abs(pairs[0][0]["a"]["kernel"]).max()) > 0


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("{name: admm}", "x.yaml:1  optimizer.inner.name: unknown optimizer or transformation"),
        ("[adam, {name: sgd, rate: 1}]", "optimizer.inner.1.rate: unknown argument of sgd"),
        ("3", "optimizer.inner: expected an optimizer such as {name: adam, learning_rate: 0.001}"),
        ("warmup_cosine", "optimizer.inner.name: warmup_cosine names a schedule; expected an opt"),
    ],
)
def test_a_mistake_in_what_is_wrapped_has_its_path(write, inner, message):
    with pytest.raises(UserError) as error:
        load(write(f"optimizer: {{name: accumulate, every: 2, inner: {inner}}}"))
    assert message in str(error.value)
