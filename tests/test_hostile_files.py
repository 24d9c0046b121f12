"""Files that somebody made to do harm, given to training and to TorchServe's packer: refused in one
line, nothing published, and nothing run of what is in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_times
from hostile import (
    HOLDOUTS,
    HUGE,
    MODELS,
    ROWS,
    archive,
    external,
    npy,
    npz,
    opened,
    referring,
    weights_file,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.torchserve.archive import pack
from model_repository import (
    ONNX_PLATFORM,
    TORCHSCRIPT_PLATFORM,
    Draft,
    RepositoryError,
    TensorSpec,
    Variant,
    publish,
    staging,
    versions,
)
from training.__main__ import main
from training.checkpoint import Checkpoint, CheckpointError
from training.dataset import DataError
from training.holdout import read_holdout

X, Y = TensorSpec("x", "FP32", (-1, 1)), TensorSpec("y", "FP32", (-1, 1))


class Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


Refuse = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Import what cannot be: the one line of error. Nothing must be published or left behind."""

    def refuse(*more: object, source: Path = tmp_path) -> str:
        repository = tmp_path / "models"
        arguments = ["import", source / "model.onnx", "--name", "hostile", *more]
        arguments += ["--model-repository", repository]
        assert main([str(argument) for argument in arguments]) == 2
        assert not list(repository.glob("*"))
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error.removeprefix("error: ")

    return refuse


# Models


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_is_not_imported(name: str, tmp_path: Path, refusal: Refuse) -> None:
    made, _ = MODELS[name]
    content = made if isinstance(made, bytes) else made.SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content)
    refusal()


def test_a_pipe_is_no_model(tmp_path: Path, refusal: Refuse) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    assert "is not a regular file" in refusal()


@pytest.mark.parametrize("place", ["above", "absolute", "link", "pipe"])
@pytest.mark.parametrize("where", ["graph", "node", "inner graph", "function"])
def test_weights_from_outside_the_models_folder_are_not_imported(
    place: str, where: str, tmp_path: Path, refusal: Refuse
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    weights_file(outside / "secret.bin")
    source = tmp_path / "source"
    source.mkdir()
    names = {"above": "../outside/secret.bin", "absolute": str(outside / "secret.bin")}
    if place == "link":
        (source / "w.bin").symlink_to(outside / "secret.bin")
    if place == "pipe":
        os.mkfifo(source / "w.bin")
    made = referring(where, external(names.get(place, "w.bin")))
    (source / "model.onnx").write_bytes(made.SerializeToString())
    with opened(outside) as seen:
        refusal(source=source)
    assert not seen


# Holdouts


@pytest.mark.parametrize("name", HOLDOUTS)
def test_a_hostile_holdout_is_not_imported(name: str, tmp_path: Path, refusal: Refuse) -> None:
    save_times(tmp_path / "model.onnx", 2)
    (tmp_path / "rows.npz").write_bytes(HOLDOUTS[name][0])
    assert "cannot be read as an .npz" in refusal("--holdout", tmp_path / "rows.npz")


def test_a_pipe_is_no_holdout(tmp_path: Path, refusal: Refuse) -> None:
    save_times(tmp_path / "model.onnx", 2)
    os.mkfifo(tmp_path / "rows.npz")
    assert "is a named pipe" in refusal("--holdout", tmp_path / "rows.npz")


def test_a_pickle_in_a_holdout_is_not_opened(tmp_path: Path, refusal: Refuse) -> None:
    save_times(tmp_path / "model.onnx", 2)
    trap = np.array([Trap(tmp_path / "sprung")], object)
    (tmp_path / "rows.npz").write_bytes(npz(x=trap, labels=trap))
    refusal("--holdout", tmp_path / "rows.npz")
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").is_dir()  # so would it have been


def test_a_member_of_a_holdout_that_is_a_path_is_not_written(
    tmp_path: Path, refusal: Refuse
) -> None:
    save_times(tmp_path / "model.onnx", 2)
    member = npy(HUGE % 1, bytes(8))
    (tmp_path / "rows.npz").write_bytes(archive({"../../escaped.npy": member, "/x.npy": member}))
    assert "its arrays are ['../../escaped', '/x']" in refusal("--holdout", tmp_path / "rows.npz")
    assert not list(tmp_path.parent.rglob("escaped*"))


@settings(max_examples=150)
@given(data=st.data())
def test_of_any_bytes_for_a_holdout_there_is_a_value_or_a_declared_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(ROWS)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "rows.npz"
    path.write_bytes(content)
    with suppress(DataError):
        read_holdout(path, (X,), 0)


# Checkpoints and TorchScript, which run what is in them where they are not held back


@pytest.mark.parametrize("whole", [False, True])
def test_a_checkpoint_that_is_a_program_is_refused_unrun(tmp_path: Path, whole: bool) -> None:
    path, trap = tmp_path / "mlp.checkpoint", Trap(tmp_path / "sprung")
    if whole:
        path.write_bytes(pickle.dumps(trap))
    else:
        torch.save({"run": {}, "state": trap}, path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        Checkpoint(path, {}).load()
    assert not (tmp_path / "sprung").exists()


def test_torchserve_packs_only_what_was_hashed(tmp_path: Path) -> None:
    """The hash is of the very copy that the packer is given; nothing else reads the file."""
    with staging(tmp_path) as hidden:
        save_times(hidden / "model.onnx", 2)
        (hidden / "model.pt").write_bytes(b"as it was published")
        variants = (
            Variant("model.onnx", ONNX_PLATFORM, "fp32", ""),
            Variant("model.pt", TORCHSCRIPT_PLATFORM, "fp32", ""),
        )
        directory = publish(hidden, Draft("times", (X,), (Y,), variants))
    assert versions(tmp_path / "times") == [1]
    (tmp_path / "store").mkdir()
    script = directory / "model.pt"
    spoilers: dict[str, Callable[[Path], object]] = {
        "the manifest says": lambda path: path.write_bytes(b"something else"),
        "is a named pipe": os.mkfifo,
        "Is a directory": os.mkdir,
    }
    for why, spoil in spoilers.items():
        script.unlink()
        spoil(script)
        with pytest.raises((RepositoryError, OSError), match=why):
            pack(directory, tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())
