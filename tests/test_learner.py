"""The training loop: it learns, repeats bit for bit, resumes exactly, and follows its schedule."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from training.augment import Augment, augment, draw
from training.checkpoint import Checkpoint, CheckpointError
from training.dataset import Dataset, Split
from training.learner import Epoch, Examples, Learner, bce_loss, mnist_loss, one_cycle
from training.models import build
from training.recipes import MODEL_NAMES, RECIPE_NAMES, Recipe, recipe_for
from training.run import Trained, train

RECIPE = dataclasses.replace(recipe_for("mlp", "best", 2), epochs=3, min_steps=0)


class Watcher:
    """Remembers what it was told; raises in place of a kill after `stop_after` epochs."""

    def __init__(self, stop_after: int = 0) -> None:
        self.rows: list[Epoch] = []
        self.steps: list[tuple[int, int, int]] = []
        self.stop_after = stop_after

    def batch(self, epoch: int, done: int, batches: int) -> None:
        """A step is done; the killed run dies in the first step of the epoch after its last."""
        if self.stop_after and epoch > self.stop_after:
            raise KeyboardInterrupt
        self.steps.append((epoch, done, batches))

    def epoch(self, row: Epoch) -> None:
        """An epoch is done."""
        self.rows.append(row)


def run(dataset: Dataset, recipe: Recipe = RECIPE, seed: int = 1, **options: object) -> Trained:
    """Train an mlp without a display."""
    options = {"observer": Watcher(), **options}
    return train("mlp", "best", recipe, dataset, seed=seed, **options)  # type: ignore[arg-type]


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return dict(trained.classifier.state_dict())


def equal(a: Trained, b: Trained) -> bool:
    """Whether two runs ended in exactly the same numbers."""
    pairs = zip(weights(a).values(), weights(b).values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_each_epoch_is_recorded_and_each_step_reported(digits_3_7: Dataset) -> None:
    watcher = Watcher()
    trained = run(digits_3_7, observer=watcher)
    assert [row.epoch for row in watcher.rows] == [1, 2, 3]
    assert watcher.rows == trained.recorder.epochs
    steps = watcher.steps[-1][2]
    assert watcher.steps[-1] == (3, steps, steps)
    assert len(trained.recorder.losses) == len(trained.recorder.rates) == 3 * steps
    assert trained.recorder.epochs[-1].train_loss < trained.recorder.epochs[0].train_loss


def test_a_seed_repeats_a_run_bit_for_bit_and_another_does_not(digits_3_7: Dataset) -> None:
    first, again, other = run(digits_3_7), run(digits_3_7), run(digits_3_7, seed=2)
    assert equal(first, again)
    assert first.recorder.losses == again.recorder.losses
    assert not equal(first, other)


@pytest.fixture(scope="module")
def few(digits_3_7: Dataset) -> Dataset:
    """A quarter of the images, enough for what is repeated bit for bit."""
    train = Split(digits_3_7.train.images[:64], digits_3_7.train.labels[:64])
    return dataclasses.replace(digits_3_7, train=train)


# Dropout draws from another generator than batches and augmentation do.
DROPOUT = dataclasses.replace(recipe_for("resnet18", "book", 2), epochs=3, min_steps=0, lr=0.01)


@pytest.mark.parametrize("recipe", [RECIPE, DROPOUT], ids=["mlp", "dropout"])
def test_a_run_killed_in_its_third_epoch_resumes_as_if_it_had_not_been(
    few: Dataset, tmp_path: Path, recipe: Recipe
) -> None:
    checkpoint = Checkpoint(tmp_path / "mlp.pt", {"seed": 1})
    with pytest.raises(KeyboardInterrupt):
        run(few, recipe, observer=Watcher(stop_after=2), checkpoint=checkpoint)
    torch.manual_seed(99)
    watcher = Watcher()
    resumed = run(few, recipe, observer=watcher, checkpoint=checkpoint, resume=True)
    assert [row.epoch for row in watcher.rows] == [3]
    assert equal(resumed, run(few, recipe))


def test_resuming_without_a_checkpoint_starts_anew(digits_3_7: Dataset, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "mlp.pt", {})
    assert equal(run(digits_3_7, checkpoint=checkpoint, resume=True), run(digits_3_7))


def test_a_checkpoint_of_another_run_is_refused_naming_what_differs(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "mlp.pt", {"seed": 1, "model": "mlp"}).save({})
    with pytest.raises(CheckpointError, match=r"seed differ.*--resume"):
        Checkpoint(tmp_path / "mlp.pt", {"seed": 2, "model": "mlp"}).load()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04torn"])
def test_a_damaged_checkpoint_is_refused_naming_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mlp.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path}: not a readable checkpoint"):
        Checkpoint(path, {}).load()


def test_one_cycle_rises_for_a_quarter_and_falls_to_almost_nothing() -> None:
    at = one_cycle(1.0, (0.95, 0.85))
    assert at(0.0) == pytest.approx((1 / 25, 0.95))
    assert at(0.25) == pytest.approx((1.0, 0.85))
    assert at(1.0) == pytest.approx((1e-5, 0.95))
    rates = [at(part / 100)[0] for part in range(101)]
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)


def test_mnist_loss_is_the_mean_distance_from_the_right_answer() -> None:
    logits = torch.tensor([[0.0], [2.0], [-2.0]])
    p = torch.tensor(2.0).sigmoid()
    expected = (0.5 + (1 - p) + (1 - p)) / 3
    assert mnist_loss(logits, torch.tensor([1, 1, 0])).item() == pytest.approx(expected.item())


def test_bce_loss_is_minus_the_log_probability_of_the_truth() -> None:
    logits = torch.tensor([[1.0], [-3.0]])
    p = logits.sigmoid().squeeze()
    expected = -(p[0].log() + (1 - p[1]).log()) / 2
    assert bce_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(expected.item())


def test_a_single_row_left_over_joins_the_batch_before_it(digits_3_7: Dataset) -> None:
    images = torch.from_numpy(digits_3_7.train.images[:129])
    examples = Examples(images, torch.from_numpy(digits_3_7.train.labels[:129]))
    recipe = dataclasses.replace(RECIPE, batch_size=8, epochs=1)
    watcher = Watcher()
    network = build("resnet18", 1, standardise=True)  # batch normalisation refuses single rows
    Learner(network, examples, examples, recipe, 0, watcher).run(1)
    assert len(watcher.steps) == 16


def test_augmentation_moves_ink_by_at_most_the_shift(digits_3_7: Dataset) -> None:
    images = torch.from_numpy(digits_3_7.train.images[:64])
    how = Augment(shift=2.0, rotation=0.0)
    moved = augment(images, how, draw(how, len(images), torch.Generator().manual_seed(0)))
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    grid = torch.arange(28.0)
    before, after = (_centre(batch, grid) for batch in (images, moved))
    distance = (before - after).abs()
    assert distance.max().item() < 2.2  # interpolation rounds a little
    assert distance.max().item() > 1.0


def test_no_augmentation_gives_the_images_back(digits_3_7: Dataset) -> None:
    images = torch.from_numpy(digits_3_7.train.images[:4])
    still, generator = Augment(0.0, 0.0), torch.Generator()
    before = generator.get_state()
    assert augment(images, still, draw(still, len(images), generator)) is images
    assert torch.equal(generator.get_state(), before)


def _centre(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    mass = images.float().sum((1, 2))
    return torch.stack(
        [
            (images.float().sum(2) * grid).sum(1) / mass,
            (images.float().sum(1) * grid).sum(1) / mass,
        ]
    )


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("name", RECIPE_NAMES)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_every_model_has_both_recipes_for_any_number_of_classes(
    model: str, name: str, classes: int
) -> None:
    recipe = recipe_for(model, name, classes)
    labels = ("3", "7") if classes == 2 else tuple("0123456789"[:classes])
    assert recipe.one_logit == (classes == 2 and recipe.loss != "cross_entropy")
    assert 0 < recipe.min_accuracy("digits", labels) <= recipe.min_accuracy("mnist", labels) < 1


def test_small_data_is_cut_into_smaller_batches_and_passed_over_more_often() -> None:
    recipe = Recipe("mlp", batch_size=128, epochs=10, min_steps=300)
    assert (recipe.batch_size_for(12_000), recipe.epochs_for(12_000)) == (128, 10)
    assert recipe.batch_size_for(256) == 16
    assert recipe.epochs_for(256) == 19  # 16 steps each
