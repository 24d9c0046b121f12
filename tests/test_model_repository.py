"""The repository contract: what is published is whole, hashed, numbered once and readable later."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_repository import (
    MANIFEST,
    ONNX_PLATFORM,
    Draft,
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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    directory = put(tmp_path)
    (directory / MANIFEST).write_bytes(content)
    with pytest.raises(RepositoryError, match="manifest"):
        read_manifest(directory)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "readiness"])
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
