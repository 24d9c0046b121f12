"""The only training loop: SGD or Adam over tensors in memory, constant rate or one cycle.

Owns batches, losses, schedules, the per-epoch record and the state a killed run resumes from. It
prints nothing: an `Observer` is told. Terms and defaults are fastai's (the book's chapter 4).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.augment import Augment, augment, draw
from training.distributed import ALONE, World
from training.recipes import Recipe

LossFunction = Callable[[Tensor, Tensor], Tensor]
Schedule = Callable[[float], tuple[float, float]]  # progress in [0, 1] → learning rate, momentum


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of the record: mean losses, accuracy on the validation images, wall-clock seconds."""

    epoch: int
    train_loss: float
    valid_loss: float
    accuracy: float
    seconds: float


class Observer(Protocol):
    """Who is told how training goes; the CLI draws a progress bar from it."""

    def batch(self, epoch: int, done: int, batches: int) -> None:
        """`done` of `batches` steps of this epoch are finished."""

    def epoch(self, row: Epoch) -> None:
        """An epoch is finished, evaluated and may be checkpointed."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Images (N, 28, 28) uint8 and class indices (N,) int64, on the training device."""

    images: Tensor
    labels: Tensor


class Recorder:
    """What happened: a row per epoch, and the loss and learning rate of every step."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self.losses: list[float] = []
        self.rates: list[float] = []


def mnist_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The book's loss: the mean distance of the sigmoid from the right answer. (N, 1), (N,)."""
    predictions = logits.squeeze(1).sigmoid()
    return torch.where(targets == 1, 1 - predictions, predictions).mean()


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy with one logit for the second class. (N, 1), (N,)."""
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), targets.float())


LOSSES: dict[str, LossFunction] = {
    "mnist_loss": mnist_loss,
    "bce": bce_loss,
    "cross_entropy": F.cross_entropy,
}


def predicted_labels(logits: Tensor) -> Tensor:
    """Class indices (N,) of logits (N, C), or (N, 1) where positive means the second class."""
    return (logits.squeeze(1) > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def one_cycle(lr_max: float, momenta: tuple[float, float]) -> Schedule:
    """fastai's one-cycle policy: cosine up over the first quarter, cosine down over the rest.

    The rate starts at lr_max / 25 and ends at lr_max / 100,000; momentum moves the other way.
    Source: Smith 2018, https://arxiv.org/abs/1803.09820; fastai's `fit_one_cycle`.
    """
    warm_up, start, end = 0.25, lr_max / 25, lr_max / 1e5
    high, low = momenta

    def at(progress: float) -> tuple[float, float]:
        if progress < warm_up:
            part = progress / warm_up
            return _cosine(start, lr_max, part), _cosine(high, low, part)
        part = (progress - warm_up) / (1 - warm_up)
        return _cosine(lr_max, end, part), _cosine(low, high, part)

    return at


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Logits of (N, 28, 28) images in evaluation mode, in which the network is left."""
    network.eval()
    return torch.cat([network(chunk) for chunk in images.split(batch_size)])


def evaluate(network: nn.Module, loss: LossFunction, examples: Examples) -> tuple[float, float]:
    """Mean loss, and the share of right labels."""
    logits = predict(network, examples.images)
    right = predicted_labels(logits) == examples.labels
    return loss(logits, examples.labels).item(), right.float().mean().item()


class Learner:
    """A network, its data and its recipe; `fit` or `fit_one_cycle` trains it in place."""

    def __init__(
        self,
        network: nn.Module,
        train: Examples,
        valid: Examples,
        recipe: Recipe,
        seed: int,
        observer: Observer,
        world: World = ALONE,
    ) -> None:
        self.network = network
        self.world = world
        self.replica = world.replica(network)
        self.train, self.valid = train, valid
        self.recipe = recipe
        self.loss = LOSSES[recipe.loss]
        self.optimiser = _optimiser(network, recipe)
        self.augment = Augment(recipe.shift, recipe.rotation)
        self.generator = torch.Generator().manual_seed(seed)  # order and augmentation, on the CPU
        self.observer = observer
        self.recorder = Recorder()
        self.checkpoint: Callable[[], None] | None = None

    def fit(self, epochs: int, lr: float) -> None:
        """Train until `epochs` epochs are done at a constant learning rate."""
        momentum = self.recipe.momenta[1]
        self._fit(epochs, lambda progress: (lr, momentum))

    def fit_one_cycle(self, epochs: int, lr_max: float) -> None:
        """Train until `epochs` epochs are done under fastai's one-cycle policy."""
        self._fit(epochs, one_cycle(lr_max, self.recipe.momenta))

    def run(self, epochs: int, checkpoint: Callable[[], None] | None = None) -> None:
        """Train as the recipe says until `epochs` are done, calling `checkpoint` after each."""
        self.checkpoint = checkpoint
        fit = self.fit_one_cycle if self.recipe.schedule == "one_cycle" else self.fit
        fit(epochs, self.recipe.lr)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to go on exactly as this one would have.

        Every process of a run must ask for it at the same time.
        """
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "global_generators": self.world.gather(torch.get_rng_state()),  # dropout's, by rank
            "epochs": [asdict(row) for row in self.recorder.epochs],
            "losses": self.recorder.losses,
            "rates": self.recorder.rates,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up where `state` was taken; `fit` then runs the epochs that are left."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generators"][self.world.rank])
        self.recorder.epochs = [Epoch(**row) for row in state["epochs"]]
        self.recorder.losses, self.recorder.rates = list(state["losses"]), list(state["rates"])

    def _fit(self, epochs: int, schedule: Schedule) -> None:
        for epoch in range(len(self.recorder.epochs) + 1, epochs + 1):
            start = time.perf_counter()
            self._record(epoch, self._train_epoch(epoch, epochs, schedule), start)
            if self.checkpoint:
                self.checkpoint()

    def _record(self, epoch: int, train_loss: float, start: float) -> None:
        valid_loss, accuracy = self._evaluate()
        row = Epoch(epoch, train_loss, valid_loss, accuracy, time.perf_counter() - start)
        self.recorder.epochs.append(row)
        self.observer.epoch(row)

    def _evaluate(self) -> list[float]:
        """Mean loss and accuracy over the validation images, of which each process has a part."""
        part = self.world.part(rows := len(self.valid.labels))
        mine = Examples(self.valid.images[part], self.valid.labels[part])
        weight = self.world.weight(len(mine.labels), rows)
        reached = evaluate(self.network, self.loss, mine) if weight else (0.0, 0.0)
        return self.world.mean([value * weight for value in reached])

    def _train_epoch(self, epoch: int, epochs: int, schedule: Schedule) -> float:
        self.replica.train()
        batches = self._batches()
        for done, rows in enumerate(batches):
            progress = (epoch - 1 + done / len(batches)) / epochs
            self._step(rows, *schedule(progress))
            self.observer.batch(epoch, done + 1, len(batches))
        losses = self.world.mean(self.recorder.losses[-len(batches) :])
        self.recorder.losses[-len(batches) :] = losses
        return sum(losses) / len(losses)

    def _batches(self) -> list[Tensor]:
        """Row indices of each step. A single row left over, which batch normalisation cannot take,
        joins the batch before it."""
        count = len(self.train.labels)
        batches = list(
            torch.randperm(count, generator=self.generator).split(self.recipe.batch_size_for(count))
        )
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _step(self, rows: Tensor, lr: float, momentum: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = lr
            _set_momentum(group, momentum)
        draws = draw(self.augment, len(rows), self.generator)
        part = self.world.part(len(rows))  # drawn for all, so that the seed decides, not the share
        mine = rows[part].to(self.train.labels.device)
        images = augment(self.train.images[mine], self.augment, draws[part])
        loss = self._loss(self.replica(images), self.train.labels[mine], len(rows))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.recorder.losses.append(loss.item())
        self.recorder.rates.append(lr)

    def _loss(self, logits: Tensor, labels: Tensor, batch: int) -> Tensor:
        """The share's loss, weighted so that its mean over the processes is the whole batch's."""
        if not len(labels):
            return logits.sum() * 0  # the mean of nothing is not a number
        return self.loss(logits, labels) * self.world.weight(len(labels), batch)


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    if recipe.optimiser == "adam":
        # fastai's Adam decouples weight decay, which PyTorch calls AdamW, with these constants.
        return torch.optim.AdamW(
            parameters, recipe.lr, betas=(0.9, 0.99), eps=1e-5, weight_decay=recipe.weight_decay
        )
    momentum = recipe.momenta[1]
    return torch.optim.SGD(parameters, recipe.lr, momentum, weight_decay=recipe.weight_decay)


def _set_momentum(group: dict[str, Any], momentum: float) -> None:
    if "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
    else:
        group["momentum"] = momentum
