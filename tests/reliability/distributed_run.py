"""What each process does that test_distributed.py starts with torchrun: it trains, and saves
what came of it, for the test to compare with what one process makes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from training.distributed import ALONE, World, joined
from training.learner import Epoch, Examples, Learner, bce_loss
from training.models import build
from training.recipes import recipe_for
from training.resnet import ResNet18

RECIPES = {
    "linear": recipe_for("linear", "book", 2),  # plain SGD
    "mlp": recipe_for("mlp", "best", 2),  # Adam; random shifts and rotations
}


class Silent:
    """An observer that shows nothing."""

    def batch(self, epoch: int, done: int, batches: int) -> None:
        """Ignore a step."""

    def epoch(self, row: Epoch) -> None:
        """Ignore an epoch."""


def digits() -> tuple[Examples, Examples]:
    """258 images make 16 batches of 16 rows, and one of 2: fewer than there are processes."""
    from training.bundled import read_digits  # takes a second that only one process need spend

    train, valid = (
        Examples(torch.from_numpy(split.images), torch.from_numpy(split.labels))
        for split in read_digits(("3", "7"))
    )
    return Examples(train.images[:258], train.labels[:258]), valid


def trained(model: str, data: tuple[Examples, Examples], world: World = ALONE) -> dict[str, Tensor]:
    """The weights after one epoch, and each loss and score that was recorded."""
    torch.manual_seed(3)
    recipe = RECIPES[model]
    network = build(model, 1, recipe.standardise)
    learner = Learner(network, *data, recipe, 3, Silent(), world)
    learner.run(1)
    losses, (row,) = learner.recorder.losses, learner.recorder.epochs
    scores = [*losses, row.train_loss, row.valid_loss, row.accuracy]
    return network.state_dict() | {"scores": torch.tensor(scores)}


def resnet_gradients(world: World = ALONE) -> dict[str, Tensor]:
    """ResNet18's gradients and running statistics after batches of 8 rows and of 2, in double
    precision: so deep a network makes single precision's noise a thousand times larger."""
    torch.manual_seed(0)
    network = ResNet18(1).double()
    replica = world.replica(network).train()
    for rows in (8, 2):
        images, labels = torch.rand(rows, 1, 28, 28).double(), torch.arange(rows) % 2
        part = world.part(rows)
        logits, weight = replica(images[part]), world.weight(len(labels[part]), rows)
        loss = bce_loss(logits, labels[part]) * weight if weight else logits.sum() * 0
        loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return gradients | dict(network.named_buffers())


def main(directory: Path) -> None:
    """Save what each process made in a file of its own."""
    torch.set_num_threads(1)
    made: dict[str, object] = {}
    with joined(os.environ, "cpu") as world:
        data = world.from_first(digits)
        made |= {model: trained(model, data, world) for model in RECIPES}
        made["resnet18"] = resnet_gradients(world)
        made["told"] = world.from_first(lambda: f"by {world.rank}")
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    made["threads_left"] = [name for name in threads if "gloo" in name]
    torch.save(made, directory / f"{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
