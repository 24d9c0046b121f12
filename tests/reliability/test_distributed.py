"""Several processes started by torchrun train what one process trains, and end together."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed_run
import pytest
import torch

from model_repository import read_manifest, versions
from training.__main__ import main
from training.config import ConfigError
from training.dataset import Dataset
from training.distributed import ALONE, World, world_of
from training.recipes import recipe_for
from training.run import train

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 240.0
PROCESSES = 3
EPOCHS = 90  # their rows fill more than a page, beyond which an unread pipe stops who writes
PAGE = 4096


def torchrun(processes: int, *arguments: str) -> subprocess.Popen[str]:
    """`torchrun` on free ports, several of which can run side by side."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What three processes made together, by rank."""
    directory = tmp_path_factory.mktemp("made")
    run = torchrun(PROCESSES, str(Path(distributed_run.__file__)), str(directory))
    output, _ = run.communicate(timeout=TIMEOUT)
    assert run.returncode == 0, output
    return [torch.load(directory / f"{rank}.pt") for rank in range(PROCESSES)]


def assert_close(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal but for the order in which floats were added."""
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", distributed_run.RECIPES)
def test_processes_end_with_the_weights_and_losses_of_one_process(
    made: list[dict[str, Any]], model: str
) -> None:
    alone = distributed_run.trained(model, distributed_run.digits())
    for together in made:
        assert_close(together[model], alone)


def test_batch_normalisation_takes_the_rows_of_all_processes(made: list[dict[str, Any]]) -> None:
    alone = distributed_run.resnet_gradients()
    for together in made:
        assert_close(together["resnet18"], alone)


def test_all_hear_what_rank_0_found(made: list[dict[str, Any]]) -> None:
    assert [each["told"] for each in made] == ["by 0"] * PROCESSES


def test_no_thread_of_the_group_is_left_to_abort_the_interpreter(
    made: list[dict[str, Any]],
) -> None:
    assert [each["threads_left"] for each in made] == [[]] * PROCESSES


def command(repository: Path, *models: str) -> list[str]:
    """Training of the bundled digits, resuming where there is something to resume."""
    where = ["--dataset", "digits", "--model-repository", str(repository)]
    how = ["--models", ",".join(models), "--epochs", str(EPOCHS), "--resume"]
    return ["-m", "training", *where, *how]


def rank_of(pid: str) -> str | None:
    """The rank of a process that torchrun started."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(item.split("=", 1) for item in variables if "=" in item).get("RANK")


def kill_rank(launcher: int, rank: int) -> None:
    """End one of torchrun's processes, as a lack of memory would."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (pid,) = (child for child in children if rank_of(child) == str(rank))
    os.kill(int(pid), signal.SIGKILL)


def epochs_of(output: str) -> list[int]:
    """The epochs of which a row was printed."""
    return [int(number) for number in re.findall(r"^ +(\d+) ", output, re.MULTILINE)]


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that is over."""

    repository: Path
    status: int
    output: str


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run of two processes, of which rank 1 was killed in its third epoch or soon after."""
    repository = tmp_path_factory.mktemp("repository")
    run = torchrun(2, *command(repository, "linear"))
    assert run.stdout is not None
    fcntl.fcntl(run.stdout, fcntl.F_SETPIPE_SZ, PAGE)  # so that it cannot end before it is killed
    lines = []
    for line in run.stdout:
        lines.append(line)
        if re.match(r" +2 ", line):
            kill_rank(run.pid, 1)
            break
    output, _ = run.communicate(timeout=TIMEOUT)
    return Ended(repository, run.returncode, "".join(lines) + output)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_which_publishes_nothing(killed: Ended) -> None:
    assert killed.status == 1
    assert epochs_of(killed.output)[-1] < EPOCHS
    assert "published" not in killed.output
    assert [path.name for path in killed.repository.iterdir()] == [".checkpoints"]


@pytest.mark.slow
def test_the_run_resumes_and_publishes_once_what_one_process_would_have(
    killed: Ended, digits_3_7: Dataset
) -> None:
    run = torchrun(2, *command(killed.repository, "linear"))
    output, _ = run.communicate(timeout=TIMEOUT)
    assert run.returncode == 0, output
    before, after = epochs_of(killed.output), epochs_of(output)
    assert before[-1] <= after[0] <= before[-1] + 1  # the row comes before the checkpoint
    assert after == list(range(after[0], EPOCHS + 1))  # each row once: only rank 0 shows
    assert output.count("published") == 1
    assert versions(killed.repository / "linear") == [1]
    alone = train(
        "linear",
        "best",
        recipe_for("linear", "best", 2),
        digits_3_7,
        seed=0,
        observer=distributed_run.Silent(),
        epochs=EPOCHS,
    )
    published = killed.repository / "linear" / "1"
    network = torch.jit.load(published / "model.pt")
    assert_close(dict(network.state_dict()), dict(alone.classifier.state_dict()))
    manifest = read_manifest(published)
    assert manifest.accuracy == alone.recorder.epochs[-1].accuracy
    assert manifest.recipe is not None
    assert manifest.recipe["processes"] == 2


@pytest.mark.parametrize(("size", "rows"), [(1, 5), (2, 7), (3, 2), (4, 64)])
def test_the_parts_of_a_batch_are_all_of_it_and_differ_by_one_row_at_most(
    size: int, rows: int
) -> None:
    parts = [list(range(rows))[World(rank, size).part(rows)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sum(World(size=size).weight(len(part), rows) for part in parts) == pytest.approx(size)


def test_without_torchrun_there_is_one_process() -> None:
    assert world_of({"WORLD_SIZE": "4"}) == world_of({}) == ALONE
    found = world_of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (found.rank, found.size, found.local_rank, found.leads) == (5, 8, 1, False)


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("0", "0"), ("0", "two")])
def test_variables_that_make_no_sense_are_refused_by_value(rank: str, size: str) -> None:
    with pytest.raises(ConfigError, match=f"RANK={rank} of WORLD_SIZE={size}: start with torchrun"):
        world_of({"RANK": rank, "WORLD_SIZE": size})


def test_an_import_is_refused_to_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["import", str(tmp_path / "x.onnx"), "--name", "x"]
    assert main([*arguments, "--model-repository", str(tmp_path)]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
