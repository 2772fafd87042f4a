"""The command line: run, sweep, compare, check, spectrum, report, list."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradkit import __version__
from gradkit.runner import endings, peers, signals, spectrum_options
from gradkit.runner.endings import fail, signaled
from gradkit.runner.errors import UserError

if TYPE_CHECKING:
    from gradkit.runner.record import Record
    from gradkit.runner.rows import Row
    from gradkit.runner.spectrum import Options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0 when it did what was asked, 1 when a run diverged, 2 for a mistake in the input, 128 and the
    number of the signal when interrupted: 130 by Ctrl-C, 143 by SIGTERM. Without `arguments` it is
    the process: interrupted, it leaves at once, since JAX may crash on an orderly way out when it
    was cut while compiling.
    """
    status = _status(sys.argv[1:] if arguments is None else arguments)
    cut = status > 128 or (status > 1 and not peers.alone())  # others may wait no longer
    if cut and arguments is None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _status(arguments: Sequence[str]) -> int:
    parsed = _parse(arguments)
    try:
        if "processes" in parsed and (asked := peers.asked_for(parsed)).several:
            if peers.alone():
                return peers.look_after(arguments, asked)
            peers.end_with_parent()
        with signals.stoppable():
            status = parsed.action(parsed, arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "gradkit").partition(".")[0] == "gradkit":  # a mistake in here
            raise
        return fail(f"needs the package {error.name}: pip install 'gradkit[experiments]'")
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that cannot be written
        return fail(endings.refusal(error))
    except KeyboardInterrupt as error:
        return fail("interrupted", signaled(error))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command with its words and options, in whatever order they came."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        from argcomplete import autocomplete

        autocomplete(parser)
    parsed, rest = parser.parse_known_args(arguments)
    if "words" in parsed and not any(word.startswith("-") for word in rest):
        parsed.words += rest  # those that follow an option
    elif rest:
        parsed.parser.error(f"unknown arguments: {' '.join(rest)}")
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradkit", description="Train from a config file, then read the Hessian's spectrum."
    )
    parser.add_argument("--version", action="version", version=f"gradkit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_training(commands)
    spectrum_options.add(commands, _spectrum)
    _add_reading(commands)
    return parser


def _add_training(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="train a model from a config file",
        usage="gradkit run CONFIG [key.path=value ...] [--out FOLDER] [--dry-run]\n"
        "       gradkit run --resume RUN",
    )
    run.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG key.path=value",
        help="a YAML file, and values to change in it, such as optimizer.learning_rate=1e-3",
    )
    run.add_argument("--out", metavar="FOLDER", help="run folder; runs/NAME by default")
    run.add_argument("--resume", metavar="RUN", help="go on with a run from its last checkpoint")
    run.add_argument(
        "--dry-run", action="store_true", help="print the config and where each value comes from"
    )
    peers.add(run)
    run.set_defaults(action=_run, parser=run)

    check = commands.add_parser("check", help="read config files and report every mistake")
    check.add_argument("files", nargs="+", metavar="FILE", help="a YAML file")
    check.set_defaults(action=_check, parser=check)

    sweep = commands.add_parser(
        "sweep",
        help="a run for each combination of values",
        usage="gradkit sweep CONFIG key.path=value,value... [seed=0:5] [--out FOLDER] [--vmap]",
    )
    sweep.add_argument("words", nargs="+", metavar="CONFIG key.path=value,value...")
    sweep.add_argument("--out", metavar="FOLDER", help="folder of the runs; sweeps/NAME by default")
    sweep.add_argument(
        "--vmap", action="store_true", help="train the seeds of a point at once, vectorized"
    )
    sweep.set_defaults(action=_sweep, parser=sweep)


def _add_reading(commands: Any) -> None:
    compare = commands.add_parser("compare", help="a table of runs, means over their seeds")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders of them")
    compare.add_argument("--target", metavar="NAME=VALUE", help="what it took to reach this")
    compare.add_argument("--json", action="store_true", help="for programs to read")
    compare.set_defaults(action=_compare, parser=compare)

    report = commands.add_parser(
        "report", help="write a run's plots and report.html again, or one page of several runs"
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders of them")
    report.add_argument(
        "--out",
        metavar="FILE",
        help="page of several runs; report.html in a folder of runs, else comparison.html",
    )
    report.set_defaults(action=_report, parser=report)

    names = commands.add_parser("list", help="what a config can name, or one name in full")
    name = names.add_argument("name", nargs="?", metavar="NAME", help="such as adam")
    name.completer = _every_name  # pyright: ignore[reportAttributeAccessIssue]
    names.add_argument("--json", action="store_true", help="for programs to read")
    names.set_defaults(action=_list, parser=names)

    completion = commands.add_parser(
        "completion", help='for your shell: eval "$(gradkit completion bash)"'
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh", "powershell"))
    completion.set_defaults(action=_completion, parser=completion)


def _every_name(**_: Any) -> list[str]:
    from gradkit.runner.catalog import catalog

    return ["experiments", *catalog()]


def _run(parsed: argparse.Namespace, arguments: Sequence[str]) -> int:
    if parsed.resume is not None:
        return _resume(parsed)
    if not parsed.words:
        raise UserError(
            "run: expected a CONFIG file or --resume RUN, got neither; "
            "such as gradkit run configs/digits_adam.yaml"
        )
    from gradkit.runner.config import explained, resolved

    file, *overrides = parsed.words
    config, document = resolved(file, overrides)
    folder, asked = Path(parsed.out or Path("runs") / config.name), peers.asked_for(parsed)
    if parsed.dry_run:
        there = ", which exists already: name another with --out" if folder.exists() else ""
        print(f"# would train into {folder}{there}\n{explained(config, document)}", end="")
        return 0

    def begin() -> int:
        from gradkit.runner import train
        from gradkit.runner.devices import joined

        workshop = train.Workshop(joined(asked))
        summary = train.begin(config, folder, ["gradkit", *arguments], workshop)
        return _ended(folder, summary, asked)

    return endings.resumable(folder, begin)


def _resume(parsed: argparse.Namespace) -> int:
    if parsed.out is not None:
        raise UserError("--out names a new run folder; --resume goes on in its own: drop --out")
    if parsed.dry_run:
        raise UserError(
            "--dry-run is for a CONFIG, and a run to resume has its own: drop --dry-run"
        )
    if parsed.words:
        raise UserError(
            f"--resume goes on with the run's own config: drop {' '.join(parsed.words)}"
        )
    asked = peers.asked_for(parsed)
    return endings.resumable(Path(parsed.resume), lambda: _go_on(Path(parsed.resume), asked))


def _go_on(folder: Path, asked: peers.Peers) -> int:
    from gradkit.runner import guard, record

    if guard.unbegun(folder):
        raise UserError(
            f"{folder}: no run has begun in it: it has no {record.CONFIG}. Begin one by "
            f"gradkit run CONFIG --out {shlex.quote(str(folder))}"
        )
    run = record.open_record(folder)
    page = folder / "report.html"
    if run.summary is None:
        from gradkit.runner import train
        from gradkit.runner.devices import joined

        return _ended(folder, train.resume(run, joined(asked)), asked)
    if not page.exists():  # killed before it was written
        return _ended(folder, run.summary, asked)
    print(f"{folder} has ended, and nothing is left to do:")
    return endings.tell(page, run.summary)


def _check(parsed: argparse.Namespace, _: Sequence[str]) -> int:
    from gradkit.runner.config import load

    problems = []
    for file in parsed.files:
        try:
            load(file)
            print(f"{file}: good")
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return 0


def _sweep(parsed: argparse.Namespace, arguments: Sequence[str]) -> int:
    from gradkit.runner import compare, record, sweep

    file, *words = parsed.words
    points = sweep.plan(file, words, Path(parsed.out) if parsed.out else None)
    again = shlex.join(["gradkit", *arguments])

    from gradkit.runner import train

    command, workshop = ["gradkit", *arguments], train.Workshop()
    try:
        sweep.run(
            points,
            lambda line: print(line, file=sys.stderr),
            begin=lambda config, folder: train.begin(config, folder, command, workshop, brief=True),
            resume=train.resume,
            together=_together(command) if parsed.vmap else None,
        )
    except KeyboardInterrupt as error:
        return fail(f"interrupted; the same command goes on: {again}", signaled(error))
    except OSError as error:
        return fail(f"{endings.refusal(error)}; the same command goes on: {again}")
    rows = compare.compared([record.open_record(point.folder) for point in points])
    _print_table(rows)
    print(_write_comparison(rows, points[0].folder.parent / "report.html"))
    return 0


def _together(command: Sequence[str]) -> Callable[..., Any]:
    from gradkit.runner import together

    return lambda configs, folders: together.begin(configs, folders, command)


def _compare(parsed: argparse.Namespace, _: Sequence[str]) -> int:
    from gradkit.runner import compare

    target = compare.Target.of(parsed.target) if parsed.target else None
    rows = compare.compared(compare.open_all(parsed.runs), target)
    if parsed.json:
        found = [compare.described(row) for row in rows]
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print_table(rows)
    return 0


def _print_table(rows: Sequence[Row]) -> None:
    from gradkit.runner import compare
    from gradkit.runner.rows import budget_words

    print(compare.table(rows))
    if len(rows) > 1 and (words := budget_words(rows)):
        print(words)


def _ended(folder: Path, summary: dict[str, Any], asked: peers.Peers) -> int:
    """Reports on a run and tells its end, in the first process."""
    from gradkit.runner import guard

    if asked.number:
        return endings.status(summary)
    with guard.alone(folder):
        guard.remove_drafts(folder, folder / "plots")
        page = _write_report(folder)
    return endings.tell(page, summary)


def _spectrum(parsed: argparse.Namespace, arguments: Sequence[str]) -> int:
    spectrum_options.check(parsed)
    from gradkit.runner import compare

    runs = compare.open_all(parsed.runs)

    from gradkit.runner import spectrum, subject, tables
    from gradkit.runner.devices import joined

    names = ("operator", "top", "bottom", "density", "blocks", "micro_batch", "memory_limit")
    options = spectrum.Options(**{name: getattr(parsed, name) for name in names})
    steps, data = parsed.checkpoint or "last", parsed.data or "train"
    if len(runs) > 1:
        return _spectra(runs, options, steps, data)
    asked = peers.asked_for(parsed)
    devices = joined(asked)
    if runs:
        subjects = subject.of_run(runs[0], steps, data)
    else:
        task = subject.of_task(
            parsed.task,
            parsed.params,
            out=parsed.out,
            data=parsed.data or "batch",
            likelihood=parsed.likelihood,
            command=["gradkit", *arguments],
        )
        subjects = iter([task])
    results, folder = [], Path()
    try:
        for one in subjects:
            folder = one.folder
            results.append(spectrum.compute(one.on(devices), options))
    except KeyboardInterrupt as error:
        return fail("interrupted; the same command goes on from there", signaled(error))
    except Exception as error:
        if not endings.lost(error):
            raise
        return fail(f"{endings.LOST}; the same command goes on from there")
    if asked.number:
        return 0
    print(tables.overview(results))
    print(_write_report(folder))
    return 0


def _spectra(runs: Sequence[Record], options: Options, steps: str, data: str) -> int:
    """The spectra of several runs; their pages are for `gradkit report` to write."""
    from gradkit.runner import survey, tables

    try:
        found, whole = survey.survey(
            *(runs, options, lambda line: print(line, file=sys.stderr, flush=True)),
            steps=steps,
            data=data,
        )
    except KeyboardInterrupt as error:
        return fail("interrupted; the same command goes on from there", signaled(error))
    print(tables.of_runs(found))
    return 0 if whole else 1


def _report(parsed: argparse.Namespace, _: Sequence[str]) -> int:
    from gradkit.runner import compare, record

    first, *others = map(Path, parsed.runs)
    names = (record.CONFIG, record.ENV)
    if not others and any((first / name).is_file() for name in names):
        if parsed.out is not None:
            raise UserError("--out is for the page of several runs; that of one is in its folder")
        print(_write_report(first))
        return 0
    rows = compare.compared(compare.open_all(parsed.runs))
    default = Path("comparison.html") if others else first / "report.html"
    print(_write_comparison(rows, Path(parsed.out or default)))
    return 0


def _write_comparison(rows: Sequence[Row], path: Path) -> Path:
    from gradkit.report.comparison import write_comparison

    return write_comparison(rows, path)


def _write_report(folder: Path) -> Path:
    from gradkit.report.page import write_report
    from gradkit.runner.record import open_record

    return write_report(open_record(folder))


def _completion(parsed: argparse.Namespace, _: Sequence[str]) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["gradkit"], shell=parsed.shell))
    return 0


def _list(parsed: argparse.Namespace, _: Sequence[str]) -> int:
    from gradkit.runner import listing

    if parsed.json:
        print(json.dumps(listing.described(parsed.name), indent=2, ensure_ascii=False))
    else:
        print(listing.overview() if parsed.name is None else listing.entry(parsed.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
