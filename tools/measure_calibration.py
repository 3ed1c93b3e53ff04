"""Compare the calibrations on ten folds of the real recordings, and write what it gave.

    python tools/measure_calibration.py [--out ecgmm/raw_results]

A small spectrogram network is trained on each fold (about a minute of one core each). Runs lie in a
temporary folder; a row for each fold and calibration, and the circumstances, are what is kept.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from ecgmm.data import real_data
from ecgmm.finetune import finetune
from ecgmm.judgement import judge, read_predictions
from ecgmm.results import environment
from ecgmm.settings import Branch, ChoiceSettings, ClassifierSettings, TrainSettings, as_dict
from ecgmm.store import prepare
from ecgmm.thresholds import CALIBRATIONS, calibrate, fit_calibration

NETWORK = ClassifierSettings(
    (Branch("spectrogram", "se_resnet_small"),), train=TrainSettings(epochs=15)
)


def losses(p, prob):
    "Log loss (a probability below 0.001 counts as 0.001) and Brier score of what is known."
    right = np.where(p.y, prob, 1 - prob)[p.known]
    return -np.log(np.clip(right, 1e-3, 1)).mean(), np.square(1 - right).mean()


def of_fold(store, fold, folder):
    "A row for each calibration."
    split = store.split(fold=fold)
    finetune(store, folder, NETWORK, split=split, cpu=True, progress=False)
    predictions = read_predictions(folder / "predictions.npz")
    tune, test = predictions["tune"], predictions["test"]
    for kind in CALIBRATIONS:
        loss, brier = losses(test, calibrate(fit_calibration(tune, kind), test.prob))
        choice = ChoiceSettings(calibration=kind)
        score = judge(predictions, choice, draws=1).reports["test"]["challenge"]
        yield dict(
            fold=fold,
            calibration=kind,
            tune=len(tune),
            test=len(test),
            log_loss=loss,
            brier=brier,
            challenge=score,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="ecgmm/raw_results", help="folder for the two files")
    out, data = Path(parser.parse_args().out), real_data()
    if data is None:
        raise SystemExit("set ECGMM_REAL to the folder of the real recordings")
    with tempfile.TemporaryDirectory() as place:
        roots = [data / "challenge-2020", data / "challenge-2021"]
        store = prepare(roots, Path(place) / "store", progress=False)
        rows = []
        for fold in range(10):
            rows += of_fold(store, fold, Path(place) / f"fold{fold}")
            print(pd.DataFrame(rows[-len(CALIBRATIONS) :]).to_string(), flush=True)
        about = environment() | dict(
            recordings=len(store), store_folds=store.meta["fold_hash"], settings=as_dict(NETWORK)
        )
    pd.DataFrame(rows).round(5).to_csv(out / "calibration-real.csv", index=False)
    (out / "calibration-real.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
