"""Which versions are served, by mode and policy, whatever happens to the repository meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import (
    IMAGES,
    LIFETIME,
    PATIENCE,
    ROOT,
    Digits,
    Running,
    once_within,
    publish_classifier,
    publish_model,
    publish_proven,
    publish_times,
    running_server,
    save_times,
    times_request,
    under_load,
    until,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from model_repository import ONNX_PLATFORM, TensorSpec, Variant
from serving.config import ServerConfig
from serving.errors import StartupError
from serving.pb import inference_pb2 as pb
from serving.server import Server

CODE = grpc.StatusCode
HEALTH = health_pb2.HealthCheckResponse
NEVER = 3600.0  # seconds: the test polls itself


def polled(repository: Path, **options: object) -> AbstractContextManager[Running]:
    return running_server(repository, **{"poll_interval": NEVER, **options})


def explicit(repository: Path, **options: object) -> AbstractContextManager[Running]:
    return running_server(
        repository, model_control_mode="explicit", **{"allow_admin": True, **options}
    )


def poll(running: Running) -> None:
    running.server.inference.control.poll()


def served(running: Running) -> dict[str, list[int]]:
    names = {state.name for state in running.server.inference.registry.index}
    versions = {name: running.server.inference.registry.versions(name) for name in sorted(names)}
    return {name: numbers for name, numbers in versions.items() if numbers}


def index(running: Running) -> dict[tuple[str, str], tuple[str, str]]:
    models = running.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    return {(each.name, each.version): (each.state, each.reason) for each in models}


def answering(running: Running, name: str = "times", version: str = "") -> str:
    answer = running.stub.ModelInfer(times_request(2, name=name, version=version), timeout=PATIENCE)
    return f"{answer.model_version}: {np.frombuffer(answer.raw_output_contents[0], np.float32)[0]}"


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def load(running: Running, name: str) -> None:
    running.stub.RepositoryModelLoad(
        pb.RepositoryModelLoadRequest(model_name=name), timeout=PATIENCE
    )


def unload(running: Running, name: str) -> None:
    running.stub.RepositoryModelUnload(
        pb.RepositoryModelUnloadRequest(model_name=name), timeout=PATIENCE
    )


def failures(running: Running) -> dict[tuple[str, str, str], float]:
    """By model, version and reason."""
    text = urllib.request.urlopen(running.metrics_url, timeout=PATIENCE).read().decode()
    return {
        (s.labels["model"], s.labels["version"], s.labels["reason"]): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name == "inference_model_load_failures_total"
    }


def tamper(version: Path) -> bytes:
    """Change a byte of the model file in place; what it was before."""
    path = version / "model.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return content


def upkeep(*arguments: object) -> None:
    command = [sys.executable, "-m", "model_repository", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE)


# Poll


def test_a_new_version_is_served_within_the_poll_interval_and_the_old_one_retired(
    tmp_path: Path,
) -> None:
    publish_times(tmp_path)
    with running_server(tmp_path, poll_interval=0.5) as running:
        assert answering(running) == "1: 2.0"

        def seconds_until_served() -> float:
            number = publish_times(tmp_path).name
            published = time.monotonic()
            until(lambda: answering(running) == f"{number}: {2.0 * int(number)}")
            return time.monotonic() - published

        assert once_within(2.5, seconds_until_served)  # loading takes a part of it
        code, details = refusal(lambda: answering(running, version="1"))
        assert code in (CODE.UNAVAILABLE, CODE.NOT_FOUND), details


def test_requests_in_flight_finish_on_the_version_that_they_were_admitted_to(
    tmp_path: Path,
) -> None:
    publish_times(tmp_path)
    with polled(tmp_path, max_queue_delay=LIFETIME, max_batch_size=8) as running:
        old = running.server.inference.registry.get("times")
        waiting = [running.stub.ModelInfer.future(times_request(3)) for _ in range(3)]
        while old.batcher.pending < 3:
            running.stub.ServerLive(pb.ServerLiveRequest())
        publish_times(tmp_path)
        poll(running)
        new = running.stub.ModelInfer.future(times_request(*range(8)))  # a full batch: no delay
        assert new.result(timeout=PATIENCE).model_version == "2"
        assert [each.result(timeout=PATIENCE).model_version for each in waiting] == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("policy", "versions"),
    [("latest:1", [4]), ("latest:2", [3, 4]), ("all", [1, 2, 3, 4]), ("specific:1,3,9", [1, 3])],
)
def test_the_version_policy_says_which_versions_are_served(
    tmp_path: Path, policy: str, versions: list[int]
) -> None:
    for _ in range(3):
        publish_times(tmp_path)
    with polled(tmp_path, version_policy=policy) as running:
        publish_times(tmp_path)
        poll(running)
        assert served(running) == {"times": versions}
        assert answering(running).startswith(f"{versions[-1]}:")
        for version in versions:
            assert answering(running, version=str(version)) == f"{version}: {2.0 * version}"


def broken_manifest(repository: Path, digits: Digits) -> None:
    (publish_classifier(repository, digits, "proven") / "manifest.json").write_text("[" * 100_000)


def broken_checksum(repository: Path, digits: Digits) -> None:
    tamper(publish_classifier(repository, digits, "proven"))


def broken_session(repository: Path, digits: Digits) -> None:
    specs = (IMAGES,), (TensorSpec("labels", "INT64", (-1,)),)
    publish_model(repository, "proven", lambda path: path.write_text("no model"), *specs)


def broken_signature(repository: Path, digits: Digits) -> None:
    x, y = (TensorSpec(each, "FP64", (-1, 1)) for each in ("x", "y"))
    publish_model(repository, "proven", lambda path: save_times(path, 1), (x,), (y,))


def broken_holdout(repository: Path, digits: Digits) -> None:
    wrong: dict[str, NDArray[np.generic]] = {
        "images": digits.images,
        "labels": 1 - digits.classes,
    }
    variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy=0.95, holdout_accuracy=0.95)
    publish_proven(repository, digits, variant, holdout=wrong)


@pytest.mark.parametrize(
    "break_it",
    [broken_manifest, broken_checksum, broken_session, broken_signature, broken_holdout],
)
def test_a_broken_version_is_named_counted_not_tried_again_and_takes_nothing_down(
    tmp_path: Path, digits: Digits, break_it: Callable[[Path, Digits], None]
) -> None:
    publish_classifier(tmp_path, digits, "proven")
    with polled(tmp_path) as running:
        break_it(tmp_path, digits)
        for _ in range(3):
            poll(running)
        reason = break_it.__name__.removeprefix("broken_")
        assert failures(running) == {("proven", "2", reason): 1}
        states = index(running)
        assert states["proven", "1"] == ("READY", "")
        assert states["proven", "2"][0] == "UNAVAILABLE"
        assert str(tmp_path / "proven" / "2") in states["proven", "2"][1]
        request = pb.ModelInferRequest(
            model_name="proven", raw_input_contents=[digits.images[:1].tobytes()]
        )
        request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
        assert running.stub.ModelInfer(request).model_version == "1"
        assert running.stub.ServerReady(pb.ServerReadyRequest()).ready


def test_a_version_is_served_once_it_is_repaired(tmp_path: Path) -> None:
    publish_times(tmp_path)
    with polled(tmp_path) as running:
        second = publish_times(tmp_path)
        content = tamper(second)
        poll(running)
        assert answering(running) == "1: 2.0"
        (second / "model.onnx").write_bytes(content)
        poll(running)
        assert answering(running) == "2: 4.0"
        assert index(running)["times", "2"] == ("READY", "")


def test_a_version_copied_file_by_file_is_served_when_it_is_whole(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    publish_times(elsewhere)
    source = publish_times(elsewhere)
    shutil.copytree(elsewhere / "times" / "1", here / "times" / "1")
    target = here / "times" / "2"
    content = (source / "model.onnx").read_bytes()
    with polled(here) as running:
        target.mkdir()
        shutil.copy(source / "manifest.json", target)
        for part in (b"", content[:50]):
            (target / "model.onnx").write_bytes(part)
            poll(running)
            assert answering(running) == "1: 2.0"
        (target / "model.onnx").write_bytes(content)
        poll(running)
        assert answering(running) == "2: 4.0"
        assert failures(running) == {("times", "2", "checksum"): 2}


def test_at_the_start_the_newest_version_that_can_be_loaded_is_served(tmp_path: Path) -> None:
    publish_times(tmp_path)
    publish_times(tmp_path)
    tamper(publish_times(tmp_path))
    with polled(tmp_path) as running:
        assert answering(running) == "2: 4.0"
        assert index(running)["times", "3"][0] == "UNAVAILABLE"


def test_when_the_newest_version_is_deleted_the_one_before_is_served(tmp_path: Path) -> None:
    publish_times(tmp_path)
    second = publish_times(tmp_path)
    with polled(tmp_path) as running:
        assert answering(running) == "2: 4.0"
        shutil.rmtree(second)
        poll(running)
        assert answering(running) == "1: 2.0"
        assert list(index(running)) == [("times", "1")]


def test_a_version_goes_on_if_it_is_deleted_and_no_other_can_be_loaded(tmp_path: Path) -> None:
    tamper(publish_times(tmp_path))
    second = publish_times(tmp_path)
    with polled(tmp_path) as running:
        shutil.rmtree(second)
        poll(running)
        assert answering(running) == "2: 4.0"


def test_a_model_that_is_deleted_is_unloaded_and_the_others_stay(tmp_path: Path) -> None:
    publish_times(tmp_path)
    publish_times(tmp_path, "other")
    with polled(tmp_path) as running:
        shutil.rmtree(tmp_path / "times")
        poll(running)
        assert refusal(lambda: answering(running)) == (
            CODE.NOT_FOUND,
            "model 'times' is unknown",
        )
        assert answering(running, "other") == "1: 2.0"
        health = health_pb2_grpc.HealthStub(running.channel)
        request = health_pb2.HealthCheckRequest(service="times")
        assert health.Check(request).status == HEALTH.NOT_SERVING


def vanish(repository: Path) -> None:
    repository.rename(repository.with_name("away"))


def empty(repository: Path) -> None:
    vanish(repository)
    repository.mkdir()


def unreadable(repository: Path) -> None:
    vanish(repository)
    repository.write_text("not a directory")


@pytest.mark.parametrize("harm", [vanish, empty, unreadable])
def test_without_its_repository_the_server_goes_on_and_recovers_when_it_is_back(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    repository = tmp_path / "models"
    publish_times(repository)
    with polled(repository) as running:
        harm(repository)
        poll(running)
        poll(running)
        said = [r.message for r in caplog.records if "stays as it is" in r.message]
        assert len(said) == 1
        assert str(repository) in said[0]
        assert answering(running) == "1: 2.0"
        shutil.rmtree(repository) if repository.is_dir() else repository.unlink(missing_ok=True)
        repository.with_name("away").rename(repository)
        publish_times(repository)
        poll(running)
        assert answering(running) == "2: 4.0"


def test_a_number_given_again_to_other_content_is_loaded_anew(tmp_path: Path) -> None:
    first = publish_times(tmp_path)
    with polled(tmp_path) as running:
        shutil.rmtree(first.parent)
        publish_times(tmp_path, factor=7)
        poll(running)
        assert answering(running) == "1: 14.0"


def test_one_that_is_served_goes_on_when_its_number_is_given_to_a_broken_one(
    tmp_path: Path,
) -> None:
    first = publish_times(tmp_path)
    with polled(tmp_path) as running:
        shutil.rmtree(first.parent)
        tamper(publish_times(tmp_path, factor=7))
        poll(running)
        assert answering(running) == "1: 2.0"
        state, reason = index(running)["times", "1"]
        assert state == "READY"
        assert "sha256" in reason
        shutil.rmtree(first.parent)
        publish_times(tmp_path, factor=9)
        poll(running)
        assert answering(running) == "1: 18.0"
        assert index(running)["times", "1"] == ("READY", "")


def test_rolling_back_and_pruning_while_serving_under_load_fails_no_request(
    tmp_path: Path,
) -> None:
    for _ in range(3):
        publish_times(tmp_path)
    model = tmp_path / "times"
    with running_server(tmp_path, poll_interval=0.05) as running:
        with under_load(running.address) as load:
            assert load.wait_for("3")
            upkeep("rollback", model)
            assert load.wait_for("2")
            upkeep("prune", tmp_path, "--keep", "1")
            publish_times(tmp_path)
            assert load.wait_for("4")
            upkeep("rollback", model)
            load.versions.discard("2")
            assert load.wait_for("2")
            upkeep("rollback", "--undo", model)
            load.versions.discard("4")
            assert load.wait_for("4")
            upkeep("prune", tmp_path, "--keep", "1")
            assert load.wait_for_answers(50)
        assert load.faults == []
        assert failures(running) == {}
    assert [path.name for path in model.iterdir() if path.name.isdigit()] == ["4"]


def test_an_empty_repository_becomes_ready_when_a_first_version_is_published(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path, poll_interval=0.05) as running:
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE
        )
        assert next(watch).status == HEALTH.NOT_SERVING
        assert not running.stub.ServerReady(pb.ServerReadyRequest()).ready
        publish_times(tmp_path)
        assert any(update.status == HEALTH.SERVING for update in watch)
        assert running.stub.ServerReady(pb.ServerReadyRequest()).ready
        assert answering(running) == "1: 2.0"
        watch.cancel()


# None


def test_without_control_what_is_there_at_the_start_is_all(tmp_path: Path) -> None:
    publish_times(tmp_path)
    with running_server(tmp_path, model_control_mode="none", allow_admin=True) as running:
        publish_times(tmp_path)
        publish_times(tmp_path, "other")
        assert served(running) == {"times": [1]}
        code, details = refusal(lambda: load(running, "other"))
        assert code == CODE.PERMISSION_DENIED
        assert "only with --model-control-mode explicit, not none" in details


def test_without_control_an_empty_repository_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="holds no published model"):
        Server(ServerConfig(model_repository=tmp_path, model_control_mode="none"))


def test_no_mode_starts_without_a_repository(tmp_path: Path) -> None:
    for mode in ("poll", "explicit", "none"):
        with pytest.raises(StartupError, match="no such model repository"):
            Server(ServerConfig(model_repository=tmp_path / "nowhere", model_control_mode=mode))


# Explicit


def test_models_are_loaded_and_unloaded_on_request(tmp_path: Path) -> None:
    publish_times(tmp_path)
    publish_times(tmp_path, "other")
    with explicit(tmp_path) as running:
        assert running.stub.ServerReady(pb.ServerReadyRequest()).ready
        assert index(running) == {
            ("other", "1"): ("UNAVAILABLE", "was not loaded"),
            ("times", "1"): ("UNAVAILABLE", "was not loaded"),
        }
        load(running, "times")
        assert answering(running) == "1: 2.0"
        publish_times(tmp_path)
        load(running, "times")
        assert answering(running) == "2: 4.0"
        unload(running, "times")
        assert refusal(lambda: answering(running)) == (
            CODE.UNAVAILABLE,
            "model 'times' version 2 is not served: was unloaded",
        )
        unload(running, "times")  # once more is no error
        load(running, "times")
        assert answering(running) == "2: 4.0"
        assert served(running) == {"times": [2]}


def test_unloading_returns_when_the_requests_in_flight_are_answered(tmp_path: Path) -> None:
    publish_times(tmp_path)
    with explicit(tmp_path, load_model=("times",), max_queue_delay=LIFETIME) as running:
        waiting = running.stub.ModelInfer.future(times_request(3))
        while running.server.inference.registry.get("times").batcher.pending < 1:
            running.stub.ServerLive(pb.ServerLiveRequest())
        unload(running, "times")
        assert waiting.result(timeout=PATIENCE).model_version == "1"


@pytest.mark.parametrize("name", ["nosuch", "", "../elsewhere/times", "/", ".", "a\0b", "1"])
def test_a_model_that_the_repository_does_not_hold_is_not_found(tmp_path: Path, name: str) -> None:
    publish_times(tmp_path / "elsewhere")
    publish_times(tmp_path / "models")
    with explicit(tmp_path / "models") as running:
        said = (CODE.NOT_FOUND, f"the model repository holds no model {name!r}")
        assert refusal(lambda: load(running, name)) == said
        assert refusal(lambda: unload(running, name)) == said
        assert served(running) == {}


def test_loading_a_broken_version_says_why_and_keeps_what_is_served(tmp_path: Path) -> None:
    content = tamper(publish_times(tmp_path))
    with explicit(tmp_path) as running:
        code, details = refusal(lambda: load(running, "times"))
        assert code == CODE.FAILED_PRECONDITION
        assert "version 1" in details
        assert "sha256 is" in details
        (tmp_path / "times" / "1" / "model.onnx").write_bytes(content)
        load(running, "times")
        tamper(publish_times(tmp_path))
        code, details = refusal(lambda: load(running, "times"))
        assert code == CODE.FAILED_PRECONDITION
        assert "version 2" in details
        assert details.endswith("(served: 1)")
        assert answering(running) == "1: 2.0"
        refusal(lambda: load(running, "times"))
        assert failures(running)["times", "2", "checksum"] == 2  # asked for again, tried again


def test_what_explicit_loads_at_the_start_is_said_by_load_model(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        publish_times(tmp_path, name)
    with explicit(tmp_path, load_model=("one", "three")) as running:
        assert served(running) == {"one": [1], "three": [1]}
    with explicit(tmp_path, load_model=("*",)) as running:
        assert served(running) == {"one": [1], "three": [1], "two": [1]}
    with pytest.raises(StartupError, match=r"--load-model: .* holds no model 'four'"):
        Server(
            ServerConfig(
                model_repository=tmp_path, model_control_mode="explicit", load_model=("four",)
            )
        )


def test_administration_is_refused_unless_it_was_allowed(tmp_path: Path) -> None:
    publish_times(tmp_path)
    with explicit(tmp_path, allow_admin=False) as running:
        trace = pb.TraceSettingRequest()
        trace.settings["trace_level"].value.append("TIMESTAMPS")
        log = pb.LogSettingsRequest()
        log.settings["log_verbose_level"].uint32_param = 1
        for call in (
            lambda: load(running, "times"),
            lambda: unload(running, "times"),
            lambda: running.stub.TraceSetting(trace),
            lambda: running.stub.LogSettings(log),
        ):
            code, details = refusal(call)
            assert code == CODE.PERMISSION_DENIED
            assert details.endswith("it takes a token with the role admin, or --allow-admin")
        # To look is allowed.
        settings = running.stub.TraceSetting(pb.TraceSettingRequest()).settings
        assert list(settings["trace_level"].value) == ["OFF"]
        assert running.stub.LogSettings(pb.LogSettingsRequest()).settings["log_error"].bool_param


def test_parameters_of_loading_and_unloading_that_are_not_supported_are_named(
    tmp_path: Path,
) -> None:
    publish_times(tmp_path)
    with explicit(tmp_path) as running:
        loading = pb.RepositoryModelLoadRequest(model_name="times")
        loading.parameters["config"].string_param = "{}"
        assert refusal(lambda: running.stub.RepositoryModelLoad(loading)) == (
            CODE.INVALID_ARGUMENT,
            "load: parameter 'config' is not supported",
        )
        unloading = pb.RepositoryModelUnloadRequest(model_name="times")
        unloading.parameters["unload_dependents"].bool_param = True  # what tritonclient sends
        running.stub.RepositoryModelUnload(unloading)
        unloading.parameters["force"].bool_param = True
        assert refusal(lambda: running.stub.RepositoryModelUnload(unloading)) == (
            CODE.INVALID_ARGUMENT,
            "unload: parameter 'force' is not supported",
        )
