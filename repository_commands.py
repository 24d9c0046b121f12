"""``python -m model_repository``: the command line; the only part of the repository that prints."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from model_repository import (
    RepositoryError,
    faults,
    read_manifest,
    version_directories,
)
from repository_upkeep import prune, rollback, undo_rollback

STALE_HOURS = 24.0  # far beyond the longest export; a publisher at work writes within minutes


def _ls(directories: list[Path]) -> int:
    print(f"{'model':<24}{'version':>8}  {'accuracy':>8}  {'dataset':<14}{'variants'}")
    for directory in directories:
        manifest = read_manifest(directory)
        accuracy = "-" if manifest.accuracy is None else f"{manifest.accuracy:.4f}"
        dataset = manifest.dataset.name if manifest.dataset else "-"
        variants = ", ".join(f"{v.file} ({v.precision})" for v in manifest.variants)
        print(f"{manifest.name:<24}{manifest.version:>8}  {accuracy:>8}  {dataset:<14}{variants}")
    return 0


def _show(directories: list[Path]) -> int:
    for directory in directories:
        print(json.dumps(dataclasses.asdict(read_manifest(directory)), indent=2))
    return 0


def _verify(directories: list[Path]) -> int:
    results = {directory: faults(directory) for directory in directories}
    # Withdrawn or pruned since they were listed: no fault of theirs.
    present = {directory: found for directory, found in results.items() if directory.exists()}
    for directory, found in present.items():
        print(f"{'ok     ' if not found else 'FAULTY '} {directory}")
        for fault in found:
            print(f"        {fault}")
    return 1 if any(present.values()) else 0


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 fine, 1 a fault found, 2 unusable or refused."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.function(arguments))
    except (RepositoryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_repository", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    looking = {
        "ls": (_ls, "list models, versions, precisions and accuracies"),
        "show": (_show, "print manifests as JSON, one document per version"),
        "verify": (_verify, "re-hash every file against its manifest"),
    }
    for name, (look, text) in looking.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", type=Path, help="a repository, a model or one version of it")
        command.set_defaults(function=lambda arguments, look=look: look(_published(arguments.path)))
    _add_rollback(commands)
    _add_prune(commands)
    return parser


def _add_rollback(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "withdraw a model's newest version; servers that poll go back to the one before"
    command = commands.add_parser("rollback", help=text, description=text)
    command.add_argument("path", type=Path, help="a model: PATH/MODEL")
    command.add_argument(
        "--undo", action="store_true", help="bring back the version withdrawn last, instead"
    )
    command.set_defaults(function=_rollback)


def _add_prune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "delete old versions, and what killed publishers left behind"
    command = commands.add_parser("prune", help=text, description=text)
    command.add_argument("path", type=Path, help="a repository or a model")
    command.add_argument(
        "--keep", type=_at_least_one, required=True, metavar="K", help="versions to keep of a model"
    )
    command.add_argument(
        "--stale-hours",
        type=_hours,
        default=STALE_HOURS,
        metavar="H",
        help="hours since the last write after which a staging directory of a repository is taken"
        " for abandoned, at least 1 (default: %(default)g)",
    )
    command.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    command.set_defaults(function=_prune)


def _rollback(arguments: argparse.Namespace) -> int:
    (undo_rollback if arguments.undo else rollback)(arguments.path, print)
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    keep, hours = arguments.keep, arguments.stale_hours
    prune(arguments.path, keep, hours, print, dry_run=arguments.dry_run)
    return 0


def _published(path: Path) -> list[Path]:
    directories = version_directories(path)
    if not directories:
        raise RepositoryError(f"{path}: holds no published version")
    return directories


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not hours >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours from 1")
    return hours
