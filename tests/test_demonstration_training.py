"""`python -m deploy.train`: what stops it. What it trains, `make compose-test` and `make demo` see."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.train import main


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
