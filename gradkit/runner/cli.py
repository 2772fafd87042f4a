"""The command line: run, spectrum, report, list."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gradkit import __version__
from gradkit.runner.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0 when it did what was asked, 1 when a run diverged, 2 for a mistake in the input, 130 when
    interrupted.
    """
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if "overrides" in parsed and not any(word.startswith("-") for word in rest):
        parsed.overrides += rest  # those that follow an option
    elif rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        return parsed.action(parsed)
    except UserError as error:
        print(f"gradkit: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"gradkit: needs the package {error.name}: pip install 'gradkit[experiments]'",
            file=sys.stderr,
        )
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"gradkit: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gradkit: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradkit", description="Train from a config file, then read the Hessian's spectrum."
    )
    parser.add_argument("--version", action="version", version=f"gradkit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train a model from a config file")
    run.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file")
    run.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="values to change, such as optimizer.learning_rate=1e-3",
    )
    run.add_argument("--out", metavar="FOLDER", help="run folder; runs/NAME by default")
    run.add_argument("--resume", metavar="RUN", help="go on with a run from its last checkpoint")
    run.set_defaults(action=_run)

    spectrum = commands.add_parser("spectrum", help="Hessian spectrum of a trained run")
    spectrum.add_argument("run", metavar="RUN", help="a run folder")
    spectrum.set_defaults(action=_spectrum)

    report = commands.add_parser("report", help="write a run's plots and report.html again")
    report.add_argument("run", metavar="RUN", help="a run folder")
    report.set_defaults(action=_report)

    names = commands.add_parser("list", help="what a config can name, or one name in full")
    names.add_argument("name", nargs="?", metavar="NAME", help="such as adam")
    names.set_defaults(action=_list)
    return parser


def _run(parsed: argparse.Namespace) -> int:
    if (parsed.config is None) == (parsed.resume is None):
        raise UserError("run takes either a CONFIG file or --resume RUN")
    if parsed.resume is not None:
        if parsed.out is not None:
            raise UserError("--out names a new run folder; --resume goes on in its own")
        from gradkit.runner import train

        folder = Path(parsed.resume)
        return _conclude(folder, train.resume(folder))
    from gradkit.runner.config import load

    config = load(parsed.config, parsed.overrides)
    folder = Path(parsed.out or Path("runs") / config.name)

    from gradkit.runner import train

    return _conclude(folder, train.begin(config, folder, command=["gradkit", *sys.argv[1:]]))


def _conclude(folder: Path, summary: dict) -> int:
    page = _write_report(folder)
    if summary["status"] == "diverged":
        print(
            f"gradkit: the loss became NaN or infinite by step {summary['steps']}. Lower "
            f"optimizer.learning_rate or clip the gradient; what happened is in {page}",
            file=sys.stderr,
        )
        return 1
    print(
        f"test accuracy {summary['test_accuracy']:.4f}, test loss {summary['test_loss']:.4f} "
        f"after {summary['steps']} steps in {summary['seconds']:.1f} s\n{page}"
    )
    return 0


def _spectrum(parsed: argparse.Namespace) -> int:
    from gradkit.runner import record, spectrum

    folder = Path(parsed.run)
    record.open_record(folder)
    print(spectrum.table(spectrum.compute(folder)))
    print(_write_report(folder))
    return 0


def _report(parsed: argparse.Namespace) -> int:
    print(_write_report(Path(parsed.run)))
    return 0


def _write_report(folder: Path) -> Path:
    from gradkit.report.page import write_report
    from gradkit.runner.record import open_record

    return write_report(open_record(folder))


def _list(parsed: argparse.Namespace) -> int:
    from gradkit.runner import listing

    print(listing.overview() if parsed.name is None else listing.entry(parsed.name))
    return 0
