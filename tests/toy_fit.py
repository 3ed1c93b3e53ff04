"""A small run of `fit` in a process of its own, for the tests that kill it or start two of it.

python tests/toy_fit.py WEIGHTS [--folder F] [--kill-at STEP] [--norm] [--epochs N] [--bad-rank R]
"""

import argparse
import os
import signal

import torch
from safetensors.torch import save_file
from torch import nn

from ecgmm.settings import TrainSettings
from ecgmm.training import ema_update, fit
from ecgmm.windows import accelerator_for


class Method(nn.Module):
    """A classifier with dropout, noise from `rng`, a slow copy of itself and, if asked for, batch
    norm."""

    def __init__(self, norm, noise, kill_at):
        super().__init__()
        torch.manual_seed(0)

        def make():
            return nn.Sequential(
                nn.Linear(6, 16),
                nn.BatchNorm1d(16) if norm else nn.ReLU(),
                nn.Dropout(noise),
                nn.Linear(16, 3),
            )

        self.net, self.teacher, self.noise, self.kill_at = (
            make(),
            make().requires_grad_(False),
            noise,
            kill_at,
        )

    def loss(self, batch, rng):
        logits = self.net(batch["x"] + self.noise * torch.randn(batch["x"].shape, generator=rng))
        return nn.functional.cross_entropy(logits, batch["y"]), {"spread": logits.std()}

    def after_step(self, step, n_steps):
        ema_update(self.teacher, self.net, 0.9)
        print("step", step, flush=True)
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class Batches:
    "Batches of 16 over all processes; one process may be given a missing value."

    def __init__(self, bad_rank):
        rng = torch.Generator().manual_seed(1)
        self.x, self.bad_rank = torch.randn(160, 6, generator=rng), bad_rank
        self.y = (self.x[:, :3] + 0.3 * torch.randn(160, 3, generator=rng)).argmax(1)

    def __len__(self):
        return 10

    def epoch(self, seed, rank, world):
        for part in torch.randperm(160, generator=torch.Generator().manual_seed(seed)).split(16):
            x = self.x[part[rank::world]]
            yield {
                "x": torch.full_like(x, torch.nan) if rank == self.bad_rank else x,
                "y": self.y[part[rank::world]],
            }


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("weights")
    ap.add_argument("--folder")
    ap.add_argument("--epochs", type=int, default=4)
    ap.add_argument("--noise", type=float, default=0.0)
    ap.add_argument("--bad-rank", type=int, default=-1)
    ap.add_argument("--kill-at", type=int, default=-1)
    ap.add_argument("--norm", action="store_true")
    a = ap.parse_args()
    method, batches = Method(a.norm, a.noise, a.kill_at), Batches(a.bad_rank)

    def score(method, epoch):
        return {
            "score": [0.1, 0.7, 0.2, 0.3][epoch % 4],
            "right": (method.net(batches.x).argmax(1) == batches.y).float().mean(),
        }

    history = fit(
        method,
        batches,
        TrainSettings(epochs=a.epochs, lr=1e-2, clip=1.0, weight_decay=0.01),
        folder=a.folder,
        evaluate=score,
        keep=() if a.norm else "score",
        accelerator=accelerator_for(cpu=True),
        progress=False,
    )
    from accelerate import PartialState

    rank = PartialState().process_index
    save_file({k: v.clone() for k, v in method.state_dict().items()}, f"{a.weights}.{rank}")
    print(
        f"right {[round(h['right'], 4) for h in history]}\n", end="", flush=True
    )  # one write: two processes share the pipe
    if PartialState().num_processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
