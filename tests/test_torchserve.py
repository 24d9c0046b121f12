"""What of the TorchServe deployment needs no TorchServe: `make parity` runs the real one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Digits

from deploy.torchserve.archive import main, pack
from deploy.torchserve.handler import Handler
from deploy.torchserve.settings import setting
from model_repository import (
    TORCHSCRIPT_PLATFORM,
    Draft,
    RepositoryError,
    TensorSpec,
    Variant,
    publish,
    staging,
)
from training.export import outputs
from training.models import Classifier, build


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published TorchScript classifier of two classes, with random weights."""
    torch.manual_seed(0)
    classifier = Classifier(build("linear", 2, standardise=True), one_logit=False).eval()
    with staging(tmp_path_factory.mktemp("models")) as directory:
        torch.jit.script(classifier).save(str(directory / "model.pt"))
        variant = Variant("model.pt", TORCHSCRIPT_PLATFORM, "fp32", "")
        images = TensorSpec("images", "UINT8", (-1, 28, 28))
        draft = Draft("linear", (images,), outputs(2), (variant,), {"labels": ("3", "7")})
        return publish(directory, draft)


def test_a_batch_of_both_protocols_is_answered_as_the_file_itself_answers(
    version: Path, digits: Digits
) -> None:
    archived = {"serializedFile": "model.pt", "modelName": "linear", "modelVersion": "1"}
    context = SimpleNamespace(
        system_properties={"model_dir": str(version)}, manifest={"model": archived}
    )
    handler = Handler()
    handler.initialize(context)
    raw, typed = digits.images[:3], digits.images[3:5]
    tensor = {"name": "images", "datatype": "UINT8", "shape": [2, 28, 28]}
    body = {"id": "a", "inputs": [{**tensor, "data": typed.ravel().tolist()}]}
    first, second = handler.handle([{"images": bytearray(raw.tobytes())}, {"body": body}], context)
    module = torch.jit.load(version / "model.pt")
    probabilities, labels = (
        each.detach().numpy() for each in module(torch.from_numpy(digits.images[:5]))
    )
    assert first == probabilities[:3].tobytes()
    assert second == {
        "id": "a",
        "model_name": "linear",
        "model_version": "1",
        "outputs": [
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [2, 2],
                "data": probabilities[3:].ravel().tolist(),
            },
            {"name": "labels", "datatype": "INT64", "shape": [2], "data": labels[3:].tolist()},
        ],
    }


def test_a_file_that_is_not_what_was_published_is_not_packed(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "models" / "linear" / "1"
    directory.mkdir(parents=True)
    for file in version.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    with (directory / "model.pt").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(RepositoryError, match=r"model\.pt: sha256 is \w+, the manifest says"):
        pack(directory, tmp_path)
    store = tmp_path / "store"
    arguments = ["--model-repository", str(directory.parent.parent), "--model-store", str(store)]
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert list(store.iterdir()) == []
    assert main([*arguments, "--models", "nobody"]) == 1
    assert "nobody: no version" in capsys.readouterr().err


def test_a_setting_is_the_environments_before_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TS_MANAGEMENT_ADDRESS", raising=False)
    assert setting("management_address") == "http://127.0.0.1:8081"
    monkeypatch.setenv("TS_MANAGEMENT_ADDRESS", "http://127.0.0.1:9")
    assert setting("management_address") == "http://127.0.0.1:9"


def test_nothing_but_loopback_is_listened_on_unless_it_is_told_to() -> None:
    names = ("inference", "management", "metrics")
    assert all(setting(f"{name}_address").startswith("http://127.0.0.1:") for name in names)
    assert {setting(f"grpc_{name}_address") for name in names[:2]} == {"127.0.0.1"}
    assert setting("enable_model_api") == "false"
