"The way of a user: the commands, one after the other, in processes of their own."

import json
import re

import numpy as np
import pandas as pd
from children import command as run

from ecgmm.folder import load_model
from ecgmm.metrics import METRICS, load_predictions
from ecgmm.settings import ClassifierSettings
from ecgmm.store import Store
from ecgmm.study import CONTROLS, read_judged, with_network

FINETUNE = ("ecgmm_finetune", "--branches", "spectrogram=se_resnet_small", "--fold", 3, "--cpu")


def scores_in(printed):
    "The table of scores that a command printed: title -> value."
    return dict(re.findall(r"^  (\S.*?) {2,}(\S+)$", printed, re.M))


def check_second_calls(out, printed, cwd):
    "The same call again is done already; with other settings it is refused."
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert run(*FINETUNE, "--epochs", 1, cwd=cwd) == printed  # the same again: it is done
    # another: refused, with the difference and what to do
    error = run(*FINETUNE, "--epochs", 2, cwd=cwd, fails=True)
    assert "a finished classifier with another settings.train.epochs (1, now 2)" in error
    assert "another folder" in error and "--overwrite" in error
    error = run(*FINETUNE, "--epochs", 1, "--seed", 1, cwd=cwd, fails=True)
    assert "another settings.train.seed" in error
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_from_files_to_a_scored_model(tmp_path):
    run("ecgmm_synthesize", "--out", "data", "--n", 90, cwd=tmp_path)
    said = run(
        "ecgmm_prepare", "--patients", "data/patients.csv", cwd=tmp_path
    )  # data -> store, by default
    store = Store(tmp_path / "store")
    assert (
        f"{len(store)} recordings in store" in said and (tmp_path / "store" / "card.md").is_file()
    )
    patients = pd.read_csv(tmp_path / "data" / "patients.csv")
    who = store.records["name"].map(
        dict(zip(patients["record"].astype(str), patients["patient"].astype(str)))
    )
    assert (pd.Series(store.folds).groupby(who.to_numpy()).nunique() == 1).all()
    printed = run(*FINETUNE, "--epochs", 1, cwd=tmp_path)
    out = tmp_path / "models" / "spectrogram-fold3"
    model, config = load_model(out / "model")
    assert (
        config["folds"]["test"] == 3
        and config["folds"]["tune"] == 4
        and config["folds"]["hash"] == store.meta["fold_hash"]
    )
    test = load_predictions(out / "predictions.npz")["test"]
    assert list(test.rows) == list(store.split(fold=3).test)
    again, scores = test.report(test.prob >= config["thresholds"][0]), scores_in(printed)
    assert set(scores) == {metric.title for metric in METRICS.values()}
    for name, value in again.items():
        assert np.isclose(float(scores[METRICS[name].title]), value, atol=1e-4, equal_nan=True)
    check_second_calls(out, printed, cwd=tmp_path)


PARTS = """
from torch import nn
from torch.nn import functional

from ecgmm.models import HEADS
from ecgmm.spectrogram import FRONTS, FrontEnd


class DerivativeFront(FrontEnd):
    modality, ndim, encoder = "derivative", 3, "xresnet1d_small"

    def transform(self, x):
        return functional.pad(x.diff(), (1, 0))


FRONTS["derivative"] = DerivativeFront
HEADS["one_layer"] = lambda n_in, n_classes, dropout: nn.Linear(n_in, n_classes)
"""


def test_parts_from_outside_the_package(tmp_path):
    "A file that --import names adds a modality and a head, for one command and not for the next."
    run("ecgmm_synthesize", "--out", "data", "--n", 60, cwd=tmp_path)
    run("ecgmm_prepare", "--workers", 1, cwd=tmp_path)
    (tmp_path / "my_parts.py").write_text(PARTS)
    words = ["ecgmm_finetune", "--branches", "derivative,signal=xresnet1d_small"]
    words += ["--head", "one_layer", "--epochs", 1, "--cpu"]
    printed = run(*words, "--import", "my_parts.py", cwd=tmp_path)
    assert "model: models/concat-fold0/model" in printed
    config = json.loads(
        (tmp_path / "models" / "concat-fold0" / "model" / "config.json").read_text()
    )
    assert [b["modality"] for b in config["branches"]] == ["derivative", "signal"]
    assert config["head"] == "one_layer"
    assert "there is no modality 'derivative'" in run(*words, cwd=tmp_path, fails=True)


def test_a_run_is_repeated_from_its_marker(tmp_path):
    "All settings, the fold included; an option that is typed counts more."
    run("ecgmm_synthesize", "--out", "data", "--n", 60, cwd=tmp_path)
    run("ecgmm_prepare", "--workers", 1, cwd=tmp_path)
    settings = ["--epochs", 1, "--lr", 0.001, "--dropout", 0.1, "--best_by", "auprc", "--paper"]
    first = run(*FINETUNE, *settings, cwd=tmp_path)
    config = ["--config", "models/spectrogram-fold3/run.json", "--cpu"]
    again = run("ecgmm_finetune", *config, "--out", "again", cwd=tmp_path)
    assert scores_in(again) == scores_in(first) and "fold 3" in again
    other = run("ecgmm_finetune", *config, "--fold", 4, cwd=tmp_path)
    assert "model: models/spectrogram-fold4/model" in other
    config = json.loads((tmp_path / "models/spectrogram-fold4/model/config.json").read_text())
    assert config["settings"]["dropout"] == 0.1 and config["settings"]["train"]["lr"] == 0.001
    assert set(config["settings"]) == set(ClassifierSettings.__dataclass_fields__)


def test_the_demo_and_its_second_call(tmp_path):
    tiny = ("--n", 90, "--epochs", 1, "--pretrain_epochs", 1, "--folds", "3")
    printed = run("ecgmm_demo", "--out", "demo", *tiny, cwd=tmp_path)
    page = tmp_path / "demo" / "report" / "index.html"
    assert str(page.relative_to(tmp_path)) in printed
    text = re.sub(r'base64,[^"]+', "", page.read_text())
    assert text.count("<img") == len(re.findall(r'<img alt="[^"]{20,}"', text)) >= 9
    assert "a simulator, not of patients" in text and "optimistic" in text
    assert "Published results" not in text  # of patients: no yardstick for simulated recordings
    assert not re.search(r"\bnan\b", text, re.I)
    scores = pd.read_csv(tmp_path / "demo" / "study" / "scores.csv")
    assert list(scores["model"][:4]) == list(CONTROLS)  # what has seen no ECG stands first
    scores = with_network(scores)
    assert list(zip(scores["model"], scores["pretraining"], strict=True)) == [
        (model, pretraining)
        for pretraining in ("scratch", "dino")
        for model in ("signal", "spectrogram", "average", "concat", "gate")
    ]

    def stages():
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "demo" / "study").rglob("run.json")}

    made = stages()
    kinds = {path.parent.name.split("-")[0] for path in made}
    assert kinds == {"study", "model", "pretrain", "finetune", "control", "mean", "judge"}
    run("ecgmm_demo", "--out", "demo", *tiny, cwd=tmp_path)
    changed = {path.parent.name for path, time in stages().items() if made.get(path) != time}
    assert changed <= {"study"}  # nothing is done twice
    error = run("ecgmm_demo", "--out", "demo", "--n", 60, cwd=tmp_path, fails=True)
    assert "give another folder" in error


def test_a_source_is_left_out(tmp_path):
    """The whole study by command, in two parts and a call that gathers, with every source left out
    once."""
    run("ecgmm_synthesize", "--out", "data", "--n", 90, cwd=tmp_path)
    run("ecgmm_prepare", cwd=tmp_path)
    small = ("--size", "small", "--models", "spectrogram", "--arms", "scratch", "--epochs", 1)
    words = (*small, "--folds", "0", "--leave_out", "--cpu")
    for part in ("1/2", "2/2"):
        assert "gathers all parts" in run("ecgmm_reproduce", *words, "--part", part, cwd=tmp_path)
    run("ecgmm_reproduce", *words, cwd=tmp_path)
    store, study = Store(tmp_path / "store"), tmp_path / "study"
    scores = with_network(pd.read_csv(study / "scores.csv"))
    sources = sorted(set(store.records["source"]))
    assert list(scores["split"]) == ["fold 0", *(f"source {name}" for name in sources)]
    for name, row in zip(sources, scores[scores["fold"].isna()].itertuples(), strict=True):
        config = json.loads((study / row.model_folder / "config.json").read_text())
        assert name not in config["trained_on"] and config["folds"]["test"] == name
        assert set(read_judged(study / row.judgement).predictions.source) == {name}
    page = (study / "report" / "index.html").read_text()
    assert "Sources that were left out of training" in page
    for name in ("answers.csv", "answers.npz", "classes.csv", "searches.csv", "environment.json"):
        assert (study / name).is_file()
    assert set(json.loads((study / "environment.json").read_text())) >= {"settings", "arms"}

    # sources alone: a table, and no report
    alone = run("ecgmm_reproduce", *small, "--folds", "", "--test_sources", sources[0], "--cpu",
                "--out", "alone", cwd=tmp_path)  # fmt: skip
    assert sources[0] in alone and not (tmp_path / "alone" / "report").exists()


def test_wrong_words_get_clear_answers(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no WFDB header" in run("ecgmm_prepare", "--data", "empty", cwd=tmp_path, fails=True)
    assert "is not a folder" in run("ecgmm_prepare", "--data", "nowhere", cwd=tmp_path, fails=True)
    assert "not a store" in run("ecgmm_finetune", "--store", "empty", cwd=tmp_path, fails=True)
    run("ecgmm_synthesize", "--out", "data", "--n", 40, cwd=tmp_path)
    run("ecgmm_prepare", cwd=tmp_path)
    for words, message in {
        ("--fold", 10): "fold must be 0 to 9, got 10",
        ("--branches", "smell"): "there is no modality 'smell'; there are: signal, spectrogram",
        ("--branches", "spectrogram=transformer"): "se_resnet34",
        ("--branches", "signal,signal"): "each once",
        ("--branches", "signal@nowhere"): "nowhere",
        ("--best_by", "loss"): "auroc, auprc",
    }.items():
        assert message in run("ecgmm_finetune", *words, cwd=tmp_path, fails=True), words
    assert not (tmp_path / "models").exists()
