"""components/object-store: its scripts, with a real rclone; a directory stands for the bucket.

`make deploy-lint` runs it; rclone must be on the PATH (Debian: rclone).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, publish_slow

SCRIPTS = ROOT / "deploy" / "kubernetes" / "components" / "object-store"


@dataclass(frozen=True, slots=True)
class Store:
    """A bucket, and what asks for it."""

    root: Path

    @property
    def bucket(self) -> Path:
        return self.root / "store" / "bucket"

    def run(self, script: str, models: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As a container runs it."""
        scratch = self.root / "tmp"
        scratch.mkdir(exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "REMOTE": "store:bucket",
            "MODELS": str(models),
            "SCRATCH": str(scratch),
            "RCLONE_CONFIG": str(self.root / "rclone.conf"),
        }
        return subprocess.run(
            ["/bin/sh", str(SCRIPTS / script), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    if not shutil.which("rclone"):
        pytest.fail("rclone is not on the PATH (Debian: apt-get install rclone)", pytrace=False)
    store = Store(tmp_path)
    store.bucket.mkdir(parents=True)
    (tmp_path / "rclone.conf").write_text(f"[store]\ntype = alias\nremote = {tmp_path / 'store'}\n")
    return store


def publish(models: Path, version: str) -> None:
    directory = models / version
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_text(version)
    (directory / "manifest.json").write_text(version)


def versions(models: Path) -> list[str]:
    """What a server would see; and nothing else may have been left."""
    files = (path.relative_to(models) for path in models.rglob("*") if path.is_file())
    return sorted({str(path.parent) for path in files})


def test_what_training_published_reaches_a_replica_whole(store: Store, tmp_path: Path) -> None:
    training, replica = tmp_path / "training", tmp_path / "replica"
    publish(training, "mlp/1")
    publish(training, "linear/1")
    publish(training, ".staging-x/1")  # not published yet
    (training / "mlp" / ".lock").touch()
    assert store.run("push.sh", training).returncode == 0
    replica.mkdir()
    assert store.run("pull.sh", replica, "once").returncode == 0
    assert versions(store.bucket) == versions(replica) == ["linear/1", "mlp/1"]
    assert (replica / "mlp/1/model.onnx").read_text() == "mlp/1"
    assert (replica / "mlp/1/manifest.json").read_text() == "mlp/1"


def test_a_version_without_its_manifest_is_not_there_yet(store: Store, tmp_path: Path) -> None:
    replica = tmp_path / "replica"
    publish(store.bucket, "mlp/1")
    publish(store.bucket, "mlp/2")
    (store.bucket / "mlp/2/manifest.json").unlink()
    store.run("pull.sh", replica, "once")
    assert versions(replica) == ["mlp/1"]
    (store.bucket / "mlp/2/manifest.json").write_text("mlp/2")
    store.run("pull.sh", replica, "once")
    assert versions(replica) == ["mlp/1", "mlp/2"]


def test_the_number_of_an_upload_that_was_cut_off_is_taken(store: Store, tmp_path: Path) -> None:
    training = tmp_path / "training"
    publish(store.bucket, "slow/1")
    (store.bucket / "slow/1/manifest.json").unlink()
    assert store.run("pull.sh", training, "once").returncode == 0
    assert publish_slow(training) == training / "slow/2"
    assert store.run("push.sh", training).returncode == 0
    assert store.run("pull.sh", training, "once").returncode == 0
    assert versions(store.bucket) == ["slow/1", "slow/2"]
    assert (training / "slow/2/manifest.json").exists()


def test_a_version_withdrawn_in_the_bucket_goes_and_keeps_its_number(
    store: Store, tmp_path: Path
) -> None:
    replica = tmp_path / "replica"
    publish(store.bucket, "mlp/1")
    publish(store.bucket, "mlp/2")
    store.run("pull.sh", replica, "once")
    (store.bucket / "mlp/2").rename(store.bucket / "mlp/.withdrawn-2")
    store.run("pull.sh", replica, "once")
    assert versions(replica) == ["mlp/.withdrawn-2", "mlp/1"]


def test_a_bucket_that_is_empty_or_away_takes_nothing(store: Store, tmp_path: Path) -> None:
    replica = tmp_path / "replica"
    publish(store.bucket, "mlp/1")
    store.run("pull.sh", replica, "once")
    shutil.rmtree(store.bucket / "mlp")
    assert store.run("pull.sh", replica, "once").returncode == 0
    assert versions(replica) == ["mlp/1"]
    store.bucket.rmdir()
    assert store.run("pull.sh", replica, "once").returncode != 0
    assert versions(replica) == ["mlp/1"]


def test_a_number_that_is_taken_is_never_given_other_content(store: Store, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    publish(one, "mlp/1")
    publish(other, "mlp/1")
    (other / "mlp/1/model.onnx").write_text("another model")
    assert store.run("push.sh", one).returncode == 0
    assert store.run("push.sh", other).returncode != 0
    assert (store.bucket / "mlp/1/model.onnx").read_text() == "mlp/1"
