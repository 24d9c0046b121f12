"""Several processes that train one model, as torchrun starts them: what each does, how they end.

Owns the process group, each process's share of a batch, and what is agreed on through the group.
Rank 0 alone reads data, shows progress, writes checkpoints and publishes; all compute. One process
has no group: everything here then gives back what it was given. Knows no model and no recipe.
The variables read here are torchrun's: https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.batch_norm import share_statistics
from training.config import ConfigError

T = TypeVar("T")


class Stopped(Exception):
    """Rank 0 failed, and has said why."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes of one run, and which of them this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine
    device: str = "cpu"
    nccl: dist.ProcessGroup | None = None  # for what lies on GPUs; all else goes through gloo

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which reads, shows, writes and publishes for all."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """Which of so many rows are this process's: parts differ by a row at most, in rank order,
        and are empty where there are fewer rows than processes."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def weight(self, rows: int, of: int) -> float:
        """What a mean over this process's rows counts for in `mean`, or in DDP's mean of gradients,
        so that the result is the mean over all `of` rows. 1 where all have equally many."""
        return rows * self.size / of

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean over the processes of each value."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return list((total / self.size).tolist())

    def gather(self, value: Tensor) -> list[Tensor]:
        """Every process's tensor, by rank; on the CPU, of the same shape and type everywhere."""
        if self.size == 1:
            return [value]
        values = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives rank 0, in every process; those that wait raise Stopped where it
        fails."""
        if self.size == 1:
            return make()
        if self.leads:
            return _tell(make)
        told: list[Any] = [None]
        dist.broadcast_object_list(told)
        if told[0] is None:
            raise Stopped
        made: T = told[0][0]
        return made

    def replica(self, network: nn.Module) -> nn.Module:
        """What is to be trained in the network's place: it has the same parameters and buffers, and
        averages gradients and the statistics of batch normalisation over the processes."""
        if self.size == 1:
            return network
        on_gpu = self.nccl is not None
        shared = share_statistics(_sharing_tensors(network), self.nccl)
        return DistributedDataParallel(
            shared,
            device_ids=[torch.device(self.device)] if on_gpu else None,
            process_group=self.nccl,
        )


ALONE = World()


def world_of(environ: Mapping[str, str]) -> World:
    """What torchrun's variables say; ALONE without them. ConfigError where they make no sense."""
    if "WORLD_SIZE" not in environ or "RANK" not in environ:
        return ALONE
    rank, size = environ["RANK"], environ["WORLD_SIZE"]
    try:
        world = World(int(rank), int(size), int(environ.get("LOCAL_RANK", "0")))
    except ValueError:
        world = World(size=0)
    if not 0 <= world.rank < world.size:
        raise ConfigError(f"RANK={rank} of WORLD_SIZE={size}: start with torchrun")
    return world


@contextmanager
def joined(environ: Mapping[str, str], device: str) -> Iterator[World]:
    """The processes of this run, connected until the block ends; `device` is cpu or cuda.

    After a failure nothing is closed: that would wait for the others, who notice when this process
    ends. ConfigError where torchrun's variables or the devices cannot be used.
    """
    world = world_of(environ)
    if world.size == 1:
        yield replace(ALONE, device=device)
        return
    try:
        dist.init_process_group("gloo", rank=world.rank, world_size=world.size)
    except ValueError as error:  # a variable of the rendezvous is missing
        raise ConfigError(f"WORLD_SIZE={world.size}: {error}; start with torchrun") from None
    yield _on(device, world)
    _leave()


def _on(device: str, world: World) -> World:
    """On GPUs each process has the one of its local rank."""
    if (leader := world.from_first(lambda: device)) != device:
        raise ConfigError(f"--device: rank 0 has {leader}, rank {world.rank} has {device}")
    if device == "cpu":
        return world
    if world.local_rank >= (count := torch.cuda.device_count()):
        raise ConfigError(f"{count} CUDA devices are too few for local rank {world.local_rank}")
    device = f"cuda:{world.local_rank}"
    torch.cuda.set_device(device)
    return replace(world, device=device, nccl=dist.new_group(backend="nccl"))


def _leave() -> None:
    """Close the group, so that its threads end before the interpreter does: left alive, they abort
    the process now and then. They live as long as anything refers to the group, which DDP's cycles
    do, and functions of torch.distributed.nn where that is imported after the group was made.
    """
    dist.all_reduce(torch.zeros(1))  # nobody leaves while another still waits for an answer
    gc.collect()
    dist.destroy_process_group()


def _tell(make: Callable[[], T]) -> T:
    try:
        made = make()
    except Exception:
        dist.broadcast_object_list([None])
        raise
    dist.broadcast_object_list([(made,)])
    return made


def _sharing_tensors(network: nn.Module) -> nn.Module:
    """A copy of the modules around the same parameters and buffers."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
