"""The schema of a config: every field, its default, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from gradkit.runner.document import describe
from gradkit.runner.members import (
    Member,
    Problems,
    as_written,
    resolve,
    resolve_one,
    spelled_out,
)

_READERS = {".npz": "npz", ".csv": "csv", ".txt": "text"}  # by the ending of a path


def _problem(message: str) -> PydanticCustomError:
    return PydanticCustomError("problem", "{message}", {"message": message})


def _run_name(name: str) -> str:
    if not name or name.startswith(".") or set(name) & set("/\\") or not name.isprintable():
        raise _problem(f"expected a name that can name a folder, got {describe(name)}")
    return name


def _logger(name: str) -> str:
    if name != "tensorboard" and ":" not in name:
        raise _problem(
            f"expected tensorboard, or path/to/file.py:name of a logger, got {describe(name)}"
        )
    return name


def _members(value: Any) -> tuple[Member, ...]:
    return _without(value, *resolve(value))


def _source(value: Any) -> Member:
    if isinstance(value, dict) and value.keys() == {"name"}:  # as spelled out
        value = value["name"]
    if isinstance(value, str) and (reader := _reader(value)):
        return Member(reader, {"path": value})
    member, problems = resolve_one(value, "data set")
    if problems and isinstance(value, str):
        files = f"a path ending in {', '.join(_READERS)}, or a folder of images or IDX files"
        problems = [((), f"{problems[0][1]}; or name {files}")]
    return _without(value, member, problems)


def _reader(path: str) -> str | None:
    """Which reader a path is for; None for what is no path."""
    if Path(path).is_dir():
        return "idx" if any(Path(path).glob("*idx?-ubyte*")) else "images"
    return _READERS.get(Path(path).suffix)


def _model(value: Any) -> Member:
    if isinstance(value, dict) and "name" not in value:
        value = {"name": "mlp", **value}
    return _without(value, *resolve_one(value, "model"))


def _task(value: Any) -> Member | None:
    if value is None:
        return None
    written = spelled_out(value)
    if isinstance(written, dict) and ":" in str(written.get("name")):  # a user's own
        arguments = {key: item for key, item in written.items() if key != "name"}
        return Member(written["name"], arguments)
    member, problems = resolve_one(value, "task")
    if problems and isinstance(value, str):
        problems = [((), f"{problems[0][1]}; or name your own as path/to/file.py:name")]
    return _without(value, member, problems)


def _without(value: Any, result: Any, problems: Problems) -> Any:
    """The result if there are no problems."""
    if problems:
        details = [
            InitErrorDetails(type=_problem(message), loc=path, input=value)
            for path, message in problems
        ]
        raise ValidationError.from_exception_data("config", details)
    return result


def _plainly(member: Member | None) -> Any:
    """A member as a config has it: its name alone where that says all."""
    if member is None or not member.arguments:
        return member and member.name
    return as_written(member)


_Whole = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Augment(_Section):
    """How the images of a training batch are changed at random."""

    flip: bool = Field(default=False, description="mirror each second image left to right")
    crop: int = Field(default=0, ge=0, description="move by up to so many each way [pixels]")
    jitter: float = Field(
        default=0.0, ge=0, le=1, description="multiply by up to so much more or less than 1"
    )


class Data(_Section):
    """What the model learns from."""

    source: Annotated[Member, PlainValidator(_source), PlainSerializer(_plainly)] = Field(
        default=Member("digits"),
        description="a data set's name, with arguments as {name: spirals, noise: 0.1}; or a path",
    )
    test_fraction: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share of the examples held out for testing, unless they come with a test set",
    )
    validation_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="share of the others held out to choose a step by"
    )
    examples: _Whole | None = Field(
        default=None, description="how many of the rest to learn from, the first; null for all"
    )
    preprocess: Literal["min_max", "standardize", "whiten"] | None = Field(
        default=None,
        description="what is done to the features, by the training examples; null for nothing",
    )
    augment: Augment = Field(
        default=Augment(), description="how the images of a training batch are changed at random"
    )


class Best(_Section):
    """Which evaluation was the best, and when to stop looking for a better one."""

    metric: str | None = Field(
        default=None,
        description="figure of the evaluations, such as validation_loss; null for none",
    )
    goal: Literal["lowest", "highest"] = Field(default="lowest", description="which is the best")
    patience: _Whole | None = Field(
        default=None,
        description="evaluations without a better one after which the run ends; null for never",
    )

    @model_validator(mode="after")
    def _of_something(self):
        if self.patience is not None and self.metric is None:
            raise _problem(
                "patience needs a metric to be patient about: set best.metric, such as "
                "validation_loss"
            )
        return self


class Curvature(_Section):
    """The curvature that second-order optimizers are given."""

    operator: Literal["hessian", "gauss_newton"] | None = Field(
        default=None,
        description="the matrix; null: gauss_newton for hessian_free and scale_by_quadratic_model, "
        "hessian for all others",
    )
    examples: _Whole | None = Field(
        default=None,
        description="of how many examples of a step's batch, or micro-batch, it is, in turn; "
        "null for all",
    )
    diagonal: Literal["empirical_fisher", "fisher"] | None = Field(
        default=None,
        description="whose diagonal to precondition by, fisher's by labels that are drawn; null: "
        "empirical_fisher's for hessian_free, and for others the operator's, by random signs",
    )


class Spectrum(_Section):
    """How the Hessian of the trained model is looked at."""

    top: _Whole = Field(default=5, description="largest eigenvalues to find [eigenpairs]")
    bottom: _Whole = Field(default=5, description="smallest eigenvalues to find [eigenpairs]")
    probes: _Whole = Field(default=10, description="random vectors behind the density [vectors]")
    steps: _Whole = Field(default=80, description="Lanczos steps from each probe [products]")
    tol: float = Field(
        default=1e-5,
        gt=0,
        allow_inf_nan=False,
        description="residual of a converged eigenpair, relative to the largest one found",
    )


class Config(_Section):
    """One run, in the order in which data meet it."""

    name: Annotated[str, AfterValidator(_run_name)] = Field(
        default="run", description="name of the run; the config file's name when absent"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="source of all randomness in the run")
    data: Data = Field(default=Data(), description="what the model learns from")
    model: Annotated[Member, PlainValidator(_model), PlainSerializer(_plainly)] = Field(
        default=Member("mlp"), description="what learns: a model's name, with its arguments"
    )
    loss: Literal["cross_entropy", "binary_cross_entropy", "squared_error"] | None = Field(
        default=None,
        description="mean over the examples; squared_error is half that to the target, of a class "
        "its unit vector; null: cross_entropy for classes, squared_error for numbers",
    )
    task: Annotated[Member | None, PlainValidator(_task), PlainSerializer(_plainly)] = Field(
        default=None,
        description="path/to/file.py:name of your own model, or a named function to minimize, "
        "instead of model and loss",
    )
    optimizer: Annotated[tuple[Member, ...], PlainValidator(_members)] = Field(
        description="one optimizer, or the members of a chain in order"
    )
    curvature: Curvature = Field(
        default=Curvature(), description="what second-order optimizers see"
    )
    batch_size: _Whole = Field(default=64, description="batch of one step [examples]")
    sampling: Literal["shuffled", "replacement", "cyclic", "balanced"] = Field(
        default="shuffled",
        description="shuffled epochs, draws with replacement, the data's order, or equal classes",
    )
    micro_batches: _Whole = Field(
        default=1, description="parts that a batch is cut into, to save memory [batches]"
    )
    epochs: _Whole = Field(default=50, description="passes over the training set [epochs]")
    log_every: _Whole = Field(default=20, description="between two records of the loss [steps]")
    evaluate_every: _Whole = Field(default=100, description="between two tests [steps]")
    checkpoint_every: _Whole = Field(default=200, description="between two checkpoints [steps]")
    sharpness_every: _Whole | None = Field(
        default=None,
        description="between two measurements of the sharpness [steps]; null for none",
    )
    best: Best = Field(
        default=Best(), description="the evaluation whose checkpoint is kept, and when to stop"
    )
    log_to: Annotated[tuple[Annotated[str, AfterValidator(_logger)], ...], Field(strict=False)] = (
        Field(
            default=(),
            description="where metrics go besides metrics.jsonl: tensorboard, path/to/file.py:name",
        )
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="at a gradient that is not finite: end as diverged, or skip and count the step",
    )
    spectrum: Spectrum = Field(default=Spectrum(), description="how the Hessian is looked at")
