"""The command line of the comparison: what is measured, and where results go."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.serving import environments
from benchmarks.serving.compare import FAILURES, Compared, Plan, compare, progress
from benchmarks.serving.connections import connections
from benchmarks.serving.contestants import Ours, contestants, lacking
from benchmarks.serving.h2load import LoadFailed, require_h2load
from benchmarks.serving.http2 import Broken
from benchmarks.serving.metrics_cost import metrics_cost
from benchmarks.serving.offered import offered_loads
from benchmarks.serving.open_loop import program
from benchmarks.serving.overload import NeverRefused, overload
from benchmarks.serving.passed_on import passed_on
from benchmarks.serving.process import cores
from benchmarks.serving.table import all_met, table
from model_repository import versions

RESULTS = Path(__file__).parent.parent / "results"
SECTIONS = ("compared", "load", "overload", "metrics", "passed_on", "connections")
QUICK_SECTIONS = ("compared", "overload", "metrics", "passed_on", "connections")
QUICK_SECONDS = 2.0
_PACKAGES = ("grpcio", "onnxruntime", "numpy")


class Results:
    """serving.json and serving.md in a directory; a section is replaced, the others are kept."""

    def __init__(self, directory: Path) -> None:
        # Now, before this process gives up all cores but one.
        self._machine = describe(_PACKAGES)
        self._json, self._table = directory / "serving.json", directory / "serving.md"
        directory.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {}
        if self._json.exists():
            self.record = json.loads(self._json.read_text(encoding="utf-8"))

    def save(self, section: str, found: dict[str, Any]) -> None:
        """Write both files anew."""
        # Through JSON, so that a table is made of the same whether it was just measured or read.
        self.record[section] = json.loads(json.dumps({"machine": self._machine, **found}))
        self._json.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
        self._table.write_text(table(self.record), encoding="utf-8")


def main() -> int:
    """Measure, write, print; 0 when no target is missed, 2 when nothing can be measured."""
    arguments = _parser().parse_args()
    if arguments.install_peers:
        environments.install(arguments.peers, importlib.metadata.version("onnxruntime"))
        return 0
    try:
        require_h2load()
        sections = arguments.only or (QUICK_SECTIONS if arguments.quick else SECTIONS)
        if {"load", "overload"} & set(sections):
            program()
        plan, ours = _plan(arguments)
    except (LoadFailed, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A SIGTERM ends the servers that run too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    results = Results(arguments.output)
    # What asks stays off the server's core: this process, and the load generators that it starts.
    os.sched_setaffinity(0, {plan.cores.load})
    failed = [name for name in sections if not _measure(name, plan, ours, arguments.peers, results)]
    print(table(results.record))
    if failed:
        what = f"{', '.join(failed)} failed: what the table has of them is older, or a part"
        print(f"error: {what}", file=sys.stderr)
    return 0 if all_met(results.record) and not failed else 1


def _measure(name: str, plan: Plan, ours: Ours, peers: Path, results: Results) -> bool:
    """One section; false where it failed, which does not keep the others from being measured."""
    progress(f"--- {name}")
    seconds = {"seconds": plan.seconds}

    def save(found: dict[str, Any]) -> None:
        results.save(name, seconds | found)

    try:
        match name:
            case "compared":
                facts = _facts(plan, ours, peers)
                compare(plan, lambda found: save(facts | _compared(found)))
            case "load":
                offered_loads(plan, lambda found: save({"servers": found}))
            case _ if lacking("native"):
                progress(f"{name} is left out: {lacking('native')}")
            case "overload":
                overload(ours, plan.models, plan.cores, plan.seconds, save)
            case "metrics":
                metrics_cost(
                    ours,
                    plan.models,
                    plan.cores,
                    plan.rounds,
                    plan.seconds,
                    lambda found: save({"models": found}),
                )
            case "passed_on":
                passed_on(
                    ours,
                    plan.cores,
                    plan.rounds,
                    plan.seconds,
                    lambda found: save({"calls": found}),
                )
            case "connections":
                connections(ours, plan.cores, plan.seconds, save)
    except (*FAILURES, NeverRefused, Broken, OSError, subprocess.SubprocessError) as error:
        progress(f"{name} failed: {error}")
        return False
    return True


def _plan(arguments: argparse.Namespace) -> tuple[Plan, Ours]:
    """ValueError for a model or contestant that does not exist."""
    repository = arguments.model_repository.resolve()
    for model in arguments.models:
        if not (repository / model).is_dir() or not versions(repository / model):
            raise ValueError(
                f"--model-repository: no {model} in {repository}; `python -m training"
                f" --models {','.join(arguments.models)} --model-repository DIR` publishes it"
            )
    options = tuple(shlex.split(arguments.server_options))
    ours = Ours(repository, options, arguments.noop_style)
    known = {each.name: each for each in contestants(ours, arguments.peers.resolve())}
    unknown = set(arguments.contestants or ()) - set(known)
    if unknown:
        raise ValueError(f"--contestants: {unknown.pop()!r} is not one of {', '.join(known)}")
    chosen = [known[name] for name in arguments.contestants or known]
    rounds, seconds = arguments.rounds, arguments.seconds
    if arguments.quick:
        rounds, seconds = 1, QUICK_SECONDS
        chosen = [replace(each, warm_up=QUICK_SECONDS) for each in chosen]
    tuning = not arguments.quick
    return Plan(repository, chosen, arguments.models, cores(), rounds, seconds, tuning), ours


def _facts(plan: Plan, ours: Ours, peers: Path) -> dict[str, Any]:
    """What the comparison was of, beside what it found."""
    installed = {
        peer: environments.versions(peers, peer)
        for peer in environments.PEERS
        if not environments.missing(peers, peer)
    }
    return {"h2load": require_h2load(), "peers": installed, "plan": _settings(plan, ours)}


def _settings(plan: Plan, ours: Ours) -> dict[str, Any]:
    served = [each for each in plan.repository.iterdir() if each.is_dir() and versions(each)]
    return {
        "models": list(plan.models),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "models_served": len(served),
        "noop_style": ours.noop_style,
        "server_options": list(ours.options),
    }


def _compared(found: Compared) -> dict[str, Any]:
    return {"tuning": found.tuning, "results": found.results, "skipped": found.skipped}


def _names(text: str) -> Sequence[str]:
    return tuple(text.split(","))


def _sections(text: str) -> Sequence[str]:
    if unknown := set(_names(text)) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"{unknown.pop()!r} is not one of {', '.join(SECTIONS)}")
    return _names(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Compare our server with its peers on one core; two cores and Debian's"
        " nghttp2-client are needed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model-repository", type=Path, default=Path("models"), metavar="DIR")
    parser.add_argument("--models", type=_names, default=("linear", "resnet18"), metavar="A,B")
    parser.add_argument("--contestants", type=_names, metavar="A,B", help="all where not given")
    parser.add_argument(
        "--peers", type=Path, default=Path("build/peers"), metavar="DIR", help="environments"
    )
    parser.add_argument("--install-peers", action="store_true", help="make those, and stop")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="per load")
    parser.add_argument(
        "--quick", action="store_true", help="1 round, 2 s, peers neither tuned nor warmed up"
    )
    parser.add_argument(
        "--only", type=_sections, metavar="A,B", help=f"of {', '.join(SECTIONS)}; quick: no load"
    )
    parser.add_argument("--noop-style", choices=("sync", "aio"), default="sync", help="as ours is")
    parser.add_argument(
        "--server-options", default="", metavar="TEXT", help="further flags of our server"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
