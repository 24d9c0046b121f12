"""`python -m deploy.train`: what stops it, and what it keeps; `make demo` sees what it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Digits, publish_classifier

from deploy.train import main
from model_repository import versions


def test_the_first_failure_ends_it_with_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, nowhere = tmp_path / "models", tmp_path / "nowhere"
    options = ["--dataset", "mnist", "--data-dir", str(nowhere)]
    assert main(["--model-repository", str(repository), *options]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("error: ")) == ("", 1)
    assert str(nowhere) in said.err
    assert not repository.exists()


def test_a_good_version_is_kept_whoever_made_it_and_a_broken_one_is_not(
    tmp_path: Path, digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_classifier(tmp_path, digits, "linear")
    second = publish_classifier(tmp_path, digits, "linear")
    publish_classifier(tmp_path, digits, "mlp_0_9")
    options = ["--models", "linear", "--ten-digits", "mlp", "--keep", "good"]
    options += ["--dataset", "mnist", "--data-dir", str(tmp_path / "nowhere")]
    assert main(["--model-repository", str(tmp_path), *options]) == 0
    assert capsys.readouterr().out == f"kept {second}\nkept {tmp_path / 'mlp_0_9' / '1'}\n"
    model = second / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    assert main(["--model-repository", str(tmp_path), *options]) == 2  # it would have trained
    assert versions(tmp_path / "linear") == [1, 2]
