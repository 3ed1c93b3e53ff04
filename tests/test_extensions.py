"""A user's own parts and classes, through the commands.

Parts are registered by one file and used by name; nothing of the package is touched.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from children import command as run

from ecgmm.data import read_recording, real_data, write_recording
from ecgmm.finetune import probabilities
from ecgmm.folder import load_model
from ecgmm.labels import Labels, ptbxl_codes
from ecgmm.metrics import load_predictions
from ecgmm.settings import METHODS
from ecgmm.spectrogram import FRONTS
from ecgmm.store import Store
from ecgmm.windows import Windows

MINE = ["--import", Path(__file__).with_name("my_part.py")]
FAST = ["--epochs", 1, "--batch_size", 16, "--cpu"]
OWN_CLASSES = """abbreviation,code,name,same_as,normal
sinus,426783006,sinus rhythm,,1
fast,427084000,sinus tachycardia,,
slow,426177001,sinus bradycardia,,
fibrillation,164889003,atrial fibrillation,164890007,
block,270492004,1st degree AV block,164909002;713427006,
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A simulated database and its store."
    folder = tmp_path_factory.mktemp("extensions")
    run("ecgmm_synthesize", "--out", "data", "--n", 90, cwd=folder)
    run("ecgmm_prepare", "--data", "data", "--store", "store", cwd=folder)
    return folder


def read_json(path):
    return json.loads(Path(path).read_text())


def test_parts_of_a_file(folder):
    "A method, modality, encoder, recipe of views, join, head and metric, each by its name."
    options = [*MINE, "--method", "agreement", "--views", "noisy", "--strength", 0.5]
    options += ["--branch", "slope", "--probe_every", 1, *FAST]
    said = run("ecgmm_pretrain", *options, cwd=folder)
    assert "agreement, slope, fold 0" in said and "knn_auroc" in said and "flat" in said
    config = read_json(folder / "models" / "agreement-slope-fold0" / "model" / "config.json")
    method = dict(name="agreement", views="noisy", strength=0.5)
    assert config["pretraining"]["method"] == method
    assert (config["modality"], config["encoder"]) == ("slope", "tiny")
    again = [*MINE, "--config", "models/agreement-slope-fold0/run.json", "--cpu"]
    assert "done already" in run("ecgmm_pretrain", *again, cwd=folder)

    options = [*MINE, "--branches", "slope@models/agreement-slope-fold0,signal=tiny"]
    options += ["--join", "scaled", "--head", "one-layer", "--out", "mine", *FAST]
    said = run("ecgmm_finetune", *options, cwd=folder)
    shown = [line.split() for line in said.splitlines() if "Brier score" in line]
    test = load_predictions(folder / "mine" / "predictions.npz")["test"]
    brier = ((test.prob - test.y) ** 2).mean()
    assert len(shown) == 1 and np.isclose(float(shown[0][-1]), brier, atol=1e-4)
    config = read_json(folder / "mine" / "model" / "config.json")
    branches = [(branch["modality"], branch["encoder"]) for branch in config["branches"]]
    assert branches == [("slope", "tiny"), ("signal", "tiny")]
    assert (config["join"], config["head"]) == ("scaled", "one-layer")
    assert config["pretraining"]["slope"]["method"] == method
    scores = read_json(folder / "mine" / "model" / "decision.json")["decision"]["metrics"]["test"]
    assert np.isclose(scores["brier"], brier)
    assert "Brier score" in (folder / "mine" / "model" / "README.md").read_text()


def test_decisions_of_parts_of_a_file(folder):
    "Thresholds and answers of a model whose modality, join and head are in a user's file."
    options = [*MINE, "--branches", "slope,signal=tiny", "--join", "scaled", "--out", "judged"]
    run("ecgmm_finetune", *options, *FAST, cwd=folder)
    run("ecgmm_thresholds", *MINE, "--model", "judged", cwd=folder)
    assert "Brier score" in (folder / "judged" / "model" / "README.md").read_text()
    answers = ["--model", "judged", "--data", "data", "--out", "answers.csv", "--cpu"]
    run("ecgmm_predict", *MINE, *answers, cwd=folder)
    assert len(pd.read_csv(folder / "answers.csv")) == len(Store(folder / "store"))


def test_without_the_file_the_names_are_unknown(folder):
    "Nothing is registered but in the process that imports the file."
    assert "agreement" not in METHODS and "slope" not in FRONTS
    said = run("ecgmm_pretrain", "--method", "agreement", cwd=folder, fails=True)
    assert "--method must be one of simclr, byol, dino, simulated; got 'agreement'" in said
    said = run("ecgmm_finetune", "--branches", "slope", cwd=folder, fails=True)
    assert "there is no modality 'slope'; there are: signal, spectrogram" in said
    said = run("ecgmm_pretrain", "--import", "nowhere.py", cwd=folder, fails=True)
    assert "--import nowhere.py: there is no such file" in said


def check_training(folder, store, labels):
    "A classifier of these classes is trained, scored, saved and loaded."
    out = folder / f"model-{store}"
    options = ["--store", store, "--branches", "spectrogram=se_resnet_small", "--out", out]
    said = run("ecgmm_finetune", *options, *FAST, cwd=folder)
    assert "AUROC" in said
    model, config = load_model(out / "model")
    assert Labels.from_dict(config["labels"]) == labels
    test = load_predictions(out / "predictions.npz")["test"]
    assert test.labels == labels and test.prob.shape == (len(test), len(labels))
    windows = Windows(Store(folder / store), test.rows)
    assert np.allclose(probabilities(model, windows), test.prob, atol=1e-5)
    card = (out / "model" / "README.md").read_text()
    assert all(name in card for name in labels.names)


def check_decisions(folder, store, labels):
    "Thresholds are chosen for these classes, and the recordings of the store are judged."
    out, answers = folder / f"model-{store}", folder / f"answers-{store}.csv"
    run("ecgmm_thresholds", "--model", out, cwd=folder)
    decision = read_json(out / "model" / "decision.json")["decision"]
    assert len(decision["thresholds"]) == len(labels)
    options = ["--model", out, "--data", "data", "--out", answers, "--cpu"]
    run("ecgmm_predict", *options, cwd=folder)
    table = pd.read_csv(answers)
    assert len(table) == len(Store(folder / store))
    columns = " ".join(table.columns)
    assert all(abbreviation in columns for abbreviation in labels.abbreviations)
    assert "PVC" not in columns  # a class of the Challenge


def test_five_classes_of_ones_own(folder):
    (folder / "my.csv").write_text(OWN_CLASSES)
    prepare = ["--data", "data", "--store", "own", "--classes", "my.csv"]
    run("ecgmm_prepare", *prepare, cwd=folder)
    labels = Labels.from_csv(folder / "my.csv")
    store = Store(folder / "own")
    assert labels.abbreviations == ("sinus", "fast", "slow", "fibrillation", "block")
    files = [read_recording(folder / "data" / path) for path in store.records["path"]]
    assert (store.y == [labels.vector(recording.codes) for recording in files]).all()
    assert store.y.any(0).all()
    check_training(folder, "own", labels)
    check_decisions(folder, "own", labels)


def superclass_recordings(source, target, labels):
    "Copies of PTB-XL's recordings with their superclasses as diagnoses, of those that have one."
    table = pd.read_csv(source / "ptbxl_database.csv").set_index("ecg_id")
    present = {}
    for header in sorted((source / "records100").rglob("*.hea")):
        number = int(header.stem.removesuffix("_lr"))
        if number not in table.index:
            continue
        y = labels.vector(ptbxl_codes(table.loc[number, "scp_codes"]))
        if y.any():
            codes = tuple(np.array(labels.codes)[y == 1])
            name = f"HR{number:05d}"  # as the Challenge names it, and so the table of patients
            write_recording(target, replace(read_recording(header), name=name, codes=codes))
            present[name] = y
    return present


def test_superclasses_of_ptbxl(tmp_path):
    source = (real_data() or tmp_path / "nowhere") / "ptb-xl-100hz"
    if not source.is_dir():
        pytest.skip("there are no recordings of PTB-XL: ECGMM_REAL/ptb-xl-100hz is needed")
    labels = Labels.ptbxl("superclass")
    present = superclass_recordings(source, tmp_path / "data", labels)
    prepare = ["--data", "data", "--store", "ptbxl", "--classes", "ptbxl-superclass"]
    prepare += ["--patients", source / "ptbxl_database.csv"]
    run("ecgmm_prepare", *prepare, cwd=tmp_path)
    store = Store(tmp_path / "ptbxl")
    assert len(store) > 0.95 * len(present) and (store.y.sum(0) > 20).all()
    assert (store.y == [present[name] for name in store.records["name"]]).all()
    check_training(tmp_path, "ptbxl", labels)
    check_decisions(tmp_path, "ptbxl", labels)
