"""The repository contract: what is published is whole, hashed, numbered once and readable later."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from model_repository import (
    MANIFEST,
    ONNX_PLATFORM,
    Distribution,
    Draft,
    Quality,
    RepositoryError,
    TensorSpec,
    Variant,
    faults,
    main,
    model_names,
    publish,
    read_manifest,
    staging,
    version_directories,
    versions,
)
from repository_upkeep import prune, rollback, undo_rollback

ROOT = Path(__file__).parent.parent
INPUTS = (TensorSpec("images", "UINT8", (-1, 28, 28)),)
OUTPUTS = (TensorSpec("labels", "INT64", (-1,)),)


def put(repository: Path, name: str = "model", content: bytes = b"onnx") -> Path:
    """Publish a version whose one file holds `content`."""
    with staging(repository) as directory:
        (directory / "model.onnx").write_bytes(content)
        variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", 0.5)
        facts: dict[str, object] = {"labels": ("3", "7"), "accuracy": 0.5}
        return publish(directory, Draft(name, INPUTS, OUTPUTS, (variant,), facts))


def rewrite(directory: Path, **changes: object) -> None:
    """Change keys of a published manifest; None removes one."""
    data = json.loads((directory / MANIFEST).read_text()) | changes
    kept = {key: value for key, value in data.items() if value is not None}
    (directory / MANIFEST).write_text(json.dumps(kept))


def withdraw(repository: Path) -> str:
    """Roll `model` back; what was said."""
    said: list[str] = []
    rollback(repository / "model", said.append)
    return said[0]


def entries(directory: Path) -> list[str]:
    """Names of what is in a directory, without the lock."""
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


def age(path: Path, hours: float) -> None:
    """Make a directory and what is in it look untouched for so long."""
    then = time.time() - hours * 3600
    for each in (*path.iterdir(), path):
        os.utime(each, (then, then))


def test_versions_count_up_from_one_and_nothing_is_overwritten(tmp_path: Path) -> None:
    first, second = put(tmp_path, content=b"a"), put(tmp_path, content=b"b")
    assert [first.name, second.name] == ["1", "2"]
    assert (first / "model.onnx").read_bytes() == b"a"


def test_a_version_number_is_not_taken_again_below_the_latest(tmp_path: Path) -> None:
    for _ in range(2):
        put(tmp_path)
    (tmp_path / "model" / "1").rename(tmp_path / "gone")
    assert put(tmp_path).name == "3"


def test_a_manifest_reads_back_as_it_was_published(tmp_path: Path) -> None:
    manifest = read_manifest(put(tmp_path))
    assert (manifest.name, manifest.version, manifest.labels) == ("model", 1, ("3", "7"))
    assert manifest.inputs == INPUTS
    assert manifest.variants[0].sha256 == manifest.files["model.onnx"]
    assert manifest.variant(ONNX_PLATFORM, "fp32") == manifest.variants[0]
    assert manifest.variant(ONNX_PLATFORM, "int8") is None


def test_publishers_at_once_each_get_a_number_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        contents = [str(n).encode() for n in range(24)]
        published = list(pool.map(lambda content: put(tmp_path, content=content), contents))
    assert sorted(int(path.name) for path in published) == list(range(1, 25))
    for path, content in zip(published, contents, strict=True):
        assert (path / "model.onnx").read_bytes() == content
        assert read_manifest(path).version == int(path.name)
        assert faults(path) == []


def test_a_publisher_that_fails_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    put(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    with staging(tmp_path) as directory:  # left without publishing, as after a failed gate
        (directory / "model.onnx").write_bytes(b"half")
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_staging_directory_left_by_a_killed_publisher_is_no_model(tmp_path: Path) -> None:
    put(tmp_path)
    left = tmp_path / ".staging-killed"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    (tmp_path / "model" / "7").mkdir()  # a version directory without a manifest is none
    assert model_names(tmp_path) == ["model"]
    assert versions(tmp_path / "model") == [1]


def test_a_variant_says_what_it_reached_on_the_holdout_or_nothing_in_older_manifests(
    tmp_path: Path,
) -> None:
    directory = put(tmp_path)
    assert read_manifest(directory).variants[0].holdout_accuracy is None
    variant = json.loads((directory / MANIFEST).read_text())["variants"][0]
    rewrite(directory, variants=[variant | {"holdout_accuracy": 0.25}])
    assert read_manifest(directory).variants[0].holdout_accuracy == 0.25
    del variant["holdout_accuracy"]
    rewrite(directory, variants=[variant])
    assert read_manifest(directory).variants[0].holdout_accuracy is None


def test_unknown_keys_are_ignored_and_optional_ones_may_be_absent(tmp_path: Path) -> None:
    directory = put(tmp_path)
    rewrite(directory, added_later={"x": 1}, accuracy=None, labels=None, parity=None)
    manifest = read_manifest(directory)
    assert (manifest.accuracy, manifest.labels, manifest.parity) == (None, (), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "manifest.name is missing"),
        ({"version": "1"}, 'manifest.version is "1", not an integer'),
        ({"version": True}, "manifest.version is true, not an integer"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": ["a"]}]},
            r"inputs\[0\].shape\[0\]",
        ),
        ({"inputs": []}, "must not be empty"),
        ({"files": {"../x": "0"}, "variants": []}, "'../x' is not a plain file name"),
        ({"files": {}}, "'model.onnx' is not in files"),
        ({"format_version": 2}, "newer than 1"),
    ],
)
def test_a_bad_manifest_is_refused_naming_the_key(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    directory = put(tmp_path)
    rewrite(directory, **changes)
    with pytest.raises(RepositoryError, match=message) as caught:
        read_manifest(directory)
    assert str(directory / MANIFEST) in str(caught.value)


QUALITY = {
    "temperature": 1.5,
    "expected_calibration_error": 0.01,
    "images": 600,
    "ink": {"edges": [0.1, 0.5], "shares": [0.25, 0.75, 0]},
    "confidence": None,
    "labels": [0.5, 0.5],
}


def test_quality_reads_back_as_it_was_published_and_may_be_partial(tmp_path: Path) -> None:
    directory = put(tmp_path)
    rewrite(directory, quality=QUALITY)
    ink = Distribution((0.1, 0.5), (0.25, 0.75, 0.0))
    expected = Quality(1.5, 0.01, 600, ink, None, (0.5, 0.5))
    assert read_manifest(directory).quality == expected
    rewrite(directory, quality={key: QUALITY[key] for key in list(QUALITY)[:3]})
    assert read_manifest(directory).quality == Quality(1.5, 0.01, 600)


def test_a_variant_has_the_versions_quality_or_its_own(tmp_path: Path) -> None:
    directory = put(tmp_path)
    variant = json.loads((directory / MANIFEST).read_text())["variants"][0]
    rewrite(directory, quality=QUALITY)
    manifest = read_manifest(directory)
    assert manifest.quality_of(manifest.variants[0]) == manifest.quality
    rewrite(directory, variants=[variant | {"quality": QUALITY | {"temperature": 3}}])
    manifest = read_manifest(directory)
    found = manifest.quality_of(manifest.variants[0])
    assert found is not None
    assert found.temperature == 3
    rewrite(directory, variants=[variant | {"quality": QUALITY | {"temperature": -3}}])
    with pytest.raises(RepositoryError, match=r"quality.temperature is -3.0, not above 0"):
        read_manifest(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, r"quality.temperature is 0.0, not above 0"),
        ({"temperature": float("nan")}, r"quality.temperature is nan, not above 0"),
        ({"temperature": float("inf")}, r"quality.temperature is inf, not above 0 and finite"),
        ({"temperature": None}, r"manifest.quality.temperature is null, not a number"),
        ({"expected_calibration_error": 1.1}, r"_calibration_error is 1.1, not from 0 to 1"),
        ({"images": 0}, r"quality.images is 0, not at least 1"),
        (
            {"ink": {"edges": [0.1, 0.5], "shares": [0.5, 0.5]}},
            r"quality.ink.shares are 2, expected 3",
        ),
        (
            {"confidence": {"edges": [0.5, 0.5], "shares": [0, 0.5, 0.5]}},
            r"quality.confidence.edges must be finite and ascend",
        ),
        (
            {"ink": {"edges": [0.1, float("inf")], "shares": [0, 0.5, 0.5]}},
            r"quality.ink.edges must be finite and ascend",
        ),
        (
            {"ink": {"edges": [0.5], "shares": [0.6, 0.6]}},
            r"quality.ink.shares must not be negative and must add up to 1",
        ),
        ({"labels": [0.2, 0.3, 0.5]}, r"quality.labels are 3, expected 2"),
        ({"labels": [-0.5, 1.5]}, r"quality.labels must not be negative"),
    ],
)
def test_quality_that_no_server_could_use_is_refused_naming_the_key(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    directory = put(tmp_path)
    rewrite(directory, quality=QUALITY | changes)
    with pytest.raises(RepositoryError, match=message):
        read_manifest(directory)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    directory = put(tmp_path)
    (directory / MANIFEST).write_bytes(content)
    with pytest.raises(RepositoryError, match="manifest"):
        read_manifest(directory)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "readiness", "startup"])
def test_a_name_that_is_no_directory_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match="model"):
        put(tmp_path, name)


def test_verify_finds_a_changed_a_missing_and_an_added_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, missing, added, good = (put(tmp_path, name) for name in ("a", "b", "c", "d"))
    (changed / "model.onnx").write_bytes(b"tampered")
    (missing / "model.onnx").unlink()
    (added / "extra").write_bytes(b"")
    assert main(["verify", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if str(tmp_path) not in line.split()[0]][:1] == [
        "FAULTY"
    ]
    assert f"ok      {good}" in lines
    assert any(f"{changed / 'model.onnx'}: sha256 is" in line for line in lines)
    assert any(f"{missing / 'model.onnx'}: missing" in line for line in lines)
    assert any(f"{added / 'extra'}: not in the manifest" in line for line in lines)


def test_a_link_in_place_of_a_file_is_a_fault(tmp_path: Path) -> None:
    directory = put(tmp_path)
    (directory / "model.onnx").rename(tmp_path / "elsewhere")
    (directory / "model.onnx").symlink_to(tmp_path / "elsewhere")
    assert "not a regular file" in faults(directory)[0]


def test_ls_and_show_take_a_repository_a_model_or_a_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a")
    put(tmp_path, "a")
    put(tmp_path, "b")
    counts = [len(version_directories(tmp_path / part)) for part in ("", "a", "a/2")]
    assert counts == [3, 2, 1]
    assert main(["ls", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["show", str(tmp_path / "a" / "2")]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 2


def test_a_path_without_a_repository_exits_with_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", str(tmp_path / "nothing")]) == 2
    assert main(["ls", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_rollback_hides_the_newest_version_and_undo_brings_it_back_unchanged(
    tmp_path: Path,
) -> None:
    first, second = put(tmp_path, content=b"a"), put(tmp_path, content=b"b")
    assert withdraw(tmp_path) == f"withdrew {second}; the newest version is now 1"
    assert versions(tmp_path / "model") == [1]
    assert version_directories(tmp_path) == [first]
    undo_rollback(tmp_path / "model", print)
    assert versions(tmp_path / "model") == [1, 2]
    assert (second / "model.onnx").read_bytes() == b"b"
    assert faults(second) == []


def test_undo_brings_back_what_was_withdrawn_last_whatever_its_number(tmp_path: Path) -> None:
    for _ in range(3):
        put(tmp_path)
    withdraw(tmp_path)  # 3
    assert put(tmp_path).name == "4"
    withdraw(tmp_path)  # 4
    withdraw(tmp_path)  # 2
    model = tmp_path / "model"
    seen = []
    for _ in range(3):
        undo_rollback(model, print)
        seen.append(versions(model))
    assert seen == [[1, 2], [1, 2, 4], [1, 2, 3, 4]]
    with pytest.raises(RepositoryError, match="no version is withdrawn"):
        undo_rollback(model, print)


def test_a_rollback_refuses_to_leave_a_model_without_a_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path)
    model = tmp_path / "model"
    assert main(["rollback", str(model)]) == 2
    error = f"error: {model}: has no version before the newest to go back to\n"
    assert capsys.readouterr().err == error
    assert versions(model) == [1]


@pytest.mark.parametrize("part", ["", "model/1", "nothing"])
def test_a_rollback_takes_a_model_only(
    tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path)
    put(tmp_path)
    for arguments in (["rollback"], ["rollback", "--undo"]):
        assert main([*arguments, str(tmp_path / part)]) == 2
        assert "holds no version of a model (give PATH/MODEL)" in capsys.readouterr().err
    assert versions(tmp_path / "model") == [1, 2]


def test_a_number_that_was_withdrawn_or_is_being_deleted_is_never_given_again(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        put(tmp_path)
    withdraw(tmp_path)
    assert put(tmp_path).name == "3"
    (tmp_path / "model" / "3").rename(tmp_path / "model" / ".pruned-9")  # a prune was killed
    assert put(tmp_path).name == "10"


def test_prune_keeps_the_newest_versions_of_every_model_and_publishing_counts_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model", "model", "model", "other"):
        put(tmp_path, name)
    assert main(["prune", str(tmp_path), "--keep", "2"]) == 0
    assert capsys.readouterr().out == f"deleted {tmp_path / 'model' / '1'}\n"
    assert entries(tmp_path / "model") == ["2", "3"]
    assert entries(tmp_path / "other") == ["1"]
    assert main(["prune", str(tmp_path / "model"), "--keep", "1"]) == 0
    assert entries(tmp_path / "model") == ["3"]
    assert put(tmp_path).name == "4"


def test_prune_deletes_withdrawn_versions_older_than_those_kept_and_no_others(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        put(tmp_path)
    withdraw(tmp_path)  # 2
    put(tmp_path)  # 3
    put(tmp_path)  # 4
    withdraw(tmp_path)  # 4
    prune(tmp_path, 1, 24, print)
    assert entries(tmp_path / "model") == [".withdrawn-4", "3"]
    assert put(tmp_path).name == "5"


def test_prune_deletes_abandoned_staging_but_none_that_is_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path)
    abandoned, slow, fresh = (tmp_path / f".staging-{name}" for name in ("a", "b", "c"))
    for directory in (abandoned, slow, fresh):
        directory.mkdir()
        (directory / "model.onnx").write_bytes(b"half")
    age(abandoned, 25)
    age(slow, 25)
    (slow / "model.onnx").write_bytes(b"more")  # touches the file, not its directory
    assert main(["prune", str(tmp_path / "model"), "--keep", "1"]) == 0
    assert entries(tmp_path) == [".staging-a", ".staging-b", ".staging-c", "model"]
    assert main(["prune", str(tmp_path), "--keep", "1", "--stale-hours", "26"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["prune", str(tmp_path), "--keep", "1"]) == 0
    assert capsys.readouterr().out == f"deleted {abandoned}\n"
    assert entries(tmp_path) == [".staging-b", ".staging-c", "model"]


def test_prune_finishes_what_a_killed_prune_began(tmp_path: Path) -> None:
    for _ in range(2):
        put(tmp_path)
    (tmp_path / "model" / "1").rename(tmp_path / "model" / ".pruned-1")
    (tmp_path / "model" / ".pruned-1" / MANIFEST).unlink()
    prune(tmp_path, 2, 24, print)
    assert entries(tmp_path / "model") == ["2"]


def test_a_dry_run_says_what_would_go_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        put(tmp_path)
    (tmp_path / ".staging-old").mkdir()
    age(tmp_path / ".staging-old", 48)
    before = sorted(tmp_path.rglob("*"))
    assert main(["prune", str(tmp_path), "--keep", "1", "--dry-run"]) == 0
    gone = [tmp_path / "model" / "1", tmp_path / "model" / "2", tmp_path / ".staging-old"]
    assert capsys.readouterr().out.splitlines() == [f"would delete {path}" for path in gone]
    assert sorted(tmp_path.rglob("*")) == before


def test_prune_follows_no_link_out_of_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    for _ in range(3):
        put(elsewhere)
    for _ in range(2):
        put(repository)
    model = repository / "model"
    for version in (1, 2):  # versions that are links, one of them withdrawn later
        (model / str(version)).rename(tmp_path / f"target-{version}")
        (model / str(version)).symlink_to(tmp_path / f"target-{version}")
    withdraw(repository)
    for content in (b"a", b"b"):
        directory = put(repository, content=content)
    (model / "3" / "link").symlink_to(elsewhere)
    (repository / "linked").symlink_to(elsewhere / "model")
    (repository / ".staging-link").symlink_to(elsewhere)
    os.utime(repository / ".staging-link", (0, 0), follow_symlinks=False)
    assert main(["prune", str(repository), "--keep", "1"]) == 0
    assert f"skipped {repository / 'linked'}" in capsys.readouterr().out
    assert entries(model) == [directory.name]
    assert entries(repository) == ["linked", "model"]
    assert [len(entries(tmp_path / f"target-{version}")) for version in (1, 2)] == [2, 2]
    assert [faults(path) for path in version_directories(elsewhere)] == [[], [], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0"], "'0' is not a number from 1"),
        (["--keep", "-1"], "'-1' is not a number from 1"),
        (["--keep", "1", "--stale-hours", "0"], "'0' is not a number of hours from 1"),
        (["--keep", "1", "--stale-hours", "nan"], "'nan' is not a number of hours from 1"),
        ([], "the following arguments are required: --keep"),
    ],
)
def test_prune_refuses_a_bad_number_naming_it(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["prune", str(tmp_path), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_line_catches_its_errors_when_run_as_a_program(tmp_path: Path) -> None:
    put(tmp_path)
    command = [sys.executable, "-m", "model_repository"]
    options = {"cwd": ROOT, "capture_output": True, "text": True}
    refused = subprocess.run([*command, "rollback", tmp_path / "model"], **options)  # type: ignore[call-overload]
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    pruned = subprocess.run([*command, "prune", tmp_path, "--keep", "1"], **options)  # type: ignore[call-overload]
    assert (pruned.returncode, pruned.stdout, pruned.stderr) == (0, "", "")


def publish_many(repository: Path, first: int, count: int) -> dict[int, bytes]:
    """Publish versions one after another; content by number."""
    contents = [str(first + n).encode() for n in range(count)]
    return {int(put(repository, content=content).name): content for content in contents}


def silent(line: str) -> None:
    """Say nothing."""


def roll_back_many(repository: Path, times: int) -> None:
    """Roll back twice and bring one version back, again and again, where there is one to take."""
    for change in (rollback, rollback, undo_rollback) * times:
        with contextlib.suppress(RepositoryError):
            change(repository / "model", silent)


def prune_many(repository: Path, keep: int, times: int) -> None:
    """Prune the whole repository."""
    for _ in range(times):
        prune(repository, keep, 24, silent)


def test_publishers_rollbacks_and_prunes_at_once_never_give_a_number_two_meanings(
    tmp_path: Path,
) -> None:
    put(tmp_path)
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        publishers = [pool.submit(publish_many, tmp_path, first, 40) for first in (1000, 2000)]
        others = [
            pool.submit(roll_back_many, tmp_path, 40),
            pool.submit(prune_many, tmp_path, 3, 60),
        ]
        published = [publisher.result() for publisher in publishers]
        for other in others:
            other.result()
    assert not published[0].keys() & published[1].keys()
    contents = published[0] | published[1]
    prune(tmp_path, 1, 24, print)
    for directory in version_directories(tmp_path):
        assert faults(directory) == []
        assert (directory / "model.onnx").read_bytes() == contents.get(int(directory.name), b"onnx")
    assert int(put(tmp_path).name) > max(contents)


def test_a_reader_sees_a_version_whole_or_not_at_all_while_others_prune_and_roll_back(
    tmp_path: Path,
) -> None:
    put(tmp_path)
    looks = 0
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        work: list[Future[object]] = [
            pool.submit(publish_many, tmp_path, 0, 150),
            pool.submit(prune_many, tmp_path, 1, 150),
        ]
        while not all(each.done() for each in work):
            for version in versions(tmp_path / "model"):
                found = faults(tmp_path / "model" / str(version))
                assert not found or version not in versions(tmp_path / "model"), found
                looks += 1
        for each in work:
            each.result()
    assert looks > 100
