"""A user's own parts, one of each kind, registered by this one file.

ecgmm_pretrain --import my_part.py --method agreement --branch slope
"""

from dataclasses import dataclass

import torch
from torch import nn

from ecgmm.metrics import METRICS, Metric
from ecgmm.models import ENCODERS, HEADS, JOINS
from ecgmm.settings import METHODS, Method
from ecgmm.spectrogram import FRONTS, FrontEnd
from ecgmm.views import VIEWS, ViewGroup, add_noise, make_views


@dataclass(frozen=True)
class AgreementSettings:
    "Settings of the method below."

    views: str = "noisy"  # recipe of the views: one group of two
    strength: float = 1.0  # weight of the term that keeps features varied, at least 0


class Agreement(nn.Module):
    "Two views of a window should have the same features, and each feature should vary."

    def __init__(self, front, encoder, settings):
        super().__init__()
        self.front, self.encoder, self.settings = front, encoder, settings
        self.views = VIEWS[settings.views](front.modality)

    def loss(self, batch, rng):
        (views,) = make_views(batch["x"], self.front, self.views, rng)
        one, two = self.encoder(views).chunk(2)
        flat = (1 - one.std(0)).relu().mean()
        loss = (one - two).square().mean() + self.settings.strength * flat
        return loss, {"flat": flat.detach()}


class SlopeFront(FrontEnd):
    "The slope of the signal, (B, 12, T)."

    modality, ndim, encoder = "slope", 3, "tiny"

    def transform(self, x):
        return x.diff(dim=-1, prepend=x[..., :1]) * 100  # mV/s at 100 Hz


class TinyEncoder(nn.Module):
    "One convolution, and its mean over time."

    ndim = 3

    def __init__(self):
        super().__init__()
        self.conv, self.n_out = nn.Conv1d(12, 16, 7, 4), 16

    def forward(self, v):
        return self.conv(v).relu().mean(-1)


class ScaledJoin(nn.Module):
    "Features side by side, each branch scaled by a number that is learned."

    def __init__(self, sizes):
        super().__init__()
        self.scale, self.n_out = nn.Parameter(torch.ones(len(sizes))), sum(sizes)

    def forward(self, features):
        scaled = [s * h for s, h in zip(self.scale, features, strict=True)]
        return torch.cat(scaled, 1), None


def one_layer(n_in, n_classes, dropout):
    "A head of one layer."
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(n_in, n_classes))


def noisy_views(modality):
    "Two views that differ by noise."
    return (ViewGroup(2, signal=(add_noise,)),)


def brier(y, prob, decided, labels, known):
    "The mean squared error of the probabilities."
    return float(((prob - y)[known] ** 2).mean())


METHODS["agreement"] = Method(AgreementSettings, Agreement)
FRONTS["slope"] = SlopeFront
ENCODERS["tiny"] = TinyEncoder
JOINS["scaled"] = ScaledJoin
HEADS["one-layer"] = one_layer
VIEWS["noisy"] = noisy_views
METRICS["brier"] = Metric("Brier score", brier)
