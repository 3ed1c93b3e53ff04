"""Small self-supervised runs, for the tests that compare one process with two of it.

    python tests/toy_ssl.py FOLDER

Each case leaves `CASE.RANK` in the folder: the method's weights after a few steps of `fit`, and
under `grad.` the gradients of its first batch, averaged over the processes. Nothing in a case
depends on the process: no batch norm, no noise, two windows of a record as its two views.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn

from ecgmm import dino, simclr
from ecgmm.byol import BYOL
from ecgmm.dino import DINO
from ecgmm.simclr import SimCLR
from ecgmm.spectrogram import make_front
from ecgmm.settings import BYOLSettings, DINOSettings, SimCLRSettings, TrainSettings
from ecgmm.training import fit
from ecgmm.windows import accelerator_for
from ecgmm.views import ViewGroup


class Batches:
    """16 visits of two windows over all processes.

    With `twice`, each record is visited twice in an epoch, and now and then twice in one batch.
    """

    def __init__(self, twice=True, named=True, size=16):
        rng = torch.Generator().manual_seed(1)
        own = torch.randn(24, 1, 12, 40, generator=rng)  # what a record's windows share
        self.x, self.twice, self.named, self.size = (
            own + 0.7 * torch.randn(24, 2, 12, 40, generator=rng),
            twice,
            named,
            size,
        )

    def __len__(self):
        return (48 if self.twice else 24) // self.size

    def epoch(self, seed, rank=0, world=1):
        order = (
            torch.randperm(48 if self.twice else 24, generator=torch.Generator().manual_seed(seed))
            % 24
        )
        for part in order.split(self.size)[: len(self)]:
            record = part[rank::world]
            yield {"x": self.x[record]} | ({"record": record} if self.named else {})


class Encoder(nn.Module):
    "Means over time of one convolution."

    n_out = 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(12, 8, 5)

    def forward(self, v):
        return self.conv(v).tanh().mean(-1)


def plain_gather(z):
    "What is often seen: all processes' projections, but only one's own with a gradient."
    if not dist.is_initialized():
        return z
    parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z.detach())
    parts[dist.get_rank()] = z
    return torch.cat(parts)


def without_norm(module):
    "The same module without its batch norms."
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            setattr(module, name, nn.Identity())
        else:
            without_norm(child)
    return module


def first_gradients(method, batches, rank, world):
    """The gradients of the first batch, averaged over the processes, as DistributedDataParallel
    does."""
    loss, _ = method.loss(next(iter(batches.epoch(0, rank, world))), torch.Generator())
    loss.backward()
    grads = {f"grad.{k}": p.grad.clone() for k, p in method.named_parameters() if p.requires_grad}
    for g in grads.values():
        if world > 1:
            dist.all_reduce(g)
        g /= world
    method.zero_grad()
    return grads


def one_s_own_mean(teacher):
    "A centre that only knows the process's own records."
    return teacher.detach().float().flatten(0, 1).mean(0)


PAIR = (ViewGroup(2),)


def make_simclr(front, encoder):
    return SimCLR(front, encoder, SimCLRSettings(dim=6, hidden=10), views=PAIR)


def make_byol(front, encoder):
    settings = BYOLSettings(dim=6, hidden=10, momentum=0.9)
    return without_norm(BYOL(front, encoder, settings, views=PAIR))


def make_dino(front, encoder):
    settings = DINOSettings(n_prototypes=12, hidden=256, momentum=0.9)
    views = (ViewGroup(2), ViewGroup(2))
    return without_norm(DINO(front, encoder, settings, views=views))


CASES = {  # name -> who makes the method, options of the batches, what is put in another's place
    "simclr": (make_simclr, {}, {}),
    "simclr_unnamed": (make_simclr, {"twice": False, "named": False, "size": 12}, {}),
    "simclr_plain": (make_simclr, {}, {(simclr, "gather_with_gradient"): plain_gather}),
    "byol": (make_byol, {}, {}),
    "dino": (make_dino, {}, {}),
    "dino_plain": (make_dino, {}, {(dino, "batch_mean"): one_s_own_mean}),
}


def main():
    state = PartialState(cpu=True)
    rank, world = state.process_index, state.num_processes
    for name, (make, options, instead) in CASES.items():
        own = {key: getattr(*key) for key in instead}
        for key, other in instead.items():
            setattr(*key, other)
        batches = Batches(**options)
        torch.manual_seed(0)
        method = make(
            make_front("signal").fit([batches.x.flatten(0, 1)]), Encoder()
        ).eval()  # in evaluation mode DINO's centre stays
        grads = first_gradients(method, batches, rank, world)
        history = fit(
            method,
            batches,
            TrainSettings(epochs=4, lr=5e-3, clip=1.0, weight_decay=0.01),
            accelerator=accelerator_for(cpu=True),
            progress=False,
        )
        save_file(
            {k: v.clone() for k, v in (method.state_dict() | grads).items()},
            str(Path(sys.argv[1]) / f"{name}.{rank}"),
        )
        print(name, *(round(h["loss"], 4) for h in history), flush=True)
        for key, before in own.items():
            setattr(*key, before)
    try:
        simclr.nt_xent(torch.randn(4 - rank, 3), torch.randn(4 - rank, 3))
    except ValueError as e:
        print(e, flush=True)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
