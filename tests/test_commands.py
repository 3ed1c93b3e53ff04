"The way of a user: the commands, one after the other, in processes of their own."

import json
import re

import numpy as np
import pandas as pd
from children import command as run

from ecgmm.metrics import report
from ecgmm.folder import load_model
from ecgmm.store import Store


def check_second_calls(out, printed, cwd):
    "The same call again is done already; with other settings it is refused."
    words = (
        "ecgmm_finetune",
        "--modality",
        "spectrogram",
        "--encoder",
        "se_resnet_small",
        "--fold",
        3,
        "--cpu",
    )
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert (
        json.loads(run(*words, "--epochs", 1, cwd=cwd).strip().splitlines()[-1]) == printed
    )  # the same again: it is done
    said = run(
        *words, "--epochs", 2, cwd=cwd, fails=True
    )  # another: refused, with the difference and what to do
    assert (
        "a finished classifier with another settings.epochs (1, now 2)" in said
        and "another folder" in said
        and "--overwrite" in said
    )
    assert "another settings.seed" in run(*words, "--epochs", 1, "--seed", 1, cwd=cwd, fails=True)
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
    said = run(
        "ecgmm_finetune",
        "--modality",
        "spectrogram",
        "--encoder",
        "se_resnet_small",
        "--fold",
        3,
        "--epochs",
        1,
        "--cpu",
        cwd=tmp_path,
    )
    out = tmp_path / "models" / "spectrogram-fold3"
    model, config = load_model(out / "model")
    assert (
        config["folds"]["test"] == 3
        and config["folds"]["tune"] == 4
        and config["folds"]["hash"] == store.meta["fold_hash"]
    )
    saved = np.load(out / "predictions.npz", allow_pickle=False)
    assert list(saved["test_rows"]) == list(store.split(3)["test"])
    again = report(
        saved["test_y"], saved["test_prob"], saved["test_prob"] >= config["thresholds"][0]
    )
    printed = json.loads(said.strip().splitlines()[-1])
    for name, value in again.items():
        assert np.isclose(printed[name], value, atol=1e-4, equal_nan=True)
    check_second_calls(out, printed, cwd=tmp_path)


def test_the_demo_and_its_second_call(tmp_path):
    tiny = ("--n", 90, "--epochs", 1, "--pretrain_epochs", 1, "--folds", "3")
    said = run("ecgmm_demo", "--out", "demo", *tiny, cwd=tmp_path)
    page = tmp_path / "demo" / "report" / "index.html"
    assert str(page.relative_to(tmp_path)) in said
    text = re.sub(r'base64,[^"]+', "", page.read_text())
    assert (
        text.count("<img") == 9 and "a simulator, not of patients" in text and "optimistic" in text
    )
    assert "nan" not in text.split("<h2>Scores")[1].split("<h3>Numbers to beat")[0].lower()
    scores = pd.read_csv(tmp_path / "demo" / "study" / "scores.csv")
    assert list(zip(scores["model"], scores["arm"])) == [
        (m, a)
        for a in ("scratch", "dino")
        for m in ("signal", "spectrogram", "average", "concat", "gate")
    ]

    def stages():
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "demo" / "study").rglob("run.json")}

    made = stages()
    assert {p.parent.name.split("-")[0] for p in made} == {
        "study",
        "model",
        "pretrain",
        "finetune",
        "fuse",
        "judge",
    }
    run("ecgmm_demo", "--out", "demo", *tiny, cwd=tmp_path)
    again = stages()
    assert {p: t for p, t in again.items() if p.parent.name != "study"} == {
        p: t for p, t in made.items() if p.parent.name != "study"
    }  # nothing is done twice
    assert "give another folder" in run(
        "ecgmm_demo", "--out", "demo", "--n", 60, cwd=tmp_path, fails=True
    )


def test_a_source_is_left_out(tmp_path):
    """The whole study by command, in two parts and a call that gathers, with every source left out
    once."""
    run("ecgmm_synthesize", "--out", "data", "--n", 90, cwd=tmp_path)
    run("ecgmm_prepare", cwd=tmp_path)
    words = (
        "--size",
        "small",
        "--models",
        "spectrogram",
        "--arms",
        "scratch",
        "--folds",
        "0",
        "--leave-out",
        "--epochs",
        1,
        "--cpu",
    )
    for part in ("1/2", "2/2"):
        assert "gathers all parts" in run("ecgmm_reproduce", *words, "--part", part, cwd=tmp_path)
    run("ecgmm_reproduce", *words, cwd=tmp_path)
    store, scores = (
        Store(tmp_path / "store"),
        pd.read_csv(tmp_path / "study" / "scores.csv", dtype={"fold": str}),
    )
    assert list(scores["fold"]) == ["0", *sorted(set(store.records["source"]))]
    for row in scores[scores["fold"] != "0"].itertuples():
        config = json.loads((tmp_path / "study" / row.runs / "model" / "config.json").read_text())
        assert row.fold not in config["trained_on"] and config["folds"]["test"] == row.fold
        rows = np.load(tmp_path / "study" / row.judged / "decisions.npz", allow_pickle=False)[
            "rows"
        ]
        assert set(store.records["source"].iloc[rows]) == {row.fold}
    assert (
        "Sources that were left out of training"
        in (tmp_path / "study" / "report" / "index.html").read_text()
    )


def test_wrong_words_get_clear_answers(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no WFDB header" in run("ecgmm_prepare", "--data", "empty", cwd=tmp_path, fails=True)
    assert "is not a folder" in run("ecgmm_prepare", "--data", "nowhere", cwd=tmp_path, fails=True)
    assert "not a store" in run("ecgmm_finetune", "--store", "empty", cwd=tmp_path, fails=True)
    run("ecgmm_synthesize", "--out", "data", "--n", 40, cwd=tmp_path)
    run("ecgmm_prepare", cwd=tmp_path)
    assert "fold from 0 to 9" in run("ecgmm_finetune", "--fold", 10, cwd=tmp_path, fails=True)
    assert "spectrogram" in run("ecgmm_finetune", "--modality", "smell", cwd=tmp_path, fails=True)
    assert "se_resnet34" in run(
        "ecgmm_finetune", "--encoder", "transformer", cwd=tmp_path, fails=True
    )
