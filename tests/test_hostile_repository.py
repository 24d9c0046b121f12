"""Versions that somebody made to do harm: each is refused with a reason that the index tells, and
what was served before goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import (
    CLASSIFIER_OUTPUTS,
    IMAGES,
    PATIENCE,
    Digits,
    Running,
    publish_proven,
    publish_times,
    running_server,
    save_classifier,
    save_times,
    times_request,
    until,
)
from hostile import (
    HOLDOUTS,
    HUGE,
    MODELS,
    ROWS,
    archive,
    deep,
    external,
    npy,
    npz,
    opened,
    referring,
    weights_file,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from model_repository import (
    HOLDOUT,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    ONNX_PLATFORM,
    TORCHSCRIPT_PLATFORM,
    Draft,
    Manifest,
    RepositoryError,
    TensorSpec,
    Variant,
    faults,
    publish,
    read_manifest,
    staging,
    versions,
)
from serving import holdout
from serving.device import Runtime
from serving.errors import ModelLoadError
from serving.model import load
from serving.pb import inference_pb2 as pb
from serving.session import Tensors, verified

CPU = Runtime("cpu", "fp32", 1, max_batch_size=8)
SECRET = "correct horse battery staple"
Facts = dict[str, Any]  # a manifest as JSON has it
Change = Callable[[Path, Facts], object]  # of a version's files and manifest, before it appears

value = helper.make_tensor_value_info
FLOAT = TensorProto.FLOAT


# A repository with a version that is served, and one that somebody plants beside it


def facts_of(directory: Path) -> Facts:
    found: Facts = json.loads((directory / MANIFEST).read_bytes())
    return found


def plant(repository: Path, change: Change, number: int = 2) -> Path:
    """A version of `times` that is as the first but for the change; hashes are right where the
    change left them alone."""
    first, hidden = repository / "times" / "1", repository / ".staging-planted"
    hidden.mkdir()
    shutil.copyfile(first / "model.onnx", hidden / "model.onnx")
    facts = facts_of(first) | {"version": number}
    untouched = facts["files"]
    change(hidden, facts)
    if facts["files"] is untouched:
        regular = [p for p in hidden.iterdir() if p.is_file() and not p.is_symlink()]
        facts["files"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in regular}
        facts["files"].pop(MANIFEST, None)
        for variant in facts["variants"]:
            variant["sha256"] = facts["files"].get(variant["file"], variant["sha256"])
    if not os.path.lexists(hidden / MANIFEST):
        (hidden / MANIFEST).write_text(json.dumps(facts))
    return hidden.rename(repository / "times" / str(number))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Running]]:
    """A repository that is polled all the time, and its server: a hostile version changes nothing
    that depends on who listens."""
    repository = tmp_path_factory.mktemp("hostile") / "models"
    publish_times(repository)
    with running_server(repository, poll_interval=0.05, transport="auto") as running:
        yield repository, running


@pytest.fixture
def reason_for(served: tuple[Path, Running]) -> Iterator[Callable[..., str]]:
    """Plants a version, and tells the reason with which it is refused, once that is known and the
    one before has answered; it is removed again."""
    repository, running = served
    planted: list[Path] = []

    def ask(change: Change, number: int = 2) -> str:
        planted.append(plant(repository, change, number))
        until(lambda: bool(state(running, number).reason))
        refused = state(running, number)
        assert (refused.state, refused.version) == ("UNAVAILABLE", str(number))
        assert answer(running) == ("1", 14.0)
        assert refused.reason.isprintable()
        return refused.reason

    yield ask
    for path in planted:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    until(lambda: len(running.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models) == 1)


def state(running: Running, number: int) -> pb.RepositoryIndexResponse.ModelIndex:
    """What the index says of a version of `times`; empty before it says anything."""
    index = running.stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=PATIENCE)
    found = [each for each in index.models if each.version == str(number)]
    return found[0] if found else pb.RepositoryIndexResponse.ModelIndex()


def answer(running: Running) -> tuple[str, float]:
    """The version that answers, and what it makes of 14."""
    got = running.stub.ModelInfer(times_request(14), timeout=PATIENCE)
    (product,) = np.frombuffer(got.raw_output_contents[0], np.float32)
    return got.model_version, float(product)


# Manifests


def with_file_named(name: str) -> Change:
    """The manifest says that the model is in a file of that name, and hashes it rightly."""

    def change(directory: Path, facts: Facts) -> None:
        digest = hashlib.sha256((directory / "model.onnx").read_bytes()).hexdigest()
        facts["files"] = {name: digest}
        facts["variants"][0] |= {"file": name, "sha256": digest}

    return change


def with_fact(**changes: object) -> Change:
    return lambda directory, facts: facts.update(changes)


def with_manifest(content: bytes) -> Change:
    return lambda directory, facts: (directory / MANIFEST).write_bytes(content)


def with_accuracy(share: float) -> Change:
    return lambda directory, facts: facts["variants"][0].update(accuracy=share)


def with_input(**changes: object) -> Change:
    return lambda directory, facts: facts["inputs"][0].update(changes)


MANIFESTS: dict[str, tuple[Change, str]] = {
    "a file above the version": (with_file_named("../1/model.onnx"), "is not a plain file name"),
    "a file by its whole path": (with_file_named("/etc/passwd"), "is not a plain file name"),
    "a zero in a file's name": (with_file_named("model\0.onnx"), "is not a plain file name"),
    "a backslash": (with_file_named("..\\1\\model.onnx"), "is not a plain file name"),
    "a hidden file": (with_file_named(".model.onnx"), "is not a plain file name"),
    "another model's": (with_fact(name="other"), "the manifest is that of other 2"),
    "another version's": (with_fact(version=1), "the manifest is that of times 1"),
    "no file's hash": (with_fact(files={}), "is not in files"),
    "a wrong hash": (
        lambda directory, facts: (
            with_file_named("model.onnx")(directory, facts)
            or (directory / "model.onnx").write_bytes(b"other")
        ),
        "the manifest says",
    ),
    "megabytes": (
        with_manifest(b'{"labels": "' + b"x" * MAX_MANIFEST_BYTES + b'"}'),
        f"larger than {MAX_MANIFEST_BYTES} bytes",
    ),
    "lists in lists": (with_manifest(b"[" * 1_000_000), "unreadable manifest"),
    "lists in lists for a name": (
        with_manifest(b'{"name": ' + b"[" * 900 + b"]" * 900 + b"}"),
        "manifest.name is a list, not a string",
    ),
    "no number as accuracy": (with_accuracy(float("nan")), "accuracy is nan, not from 0 to 1"),
    "endless accuracy": (with_accuracy(float("inf")), "accuracy is inf, not from 0 to 1"),
    "accuracy of 400 digits": (with_accuracy(10**400), "too large a number"),
    "a number of 5000 digits": (with_manifest(b"1" * 5000), "unreadable manifest"),
    "a number beyond 64 bits": (with_fact(version=2**63), "beyond 64 bits"),
    "half a character": (with_fact(labels=["\ud800"]), "not Unicode"),
    "half a character for a key": (with_fact(files={"\ud800": "0"}), "not Unicode"),
    "a log line for a key": (with_fact(files={"a\n\x1b[2Jb": 1}), "is 1, not a string"),
    "two inputs of one name": (
        lambda directory, facts: facts["inputs"].append(facts["inputs"][0]),
        "inputs: two have the same name",
    ),
    "a datatype that nobody has": (with_input(datatype="FP99"), "none of ours"),
    "rows that no message holds": (with_input(shape=[-1, 2**62, 2**62]), "no message could hold"),
    "a million dimensions": (with_input(shape=[1] * 200_000), "up to 64 sizes"),
}


@pytest.mark.parametrize(("change", "reason"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_hostile_manifest_is_refused(
    reason_for: Callable[..., str], change: Change, reason: str
) -> None:
    assert reason in reason_for(change)


def test_a_version_number_beyond_64_bits_is_refused_and_publishing_counts_on(
    reason_for: Callable[..., str], served: tuple[Path, Running]
) -> None:
    number = 10**30
    assert "beyond 64 bits" in reason_for(with_fact(), number)
    repository, _ = served
    shutil.copytree(repository / "times", repository.parent / "copy" / "times")
    assert publish_times(repository.parent / "copy", factor=3).name == "2"


# Links, and what is no file


def linked_manifest(directory: Path, facts: Facts) -> None:
    secret = directory.parent.parent / "secret.json"
    secret.write_text(json.dumps([SECRET]))
    (directory / MANIFEST).symlink_to(secret)


def in_place_of_the_model(make: Callable[[Path], object]) -> Change:
    def change(directory: Path, facts: Facts) -> None:
        with_file_named("model.onnx")(directory, facts)
        (directory / "model.onnx").unlink()
        make(directory / "model.onnx")

    return change


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**31 + 1)


NO_FILES: dict[str, tuple[Change, str]] = {
    "a link to a manifest": (linked_manifest, "Too many levels of symbolic links"),
    "a pipe for a manifest": (
        lambda directory, facts: os.mkfifo(directory / MANIFEST),
        "not a regular file",
    ),
    "a folder for a manifest": (
        lambda directory, facts: (directory / MANIFEST).mkdir(),
        "Is a directory",
    ),
    "a link to a model": (
        in_place_of_the_model(lambda path: path.symlink_to("../1/model.onnx")),
        "Too many levels of symbolic links",
    ),
    "a link to a device": (
        in_place_of_the_model(lambda path: path.symlink_to("/dev/zero")),
        "Too many levels of symbolic links",
    ),
    "a pipe for a model": (in_place_of_the_model(os.mkfifo), "not a regular file"),
    "a folder for a model": (in_place_of_the_model(os.mkdir), "Is a directory"),
    "a model that grows without end": (
        in_place_of_the_model(huge),
        "larger than 2147483648 bytes",
    ),
}


@pytest.mark.parametrize(("change", "reason"), NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_of_the_version_is_refused_unread(
    reason_for: Callable[..., str], change: Change, reason: str
) -> None:
    told = reason_for(change)
    assert reason in told
    assert SECRET not in told


def test_a_version_that_is_a_link_out_of_the_repository_is_refused(
    served: tuple[Path, Running], tmp_path: Path
) -> None:
    repository, running = served
    outside = tmp_path / "times"
    publish_times(tmp_path)
    shutil.move(publish_times(tmp_path), outside / "elsewhere")
    (repository / "times" / "2").symlink_to(outside / "elsewhere")
    try:
        until(lambda: bool(state(running, 2).reason))
        assert "leads out of the repository" in state(running, 2).reason
        assert answer(running) == ("1", 14.0)
    finally:
        (repository / "times" / "2").unlink()


def test_a_model_that_is_a_link_is_served_only_from_within_the_repository(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    publish_times(repository)
    publish_times(tmp_path, "outside")
    (repository / "outside").symlink_to(tmp_path / "outside")
    publish_times(repository / ".kept", "inside")
    (repository / "inside").symlink_to(repository / ".kept" / "inside")
    (repository / "loop").symlink_to(repository / "loop")
    (repository / "all").symlink_to("/")
    with running_server(repository, transport="auto") as running:
        index = running.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        assert {each.name: each.state for each in index} == {
            "inside": "READY",
            "outside": "UNAVAILABLE",
            "times": "READY",
        }
        (refused,) = (each.reason for each in index if each.name == "outside")
        assert "leads out of the repository" in refused


def test_names_that_are_no_models_and_no_versions_are_passed_over(tmp_path: Path) -> None:
    publish_times(tmp_path)
    good = tmp_path / "times" / "1"
    for name in ("-rf", "a b", "liveness", "..x", "new\nline", "\udcff", "times;id", "$(id)"):
        shutil.copytree(good, tmp_path / name / "1")
    for name in ("0", "01", "-1", "+1", "1.0", "1e3", " 2", "2\n", "٢", "latest"):
        shutil.copytree(good, tmp_path / "times" / name)
    with running_server(tmp_path, transport="auto") as running:
        index = running.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        assert [(each.name, each.version) for each in index] == [("times", "1")]


# Models


def with_model(made: bytes | onnx.ModelProto) -> Change:
    content = made if isinstance(made, bytes) else made.SerializeToString()
    return lambda directory, facts: (directory / "model.onnx").write_bytes(content)


@pytest.mark.parametrize(("made", "reason"), MODELS.values(), ids=MODELS)
def test_a_hostile_model_is_refused(
    reason_for: Callable[..., str], made: bytes | onnx.ModelProto, reason: str
) -> None:
    told = reason_for(with_model(made))
    assert reason in told
    assert len(told) < 3000


def test_a_model_of_many_nested_graphs_runs(tmp_path: Path) -> None:
    """So that it is the depth that is refused, and not the If."""
    publish_times(tmp_path)
    directory = plant(tmp_path, with_model(deep(20)))
    run = load(directory, read_manifest(directory), CPU).run
    assert run({"x": np.array([[3]], np.float32)})["y"].tolist() == [[3]]


DISAGREEING: dict[str, tuple[str, int, list[str | int]]] = {
    "another name": ("z", FLOAT, ["N", 1]),
    "another type": ("x", TensorProto.DOUBLE, ["N", 1]),
    "another shape": ("x", FLOAT, ["N", 2]),
    "another rank": ("x", FLOAT, ["N"]),
    "a name that is no text": ("ABCD", FLOAT, ["N", 1]),
}


@pytest.mark.parametrize(("name", "kind", "shape"), DISAGREEING.values(), ids=DISAGREEING)
def test_a_signature_other_than_the_manifests_is_refused(
    reason_for: Callable[..., str], name: str, kind: int, shape: list[str | int]
) -> None:
    nodes = [helper.make_node("Cast", [name], ["y"], to=FLOAT)]
    graph = helper.make_graph(
        nodes, "other", [value(name, kind, shape)], [value("y", FLOAT, None)], []
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content = made.SerializeToString().replace(b"ABCD", b"\xff\xfe\xff\xfe")
    told = reason_for(with_model(content))
    assert ("the manifest says" in told) or ("name is not UTF-8" in told)


@pytest.mark.parametrize("place", ["beside", "above", "absolute", "link", "descriptor"])
@pytest.mark.parametrize("where", ["graph", "node", "inner graph", "function"])
def test_weights_in_other_files_are_never_read(tmp_path: Path, place: str, where: str) -> None:
    """Wherever they are said to be: in a file of the version with its hash right, or in one that
    this process has open, as the model is loaded by a descriptor's name."""
    publish_times(tmp_path)
    secret = tmp_path / "secret.bin"
    weights_file(secret)

    with secret.open("rb") as stream:
        names = {"beside": "w.bin", "link": "w.bin", "above": "../../secret.bin"}
        names |= {"absolute": str(secret), "descriptor": str(stream.fileno())}

        def change(directory: Path, facts: Facts) -> None:
            if place == "beside":
                weights_file(directory / "w.bin")
            if place == "link":
                (directory / "w.bin").symlink_to(secret)
            made = referring(where, external(names[place]))
            (directory / "model.onnx").write_bytes(made.SerializeToString())

        directory = plant(tmp_path, change)
        manifest = read_manifest(directory)
        with opened(directory) as seen, pytest.raises(ModelLoadError) as caught:
            load(directory, manifest, CPU)
    assert "refuses it" in str(caught.value)
    assert seen == {"model.onnx"}


# Holdouts


@pytest.mark.parametrize(("content", "reason"), HOLDOUTS.values(), ids=HOLDOUTS)
def test_a_hostile_holdout_is_refused(
    reason_for: Callable[..., str], content: bytes, reason: str
) -> None:
    told = reason_for(lambda directory, facts: (directory / HOLDOUT).write_bytes(content))
    assert HOLDOUT in told
    assert reason in told


def test_members_of_a_holdout_are_never_written_anywhere(tmp_path: Path) -> None:
    publish_times(tmp_path)
    member = npy(HUGE % 1, bytes(8))
    content = archive({"../../escaped.npy": member, "/escaped.npy": member})
    before = {path for path in tmp_path.rglob("*") if path.name != "2"}
    directory = plant(tmp_path, lambda d, facts: (d / HOLDOUT).write_bytes(content))
    assert holdout.read(directory, read_manifest(directory)) is None
    assert set(tmp_path.rglob("*")) - before == {directory, *directory.iterdir()}


# What is hashed, is what is loaded; and nothing else is opened


def test_what_was_hashed_is_what_is_loaded_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    directory = publish_times(tmp_path, factor=7)
    (variant,) = read_manifest(directory).variants
    with verified(directory, variant.file, variant.sha256) as copy:
        save_times(directory / variant.file, 9)  # in place
        (directory / variant.file).unlink()
        os.mkfifo(directory / variant.file)
        session = onnxruntime.InferenceSession(f"/proc/self/fd/{copy.fileno()}")
        assert session.run(None, {"x": np.ones((1, 1), np.float32)})[0].tolist() == [[7]]


def test_a_file_that_changes_all_the_time_is_refused_or_answers_as_it_was_hashed(
    tmp_path: Path,
) -> None:
    directory = publish_times(tmp_path, factor=7)
    manifest, path = read_manifest(directory), directory / "model.onnx"
    save_times(tmp_path / "other.onnx", 9)
    contents = path.read_bytes(), (tmp_path / "other.onnx").read_bytes()
    assert len(contents[0]) == len(contents[1])
    over, outcomes = threading.Event(), set()

    def change() -> None:
        while not over.is_set():
            for content in contents:
                path.write_bytes(content)

    def one_more() -> bool:
        try:
            run = load(directory, manifest, CPU).run
        except ModelLoadError as error:
            outcomes.add(str(error.reason))
        else:
            outcomes.add(str(run({"x": np.ones((1, 1), np.float32)})["y"].item()))
        return {"checksum", "7.0"} <= outcomes

    writer = threading.Thread(target=change)
    writer.start()
    try:
        until(one_more)
    finally:
        over.set()
        writer.join()
    assert outcomes == {"checksum", "7.0"}


def test_a_server_opens_no_file_that_it_does_not_serve(tmp_path: Path, digits: Digits) -> None:
    """Neither TorchScript, which runs what it is told by whoever wrote it, nor a link out."""
    (tmp_path / "secret").write_text(SECRET)
    with staging(tmp_path / "models") as hidden:
        for name in ("model.pt", "report.html"):
            (hidden / name).write_bytes(b"opened")
        save_classifier(hidden / "model.onnx", digits)
        variants = (
            Variant("model.onnx", ONNX_PLATFORM, "fp32", ""),
            Variant("model.pt", TORCHSCRIPT_PLATFORM, "fp32", ""),
        )
        directory = publish(hidden, Draft("proven", (IMAGES,), CLASSIFIER_OUTPUTS, variants))
    (directory / "report.html").unlink()
    (directory / "report.html").symlink_to(tmp_path / "secret")
    with (
        opened(directory) as seen,
        opened(tmp_path) as outside,
        running_server(tmp_path / "models", transport="auto", probe_interval=0.05) as running,
    ):
        request = pb.ModelInferRequest(model_name="proven")
        request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
        request.raw_input_contents.append(digits.images[0].tobytes())
        assert running.stub.ModelInfer(request, timeout=PATIENCE).outputs
        running.stub.ModelMetadata(pb.ModelMetadataRequest(name="proven"), timeout=PATIENCE)
        running.stub.ModelConfig(pb.ModelConfigRequest(name="proven"), timeout=PATIENCE)
    assert seen == {MANIFEST, "model.onnx"}
    assert "secret" not in outside
    assert faults(directory) == [f"{directory}/report.html: missing or not a regular file"]


def test_a_thousand_hostile_versions_keep_no_one_waiting(tmp_path: Path) -> None:
    publish_times(tmp_path)
    for number in range(2, 1002):
        directory = tmp_path / "times" / str(number)
        directory.mkdir()
        (directory / MANIFEST).write_text("{}")
    assert len(versions(tmp_path / "times")) == 1001
    with running_server(tmp_path, transport="auto", poll_interval=0.05) as running:
        assert answer(running) == ("1", 14.0)
        index = running.stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=PATIENCE)
        assert [each.state for each in index.models] == ["READY", *["UNAVAILABLE"] * 1000]
        publish_times(tmp_path, factor=5)
        until(lambda: answer(running) == ("1002", 70.0))


# Whatever is in a manifest, a model's holdout or its name

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["../x", "/etc/passwd", "a\0b", "NaN", "1" * 400, "model.onnx", "FP32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def places(facts: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    keys = facts if isinstance(facts, dict) else range(len(facts) if isinstance(facts, list) else 0)
    for key in keys:
        yield from places(facts[key], (*path, key))


def replaced(facts: Any, path: tuple[Any, ...], new: object) -> Any:
    if not path:
        return new
    copy = facts.copy()
    copy[path[0]] = replaced(facts[path[0]], path[1:], new)
    return copy


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """A version with every fact that a manifest may have, and files that fit it."""
    path = tmp_path_factory.mktemp("whole")
    variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", 0.5, 0.5)
    rows: Tensors = {"images": digits.images[:20], "labels": digits.classes[:20]}
    directory = publish_proven(path, digits, variant, holdout=rows)
    edges = {"edges": [0.5], "shares": [0.5, 0.5]}
    quality = {"temperature": 1, "expected_calibration_error": 0, "images": 9, "ink": edges}
    quality |= {"confidence": edges, "labels": [0.5, 0.5]}
    counts = {"train_images": 1, "calibration_images": 1, "valid_images": 1}
    parity = {"images": 1, "batch_sizes": [1], "label_disagreements": 0}
    facts = facts_of(directory) | {
        "quality": quality,
        "accuracy": 0.5,
        "dataset": {"name": "n", "checksum": "c"} | counts,
        "parity": parity | {"max_probability_difference": 0.1},
        "recipe": {"a": [1, {"b": None}]},
        "source_commit": "c",
        "created": "now",
    }
    (directory / MANIFEST).write_text(json.dumps(facts))
    read_manifest(directory)
    return directory


@settings(max_examples=150)
@given(data=st.data())
def test_of_any_manifest_there_is_a_value_or_a_declared_error(
    whole: Path, data: st.DataObject
) -> None:
    facts = facts_of(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(facts))))
        facts = replaced(facts, path, data.draw(ANYTHING))
    with other_manifest(whole, json.dumps(facts).encode()):
        judge(whole)


@settings(max_examples=100)
@given(data=st.data())
def test_of_any_bytes_for_a_manifest_there_is_a_value_or_a_declared_error(
    whole: Path, data: st.DataObject
) -> None:
    content = bytearray((whole / MANIFEST).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    with other_manifest(whole, bytes(content)):
        judge(whole)


@contextmanager
def other_manifest(directory: Path, content: bytes) -> Iterator[None]:
    before = (directory / MANIFEST).read_bytes()
    (directory / MANIFEST).write_bytes(content)
    try:
        yield
    finally:
        (directory / MANIFEST).write_bytes(before)


def judge(directory: Path) -> None:
    """Read and load the version, as a server would: other exceptions than those declared are
    faults, and so is a text that no message could hold."""
    try:
        manifest = read_manifest(directory)
        assert isinstance(manifest, Manifest)
        load(directory, manifest, CPU)
    except (RepositoryError, ModelLoadError) as error:
        str(error).encode()
    else:
        pb.ModelMetadataResponse(name=manifest.name, versions=manifest.labels)


@settings(max_examples=150)
@given(data=st.data())
def test_of_any_bytes_for_a_holdout_there_is_a_value_or_a_declared_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from([npz(x=np.ones((4, 1))), ROWS])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    directory = tmp_path_factory.getbasetemp()
    (directory / HOLDOUT).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    x, y = TensorSpec("x", "FP32", (-1, 1)), TensorSpec("y", "FP32", (-1, 1))
    variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", digest)
    with suppress(ModelLoadError):
        holdout.read(directory, Manifest("m", 1, (x,), (y,), (variant,), {HOLDOUT: digest}))


def test_a_file_of_the_longest_name_loads(tmp_path: Path) -> None:
    name = "m" * 250 + ".onnx"
    publish_times(tmp_path)

    def change(directory: Path, facts: Facts) -> None:
        (directory / "model.onnx").rename(directory / name)
        facts["variants"][0]["file"] = name

    directory = plant(tmp_path, change)
    assert load(directory, read_manifest(directory), CPU).batchable
