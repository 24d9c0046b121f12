"""Training end to end on real digits: export, gates, publishing, the command line, serving."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from model_repository import HOLDOUT, ONNX_PLATFORM, faults, read_manifest, versions
from serving.client import Client
from training import export
from training.__main__ import main
from training.calibration import calibrated
from training.config import parse_config
from training.dataset import Dataset
from training.export import GateFailed
from training.learner import Epoch
from training.models import Classifier, build
from training.recipes import STANDARD_MODELS, recipe_for
from training.report import confusion
from training.run import Published, Trained, publish_trained, train


class Silent:
    """An observer that shows nothing."""

    def batch(self, epoch: int, done: int, batches: int) -> None:
        """Ignore a step."""

    def epoch(self, row: Epoch) -> None:
        """Ignore an epoch."""


def trained(dataset: Dataset, model: str) -> Trained:
    """A model after its best recipe."""
    recipe = recipe_for(model, "best", len(dataset.labels))
    return train(model, "best", recipe, dataset, seed=0, observer=Silent())


@pytest.fixture(scope="module")
def learned(digits_3_7: Dataset) -> dict[str, Trained]:
    """The five standard models, trained on real digits."""
    return {model: trained(digits_3_7, model) for model in STANDARD_MODELS}


@pytest.fixture(scope="module")
def published(
    learned: dict[str, Trained], digits_3_7: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Published]:
    """They, published into one repository."""
    repository = tmp_path_factory.mktemp("repository")
    return {
        model: publish_trained(each, digits_3_7, model, repository)
        for model, each in learned.items()
    }


@pytest.mark.parametrize("model", STANDARD_MODELS)
def test_what_is_published_is_whole_and_says_how_good_it_is(
    published: dict[str, Published], digits_3_7: Dataset, model: str
) -> None:
    directory, manifest = published[model].directory, published[model].manifest
    assert faults(directory) == []
    assert manifest.labels == ("3", "7")
    assert manifest.accuracy is not None
    assert manifest.accuracy >= recipe_for(model, "best", 2).floor
    assert manifest.dataset is not None
    assert manifest.dataset.checksum == digits_3_7.checksum
    assert manifest.dataset.valid_images == len(digits_3_7.valid.labels)
    assert manifest.parity is not None
    assert manifest.parity.label_disagreements == 0
    assert manifest.parity.max_probability_difference <= 1e-5
    assert manifest.parity.batch_sizes == (1, 2, 7, 64)


@pytest.mark.parametrize("model", STANDARD_MODELS)
def test_the_onnx_file_stands_alone_and_meets_the_contract(
    published: dict[str, Published], digits_3_7: Dataset, model: str, tmp_path: Path
) -> None:
    alone = tmp_path / "elsewhere.onnx"
    alone.write_bytes((published[model].directory / "model.onnx").read_bytes())
    onnx.checker.check_model(str(alone), full_check=True)
    session = onnxruntime.InferenceSession(alone, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [
        ("images", "tensor(uint8)", [28, 28])
    ]
    assert [(o.name, o.type) for o in session.get_outputs()] == [
        ("probabilities", "tensor(float)"),
        ("labels", "tensor(int64)"),
    ]
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["name"], json.loads(metadata["labels"])) == (model, ["3", "7"])
    answers = export.answer(export.onnx_runner(alone), digits_3_7.valid.images, 5)
    reached = export.accuracy(answers, digits_3_7.valid)
    assert reached == pytest.approx(published[model].manifest.accuracy)


def test_the_torchscript_file_answers_without_our_code(
    published: dict[str, Published], digits_3_7: Dataset, tmp_path: Path
) -> None:
    program = (
        "import sys, torch, numpy as np\n"
        "images = torch.from_numpy(np.load(sys.argv[2]))\n"
        "print(torch.jit.load(sys.argv[1])(images)[1].tolist())\n"
    )
    np.save(tmp_path / "images.npy", digits_3_7.valid.images[:9])
    model = published["resnet18"].directory / "model.pt"
    command = [sys.executable, "-W", "ignore", "-c", program, str(model), "images.npy"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    onnx_labels = export.onnx_runner(model.with_name("model.onnx"))(digits_3_7.valid.images[:9])[1]
    assert json.loads(result.stdout) == onnx_labels.tolist()


def test_resnet18_comes_in_int8_too_and_loses_at_most_one_image(
    published: dict[str, Published], digits_3_7: Dataset
) -> None:
    manifest = published["resnet18"].manifest
    by_precision = {variant.precision: variant for variant in manifest.variants}
    int8 = by_precision["int8"]
    assert int8.file == "model.int8.onnx"
    assert int8.accuracy is not None
    assert manifest.accuracy is not None
    assert manifest.accuracy - int8.accuracy <= 1 / len(digits_3_7.valid.labels) + 1e-9
    directory = published["resnet18"].directory
    assert (directory / int8.file).stat().st_size < 0.3 * (directory / "model.onnx").stat().st_size


@pytest.mark.parametrize("model", STANDARD_MODELS)
def test_each_onnx_file_says_what_a_replay_of_the_holdout_reaches(
    published: dict[str, Published], model: str
) -> None:
    directory, manifest = published[model].directory, published[model].manifest
    held = np.load(directory / HOLDOUT)
    for variant in manifest.variants:
        expected = None
        if variant.file.endswith(".onnx"):
            answers = export.answer(export.onnx_runner(directory / variant.file), held["images"], 9)
            expected = float((answers[1] == held["labels"]).mean())
        assert variant.holdout_accuracy == expected


def test_resnet18_comes_in_fp16_too_with_half_the_bytes_and_the_same_tensors(
    published: dict[str, Published], digits_3_7: Dataset
) -> None:
    manifest, directory = published["resnet18"].manifest, published["resnet18"].directory
    half = manifest.variant(ONNX_PLATFORM, "fp16")
    assert half is not None
    assert (half.file, half.sha256) == ("model.fp16.onnx", manifest.files["model.fp16.onnx"])
    graph = onnx.load(directory / half.file).graph
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    weights = {w.data_type for w in graph.initializer if w.data_type in floats and len(w.dims) > 1}
    assert weights == {onnx.TensorProto.FLOAT16}
    ratio = (directory / half.file).stat().st_size / (directory / "model.onnx").stat().st_size
    assert 0.49 < ratio < 0.52
    images = digits_3_7.valid.images
    halved, full = (
        export.answer(export.onnx_runner(directory / name), images, 64)
        for name in ("model.fp16.onnx", "model.onnx")
    )
    assert (halved[0].dtype, halved[1].dtype) == (full[0].dtype, full[1].dtype)
    np.testing.assert_allclose(halved[0], full[0], atol=0.01)
    assert half.accuracy == pytest.approx(export.accuracy(halved, digits_3_7.valid))


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_reduced_file_says_how_sure_it_is_itself(
    published: dict[str, Published], digits_3_7: Dataset, precision: str
) -> None:
    manifest, directory = published["resnet18"].manifest, published["resnet18"].directory
    variant = manifest.variant(ONNX_PLATFORM, precision)
    assert variant is not None
    assert variant.quality is not None
    assert manifest.quality_of(variant) == variant.quality
    run = export.onnx_runner(directory / variant.file)
    shares, predicted = export.answer(run, digits_3_7.calibration.images, 9)
    confidence = calibrated(shares, variant.quality.temperature).max(axis=1).mean()
    right = int((predicted == digits_3_7.calibration.labels).sum())
    assert confidence == pytest.approx((right + 0.5) / (len(predicted) + 1), abs=1e-3)
    full = manifest.variant(ONNX_PLATFORM, "fp32")
    assert full is not None
    assert (full.quality, manifest.quality_of(full)) == (None, manifest.quality)


def test_an_int8_file_that_loses_too_much_is_dropped_and_said(
    learned: dict[str, Trained], digits_3_7: Dataset, tmp_path: Path
) -> None:
    """It is calibrated on images that say nothing; nobody is trained on those."""
    blank = np.zeros_like(digits_3_7.calibration.images)
    spoilt = dataclasses.replace(
        digits_3_7, calibration=dataclasses.replace(digits_3_7.calibration, images=blank)
    )
    published = publish_trained(learned["resnet18"], spoilt, "resnet18", tmp_path)
    assert [v.precision for v in published.manifest.variants] == ["fp32", "fp32", "fp16"]
    assert not (published.directory / "model.int8.onnx").exists()
    assert "int8 dropped: accuracy" in published.notes[0]


def test_the_holdout_is_labelled_validation_images(
    published: dict[str, Published], digits_3_7: Dataset
) -> None:
    with np.load(published["mlp"].directory / HOLDOUT, allow_pickle=False) as holdout:
        images, labels = holdout["images"], holdout["labels"]
    assert len(images) == min(200, len(digits_3_7.valid.labels))
    valid = {image.tobytes(): label for image, label in _pairs(digits_3_7)}
    assert [valid[image.tobytes()] for image in images] == labels.tolist()


def _pairs(dataset: Dataset) -> list[tuple[np.ndarray, int]]:
    return list(zip(dataset.valid.images, dataset.valid.labels.tolist(), strict=True))


def test_an_inaccurate_model_is_not_published(
    learned: dict[str, Trained], digits_3_7: Dataset, tmp_path: Path
) -> None:
    classifier = Classifier(build("linear", 2, True), False)
    untrained = dataclasses.replace(learned["linear"], classifier=classifier)
    with pytest.raises(GateFailed, match=r"accuracy 0\.\d{4} is below the required 0\.9900"):
        publish_trained(untrained, digits_3_7, "linear", tmp_path, min_accuracy=0.99)
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_answers_differently_is_named(
    learned: dict[str, Trained], digits_3_7: Dataset
) -> None:
    eager_runner = export.eager_runner(learned["linear"].classifier)
    eager = export.answer(eager_runner, digits_3_7.valid.images, 64)

    def off_at_batch_size_2(images: np.ndarray) -> export.Answers:
        probabilities, labels = eager_runner(images)
        return (probabilities + 2e-5 * (len(images) == 2), labels)

    comparisons = export.compare(eager, {"ONNX Runtime": off_at_batch_size_2}, digits_3_7.valid)
    with pytest.raises(GateFailed, match="ONNX Runtime at batch size 2: 0 of") as caught:
        export.parity(comparisons)
    assert "batch size 64" not in str(caught.value)


def test_probabilities_that_are_not_numbers_fail_the_gate() -> None:
    comparison = export.Comparison("ONNX Runtime", 1, 10, 0, float("nan"))
    with pytest.raises(GateFailed, match="nan"):
        export.parity([comparison])


def test_the_report_is_one_page_with_every_section_and_nothing_external(
    published: dict[str, Published],
) -> None:
    page = (published["resnet18"].directory / "report.html").read_text()
    for title in ("Accuracy", "Learning curves", "Confusion matrix", "Mean digits", "Most wrong"):
        assert f"<h2>{title}</h2>" in page
    assert "<h2>Parity with eager PyTorch</h2>" in page
    assert page.count("data:image/png;base64,") >= 3
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert "model.int8.onnx" in page


def test_confusion_counts_truth_by_row() -> None:
    counts = confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_the_command_publishes_all_ten_digits_beside_the_two(tmp_path: Path) -> None:
    common = ["--dataset", "digits", "--model-repository", str(tmp_path), "--models", "linear"]
    assert main(common) == 0
    assert main([*common, "--classes", "0-9"]) == 0
    assert main([*common, "--classes", "1,3-5", "--name", "some"]) == 0
    names = {path.name for path in tmp_path.iterdir() if versions(path)}
    assert names == {"linear", "linear_0_9", "some"}
    assert read_manifest(tmp_path / "some" / "1").labels == ("1", "3", "4", "5")


def test_the_command_keeps_a_good_version_and_replaces_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--dataset", "digits", "--model-repository", str(tmp_path), "--models"]
    command += ["pixel_similarity", "--skip-existing"]
    assert [main(command), main(command)] == [0, 0]
    assert "kept" in capsys.readouterr().out
    assert versions(tmp_path / "pixel_similarity") == [1]
    (tmp_path / "pixel_similarity" / "1" / "model.onnx").write_bytes(b"torn")
    assert main(command) == 0
    assert versions(tmp_path / "pixel_similarity") == [1, 2]


def test_other_classes_than_the_measured_ones_are_held_to_more_than_chance(tmp_path: Path) -> None:
    recipe = recipe_for("linear", "best", 2)
    assert recipe.min_accuracy("mnist", ("3", "7")) == 0.98
    assert recipe.min_accuracy("mnist", ("4", "9")) == 0.75
    command = ["--dataset", "digits", "--classes", "4,9", "--name", "x", "--models", "linear"]
    assert main([*command, "--model-repository", str(tmp_path)]) == 0


def test_resuming_a_finished_run_keeps_what_it_published(tmp_path: Path) -> None:
    command = ["--dataset", "digits", "--models", "pixel_similarity,linear"]
    command += ["--model-repository", str(tmp_path)]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    assert versions(tmp_path / "linear") == [1]
    assert main([*command, "--resume", "--seed", "1"]) == 0
    assert versions(tmp_path / "linear") == [1, 2]


def test_a_failed_gate_exits_with_1_and_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--dataset", "digits", "--model-repository", str(tmp_path)]
    command += ["--models", "pixel_similarity", "--min-accuracy", "1"]
    assert main(command) == 1
    assert "pixel_similarity is not published: accuracy" in capsys.readouterr().err
    assert not (tmp_path / "pixel_similarity").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "vgg"], "'vgg' is not one of"),
        (["--classes", "3"], "at least two"),
        (["--classes", "1,2"], "--classes 1,2 needs --name"),
        (["--epochs", "0"], "0 is not within 1"),
        (["--min-accuracy", "1.5"], "1.5 is not within 0 and 1"),
        (["--dataset", "digits", "--classes", "3,x", "--name", "a"], "no class 'x'"),
        (["--dataset", "digits", "--name", "a/b", "--models", "linear"], "'a/b'"),
        (["--dataset", "mnist", "--data-dir", "/nowhere"], "/nowhere"),
    ],
)
def test_unusable_settings_exit_with_2_and_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    try:
        status = main(["--model-repository", str(tmp_path), *flags])
    except SystemExit as exit:
        status = int(str(exit.code))
    assert status == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_data_directory_comes_from_the_environment_and_a_flag_wins(tmp_path: Path) -> None:
    environ = {"MNIST_DIR": str(tmp_path)}
    assert parse_config([], environ).data_dir == tmp_path
    assert parse_config(["--data-dir", "other"], environ).data_dir == Path("other")


def test_a_training_command_killed_with_sigkill_resumes_at_its_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "--dataset", "digits", "--models", "linear"]
    command += ["--epochs", "300", "--model-repository", str(tmp_path), "--resume"]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    # It cannot end unseen: what it says of 300 epochs is more than a pipe takes that is not read.
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    for line in process.stdout:  # kill it in its third epoch, or not much later
        if re.match(r"\s+2 ", line):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    epochs = [int(match) for match in re.findall(r"^ +(\d+) ", result.stdout, re.MULTILINE)]
    assert epochs[0] >= 2  # 2 where the kill came before the checkpoint was renamed
    assert epochs == list(range(epochs[0], epochs[-1] + 1))
    assert not list((tmp_path / ".checkpoints").glob("*.checkpoint"))
    assert versions(tmp_path / "linear") == [1]


def test_every_trained_model_is_served_and_answers_as_it_did_in_training(
    published: dict[str, Published], digits_3_7: Dataset, serve: object
) -> None:
    repository = published["linear"].directory.parent.parent
    images = digits_3_7.valid.images
    with serve(repository, precision="fp32") as running, Client(running.address) as client:  # type: ignore[operator]
        for model, version in published.items():
            answer = client.classify(images, model)
            eager = export.answer(export.onnx_runner(version.directory / "model.onnx"), images, 64)
            assert answer.version == "1"
            assert answer.classes == ("3", "7")
            assert answer.labels == tuple(("3", "7")[index] for index in eager[1])
            assert np.abs(answer.probabilities - eager[0]).max() <= 1e-5


def test_int8_is_served_where_there_is_one_and_fp32_elsewhere(
    published: dict[str, Published], digits_3_7: Dataset, serve: object
) -> None:
    repository = published["linear"].directory.parent.parent
    images = digits_3_7.valid.images
    with serve(repository, precision="int8") as running:  # type: ignore[operator]
        precisions = {
            m.manifest.name: m.model.variant.precision
            for m in running.server.inference.registry.served
        }
        with Client(running.address) as client:
            answer = client.classify(images, "resnet18")
    assert precisions.pop("resnet18") == "int8"
    assert set(precisions.values()) == {"fp32"}
    runner = export.onnx_runner(published["resnet18"].directory / "model.int8.onnx")
    assert answer.labels == tuple(("3", "7")[i] for i in export.answer(runner, images, 64)[1])


@pytest.mark.mnist
def test_pixel_similarity_gets_the_book_s_counts_right_on_mnist(mnist_3_7: Dataset) -> None:
    classifier = trained(mnist_3_7, "pixel_similarity").classifier
    labels = classifier(torch.from_numpy(mnist_3_7.valid.images))[1].numpy()
    table = confusion(mnist_3_7.valid.labels, labels, 2)
    assert table.diagonal().tolist() == [926, 1013]
    assert table.sum(1).tolist() == [1010, 1028]


@pytest.mark.mnist
@pytest.mark.parametrize(
    ("model", "least"), [("linear", 0.981), ("mlp", 0.985), ("mlp_deep", 0.99)]
)
def test_the_small_models_reach_their_accuracy_on_mnist(
    mnist_3_7: Dataset, model: str, least: float
) -> None:
    assert trained(mnist_3_7, model).recorder.epochs[-1].accuracy >= least
