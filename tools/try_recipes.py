"""Try one recipe of pre-training on tune recordings, and print a line.

This is how the settings of `ecgmm_compare` were chosen.

    python tools/try_recipes.py --store STORE --unlabelled STORE --method simclr \\
        --modality signal --views pair --steps 400 --folds 0,4,8

For each test fold k the encoder is pre-trained on the train role (and the unlabelled store) and
judged on the recordings of *tune*, fold k + 1. The study reports test folds 0, 2, 4, 6 and 8; with
k among them every recording that is *judged* here is in an odd fold, so none of them is ever
reported (most reported ones are trained on here, as the train role of other folds is). Figures are
macro AUROC over classes with at least three positives; fine-tuning is the mean of its last three
epochs. `ecgmm/raw_results/ssl-recipes.csv` holds what was printed.
"""

import argparse
import copy
from functools import partial

import numpy as np
import torch

from ecgmm.byol import BYOL
from ecgmm.dino import DINO
from ecgmm.finetune import probabilities
from ecgmm.metrics import macro, per_class
from ecgmm.models import Backbone, Classifier
from ecgmm.pretrain import allowed_rows
from ecgmm.probes import features, knn_probabilities, linear_probabilities
from ecgmm.simclr import SimCLR
from ecgmm.store import Store
from ecgmm.settings import BYOLSettings, DINOSettings, SimCLRSettings, TrainSettings
from ecgmm.training import fit
from ecgmm.views import (
    ViewGroup,
    add_emg_noise,
    add_noise,
    crop,
    time_mask,
    frequency_mask,
    lead_dropout,
    pair_views,
    scale_amplitude,
    wander_baseline,
)
from ecgmm.windows import Batches, Windows, accelerator_for

louder = partial(scale_amplitude, factor=(0.5, 2.0))
VIEWS = {
    "pair": pair_views("signal"),
    "drop5": (ViewGroup(2, (louder, time_mask, add_noise, partial(lead_dropout, p=0.5))),),
    "strong": (
        ViewGroup(
            2,
            (
                louder,
                partial(time_mask, share=(0.2, 0.6)),
                partial(add_noise, sd=(0.005, 0.05)),
                partial(lead_dropout, p=0.3),
                wander_baseline,
            ),
        ),
    ),
    "noisy": (
        ViewGroup(
            2,
            (
                louder,
                time_mask,
                partial(add_noise, sd=(0.005, 0.05)),
                wander_baseline,
                add_emg_noise,
                partial(lead_dropout, p=0.5),
            ),
        ),
    ),
    "masked": (
        ViewGroup(
            2,
            (louder, add_noise, partial(lead_dropout, p=0.3)),
            (
                partial(time_mask, share=(0.1, 0.35)),
                partial(frequency_mask, share=(0.1, 0.4), lead_wise=False),
            ),
        ),
    ),
}
for length in (100, 150):
    VIEWS[f"pair+4x{length}"] = (
        *VIEWS["pair"],
        ViewGroup(4, (partial(crop, length=length), *VIEWS["pair"][0].signal)),
    )


def score(y, prob):
    ranked = per_class(y, prob)
    return macro(ranked["auroc"], ranked["positives"], 3)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(
        store="store",
        unlabelled="",
        method="simclr",
        modality="signal",
        views="pair",
        folds="0,4,8",
    ).items():
        ap.add_argument(f"--{name}", default=default)
    for name, default in dict(steps=400, batch=128, windows=2, prototypes=1024, seed=0).items():
        ap.add_argument(f"--{name}", type=int, default=default)
    for name, default in dict(
        lr=2e-3, temperature=0.1, momentum=0.99, teacher_temp=0.04, student_temp=0.1
    ).items():
        ap.add_argument(f"--{name}", type=float, default=default)
    ap.add_argument(
        "--decay", type=float, help="DINO's weight decay throughout; its schedule if not given"
    )
    ap.add_argument(
        "--finetune",
        default="",
        help="share of the encoder's learning rate/frozen epochs/epochs, comma-separated: "
        "1/2/10,0.3/2/10",
    )
    ap.add_argument("--scratch", action="store_true", help="no pre-training: a random encoder")
    ap.add_argument("--no_norm", action="store_true", help="DINO without batch norm in its head")
    a = ap.parse_args()
    torch.set_num_threads(1)
    store, others = Store(a.store), [Store(s) for s in a.unlabelled.split(",") if s]
    config = dict(
        modality=a.modality,
        encoder={"signal": "xresnet1d_small", "spectrogram": "se_resnet_small"}[a.modality],
    )
    precision, out = "bf16" if a.modality == "signal" else "no", {}
    for fold in map(int, a.folds.split(",")):
        torch.manual_seed(a.seed)
        rows = store.split(fold=fold)
        windows, y = (
            {r: Windows(store, v) for r, v in rows.items()},
            {r: store.y[v] for r, v in rows.items()},
        )
        known = np.random.default_rng(a.seed + fold).permutation(len(rows["train"]))
        known = {1.0: known, 0.2: known[: round(0.2 * len(known))]}
        backbone = Backbone.from_config(config)
        train = Batches(
            Windows([store, *others], allowed_rows(store, rows, others)),
            batch_size=a.batch,
            windows_per_recording=1,
            n_windows=a.windows,
        )
        backbone.front.fit(b["x"].reshape(-1, *b["x"].shape[-2:]) for b in train.epoch(0))
        if not a.scratch:
            views = VIEWS[a.views](a.modality)
            if a.method == "simclr":
                method = SimCLR(
                    backbone.front,
                    backbone.encoder,
                    SimCLRSettings(temperature=a.temperature),
                    views=views,
                )
            if a.method == "byol":
                method = BYOL(
                    backbone.front,
                    backbone.encoder,
                    BYOLSettings(momentum=a.momentum),
                    views=views,
                )
            if a.method == "dino":
                method = DINO(
                    backbone.front,
                    backbone.encoder,
                    DINOSettings(
                        n_prototypes=a.prototypes,
                        momentum=a.momentum,
                        teacher_temp=(a.teacher_temp,) * 2,
                        student_temp=a.student_temp,
                        norm=not a.no_norm,
                        decay=(0.04, 0.4) if a.decay is None else (a.decay,) * 2,
                    ),
                    views=views,
                )
            fit(
                method,
                train,
                TrainSettings(
                    epochs=max(1, round(a.steps / len(train))),
                    lr=a.lr,
                    weight_decay=1e-3,
                    seed=a.seed,
                    precision=precision,
                ),
                accelerator=accelerator_for(cpu=True),
                progress=False,
            )
            backbone = Backbone(method.front, method.encoder).requires_grad_(True)
        h = {r: features(backbone, windows[r]) for r in ("train", "tune")}
        out.setdefault("knn", []).append(
            score(y["tune"], knn_probabilities(h["train"], y["train"], h["tune"]))
        )
        for f, i in known.items():
            out.setdefault(f"linear {f:.0%}", []).append(
                score(y["tune"], linear_probabilities(h["train"][i], y["train"][i], h["tune"])[0])
            )
        for told in [v.split("/") for v in a.finetune.split(",") if v]:
            share, frozen, epochs = float(told[0]), int(told[1]), int(told[2])
            for f, i in known.items():
                torch.manual_seed(a.seed)
                branch = copy.deepcopy(backbone)
                model = Classifier.from_config(
                    dict(branches=[dict(modality=branch.front.modality)]),
                    {branch.front.modality: branch},
                )
                labelled = Batches(
                    Windows(store, rows["train"][i]),
                    y["train"][i],
                    batch_size=32,
                    windows_per_recording=5 if f == 1 else 12,
                )
                quiet = dict(accelerator=accelerator_for(cpu=True), progress=False)
                if frozen:
                    branch.freeze()
                    head = TrainSettings(epochs=frozen, seed=a.seed + 1)
                    fit(model, labelled, head, **quiet)
                branch.freeze(False)
                model.rates = {f"branches.{branch.front.modality}.encoder.": share}
                look = lambda model, epoch: (
                    {"auroc": score(y["tune"], probabilities(model, windows["tune"]))}
                    if epoch >= epochs - 3
                    else {}
                )
                history = fit(
                    model,
                    labelled,
                    TrainSettings(epochs=epochs, seed=a.seed, precision=precision),
                    evaluate=look,
                    **quiet,
                )
                out.setdefault(f"finetune {f:.0%} {share:g}/{frozen}/{epochs}", []).append(
                    np.mean([e["auroc"] for e in history[-3:]])
                )
    print(
        {k: (round(float(np.mean(v)), 3), [round(float(x), 3) for x in v]) for k, v in out.items()}
    )


if __name__ == "__main__":
    main()
