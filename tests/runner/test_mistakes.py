"""Mistakes in the input: each is one message of what was expected, what came and what to do."""

import shlex
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gradkit.runner.cli import main

pytestmark = pytest.mark.flow

TINY = """\
data: {source: blobs.npz}
model: {hidden: [3], activation: tanh}
optimizer:
  name: adam
  learning_rate: 0.01
batch_size: 8
epochs: 2
log_every: 3
evaluate_every: 9
checkpoint_every: 6
"""
TASK = """\
import jax.numpy as jnp

def task():
    return lambda params, batch: jnp.sum(params["w"] ** 2), {"w": jnp.ones(3)}, None

def two():
    return 1, 2

def broken():
    return missing_name

def of_file(file):
    return task()

not_callable = 3
"""


def blobs(examples=90):
    rng = np.random.default_rng(0)
    y = np.arange(examples) % 3
    return {"x": rng.normal(size=(examples, 4)) + 2 * np.eye(4)[y], "y": y}


def text(name, content):
    """Writes a file."""
    return lambda: (
        Path(name).parent.mkdir(parents=True, exist_ok=True),
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode()),
    )


def config(**lines):
    return text("bad.yaml", TINY + "".join(f"{key}: {value}\n" for key, value in lines.items()))


def data(**arrays):
    return lambda: np.savez("blobs.npz", **{**blobs(), **arrays})


def all_of(*makers):
    return lambda: [make() for make in makers]


def with_nan():
    x = blobs()["x"]
    x[7, 2] = np.nan
    return x


def image(name, size):
    def made():
        from PIL import Image

        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(name)

    return made


def idx(name, magic, shape, content):
    return text(f"idx/{name}", struct.pack(f">I{len(shape)}I", magic, *shape) + content)


def changed(name, old, new):
    def made():
        before = Path(name).read_text()
        assert old in before
        Path(name).write_text(before.replace(old, new))

    return made


def cut(pattern):
    def made():
        file = max(Path().glob(pattern), key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return made


def gone(name):
    def made():
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return made


class Case(NamedTuple):
    """`fragments` of its message: what was expected, what came, and what to do or where.

    `made` before it; `run`: whether it needs a trained run.
    """

    command: str
    fragments: str
    made: Callable[[], object] = lambda: None
    run: bool = False


UNFINISHED = all_of(gone("run/summary.json"), gone("run/checkpoints/000018"))
RESUME = "run --resume run"
COSINE = "run tiny.yaml 'optimizer.learning_rate={cosine_decay_schedule: {init_value: 1,"
CASES = {
    # configs
    "unknown key": Case(
        "run bad.yaml",
        "a config takes name, seed | bad.yaml:11  epoch: unknown key | did you mean epochs?",
        config(epoch=3),
    ),
    "wrong type": Case(
        "run bad.yaml",
        "expected a whole number >= 1 | got 'many' (text) | bad.yaml:7  epochs",
        text("bad.yaml", TINY.replace("epochs: 2", "epochs: many")),
    ),
    "unknown optimizer": Case(
        "run tiny.yaml optimizer.name=adamm", "unknown optimizer | 'adamm' | did you mean adam"
    ),
    "unknown argument": Case(
        "run tiny.yaml optimizer.lr=1",
        (
            "adam takes learning_rate, b1 | optimizer.lr: unknown argument | "
            "command line: optimizer.lr=1"
        ),
    ),
    "argument of another type": Case(
        "run tiny.yaml optimizer.learning_rate=fast",
        "expected a number or a schedule | got 'fast' (text) | such as {warmup_cosine",
    ),
    "unknown schedule": Case(
        "run tiny.yaml 'optimizer.learning_rate={cosin: {peak: 1}}'",
        "unknown schedule | 'cosin' | `gradkit list` shows every name",
    ),
    "schedule without arguments": Case(
        f"{COSINE} steps: 3}}}}'",
        ("needs a whole number | unknown argument of optax.cosine | takes init_value, decay_steps"),
    ),
    "schedule that refuses": Case(
        f"{COSINE} decay_steps: -3}}}}'",
        (
            "requires positive decay_steps | got decay_steps=-3 | "
            "optax.cosine_decay_schedule refuses"
        ),
    ),
    "unknown data set": Case(
        "run tiny.yaml data.source=digit", "data set | 'digit' | did you mean digits?"
    ),
    "unknown task": Case(
        "run tiny.yaml task=rosenbrok", "task | 'rosenbrok' | did you mean rosenbrock?"
    ),
    "model beside a task": Case(
        "run tiny.yaml task=rosenbrock",
        "task rosenbrock brings its own | tiny.yaml:2  model | drop one of both",
    ),
    "two keys": Case(
        "run bad.yaml",
        "log_every | given twice | remove one of the two",
        config(seed="1", log_every="3"),
    ),
    "not yaml": Case(
        "run bad.yaml",
        "not valid YAML | bad.yaml:2:7 | a '}' is missing for the bracket opened in line 1",
        text("bad.yaml", "optimizer: {name: adam\nepochs: 2\n"),
    ),
    "empty config": Case(
        "run bad.yaml",
        "a config needs at least an optimizer | bad.yaml: is empty | optimizer",
        text("bad.yaml", ""),
    ),
    "no mapping": Case(
        "run bad.yaml",
        "expected a mapping of keys to values | got ['adam'] (list) | such as optimizer: adam",
        text("bad.yaml", "- adam\n"),
    ),
    "no utf-8": Case(
        "run bad.yaml",
        "not UTF-8 text | byte 0xff | save it as UTF-8",
        text("bad.yaml", b"optimizer: \xff\n"),
    ),
    "no optimizer": Case(
        "run bad.yaml",
        "expected one optimizer, or the members | optimizer: missing | such as optimizer: adam",
        text("bad.yaml", "epochs: 2\n"),
    ),
    "missing config": Case("run tiny1.yaml", "no such file | tiny1.yaml | did you mean tiny.yaml?"),
    "folder as config": Case(
        "run folder",
        "a config file | folder: is a folder | name a YAML file",
        lambda: Path("folder").mkdir(),
    ),
    "extends nothing": Case(
        "run bad.yaml",
        "no such file | extends: none.yaml | there are bad.yaml, task.yaml, tiny.yaml",
        text("bad.yaml", "extends: none.yaml\n"),
    ),
    "extends twice": Case(
        "run bad.yaml",
        (
            "expected a config that stands by itself | mid.yaml extends tiny.yaml | "
            "one level keeps it readable"
        ),
        all_of(text("bad.yaml", "extends: mid.yaml\n"), text("mid.yaml", "extends: tiny.yaml\n")),
    ),
    "extends a number": Case(
        "run bad.yaml",
        "expected the path of a config | got 3 (whole number) | from the folder of this one",
        text("bad.yaml", "extends: 3\n"),
    ),
    "loss for classes": Case(
        "run tiny.yaml loss=binary_cross_entropy",
        "is for 2 classes | blobs.npz has 3 | set cross_entropy",
    ),
    "loss for numbers": Case(
        "run tiny.yaml loss=cross_entropy",
        "is for classes | blobs.npz has numbers | set squared_error",
        data(y=np.linspace(0, 1, 90)),
    ),
    "unknown best metric": Case(
        "run tiny.yaml best.metric=validation_loss",
        "there are train_loss | no figure 'validation_loss' | Set data.validation_fraction",
    ),
    "patience without metric": Case(
        "run tiny.yaml best.patience=3",
        "patience needs a metric | best.patience=3 | set best.metric",
    ),
    "micro batches": Case(
        "run tiny.yaml micro_batches=3",
        "expected a divisor of the batch_size 8 | got 3 | such as 2",
    ),
    "curvature of too many": Case(
        "run tiny.yaml curvature.examples=9",
        "curvature.examples: expected at most 8 | the examples of a batch | got 9",
    ),
    "sharpness of another curvature": Case(
        "run tiny.yaml 'optimizer={name: hessian_free}' sharpness_every=2",
        "sharpness_every: measures the Hessian | leave it out | gradkit spectrum",
    ),
    "labels drawn of a function": Case(
        "run task.yaml task=rosenbrock curvature.diagonal=fisher",
        "curvature.diagonal: fisher draws labels | does not say how | empirical_fisher",
    ),
    "batches of an optimizer": Case(
        "run tiny.yaml optimizer.name=lbfgs optimizer.learning_rate=null",
        "must be of the same loss | batch_size: 8 of 72 | Set batch_size: 72",
    ),
    "no override": Case(
        "run tiny.yaml epochs", "expected key.path=value | epochs:  | such as batch_size=128"
    ),
    "override below a number": Case(
        "run tiny.yaml seed.of=3",
        "expected a whole number | got {'of': 3} (mapping) | command line: seed.of=3",
    ),
    "override not yaml": Case(
        "run tiny.yaml model.hidden=[3", "not valid YAML | model.hidden=[3 | a ']' is missing"
    ),
    "no config": Case(
        "run", "expected a CONFIG file or --resume RUN | got neither | such as gradkit run configs/"
    ),
    # data
    "nan": Case(
        "run tiny.yaml",
        "expected finite numbers | the first nan at row 7, column 2 | remove or replace them",
        data(x=with_nan()),
    ),
    "no y": Case(
        "run tiny.yaml",
        "expected arrays x and y | got x | write it by numpy.savez(FILE, x=x, y=y)",
        lambda: np.savez("blobs.npz", x=np.ones((9, 2))),
    ),
    "shapes": Case(
        "run tiny.yaml",
        "expected shape (90,), a class for each row of x | got shape (3,) | drop or add some",
        data(y=np.zeros(3, int)),
    ),
    "flat x": Case(
        "run tiny.yaml",
        (
            "expected numbers of shape (examples, features) | got float64 of shape (90,) | "
            "give it a row for each example"
        ),
        data(x=np.ones(90)),
    ),
    "text labels": Case(
        "run tiny.yaml",
        "expected classes as whole numbers from 0 | got <U1 | number the classes from 0",
        data(y=np.full(90, "a")),
    ),
    "rare class": Case(
        "run tiny.yaml",
        (
            "expected at least 2 examples of each class | got 1 of class 1 | "
            "add another or leave the class out"
        ),
        data(y=np.append(np.zeros(89, int), 1)),
    ),
    "one class": Case(
        "run tiny.yaml",
        "expected two classes or more | got class 0 alone | add examples of another",
        data(y=np.zeros(90, int)),
    ),
    "missing class": Case(
        "run tiny.yaml",
        (
            "expected classes 0, 1, 2 … without a gap | got class 2 and none of class 1 | "
            "number them anew"
        ),
        data(y=2 * (np.arange(90) % 2)),
    ),
    "negative class": Case(
        "run tiny.yaml",
        "expected classes 0, 1, 2 … without a gap | got class -1 | number them anew",
        data(y=np.arange(90) % 2 - 1),
    ),
    "test set of another shape": Case(
        "run tiny.yaml",
        "expected examples of shape (4,) | got (5,) | as in x",
        data(x_test=np.ones((9, 5)), y_test=np.zeros(9, int)),
    ),
    "test set without y": Case(
        "run tiny.yaml",
        (
            "expected x_test and y_test or neither | got x, y, x_test | "
            "add the other or leave this one out"
        ),
        data(x_test=np.ones((9, 4))),
    ),
    "test set of other classes": Case(
        "run tiny.yaml",
        "expected classes below 3 | got 7 | number them as in y",
        data(x_test=np.ones((9, 4)), y_test=np.full(9, 7)),
    ),
    "no examples": Case(
        "run tiny.yaml",
        (
            "expected numbers of shape (examples, features) | got float64 of shape (0, 4) | "
            "give it a row for each"
        ),
        data(x=np.ones((0, 4)), y=np.zeros(0, int)),
    ),
    "not npz": Case(
        "run tiny.yaml",
        "a readable .npz file | it is no zip archive | write it by numpy.savez",
        text("blobs.npz", "x,y\n"),
    ),
    "cut npz": Case(
        "run tiny.yaml",
        "a readable .npz file | or cut short | write it by numpy.savez",
        cut("blobs.npz"),
    ),
    "missing data": Case(
        "run tiny.yaml data.source=none.npz",
        (
            "expected an .npz file with x and y | no such file none.npz | "
            "seen from the current folder"
        ),
    ),
    "test fraction": Case(
        "run tiny.yaml data.test_fraction=0.001",
        "with each class on both sides | 0.001 of the 90 examples | choose another share",
    ),
    "too many examples": Case(
        "run tiny.yaml data.examples=100",
        "expected at most 72 | got 100 | the number of training examples",
    ),
    "batch too large": Case(
        "run tiny.yaml batch_size=73", "expected at most 72 | got 73 | batch_size"
    ),
    "balanced numbers": Case(
        "run tiny.yaml sampling=balanced loss=squared_error",
        "needs a class for each example | which these data do not have | choose shuffled",
        data(y=np.linspace(0, 1, 90)),
    ),
    "csv with text": Case(
        "run tiny.yaml data.source=t.csv",
        "a: expected a number | t.csv:3: a: expected a number, got 'x' | leave the column out",
        text("t.csv", "a,b\n1,0\nx,1\n2,0\n"),
    ),
    "csv with a short row": Case(
        "run tiny.yaml data.source=t.csv",
        "expected 2 values as in the header | got 1 | fill the row or take it out",
        text("t.csv", "a,b\n1,0\n2\n"),
    ),
    "csv empty": Case(
        "run tiny.yaml data.source=t.csv",
        "expected a header and rows below it | got a header alone | add the rows",
        text("t.csv", "a,b\n"),
    ),
    "csv without the column": Case(
        "run tiny.yaml 'data.source={name: csv, path: t.csv, target: c}'",
        "there are a, b | no column 'c' | t.csv",
        text("t.csv", "a,b\n1,0\n2,1\n"),
    ),
    "csv not text": Case(
        "run tiny.yaml data.source=t.csv",
        "a readable .csv file | byte 0xff | save it as UTF-8",
        text("t.csv", b"a,b\n\xff,1\n"),
    ),
    "images none": Case(
        "run tiny.yaml data.source=pics",
        (
            "expected a folder of images for each class | got 1 folder without images | "
            "such as pics/cat/1.png"
        ),
        lambda: Path("pics/cat").mkdir(parents=True),
    ),
    "images of two sizes": Case(
        "run tiny.yaml data.source=pics",
        "expected the shape (2, 2) | got (2, 3) | bring all to one size",
        all_of(image("pics/a/1.png", (2, 2)), image("pics/b/1.png", (3, 2))),
    ),
    "image damaged": Case(
        "run tiny.yaml data.source=pics",
        "not a readable image | pics/b/1.png | write it again or take it out",
        all_of(image("pics/a/1.png", (2, 2)), text("pics/b/1.png", "no png")),
    ),
    "idx cut": Case(
        "run tiny.yaml data.source=idx",
        "expected 52 bytes for an array of shape (9, 2, 2) | got 19 | get it anew",
        idx("train-images-idx3-ubyte", 0x803, (9, 2, 2), b"abc"),
    ),
    "idx missing": Case(
        "run tiny.yaml data.source=idx",
        "expected train-labels-idx1-ubyte | there is train-images-idx3-ubyte | plain or .gz",
        idx("train-images-idx3-ubyte", 0x803, (1, 2, 2), b"abcd"),
    ),
    "idx of another format": Case(
        "run tiny.yaml data.source=idx",
        "expected an IDX file, which begins with 00 00 | got 89 50 4e 47 | get it anew",
        text("idx/train-images-idx3-ubyte", b"\x89PNG...."),
    ),
    "text too short": Case(
        "run tiny.yaml data.source=t.txt",
        (
            "expected more than twice length=64 characters | got 3 | "
            "lower length or take a longer text"
        ),
        text("t.txt", "abc"),
    ),
    "text not utf-8": Case(
        "run tiny.yaml data.source=t.txt",
        "text in UTF-8 | invalid start byte at byte 0 | save it as UTF-8",
        text("t.txt", b"\xff" * 300),
    ),
    "text for an mlp": Case(
        "run tiny.yaml data.source=t.txt",
        "mlp learns from numbers | t.txt holds tokens | choose the model transformer",
        text("t.txt", "abcd" * 300),
    ),
    # tasks
    "task without a file": Case(
        "run task.yaml task=none.py:task", "no such file | none.py | did you mean mine.py?"
    ),
    "task without the name": Case(
        "run task.yaml task=mine.py:tsak", "mine.py has no | tsak | did you mean task?"
    ),
    "task that fails": Case(
        "run task.yaml task=mine.py:broken",
        "mine.py:broken fails | NameError: name 'missing_name' | mine.py:10: ",
    ),
    "task that returns another thing": Case(
        "run task.yaml task=mine.py:two",
        "a task has data, init, predict, criterion | got a tuple of 2 | without data, init",
    ),
    "task with a syntax error": Case(
        "run task.yaml task=bad.py:task",
        "cannot be imported | SyntaxError | bad.py:1: ",
        text("bad.py", "def task(:\n"),
    ),
    "task of another argument": Case(
        "run task.yaml 'task={name: \"mine.py:broken\", width: 3}'",
        "which takes none from a config | task.width: unknown argument | mine.py:broken",
    ),
    "task without a colon": Case(
        "run task.yaml task=mine.py",
        "unknown task | 'mine.py' | name your own as path/to/file.py:name",
    ),
    "task module": Case(
        "run task.yaml task=nothing_here:task",
        "expected FILE.py:NAME or MODULE:NAME | no module named 'nothing_here' | from here",
    ),
    # runs
    "missing run": Case(
        "run --resume runs/none", "no such run folder | runs/none | gradkit run CONFIG makes one"
    ),
    "run with another name": Case(
        "run --resume rnu", "no such run folder | rnu | Nearest run folders: run", run=True
    ),
    "resume a file": Case(
        "run --resume tiny.yaml",
        "not a run folder | tiny.yaml: is a file | gradkit run CONFIG makes one",
    ),
    "resume no run": Case(
        "run --resume folder",
        "not a run folder | it has no config.yaml | gradkit run CONFIG makes one",
        text("folder/notes.txt", "mine"),
    ),
    "resume unbegun": Case(
        "run --resume folder",
        "no run has begun in it | it has no config.yaml | gradkit run CONFIG --out folder",
        lambda: Path("folder").mkdir(),
    ),
    "resume with out": Case(
        "run --resume run --out other",
        "--resume goes on in its own | --out names a new run folder | drop --out",
    ),
    "resume with config": Case(
        "run --resume run tiny.yaml",
        "goes on with the run's own config | tiny.yaml | drop tiny.yaml",
    ),
    "resume dry": Case(
        "run --resume run --dry-run",
        "--dry-run is for a CONFIG | a run to resume has its own | drop --dry-run",
    ),
    "existing folder": Case(
        "run tiny.yaml --out mine",
        "is not overwritten | mine: exists already | Name another with --out FOLDER",
        text("mine/notes.txt", "mine"),
    ),
    "folder in a file": Case(
        "run tiny.yaml --out tiny.yaml/run",
        "cannot be made | Not a directory | Name another with --out FOLDER",
    ),
    "finished run": Case(
        "run tiny.yaml --out run",
        "is not overwritten | run: exists already | gradkit run --resume run, or name another",
        run=True,
    ),
    "damaged checkpoint": Case(
        RESUME,
        "damaged checkpoint | is not what was saved | Delete this folder to go on from step 6",
        all_of(UNFINISHED, cut("run/checkpoints/000012/arrays/state/ocdbt.process_0/d/*")),
        run=True,
    ),
    "checkpoint without structure": Case(
        RESUME,
        (
            "damaged checkpoint | structure.json is missing | "
            "Delete this folder to go on from step 6"
        ),
        all_of(UNFINISHED, gone("run/checkpoints/000012/structure.json")),
        run=True,
    ),
    "structure cut": Case(
        RESUME,
        "damaged checkpoint | structure.json:  | Delete this folder to go on from step 6",
        all_of(UNFINISHED, cut("run/checkpoints/000012/structure.json")),
        run=True,
    ),
    "only checkpoint damaged": Case(
        RESUME,
        (
            "damaged checkpoint | structure.json is missing | "
            "Delete this folder to begin from the start"
        ),
        all_of(
            UNFINISHED,
            gone("run/checkpoints/000006"),
            gone("run/checkpoints/000012/structure.json"),
        ),
        run=True,
    ),
    "other version": Case(
        RESUME,
        "begun with gradkit 9. | this is 0. | or begin a new run",
        all_of(UNFINISHED, changed("run/env.json", '"gradkit": "', '"gradkit": "9.')),
        run=True,
    ),
    "changed data": Case(
        RESUME,
        "expected sha256 | the data have changed since the run began | Put back what was there",
        all_of(UNFINISHED, lambda: np.savez("blobs.npz", **blobs(93))),
        run=True,
    ),
    "missing data of a run": Case(
        RESUME,
        "expected an .npz file | no such file blobs.npz | seen from the current folder",
        all_of(UNFINISHED, gone("blobs.npz")),
        run=True,
    ),
    "changed config": Case(
        RESUME,
        (
            "expected [{'name': 'adam', 'learning_rate': 0.01}] | 'learning_rate': 0.02}] | "
            "Change it back"
        ),
        all_of(
            UNFINISHED, changed("run/config.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
        ),
        run=True,
    ),
    "changed model": Case(
        RESUME,
        "expected {'name': 'mlp' | 'name': 'relu' | Change it back",
        all_of(UNFINISHED, changed("run/config.yaml", "name: tanh", "name: relu")),
        run=True,
    ),
    "damaged config": Case(
        RESUME,
        "expected a whole number >= 1 | got 'two' (text) | run/config.yaml:",
        all_of(UNFINISHED, changed("run/config.yaml", "epochs: 2", "epochs: two")),
        run=True,
    ),
    "garbage in the metrics": Case(
        RESUME,
        "not JSON | run/metrics.jsonl:2 | delete this line and all below it",
        all_of(UNFINISHED, changed("run/metrics.jsonl", '{"step": 6', "{step 6")),
        run=True,
    ),
    "metrics cut short": Case(
        RESUME,
        "lines from before the checkpoint of step 12 | cut short | delete those after 000006",
        all_of(UNFINISHED, cut("run/metrics.jsonl")),
        run=True,
    ),
    "damaged summary": Case(
        "report run",
        "not JSON | run/summary.json: | Delete it: gradkit run --resume run writes it again",
        cut("run/summary.json"),
        run=True,
    ),
    "damaged env": Case(
        "report run",
        "not JSON | run/env.json: | Put it back as it was",
        cut("run/env.json"),
        run=True,
    ),
    "report of nothing": Case(
        "report none", "no such run folder | none | gradkit run CONFIG makes one"
    ),
    "report of no run": Case(
        "report folder",
        "not a run folder | folder | gradkit run CONFIG makes one",
        text("folder/notes.txt", "mine"),
    ),
    # the other commands
    "no command": Case(
        "", "required: COMMAND | the following arguments are required | usage: gradkit"
    ),
    "unknown command": Case("trian tiny.yaml", "choose from | 'trian' | 'run', 'check'"),
    "unknown option": Case(
        "run tiny.yaml --frob", "unknown arguments | --frob | usage: gradkit run CONFIG"
    ),
    "option without a value": Case(
        "run tiny.yaml --out", "expected one argument | argument --out | [--out FOLDER]"
    ),
    "check": Case(
        "check bad.yaml",
        "a config takes | epoch: unknown key | did you mean epochs?",
        config(epoch=3),
    ),
    "check nothing": Case(
        "check", "required: FILE | the following arguments | usage: gradkit check"
    ),
    "sweep without values": Case(
        "sweep tiny.yaml seed",
        (
            "expected key.path=value,value… | sweep: seed: | "
            "such as optimizer.learning_rate=1e-3,1e-2"
        ),
    ),
    "sweep over none": Case(
        "sweep tiny.yaml seed=4:4",
        "expected a value or more | got none | the end of a range is excluded",
    ),
    "sweep twice": Case(
        "sweep tiny.yaml seed=1,1",
        "two points would share | seed=1: a value is given twice | drop one",
    ),
    "sweep a key twice": Case(
        "sweep tiny.yaml seed=0:2 seed=3",
        "expected each key once | got seed=0:2 seed=3 | write all values of a key in one word",
    ),
    "sweep an unknown key": Case(
        "sweep tiny.yaml sed=1,2", "a config takes | sed: unknown key | did you mean seed?"
    ),
    "sweep a wrong value": Case(
        "sweep tiny.yaml seed=1,many",
        "expected a whole number | got 'many' (text) | command line: seed=\"many\"",
    ),
    "sweep not yaml": Case(
        "sweep tiny.yaml model.hidden=[3", "not valid YAML | model.hidden | a ']' is missing"
    ),
    "sweep of long names": Case(
        f"sweep tiny.yaml data.source={'a' * 130}.npz,digits",
        "of at most 120 | a folder's name of 141 characters | sweep over fewer keys",
    ),
    "sweep of another config": Case(
        "sweep tiny.yaml seed=0:2 --out sweeps",
        "was begun with another config | sweeps/seed=1 | name another folder with --out",
        lambda: shutil.copytree("run", "sweeps/seed=1"),
        run=True,
    ),
    "sweep of nothing": Case(
        "sweep", "required: CONFIG | the following arguments | usage: gradkit sweep"
    ),
    "compare nothing": Case(
        "compare none", "no such run folder | none | gradkit run CONFIG makes one"
    ),
    "compare no target": Case(
        "compare run --target test_loss",
        "--target: expected | got 'test_loss' | such as train_loss=0.1",
        run=True,
    ),
    "compare another target": Case(
        "compare run --target tst_loss=1",
        "they have accuracy | no run records 'tst_loss' | test_loss",
        run=True,
    ),
    "compare a text": Case(
        "compare run --target test_loss=low",
        "--target: expected | got 'test_loss=low' | such as train_loss=0.1",
        run=True,
    ),
    "spectrum of nothing": Case(
        "spectrum", "expected a RUN folder or --task | got neither | name one"
    ),
    "spectrum of both": Case(
        "spectrum run --task mine.py:task", "expected a RUN folder or --task | got both | name one"
    ),
    "spectrum of no step": Case(
        "spectrum run --checkpoint 7",
        "no checkpoint at step 7 | run | there are: 0, 6, 12, 18",
        run=True,
    ),
    "spectrum of a wrong step": Case(
        "spectrum run --checkpoint first",
        "expected a step, all, best or last | got 'first' | [--checkpoint STEP]",
    ),
    "spectrum of the best": Case(
        "spectrum run --checkpoint best",
        "kept no best checkpoint | its config has no best.metric | name a step",
        run=True,
    ),
    "spectrum without checkpoints": Case(
        "spectrum run",
        "has no checkpoint yet | run | finish it by gradkit run --resume run",
        all_of(gone("run/summary.json"), gone("run/checkpoints")),
        run=True,
    ),
    "spectrum of no count": Case(
        "spectrum run --top 0", "expected a whole number >= 1 | got '0' | argument --top"
    ),
    "spectrum of no size": Case(
        "spectrum run --memory-limit 8", "expected a size such as 8GB | got '8' | 500MB"
    ),
    "spectrum of too many": Case(
        "spectrum run --top 1000",
        "expected 1 to 27 | got 1000 | the number of parameters",
        run=True,
    ),
    "spectrum of too many examples": Case(
        "spectrum run --data 1000", "expected 1 to 72 | got 1000 | the examples there are", run=True
    ),
    "spectrum of other data": Case(
        "spectrum run --data half",
        "expected train, test, training or a number of examples | got 'half' | argument --data",
    ),
    "spectrum of another operator": Case(
        "spectrum run --operator jacobian", "choose from | 'jacobian' | 'hessian', 'gauss_newton'"
    ),
    "spectrum with params": Case(
        "spectrum run --params p.npz", "goes with --task | not with a RUN | drop --params"
    ),
    "spectrum of a task without a file": Case(
        "spectrum --task none.py:task", "no such file | none.py | did you mean mine.py?"
    ),
    "spectrum of a task with a checkpoint": Case(
        "spectrum --task mine.py:task --checkpoint 3",
        "is for a RUN | --checkpoint | drop --checkpoint",
    ),
    "spectrum of a part of a task": Case(
        "spectrum --task mine.py:task --data test",
        "is for a RUN | --data test | --data N draws N examples",
    ),
    "spectrum of what is not callable": Case(
        "spectrum --task mine.py:not_callable",
        "expected a function | got an int | mine.py:not_callable",
    ),
    "spectrum of two": Case(
        "spectrum --task mine.py:two",
        "a task returns (problem, params, batch) | got a tuple of 2 | mine.py:two",
    ),
    "spectrum without params": Case(
        "spectrum --task mine.py:of_file",
        "takes a file of parameters | mine.py:of_file | name it by --params FILE",
    ),
    "spectrum of missing params": Case(
        "spectrum --task mine.py:task --params none.npz",
        "expected an .npz file or an orbax | no such file none.npz | --params",
    ),
    "spectrum of other params": Case(
        "spectrum --task mine.py:task --params p.npz",
        "not the parameters of this task | v: shape (3,) | w: missing",
        lambda: np.savez("p.npz", v=np.ones(3)),
    ),
    "spectrum of a damaged npz": Case(
        "spectrum --task mine.py:task --params p.npz",
        "a readable .npz file | it is no zip archive | write it by numpy.savez",
        text("p.npz", "x"),
    ),
    "spectrum of a pickle": Case(
        "spectrum --task mine.py:task --params p.pkl",
        "expected an .npz file or an orbax | got p.pkl | reads any other format itself",
        text("p.pkl", "x"),
    ),
    "fisher without a likelihood": Case(
        "spectrum --task mine.py:task --operator fisher",
        "draws labels from the model | --operator fisher | say how by --likelihood",
    ),
    "list an unknown name": Case("list adamm", "unknown name | 'adamm' | did you mean adam"),
    "list two": Case("list adam sgd", "unknown arguments | sgd | usage: gradkit list"),
    "unknown shell": Case("completion bsh", "choose from | 'bsh' | 'bash', 'zsh'"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of tiny.yaml, in a folder with its data and a user's task."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Path("tiny.yaml").write_text(TINY)
        Path("task.yaml").write_text("optimizer: {name: adam}\nepochs: 2\n")
        Path("mine.py").write_text(TASK)
        np.savez("blobs.npz", **blobs())
        assert main(["run", "tiny.yaml", "--out", "run"]) == 0
    return place


def snapshot():
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_message_and_changes_nothing(name, trained, tmp_path, monkeypatch, capsys):
    case = CASES[name]
    shutil.copytree(
        trained, tmp_path, dirs_exist_ok=True, ignore=None if case.run else lambda *_: {"run"}
    )
    monkeypatch.chdir(tmp_path)
    case.made()
    capsys.readouterr()
    before = snapshot()
    try:
        status = main(shlex.split(case.command))
    except SystemExit as left:
        status = left.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert snapshot() == before
    if err.startswith("usage: gradkit"):
        assert err.count("error: ") == 1
    else:
        assert err.startswith("gradkit: ")
        assert err.count("gradkit: ") == 1
    assert "Traceback" not in err
    assert len(err) < 1000
    for fragment in case.fragments.split(" | "):
        assert fragment in err
