"""Which models are served, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Digits, publish_classifier, publish_echo

from serving.device import Runtime
from serving.errors import ModelNotFound, ModelNotReady, StartupError
from serving.metrics import Metrics
from serving.registry import Batching, ModelRegistry

RegistryOf = Callable[[Path], ModelRegistry]


@pytest.fixture
def registry_of(tmp_path_factory: pytest.TempPathFactory) -> RegistryOf:
    def registry(repository: Path) -> ModelRegistry:
        metrics = Metrics(tmp_path_factory.mktemp("counters"), "test")
        batching = Batching(max_batch_size=8, max_queue_delay=0, max_queue_size=8, instance_count=1)
        return ModelRegistry(repository, Runtime("cpu", "auto", 1), batching, metrics)

    return registry


def test_every_model_is_known_at_once_but_ready_only_when_loaded(
    registry_of: RegistryOf, repository: Path
) -> None:
    registry = registry_of(repository)
    heard: list[str] = []
    assert registry.names == ["classifier", "echo", "echo_fixed"]
    with pytest.raises(ModelNotReady, match="'echo' is still loading"):
        registry.get("echo")
    registry.load(heard.append)
    assert heard == ["classifier", "echo", "echo_fixed"]
    assert registry.get("echo").manifest.name == "echo"


def test_the_latest_version_is_served_by_no_version_and_by_its_own(
    registry_of: RegistryOf, tmp_path: Path, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    publish_classifier(tmp_path, digits)
    registry = registry_of(tmp_path)
    registry.load(lambda name: None)
    assert [registry.get("classifier", v).manifest.version for v in ("", "2")] == [2, 2]
    with pytest.raises(ModelNotFound, match="no version '1' here; version 2 is served"):
        registry.get("classifier", "1")
    with pytest.raises(ModelNotFound, match="model 'resnet' is unknown"):
        registry.get("resnet")


def test_a_corrupted_model_is_logged_in_one_line_and_the_others_are_served(
    registry_of: RegistryOf, tmp_path: Path, digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    broken = publish_classifier(tmp_path, digits, "broken")
    with (broken / "model.onnx").open("r+b") as stream:
        stream.write(b"garbage")
    publish_echo(tmp_path, "echo", (-1, 3))
    registry = registry_of(tmp_path)
    registry.load(lambda name: None)
    assert [served.manifest.name for served in registry.served] == ["echo"]
    with pytest.raises(ModelNotReady, match="'broken' could not be loaded"):
        registry.get("broken")
    (record,) = caplog.records
    assert record.getMessage().startswith("model broken is not served: ")
    assert "sha256 is" in record.getMessage()


def test_a_manifest_that_breaks_the_parser_keeps_no_other_model_away(
    registry_of: RegistryOf, tmp_path: Path, digits: Digits
) -> None:
    nested = publish_classifier(tmp_path, digits, "a_nested")
    (nested / "manifest.json").write_text("[" * 100_000)
    publish_classifier(tmp_path, digits, "b_vanishing")
    publish_echo(tmp_path, "echo", (-1, 3))
    registry = registry_of(tmp_path)
    (tmp_path / "b_vanishing").rename(tmp_path / ".gone")
    registry.load(lambda name: None)
    assert [served.manifest.name for served in registry.served] == ["echo"]
    for name in ("a_nested", "b_vanishing"):
        with pytest.raises(ModelNotReady, match="could not be loaded"):
            registry.get(name)


def test_a_version_under_another_name_is_not_served(
    registry_of: RegistryOf, tmp_path: Path, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits, "one").parent.rename(tmp_path / "other")
    registry = registry_of(tmp_path)
    registry.load(lambda name: None)
    with pytest.raises(ModelNotReady):
        registry.get("other")


def test_a_repository_that_is_missing_or_empty_cannot_be_served(
    registry_of: RegistryOf, tmp_path: Path
) -> None:
    with pytest.raises(StartupError, match="no such model repository"):
        registry_of(tmp_path / "nowhere")
    with pytest.raises(StartupError, match="holds no published model"):
        registry_of(tmp_path)
