"""Runs the experiments through the command line and writes what each found beside its claim.

    python experiments/run.py               # all that are not long, as `make experiments`
    python experiments/run.py xor saddle

Each folder here is an experiment: `experiment.py` has the claim as its docstring's first line, the
reference, and three functions of the folder that its runs are in: `commands`, which yields command
lines of gradkit, each made when those before it have ended, so that a rate can be tuned first and
used next; `judge`, what was found; and `draw`, its plot. Beside it are written `README.md`,
`plot.svg` and `result.json`, and of all results `RESULTS.md`. Runs are kept below
`runs/experiments`: a command that has ended is not run again, until its folder is deleted. One of
more than 10 `MINUTES` is run by its name alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

from gradkit.report.svg import drawing
from gradkit.runner import cli

HERE = Path(__file__).parent
RUNS = Path("runs/experiments")
LONGEST = 10  # minutes, of one of those that are run together


class Finding(NamedTuple):
    """What an experiment found.

    Attributes:
        measured: the figures, with their spread over seeds.
        agrees: whether they agree with the reference.
        words: what there is to say of it; where they disagree, why.
    """

    measured: str
    agrees: bool
    words: str


def main(names: list[str]) -> int:
    """Runs experiments by name, or all, and returns the exit status."""
    known = sorted(path.parent.name for path in HERE.glob("*/experiment.py"))
    if unknown := [name for name in names if name not in known]:
        print(f"no experiment {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    modules = {name: loaded(name) for name in names or known}
    if not names:
        modules = {name: module for name, module in modules.items() if not is_long(module)}
    left = sum(module.MINUTES for module in modules.values())
    for number, (name, module) in enumerate(modules.items(), start=1):
        print(f"{number} of {len(modules)}: {name}, some {module.MINUTES:g} min; {left:g} in all")
        if status := performed(name, module):
            return status
        left -= module.MINUTES
    write_results()
    return 0


def loaded(name: str) -> ModuleType:
    """The module of an experiment."""
    spec = importlib.util.spec_from_file_location(name, HERE / name / "experiment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_long(module: ModuleType) -> bool:
    """Whether an experiment is too long for `make experiments`."""
    return module.MINUTES > LONGEST


def performed(name: str, module: ModuleType) -> int:
    """Runs an experiment's commands, then judges and draws what they left."""
    out = RUNS / name
    out.mkdir(parents=True, exist_ok=True)
    ended = out / "ended.json"  # what each command took [s], those that have ended
    taken: dict[str, float] = json.loads(ended.read_text()) if ended.is_file() else {}
    commands = []
    for command in module.commands(out):
        commands.append(command)
        if command in taken:
            continue
        print(f"  {command}")
        start = time.perf_counter()
        status = cli.main(to_go_on(shlex.split(command)[1:]))
        jax.clear_caches()  # what a command compiles is of no use to the next
        if status not in (0, 1):  # 1: a run diverged, which may be what is shown
            print(f"  {name}: ended with status {status}; started again, it goes on from here")
            return status
        taken[command] = round(time.perf_counter() - start, 1)
        ended.write_text(json.dumps(taken, indent=2, ensure_ascii=False))
    finding = Finding(*module.judge(out))
    with drawing(name, math=True):
        figure = module.draw(out)
        figure.savefig(HERE / name / "plot.svg", facecolor="white", metadata={"Date": None})
    result = finding._asdict() | {
        "agrees": bool(finding.agrees),
        "seconds": round(sum(taken[command] for command in commands), 1),
        "commands": commands,
        "machine": f"{os.cpu_count()} cores, jax {version('jax')}",
    }
    text = json.dumps(result, indent=2, ensure_ascii=False)
    (HERE / name / "result.json").write_text(text + "\n")
    (HERE / name / "README.md").write_text(page(name, module, result))
    print(f"  {finding.measured}: {agreement(result)}")
    return 0


def to_go_on(words: list[str]) -> list[str]:
    """The command, or where its one run was interrupted that which goes on with it."""
    folder = words[words.index("--out") + 1] if "--out" in words else ""
    begun = words[0] == "run" and (Path(folder) / "config.yaml").is_file()
    return ["run", "--resume", folder] if begun else words


def page(name: str, module: ModuleType, result: dict[str, Any]) -> str:
    """The page of an experiment."""
    claim, more = claim_of(module), (module.__doc__ or "").strip().partition("\n")[2]
    commands = "\n".join(result["commands"])
    return (
        f"# {claim}\n\n{more.strip()}\n\n"
        f"```bash\n{commands}\n```\n\n"
        f"| reference | measured | agreement |\n|---|---|---|\n"
        f"| {module.REFERENCE} | {result['measured']} | {agreement(result)} |\n\n"
        f"{result['words']}\n\n![{claim}](plot.svg)\n"
    )


def claim_of(module: ModuleType) -> str:
    """What an experiment claims, as a title."""
    return (module.__doc__ or "").strip().partition("\n")[0].removesuffix(".")


def agreement(result: dict[str, Any]) -> str:
    """Agreement as a word."""
    return "yes" if result["agrees"] else "no"


def write_results() -> None:
    """Writes the table of all results there are."""
    (HERE / "RESULTS.md").write_text(results())


def results() -> str:
    """The table of all results there are, as text."""
    rows, machines, minutes = [], set(), 0.0
    for file in sorted(HERE.glob("*/result.json")):
        result, module = json.loads(file.read_text()), loaded(file.parent.name)
        cells = [
            f"[{claim_of(module)}]({file.parent.name}/README.md)",
            module.REFERENCE,
            result["measured"],
            agreement(result),
            f"{result['seconds'] / 60:.1f}",
        ]
        machines.add(result["machine"])
        minutes += 0 if is_long(module) else result["seconds"] / 60
        rows.append("| " + " | ".join(cells) + " |")
    return (
        "# What the experiments found\n\n`make experiments` runs those of at most 10 minutes, the"
        " others `python experiments/run.py NAME`. Where a figure disagrees with its reference, the"
        " experiment's page says why. Seeds are named with ± one standard error of their mean. Run"
        f" on {'; '.join(sorted(machines))}; `make experiments` took"
        f" {minutes:.0f} minutes."
        "\n\n"
        "| claim | reference | measured | agreement | minutes |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
