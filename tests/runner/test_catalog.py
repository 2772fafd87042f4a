"""The catalog says of every factory what importing it would say, without importing it."""

import ast
import inspect
import subprocess
import sys

import pytest

from gradkit.runner.catalog import PLACES, catalog, find
from gradkit.runner.config import Config
from gradkit.runner.errors import UserError


@pytest.mark.parametrize("name", sorted(catalog()))
def test_signature_equals_that_of_the_imported_factory(name):
    entry = catalog()[name]
    signature = inspect.signature(entry.load())
    told = ["sizes"] if entry.kind == "model" else []  # by the data, not by the config
    assert told + [p.name for p in entry.parameters] == list(signature.parameters)
    for parameter in entry.parameters:
        default = signature.parameters[parameter.name].default
        assert parameter.required == (default is inspect.Parameter.empty)
        try:
            literal = ast.literal_eval(parameter.default or "...")
        except ValueError:
            continue
        assert parameter.required or literal == default


@pytest.mark.parametrize("place", PLACES)
def test_every_annotated_factory_of_a_namespace_is_listed(place):
    import importlib

    module = importlib.import_module(place)
    known = {entry.attribute for entry in catalog().values()}
    missing = set()
    for attribute in dir(module):
        function = None if attribute.startswith("_") else getattr(module, attribute)
        if not inspect.isfunction(function):
            continue
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        returned = function.__annotations__.get("return", "")
        returned = str(getattr(returned, "__name__", returned)).strip("'\"").split(".")[-1]
        made = returned.startswith(("GradientTransformation", "Link")) or returned == "Schedule"
        if made and inspect.Parameter.VAR_POSITIONAL not in kinds and attribute not in known:
            missing.add(attribute)
    assert not missing


def test_the_public_index_decides_what_gradkit_lists():
    import gradkit

    ours = {name for name, entry in catalog().items() if entry.module == "gradkit"}
    assert {"adam", "sgd", "clip_by_global_norm"} <= ours <= set(gradkit.__all__)
    others = {entry.kind for entry in catalog().values() if entry.module.startswith("gradkit.")}
    assert others == {"data set", "task", "model", "activation", "initializer"}
    assert "chain" not in ours


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", "optimizer"),
        ("clip_by_global_norm", "transformation"),
        ("optax.scale_by_learning_rate", "transformation"),
        ("optax.adam", "optimizer"),
        ("optax.nadam", "optimizer"),
        ("optax.polyak_sgd", "optimizer"),
        ("contrib.muon", "optimizer"),
        ("contrib.dog", "optimizer"),
        ("optax.centralize", "transformation"),
        ("optax.scale_by_factored_rms", "transformation"),
        ("optax.cosine_decay_schedule", "schedule"),
        ("optax.exponential_decay", "schedule"),
    ],
)
def test_kind_of_entry(name, kind):
    assert catalog()[name].kind == kind


def test_a_factory_that_returns_no_transformation_is_not_listed():
    attributes = {entry.attribute for entry in catalog().values()}
    assert not attributes & {"inject_hyperparams", "named_chain", "l2_loss", "global_norm"}


@pytest.mark.parametrize(
    ("name", "argument", "kind", "default"),
    [
        ("optax.adam", "learning_rate", "rate", None),
        ("optax.adam", "eps", "number", "1e-8"),
        ("optax.adam", "mu_dtype", "dtype", "None"),
        ("optax.adam", "nesterov", "bool", "False"),
        ("optax.nadam", "nesterov", "bool", "True"),
        ("optax.adamw", "mask", "code", "None"),
        ("optax.lbfgs", "memory_size", "int", "10"),
        ("optax.adafactor", "dtype_momentum", "dtype", "jnp.float32"),
        ("optax.scale_by_schedule", "step_size_fn", "schedule", None),
        ("optax.polyak_sgd", "variant", "text", "'sps'"),
        ("optax.adaptive_grad_clip", "axis", "int or ints", "None"),
        ("contrib.prodigy", "betas", "sequence", "(0.9, 0.999)"),
        ("optax.piecewise_constant_schedule", "boundaries_and_scales", "mapping", "None"),
        ("optax.lookahead", "fast_optimizer", "transformation", None),
        ("accumulate", "inner", "transformation", None),
        ("adam", "learning_rate", "rate", "1e-3"),
        ("clip_by_global_norm", "max_norm", "rate", None),
    ],
)
def test_kind_and_default_of_a_parameter(name, argument, kind, default):
    (parameter,) = [p for p in find(name).parameters if p.name == argument]
    assert (parameter.kind, parameter.default) == (kind, default)
    assert parameter.required == (default is None)


def test_choices_and_null_come_from_the_annotation():
    parameters = {p.name: p for p in find("contrib.muon").parameters}
    assert parameters["preconditioning"].choices == ("frobenius", "spectral", "aol", "schatten")
    assert parameters["consistent_rms"].nullable
    assert not parameters["beta"].nullable
    clipping = {p.name: p for p in find("optax.adafactor").parameters}["clipping_threshold"]
    assert clipping.default == "1.0"
    assert clipping.nullable


def test_a_bare_name_is_gradkits_then_optaxs_then_contribs():
    assert find("adam").library == "gradkit"
    assert find("gradkit.adam") is find("adam")
    assert find("optax.adam").library == "optax"
    assert find("lion").name == "optax.lion"
    assert find("muon").name == "contrib.muon"
    assert find("optax.contrib.muon") is find("contrib.muon") is find("muon")
    assert find("cosine_decay") is find("optax.cosine_decay_schedule")


@pytest.mark.parametrize("name", sorted(catalog()))
def test_the_name_of_an_entry_finds_it(name):
    assert find(name) is catalog()[name]


def test_a_name_of_two_kinds_is_told_apart_by_the_kind_or_the_place():
    assert find("polynomial").kind == find("polynomial", "data set").kind == "data set"
    assert find("polynomial", "model") is find("models.polynomial") is not find("polynomial")
    assert Config(optimizer="adam", model="polynomial").model.name == "models.polynomial"


def test_load_imports_the_public_factory():
    import optax

    import gradkit

    assert find("optax.adam").load() is optax.adam
    assert find("muon").load() is optax.contrib.muon
    assert find("adam").load() is gradkit.adam


@pytest.mark.parametrize(
    ("name", "kinds", "message"),
    [
        ("adamm", (), "unknown name 'adamm'; did you mean adam"),
        ("Adam", ("optimizer",), "unknown optimizer 'Adam'; did you mean adam"),
        ("optax.lionn", (), "did you mean optax.lion?"),
        ("contrib.mun", (), "did you mean contrib.muon?"),
        ("torch.lion", (), "did you mean lion or line?"),
        ("zzzzzz", (), "unknown name 'zzzzzz'; `gradkit list` shows every name"),
        ("cosine_decy", ("schedule",), "did you mean cosine_decay, "),
        ("adam", ("schedule",), "adam names an optimizer; expected a schedule"),
        ("_adam", (), "unknown name '_adam'"),
        ("", (), "unknown name ''"),
        ("optax.", (), "unknown name 'optax.'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, kinds, message):
    with pytest.raises(UserError) as error:
        find(name, *kinds)
    assert message in str(error.value)


def test_suggestions_are_of_the_kind_looked_for():
    with pytest.raises(UserError) as error:
        find("scale_by_adm", "optimizer")
    assert "scale_by_adam" not in str(error.value)


def test_summary_and_source_are_lines_of_the_docstring():
    entry = find("adam")
    doc = inspect.getdoc(entry.load()) or ""
    assert entry.summary == doc.splitlines()[0]
    assert entry.source
    assert f"Source: {entry.source}" in " ".join(doc.split())
    assert find("optax.adam").source is None


def test_building_the_catalog_imports_no_numerical_library():
    code = (
        "import sys; from gradkit.runner.catalog import catalog;"
        "assert len(catalog()) > 100;"
        "print(*{'jax', 'optax', 'flax', 'numpy', 'pydantic'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
