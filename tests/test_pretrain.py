"""Pre-training from the command line.

Killed and resumed, handed on to the classifier, refused where it would leak, compared in parts.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from children import child, launcher
from children import command as run
from conftest import BIN
from patience import HANG
from safetensors.torch import load_file

from ecgmm.folder import load_model
from ecgmm.models import Backbone
from ecgmm.pretrain import allowed_rows
from ecgmm.store import Store
from ecgmm.windows import Batches

SMALL = ["--modality", "spectrogram", "--encoder", "se_resnet_small", "--cpu"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    "Three prepared databases, `store`, `other` and `few`."
    folder = tmp_path_factory.mktemp("stores")
    for name, seed, n in (("store", 0, 100), ("other", 1, 60), ("few", 2, 30)):
        run("ecgmm_synthesize", "--out", f"files-{name}", "--n", n, "--seed", seed, cwd=folder)
        run("ecgmm_prepare", "--data", f"files-{name}", "--store", name, "--workers", 1, cwd=folder)
    return folder


def struck(folder, sign, after):
    "The process gets a signal in the middle of an epoch, when so many are done."

    def before():
        whole, history = Batches.epoch, Path(folder, "training", "history.jsonl")

        def epoch(*args, **named):
            for k, batch in enumerate(whole(*args, **named)):
                if k == 1 and history.is_file() and len(history.read_text().splitlines()) == after:
                    os.kill(os.getpid(), sign)
                yield batch

        Batches.epoch = epoch

    return before


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_killed_and_resumed(stores, tmp_path, method):
    options = [
        "--store",
        stores / "other",
        "--unlabelled",
        stores / "few",
        "--method",
        method,
        *SMALL,
        "--epochs",
        4,
        "--batch_size",
        32,
        "--probe_every",
        0,
        *(["--n_prototypes", 64] if method == "dino" else []),
    ]
    run("ecgmm_pretrain", "--out", "whole", *options, cwd=tmp_path)
    status, _, err = child(
        "ecgmm_pretrain",
        "--out",
        "killed",
        *options,
        cwd=tmp_path,
        before=struck("killed", signal.SIGKILL, after=2),
    ).end()
    assert status == -signal.SIGKILL and not (tmp_path / "killed" / "model").exists(), err
    assert len((tmp_path / "killed" / "training" / "history.jsonl").read_text().splitlines()) == 2
    run("ecgmm_pretrain", "--out", "killed", *options, cwd=tmp_path)
    whole, resumed = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys() and all(whole[k].equal(resumed[k]) for k in whole)

    def files(name):
        return {
            p.name: p.read_bytes()
            for p in sorted((tmp_path / name).rglob("*"))
            if p.is_file() and p.parent.name != "training"
        }

    assert files("whole") == files(
        "killed"
    )  # the model folder, the list and the marker, byte for byte
    assert "another method" in run(
        "ecgmm_pretrain",
        "--out",
        "killed",
        *[o if o != method else "simclr" for o in options if o not in ("--n_prototypes", 64)],
        cwd=tmp_path,
        fails=True,
    )
    before = files("killed")
    said = run("ecgmm_pretrain", "--out", "killed", *options, cwd=tmp_path)
    assert "done already" in said and files("killed") == before
    for bad in (
        ["--epochs", 0],
        ["--precision", "fp16"],
        ["--unlabelled", "nowhere"],
        ["--temperature", 0.1],
        ["--batch_size", 1],
    ):
        run(
            "ecgmm_pretrain",
            "--out",
            "killed",
            *options,
            *bad,
            "--overwrite",
            cwd=tmp_path,
            fails=True,
        )
        assert files("killed") == before  # a slip of the hand costs nothing


def test_stopped_by_hand(stores, tmp_path):
    """Ctrl-C is one line.

    The run is begun, not done, is nobody's encoder yet, and the same command ends as an undisturbed
    one.
    """
    options = [
        "--store",
        stores / "other",
        "--method",
        "byol",
        *SMALL,
        "--epochs",
        3,
        "--batch_size",
        16,
        "--probe_every",
        0,
    ]
    status, _, err = child(
        "ecgmm_pretrain",
        "--out",
        "stopped",
        *options,
        cwd=tmp_path,
        before=struck("stopped", signal.SIGINT, after=1),
    ).end()
    assert (
        status == 1
        and err.strip().splitlines()[-1].startswith("ecgmm_pretrain: stopped")
        and "Traceback" not in err
    ), err
    assert len((tmp_path / "stopped" / "training" / "history.jsonl").read_text().splitlines()) == 1
    assert (
        json.loads((tmp_path / "stopped" / "run.json").read_text())["state"] == "begun"
        and not (tmp_path / "stopped" / "run.lock").exists()
    )
    assert "not finished" in run(
        "ecgmm_finetune",
        "--store",
        stores / "other",
        *SMALL,
        "--pretrained",
        "stopped",
        "--out",
        "x",
        cwd=tmp_path,
        fails=True,
    )
    for name in ("stopped", "whole"):
        run("ecgmm_pretrain", "--out", name, *options, cwd=tmp_path)
    whole, resumed = (
        {p.name: p.read_bytes() for p in (tmp_path / name / "model").iterdir()}
        for name in ("whole", "stopped")
    )
    assert whole == resumed and len(whole) == 4


def test_impossible_settings_are_refused(stores, tmp_path):
    assert "temperatures above 0" in run(
        "ecgmm_pretrain",
        "--store",
        stores / "store",
        "--method",
        "dino",
        *SMALL,
        "--n_prototypes",
        64,
        "--teacher_temp",
        0,
        "--out",
        "cold",
        cwd=tmp_path,
        fails=True,
    )
    assert "at least one epoch" in run(
        "ecgmm_compare",
        "--store",
        stores / "store",
        "--arms",
        "scratch",
        "--modalities",
        "spectrogram",
        "--folds",
        3,
        "--seeds",
        0,
        "--tune_epochs",
        0,
        "--cpu",
        cwd=tmp_path,
        fails=True,
    )


def test_handed_on(stores, tmp_path):
    said = run(
        "ecgmm_pretrain",
        "--store",
        stores / "store",
        "--unlabelled",
        stores / "other",
        "--method",
        "byol",
        *SMALL,
        "--fold",
        3,
        "--epochs",
        2,
        "--batch_size",
        32,
        "--probe_every",
        1,
        cwd=tmp_path,
    )
    folder = tmp_path / "models" / "byol-spectrogram-fold3"
    assert "knn_auroc" in json.loads(said.strip().splitlines()[-1])
    assert load_model(folder / "model", Backbone.from_config)[1]["folds"]["transductive"] is False
    seen = pd.read_csv(folder / "seen.csv", dtype=str)
    records, folds = (
        pd.read_csv(stores / "store" / f"{t}.csv", dtype=str) for t in ("records", "folds")
    )
    held = set(records["hash"][folds["fold"].isin(["3", "4"])])
    assert (
        held
        and not held & set(seen["hash"])
        and len(seen)
        == len(records)
        - folds["fold"].isin(["3", "4"]).sum()
        + len(pd.read_csv(stores / "other" / "records.csv"))
    )
    tuned = [
        "--store",
        stores / "store",
        *SMALL,
        "--epochs",
        2,
        "--freeze_epochs",
        1,
        "--pretrained",
        folder,
    ]
    run("ecgmm_finetune", *tuned, "--fold", 3, cwd=tmp_path)
    config = json.loads(
        (
            tmp_path / "models" / "byol-spectrogram-fold3-tuned-fold3" / "model" / "config.json"
        ).read_text()
    )
    assert config["pretraining"]["method"] == "byol" and config["pretraining_folds"]["test"] == 3
    assert "held out here" in run("ecgmm_finetune", *tuned, "--fold", 5, cwd=tmp_path, fails=True)
    run(
        "ecgmm_finetune",
        *tuned,
        "--fold",
        3,
        "--fractions",
        "0.1,1",
        "--out",
        "curve",
        cwd=tmp_path,
    )
    table = pd.read_csv(tmp_path / "curve" / "curve.csv")
    assert (
        list(table["way"]) == ["finetune", "linear", "knn"] * 2
        and (tmp_path / "curve" / "curve.png").stat().st_size > 5000
    )
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])  # a damaged download
    assert "model.safetensors" in run(
        "ecgmm_finetune", *tuned, "--fold", 3, "--out", "x", cwd=tmp_path, fails=True
    )
    shutil.rmtree(folder / "model")
    assert "has no config.json" in run(
        "ecgmm_finetune", *tuned, "--fold", 3, "--out", "x", cwd=tmp_path, fails=True
    )


def test_in_two_processes(stores, tmp_path):
    "Both check, one writes, and the backbone loads."
    command = [
        sys.executable,
        *launcher(2),
        "--no-python",
        BIN / "ecgmm_pretrain",
        "--store",
        stores / "store",
        "--method",
        "simclr",
        *SMALL,
        "--epochs",
        2,
        "--batch_size",
        32,
        "--probe_every",
        1,
        "--out",
        "two",
    ]
    done = subprocess.run(
        [str(c) for c in command],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    backbone, config = load_model(tmp_path / "two" / "model", Backbone.from_config)
    assert (
        len((tmp_path / "two" / "training" / "history.jsonl").read_text().splitlines()) == 2
        and "knn_auroc" in config["pretraining"]["last"]
    )
    told = json.loads((tmp_path / "two" / "run.json").read_text())
    assert (
        told["identity"]["method"] == "simclr"
        and told["identity"]["processes"] == 2
        and told["state"] == "done"
        and (tmp_path / "two" / "seen.csv").is_file()
    )
    assert (
        not (tmp_path / "two" / "run.lock").exists() and done.stdout.count("what it saw in") == 1
    )  # one of them speaks

    def launch(*more):
        return subprocess.run(
            [str(c) for c in [*command, *more]],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=HANG,
        )

    before = (tmp_path / "two" / "model" / "model.safetensors").stat().st_mtime_ns
    again = launch()
    assert (
        again.returncode == 0
        and "done already" in again.stdout
        and (tmp_path / "two" / "model" / "model.safetensors").stat().st_mtime_ns == before
    )
    refused = launch(
        "--seed", 1
    )  # the main process refuses: all of them say so, none waits for ever
    assert (
        refused.returncode != 0
        and refused.stderr.count("a finished encoder with another seed") >= 2
    ), refused.stderr[-3000:]


def test_a_comparison_in_two_parts(stores, tmp_path):
    study = [
        "--store",
        stores / "store",
        "--unlabelled",
        stores / "other",
        "--arms",
        "scratch,random,byol",
        "--modalities",
        "spectrogram",
        "--folds",
        "3",
        "--seeds",
        "0",
        "--epochs",
        1,
        "--tune_epochs",
        1,
        "--cpu",
    ]
    said = run("ecgmm_compare", *study, "--part", "1/2", cwd=tmp_path)
    assert "2 of 3 runs are done" in said and not (tmp_path / "comparison" / "scores.csv").exists()
    said = run("ecgmm_compare", *study, "--part", "2/2", cwd=tmp_path)
    assert "raw results" in said
    scores = pd.read_csv(tmp_path / "comparison" / "scores.csv")
    assert set(scores["arm"]) == {"scratch", "random", "byol"} and set(scores["fraction"]) == {
        1.0,
        0.2,
    }
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "comparison").rglob("model.safetensors")}
    assert "test fold" not in run(
        "ecgmm_compare", *study, cwd=tmp_path
    )  # all is done: nothing is named
    assert {
        p: p.stat().st_mtime_ns for p in (tmp_path / "comparison").rglob("model.safetensors")
    } == made


def test_a_left_out_source_is_left_out_everywhere(stores, tmp_path):
    """Leave-one-source-out.

    The source's recordings in a further store are not seen either, and a backbone that saw them is
    refused.
    """
    store, other = Store(stores / "store"), Store(stores / "other")
    assert (other.records["source"] == "georgia").any()
    mine, theirs = allowed_rows(store, "georgia", [other])
    for s, rows in ((store, mine), (other, theirs)):
        assert len(rows) and "georgia" not in set(s.records["source"].iloc[rows])
    options = [
        "--store",
        stores / "store",
        "--method",
        "byol",
        *SMALL,
        "--epochs",
        1,
        "--batch_size",
        32,
        "--probe_every",
        0,
    ]
    run(
        "ecgmm_pretrain",
        "--out",
        "clean",
        "--fold",
        "georgia",
        "--unlabelled",
        stores / "other",
        *options,
        cwd=tmp_path,
    )
    run(
        "ecgmm_finetune",
        "--store",
        stores / "store",
        "--out",
        "tuned",
        "--fold",
        "georgia",
        "--pretrained",
        "clean",
        *SMALL,
        "--modality",
        "spectrogram",
        "--epochs",
        1,
        cwd=tmp_path,
    )
    seen = pd.read_csv(tmp_path / "clean" / "seen.csv")
    assert "georgia" not in set(seen["source"])
    seen.loc[0, "source"] = "georgia"
    whole = (tmp_path / "clean" / "seen.csv").read_bytes()
    seen.to_csv(tmp_path / "clean" / "seen.csv", index=False)
    assert "this is not the list" in run(
        "ecgmm_finetune",
        "--store",
        stores / "store",
        "--out",
        "again",
        "--fold",
        "georgia",
        "--pretrained",
        "clean",
        *SMALL,
        "--epochs",
        1,
        cwd=tmp_path,
        fails=True,
    )
    (tmp_path / "clean" / "seen.csv").write_bytes(whole)
    run("ecgmm_pretrain", "--out", "other", "--fold", 0, *options, cwd=tmp_path)  # saw some of it
    assert "held out here" in run(
        "ecgmm_finetune",
        "--store",
        stores / "store",
        "--out",
        "again",
        "--fold",
        "georgia",
        "--pretrained",
        "other",
        *SMALL,
        "--epochs",
        1,
        cwd=tmp_path,
        fails=True,
    )
