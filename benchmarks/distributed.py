"""Training by several processes against one: ``python -m benchmarks.distributed``.

Trains threes against sevens of MNIST through the command line, alone and under torchrun, and holds
accuracy and seconds side by side. Processes share this machine's cores: what is shown is that the
result stays, and what it costs, not what more machines would gain.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import describe, sentence
from model_repository import read_manifest

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Result:
    """One model by so many processes, a value per seed."""

    model: str
    processes: int
    accuracies: list[float]  # of the published model, on the validation images
    training_seconds: list[float]
    command_seconds: list[float]  # with imports, export, parity and publishing
    load: list[float]  # the machine's average of the last minute, at the end


def main() -> int:
    """Measure, print, write distributed.json and distributed.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MNIST_DIR"))
    parser.add_argument("--models", default="linear,mlp,mlp_deep")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="directory, default %(default)s"
    )
    arguments = parser.parse_args()
    machine = describe(("torch", "numpy"))
    results = [
        measure(model, int(processes), arguments.seeds, arguments.data_dir)
        for model in arguments.models.split(",")
        for processes in arguments.processes.split(",")
    ]
    text = table(results, machine)
    print(text)
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "results": [asdict(result) for result in results]}
    (arguments.output / "distributed.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.output / "distributed.md").write_text(text)
    return 0


def measure(model: str, processes: int, seeds: int, data_dir: Path | None) -> Result:
    """Train with seeds 0 to seeds - 1."""
    result = Result(model, processes, [], [], [], [])
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as repository:
            start = time.perf_counter()
            _train(model, processes, seed, data_dir, Path(repository))
            result.command_seconds.append(time.perf_counter() - start)
            result.load.append(os.getloadavg()[0])
            manifest = read_manifest(Path(repository) / model / "1")
        assert manifest.accuracy is not None
        assert manifest.recipe is not None
        result.accuracies.append(manifest.accuracy)
        result.training_seconds.append(float(str(manifest.recipe["seconds"])))
    return result


def _train(model: str, processes: int, seed: int, data_dir: Path | None, repository: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "training"]
    command += ["--dataset", "mnist", "--models", model, "--seed", str(seed)]
    command += ["--model-repository", str(repository)]
    command += ["--data-dir", str(data_dir)] if data_dir else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # what torchrun sets, so alike for one
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def table(results: list[Result], machine: dict[str, object]) -> str:
    """Markdown of all that was measured."""
    head = ["model", "processes", "seeds", "accuracy, mean", "min", "max"]
    head += ["seconds of training", "seconds of the command", "load"]
    lines = [
        "# Training by several processes",
        "",
        f"`python -m benchmarks.distributed` on {sentence(machine)}",
        "",
        "Threes against sevens of MNIST, the best recipes, one thread per process, gloo on one",
        "machine. Accuracy is the published models', seconds are medians over the seeds. The batch",
        "is the recipe's, whatever the number of processes: as many steps, over the same rows.",
        "Where the load, an average of a minute, is above the cores, others ran too: the seconds",
        "say nothing then, the accuracies do.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *[_row(result) for result in results],
        "",
    ]
    return "\n".join(lines)


def _row(result: Result) -> str:
    a = result.accuracies
    cells = [result.model, str(result.processes), str(len(a))]
    cells += [f"{value:.4f}" for value in (statistics.mean(a), min(a), max(a))]
    cells += [f"{statistics.median(result.training_seconds):.1f}"]
    cells += [f"{statistics.median(result.command_seconds):.1f}"]
    cells += [f"{statistics.median(result.load):.1f}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
