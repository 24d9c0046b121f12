"""Which versions requests are routed to, and what is said of those that are not served."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import publish_times

from model_repository import read_manifest
from serving import model
from serving.config import ServerConfig
from serving.device import Runtime
from serving.errors import ModelNotFound, ModelNotReady
from serving.metrics import Metrics
from serving.registry import ModelRegistry, ServedModel, State, VersionState

Serve = Callable[[int], ServedModel]


@pytest.fixture
def times(tmp_path: Path) -> Serve:
    """Loads a version of `times`; there are three."""
    versions = [publish_times(tmp_path / "models") for _ in range(3)]
    (tmp_path / "counters").mkdir()
    metrics = Metrics(tmp_path / "counters", "test")

    def served(version: int) -> ServedModel:
        directory = versions[version - 1]
        loaded = model.load(directory, read_manifest(directory), Runtime("cpu", "fp32", 1))
        return ServedModel(loaded, ServerConfig(), metrics.model("times", version))

    return served


def test_the_highest_number_is_the_latest_whatever_came_last(times: Serve) -> None:
    registry = ModelRegistry()
    for version in (2, 3, 1):
        assert registry.add(times(version)) is None
    assert [registry.get("times", v).version for v in ("", "1", "2", "3")] == ["3", "1", "2", "3"]
    assert registry.versions("times") == [1, 2, 3]
    assert [each.version for each in registry.served] == ["1", "2", "3"]
    removed = registry.remove("times", 3)
    assert removed is not None
    assert (removed.version, registry.get("times").version) == ("3", "2")
    assert registry.remove("times", 3) is None


def test_a_version_added_again_takes_the_place_of_the_one_before(times: Serve) -> None:
    registry = ModelRegistry()
    first, again = times(1), times(1)
    registry.add(first)
    assert registry.add(again) is first
    assert registry.get("times") is again
    assert not registry.retired("times", 1, "was replaced")
    assert registry.index == [VersionState("times", 1, State.READY)]


def test_what_is_not_served_is_told_by_its_state(times: Serve) -> None:
    registry = ModelRegistry()
    registry.note("times", 1, State.LOADING)
    with pytest.raises(ModelNotReady, match="'times' version 1 is still loading"):
        registry.get("times")
    registry.note("times", 1, State.UNAVAILABLE, "it is broken")
    with pytest.raises(ModelNotReady, match="'times' version 1 is not served: it is broken"):
        registry.get("times", "1")
    registry.add(times(2))
    with pytest.raises(ModelNotFound, match="'times' has no version '9' here; served: 2"):
        registry.get("times", "9")
    registry.remove("times", 2)
    with pytest.raises(ModelNotReady, match="'times' version 2 is being unloaded"):
        registry.get("times")
    assert registry.retired("times", 2, "was unloaded")
    assert registry.index_of("times") == [
        VersionState("times", 1, State.UNAVAILABLE, "it is broken"),
        VersionState("times", 2, State.UNAVAILABLE, "was unloaded"),
    ]
    for version in (1, 2):
        registry.forget("times", version)
    with pytest.raises(ModelNotFound, match="model 'times' is unknown"):
        registry.get("times")
    assert registry.index == []


def test_one_that_is_served_stays_ready_whatever_becomes_of_its_files(times: Serve) -> None:
    registry = ModelRegistry()
    registry.add(times(1))
    registry.note("times", 1, State.UNAVAILABLE, "sha256 is another")
    assert registry.index == [VersionState("times", 1, State.READY, "sha256 is another")]
    assert registry.get("times", "1").version == "1"


def test_one_that_was_forgotten_while_it_was_retired_stays_so(times: Serve) -> None:
    registry = ModelRegistry()
    registry.add(times(1))
    registry.remove("times", 1)
    registry.forget("times", 1)
    assert registry.retired("times", 1, "left the repository")
    assert registry.index == []


def test_whoever_listens_hears_of_new_models_and_of_changes(times: Serve) -> None:
    heard: list[tuple[str, bool]] = []
    registry = ModelRegistry(lambda name, served: heard.append((name, served)))
    registry.note("times", 1, State.LOADING)
    registry.note("times", 1, State.UNAVAILABLE, "it is broken")
    for version in (1, 2):
        registry.add(times(version))
    for version in (1, 2):
        registry.remove("times", version)
    assert heard == [("times", each) for each in (False, True, True, True, False)]


def test_a_model_whose_rows_cannot_be_shared_is_served_one_request_at_a_time(times: Serve) -> None:
    loaded = times(1)
    model = dataclasses.replace(loaded.model, batchable=False)
    single = ServedModel(model, ServerConfig(), loaded.metrics)
    assert (single.max_batch_size, loaded.max_batch_size) == (0, 64)
    single.batcher.close(1.0)
