"""Pre-training from the command line, and the lists of what was seen.

Runs are killed and resumed, given to the classifier, and refused where they would leak.
"""

import copy
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

from ecgmm import EcgmmError, runs
from ecgmm.folder import load_model, save_model
from ecgmm.models import Backbone
from ecgmm.pretrain import allowed_rows, load_pretrained, pretrain
from ecgmm.settings import Branch, BYOLSettings, PretrainSettings, Tables, TrainSettings
from ecgmm.store import Store, prepare
from ecgmm.study import with_network
from ecgmm.training import read_history
from ecgmm.windows import Batches

ENCODER = "spectrogram=se_resnet_small"
SMALL = ["--branch", ENCODER, "--cpu"]
TINY = PretrainSettings(
    BYOLSettings(),
    Branch.parse(ENCODER),
    probe_every=0,
    train=TrainSettings(epochs=1, batch_size=16, windows_per_recording=1),
)
QUIET = dict(cpu=True, progress=False)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    "Three prepared databases, `store`, `other` and `few`."
    folder = tmp_path_factory.mktemp("stores")
    for name, seed, n in (("store", 0, 100), ("other", 1, 60), ("few", 2, 30)):
        run("ecgmm_synthesize", "--out", f"files-{name}", "--n", n, "--seed", seed, cwd=folder)
        run("ecgmm_prepare", "--data", f"files-{name}", "--store", name, "--workers", 1, cwd=folder)
    return folder


def interrupted(folder, sign, after):
    "What sends the process a signal in the middle of an epoch, when so many are done."

    def before():
        whole, history = Batches.epoch, Path(folder, "training", "history.jsonl")

        def epoch(*args, **named):
            for k, batch in enumerate(whole(*args, **named)):
                if k == 1 and history.is_file() and len(history.read_text().splitlines()) == after:
                    os.kill(os.getpid(), sign)
                yield batch

        Batches.epoch = epoch

    return before


def published(folder):
    "All files but those of the training, in bytes."
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name != "training"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_killed_and_resumed(stores, tmp_path, method):
    options = ["--store", stores / "other", "--unlabelled", stores / "few", "--epochs", 4]
    options += ["--batch_size", 32, "--probe_every", 0, *SMALL]
    named = ["--method", method, *(["--n_prototypes", 64] if method == "dino" else [])]
    run("ecgmm_pretrain", "--out", "whole", *options, *named, cwd=tmp_path)
    kill = interrupted("killed", signal.SIGKILL, after=2)
    command = ("ecgmm_pretrain", "--out", "killed", *options)
    status, _, err = child(*command, *named, cwd=tmp_path, before=kill).end()
    killed = tmp_path / "killed"
    assert status == -signal.SIGKILL and not (killed / "model").exists(), err
    assert len(read_history(killed / "training")) == 2
    run(*command, *named, cwd=tmp_path)
    before = published(killed)
    assert before == published(tmp_path / "whole") and "seen.csv" in before
    said = run(*command, "--method", "simclr", cwd=tmp_path, fails=True)
    assert "a finished encoder with another settings.method" in said
    assert "done already" in run(*command, *named, cwd=tmp_path) and published(killed) == before
    for wrong in (
        ["--epochs", 0],
        ["--precision", "fp16"],
        ["--unlabelled", "nowhere"],
        ["--temperature", 0.1],
        ["--batch_size", 1],
        ["--branch", "spectrogram@models/x"],
    ):
        run(*command, *named, *wrong, "--overwrite", cwd=tmp_path, fails=True)
        assert published(killed) == before  # a slip of the hand costs nothing


def test_simulated_hearts(stores, tmp_path):
    "No recording is seen: a killed run goes on, and the encoder serves another store and fold."
    options = ["--store", stores / "few", "--method", "simulated", "--hearts", 40, "--cpu"]
    options += ["--branch", "signal=xresnet1d_small", "--epochs", 3, "--batch_size", 16]
    options += ["--windows_per_recording", 1, "--probe_every", 0]
    command = ("ecgmm_pretrain", "--out", "killed", *options)
    kill = interrupted("killed", signal.SIGKILL, after=1)
    status, _, err = child(*command, cwd=tmp_path, before=kill).end()
    assert status == -signal.SIGKILL, err
    assert "no real recording was seen" in run(*command, cwd=tmp_path)
    run("ecgmm_pretrain", "--out", "whole", *options, cwd=tmp_path)
    assert published(tmp_path / "killed") == published(tmp_path / "whole")
    assert {"model", "classifier"} <= {p.name for p in (tmp_path / "whole").iterdir()}
    said = run(*command, "--unlabelled", stores / "other", cwd=tmp_path, fails=True)
    assert "simulated looks at no recording" in said
    tune = ["--store", stores / "other", "--fold", 2, "--branches", "signal@whole"]
    run("ecgmm_finetune", *tune, "--epochs", 1, "--cpu", "--out", "tuned", cwd=tmp_path)
    config = json.loads((tmp_path / "tuned" / "model" / "config.json").read_text())
    assert config["pretraining"]["signal"]["method"]["name"] == "simulated"


def test_stopped_by_hand(stores, tmp_path):
    """Ctrl-C is one line.

    The run is begun, not done, is not taken for an encoder, and the same command ends as an
    undisturbed one.
    """
    options = ["--store", stores / "other", "--method", "byol", "--epochs", 3, "--batch_size", 16]
    options += ["--probe_every", 0, *SMALL]
    stop = interrupted("stopped", signal.SIGINT, after=1)
    command = ("ecgmm_pretrain", "--out", "stopped", *options)
    status, _, err = child(*command, cwd=tmp_path, before=stop).end()
    assert status == 1 and "Traceback" not in err, err
    assert err.strip().splitlines()[-1].startswith("ecgmm_pretrain: stopped"), err
    stopped = tmp_path / "stopped"
    assert len(read_history(stopped / "training")) == 1
    assert json.loads((stopped / "run.json").read_text())["state"] == "begun"
    assert not (stopped / "run.lock").exists()
    tune = ("ecgmm_finetune", "--store", stores / "other", "--branches", "spectrogram@stopped")
    assert "not finished" in run(*tune, "--cpu", "--out", "x", cwd=tmp_path, fails=True)
    for name in ("stopped", "whole"):
        run("ecgmm_pretrain", "--out", name, *options, cwd=tmp_path)
    assert published(stopped) == published(tmp_path / "whole")
    assert len(list((stopped / "model").iterdir())) == 4


def test_a_run_repeats_itself(stores, tmp_path):
    "`--config RUN/run.json` is the same run: method, its settings, branch, training and fold."
    options = ["--store", stores / "other", "--method", "dino", "--fold", 3, "--epochs", 1]
    options += ["--n_prototypes", 64, "--teacher_temp", 0.03, 0.05, "--batch_size", 16, *SMALL]
    run("ecgmm_pretrain", *options, "--lr", 1e-3, cwd=tmp_path)
    made = tmp_path / "models" / "dino-spectrogram-fold3"
    again = ["--store", stores / "other", "--config", made / "run.json", "--cpu"]
    before = published(made)
    said = run("ecgmm_pretrain", *again, cwd=tmp_path)  # the folder follows from the rest
    assert "done already" in said and "fold 3" in said and published(made) == before
    run("ecgmm_pretrain", *again, "--out", "copy", cwd=tmp_path)
    assert published(tmp_path / "copy") == before
    said = run("ecgmm_pretrain", *again, "--seed", 1, cwd=tmp_path, fails=True)
    assert "another settings.train.seed (0, now 1)" in said


def test_a_weight_decay_without_effect_is_refused(stores, tmp_path):
    "DINO has a schedule of its own: another weight decay is not ignored in silence."
    options = ["--store", stores / "few", "--method", "dino", "--n_prototypes", 64, *SMALL]
    said = run("ecgmm_pretrain", *options, "--weight_decay", 0.2, cwd=tmp_path, fails=True)
    assert "set decay instead" in said and not (tmp_path / "models").exists()


def test_from_pretraining_to_the_classifier(stores, tmp_path):
    options = ["--store", stores / "store", "--unlabelled", stores / "other", "--method", "byol"]
    options += ["--fold", 3, "--epochs", 2, "--batch_size", 32, "--probe_every", 1, *SMALL]
    said = run("ecgmm_pretrain", *options, cwd=tmp_path)
    folder = tmp_path / "models" / "byol-spectrogram-fold3"
    assert "knn_auroc" in said
    assert said.strip().endswith("--fold 3 --branches spectrogram@models/byol-spectrogram-fold3")
    config = load_model(folder / "model", Backbone.from_config)[1]
    assert config["folds"]["transductive"] is False

    seen = pd.read_csv(folder / "seen.csv", dtype=str)
    records = pd.read_csv(stores / "store" / "records.csv", dtype=str)
    held_out = pd.read_csv(stores / "store" / "folds.csv", dtype=str)["fold"].isin(["3", "4"])
    further = pd.read_csv(stores / "other" / "records.csv")
    assert held_out.any() and not set(records["hash"][held_out]) & set(seen["hash"])
    assert len(seen) == len(records) - held_out.sum() + len(further)
    classify_with(folder, stores / "store", tmp_path)


def classify_with(folder, store, tmp_path):
    "Classifiers that start from the encoder in a folder; then the encoder is damaged."
    tune = ["ecgmm_finetune", "--store", store, "--branches", f"spectrogram@{folder}"]
    tune += ["--epochs", 2, "--freeze_epochs", 1, "--cpu"]
    run(*tune, "--fold", 3, "--out", "tuned", cwd=tmp_path)
    config = json.loads((tmp_path / "tuned" / "model" / "config.json").read_text())
    assert config["pretraining"]["spectrogram"]["method"]["name"] == "byol"
    assert config["pretraining_folds"]["spectrogram"]["test"] == 3
    said = run(*tune, "--fold", 5, "--out", "x", cwd=tmp_path, fails=True)
    assert "held out here" in said
    run(*tune, "--fold", 3, "--fractions", "0.1,1", "--out", "curve", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "curve" / "curve.csv")
    ways = [(fraction, way) for fraction in (0.1, 1) for way in ("finetune", "knn", "linear")]
    assert sorted(zip(table["fraction"], table["way"], strict=True)) == ways
    assert (tmp_path / "curve" / "curve.png").stat().st_size > 5000

    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])  # a damaged download
    tune += ["--fold", 3, "--out", "x"]
    assert "model.safetensors" in run(*tune, cwd=tmp_path, fails=True)
    shutil.rmtree(folder / "model")
    assert "has no config.json" in run(*tune, cwd=tmp_path, fails=True)
    assert not (tmp_path / "x").exists()


def test_in_two_processes(stores, tmp_path):
    "Both check, one writes, and the backbone loads."
    command = [sys.executable, *launcher(2), "--no-python", BIN / "ecgmm_pretrain", "--out", "two"]
    command += ["--store", stores / "store", "--method", "simclr", "--epochs", 2]
    command += ["--batch_size", 32, "--probe_every", 1, *SMALL]

    def launch(*more):
        return subprocess.run(
            [str(word) for word in [*command, *more]],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=HANG,
        )

    two = tmp_path / "two"
    done = launch()
    assert done.returncode == 0, done.stderr[-3000:]
    config = load_model(two / "model", Backbone.from_config)[1]
    assert len(read_history(two / "training")) == 2
    assert "knn_auroc" in config["pretraining"]["last"]
    marker = json.loads((two / "run.json").read_text())
    assert marker["identity"]["settings"]["method"]["name"] == "simclr"
    assert marker["identity"]["processes"] == 2 and marker["state"] == "done"
    assert (two / "seen.csv").is_file() and not (two / "run.lock").exists()
    assert done.stdout.count("what it has seen") == 1  # one of them prints
    before = published(two)
    again = launch()
    assert again.returncode == 0 and "done already" in again.stdout and published(two) == before
    # the main process refuses: all of them end with its error, none waits for ever
    refused = launch("--seed", 1)
    message = "a finished encoder with another settings.train.seed"
    assert refused.returncode != 0 and refused.stderr.count(message) >= 2, refused.stderr[-3000:]


def test_a_left_out_source_is_left_out_everywhere(stores, tmp_path):
    """Leave-one-source-out.

    The source's recordings in a further store are not seen either, and a backbone that saw them is
    refused.
    """
    store, other = Store(stores / "store"), Store(stores / "other")
    assert (other.records["source"] == "georgia").any()
    rows = allowed_rows(store, store.split(source="georgia"), [other])
    for s, seen in zip((store, other), rows, strict=True):
        assert len(seen) and "georgia" not in set(s.records["source"].iloc[seen])

    options = ["--store", stores / "store", "--method", "byol", "--epochs", 1, "--batch_size", 32]
    options += ["--probe_every", 0, *SMALL]
    georgia = ["--test_source", "georgia"]
    further = ["--unlabelled", stores / "other"]
    said = run("ecgmm_pretrain", "--out", "clean", *georgia, *further, *options, cwd=tmp_path)
    assert "of further stores, from the source that is tested on" in said
    assert said.strip().endswith("--test_source georgia --branches spectrogram@clean")
    tune = ["ecgmm_finetune", "--store", stores / "store", *georgia, "--epochs", 1, "--cpu"]
    clean = ["--branches", "spectrogram@clean", "--out", "tuned"]
    run(*tune, *clean, cwd=tmp_path)
    file = tmp_path / "clean" / "seen.csv"
    seen = pd.read_csv(file)
    assert "georgia" not in set(seen["source"])
    seen.loc[0, "source"] = "georgia"
    seen.to_csv(file, index=False)
    said = run(*tune, *clean[:2], "--out", "x", cwd=tmp_path, fails=True)
    assert "this is not the list" in said
    run("ecgmm_pretrain", "--out", "saw", "--fold", 0, *options, cwd=tmp_path)
    saw = ["--branches", "spectrogram@saw", "--out", "x"]
    assert "held out here" in run(*tune, *saw, cwd=tmp_path, fails=True)


@pytest.fixture(scope="module")
def encoder(stores, tmp_path_factory):
    "An encoder of `few`, whose patients a table names."
    folder = tmp_path_factory.mktemp("encoder")
    data = stores / "files-few"
    store = prepare(
        data, folder / "store", tables=Tables(patients=str(data / "patients.csv")), progress=False
    )
    pretrain(store, folder / "run", TINY, split=store.split(fold=0), **QUIET)
    return folder


def damages(content):
    "Ways in which a table of lines can be damaged."
    lines = content.splitlines(keepends=True)
    one, two = lines[1].split(b","), lines[2].split(b",")
    one[2], two[2] = two[2], one[2]
    return {
        "the last line is missing": b"".join(lines[:-1]),
        "half is missing": content[: len(content) // 2],
        "a line twice": b"".join([*lines, lines[-1]]),
        "one value for another": b"".join([lines[0], b",".join(one), b",".join(two), *lines[3:]]),
        "two lines swapped": b"".join([lines[0], lines[2], lines[1], *lines[3:]]),
        "the end is missing": content[:-1],
        "empty": b"",
        "the head alone": lines[0],
        "a space more": content + b" ",
        "other line ends": content.replace(b"\n", b"\r\n"),
        "missing": None,
    }


@pytest.mark.parametrize("name", ["seen.csv", "patients.csv"])
def test_a_damaged_list_is_not_believed(encoder, name):
    store, file = Store(encoder / "store"), encoder / "run" / name
    asked = [(), (store, store.split(fold=0)), (store, store.split(source="georgia"))]
    whole = file.read_bytes()
    try:
        for damage, content in damages(whole).items():
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
            for arguments in asked:
                with pytest.raises(EcgmmError) as raised:
                    load_pretrained(encoder / "run", *arguments)
                assert str(file) in str(raised.value), damage
                assert "unknown whether test recordings were seen" in str(raised.value), damage
    finally:
        file.write_bytes(whole)
    load_pretrained(encoder / "run", *asked[1])


def test_what_is_no_encoder_is_refused(encoder, tmp_path):
    store, folder = Store(encoder / "store"), encoder / "run"
    split = store.split(fold=0)
    backbone, config = load_pretrained(folder, store, split)
    with pytest.raises(EcgmmError, match="is not there"):
        load_pretrained(tmp_path / "nowhere")
    about = {key: config[key] for key in ("modality", "encoder")}
    save_model(tmp_path / "foreign" / "model", backbone, about)
    with pytest.raises(EcgmmError, match="has no run.json of ours"):
        load_pretrained(tmp_path / "foreign")
    shutil.copytree(folder, tmp_path / "half")
    marker = tmp_path / "half" / "run.json"
    marker.write_text(marker.read_text().replace('"state": "done"', '"state": "begun"'))
    with pytest.raises(EcgmmError, match="not finished"):
        load_pretrained(tmp_path / "half")
    for changed, message in (
        (about, "was not made by pre-training"),
        ({k: v for k, v in config.items() if k != "seen"}, "made by another version"),
    ):
        shutil.copytree(folder, tmp_path / "copy")
        save_model(tmp_path / "copy" / "model", backbone, changed, overwrite=True)
        with pytest.raises(EcgmmError, match=message):
            load_pretrained(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
    later = copy.copy(store)
    later.meta = store.meta | {"version": 99}
    with pytest.raises(EcgmmError, match="store of version"):
        load_pretrained(folder, later, split)


def test_a_full_disk_leaves_no_model(stores, tmp_path, monkeypatch):
    "The list is written before the model: without room for it, there is nothing to believe."
    store = Store(stores / "few")
    split, write_whole = store.split(fold=0), runs.write_whole

    def full(path, content, **options):
        if Path(path).name == "seen.csv":
            raise EcgmmError(f"{path}: no space left on the disk")
        write_whole(path, content, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_whole", full)
        with pytest.raises(EcgmmError, match="no space left"):
            pretrain(store, tmp_path / "full", TINY, split=split, **QUIET)
    assert not (tmp_path / "full" / "model").exists()
    assert not (tmp_path / "full" / "seen.csv").exists()
    with pytest.raises(EcgmmError, match="not finished"):
        load_pretrained(tmp_path / "full")
    for name in ("full", "whole"):
        pretrain(store, tmp_path / name, TINY, split=split, **QUIET)
    assert published(tmp_path / "full") == published(tmp_path / "whole")
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in ("full", "whole")]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[1])


def test_a_comparison_in_two_parts(stores, tmp_path):
    options = ["--store", stores / "store", "--unlabelled", stores / "other", "--cpu"]
    options += ["--arms", "scratch,random,byol", "--modalities", "spectrogram"]
    options += ["--folds", "3,4", "--seeds", 0, "--pretrain_epochs", 1, "--epochs", 1]
    options += ["--fractions", "1,0.5"]
    table = tmp_path / "comparison" / "scores.csv"

    def made():
        files = (tmp_path / "comparison").rglob("model.safetensors")
        return {file: file.stat().st_mtime_ns for file in files}

    folds = {}  # part -> the folds of its models
    for part in (1, 2):
        output = run("ecgmm_compare", *options, "--part", f"{part}/2", cwd=tmp_path)
        assert f"part {part}/2 is done" in output and not table.exists()
        folds[part] = {fold for fold in ("fold3", "fold4") if any(fold in str(f) for f in made())}
    assert folds == {1: {"fold3"}, 2: {"fold3", "fold4"}}
    before = made()
    assert "raw results" in run("ecgmm_compare", *options, cwd=tmp_path)
    assert made() == before  # the parts have done all
    scores = with_network(pd.read_csv(table))
    assert set(scores["pretraining"]) == {"scratch", "random", "byol"}
    assert set(scores["way"]) == {"finetune", "linear", "knn"}
    assert set(scores["fraction"]) == {1.0, 0.5} and set(scores["fold"]) == {3, 4}
    tables = {"answers.csv", "answers.npz", "table.csv", "ranking.csv", "methods.csv"}
    assert tables <= {f.name for f in table.parent.iterdir()}
    output = run("ecgmm_compare", *options, "--epochs", 0, cwd=tmp_path, fails=True)
    assert "epochs must be at least 1" in output
    output = run("ecgmm_compare", *options, "--modalities", "smell", cwd=tmp_path, fails=True)
    assert "there is no modality 'smell'" in output
