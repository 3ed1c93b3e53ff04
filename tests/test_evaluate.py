"A saved model elsewhere: folders or runs, what it has seen, small stores, README's lines."

import json
import re
import shutil
from contextlib import chdir
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from ecgmm import EcgmmError
from ecgmm.answers import ecgmm_predict
from ecgmm.data import Recording, read_recording, resample, write_recording
from ecgmm.ensemble import SEEN_NOTES, open_model
from ecgmm.evaluate import ecgmm_evaluate, evaluate
from ecgmm.finetune import finetune, run_name
from ecgmm.folder import read_config
from ecgmm.judgement import choose, ecgmm_thresholds
from ecgmm.labels import Labels
from ecgmm.predict import predict
from ecgmm.settings import (
    Branch,
    ClassifierSettings,
    EvaluateOptions,
    PredictOptions,
    Tables,
    ThresholdsOptions,
    TrainSettings,
    read_options,
)
from ecgmm.store import Store, prepare
from ecgmm.synthetic import simulate, synthesize


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A store with patients of three recordings each, and networks of two folds, one epoch each."
    folder = tmp_path_factory.mktemp("place")
    synthesize(folder / "data", n=90, seed=0)
    names = sorted(p.stem for p in (folder / "data").rglob("*.hea"))
    people = pd.DataFrame(dict(record=names, patient=[f"P{k // 3}" for k in range(len(names))]))
    people.to_csv(folder / "patients.csv", index=False)
    tables = Tables(patients=str(folder / "patients.csv"))
    store = prepare(folder / "data", folder / "store", tables=tables, progress=False)
    settings = ClassifierSettings(
        (Branch("signal", "xresnet1d_small"),), train=TrainSettings(epochs=1)
    )
    for fold in (0, 1):
        how = dict(split=store.split(fold=fold), cpu=True, progress=False)
        finetune(store, folder / f"fold{fold}", settings, **how)
        choose(folder / f"fold{fold}", draws=10)
    return folder


def said_of(capsys, call, options):
    "What a command prints."
    capsys.readouterr()
    call(options)
    return capsys.readouterr().out


# ---- folders and runs


@pytest.mark.parametrize("name", ["fold0", "fold0/model"])
def test_a_run_or_its_model_folder_in_every_command(place, capsys, name):
    "The four calls, and both of evaluate."
    with chdir(place):
        said = said_of(capsys, ecgmm_thresholds, ThresholdsOptions(name))
        assert "calibration and thresholds are in fold0/model" in said
        said = said_of(capsys, ecgmm_predict, PredictOptions(name, "data", cpu=True))
        assert "90 of 90 recordings judged" in said
        options = EvaluateOptions(name, "store", exclude_seen=True, cpu=True)
        assert "Challenge score" in said_of(capsys, ecgmm_evaluate, options)


def test_several_with_commas_are_a_list(place, tmp_path):
    with chdir(place):
        both = PredictOptions("fold0,fold1/model", "data", str(tmp_path / "both.csv"), cpu=True)
        ecgmm_predict(both)
        with pytest.raises(EcgmmError, match="the file of a decision is for a model folder"):
            ecgmm_predict(replace(both, out=None, decision="fold0/model/decision.json"))
        one, other, mean = (
            predict(m, "data", cpu=True) for m in ("fold0", "fold1", ["fold0", "fold1"])
        )
    table = pd.read_csv(tmp_path / "both.csv", keep_default_na=False)
    names = list(Labels.challenge2020().abbreviations)
    assert np.allclose(table[names], mean[names], atol=1e-6)
    assert np.allclose(mean[names], (one[names] + other[names]) / 2, atol=1e-6)
    assert table["decided"].tolist() == mean["decided"].tolist()


def test_of_each_class_the_mean_decides_by_its_own_threshold(place):
    opened = open_model([place / "fold0", place / "fold1"], cpu=True)
    t = np.array([config["thresholds"] for config in opened.configs])
    joint, deciding = np.array(opened.decision["thresholds"]), t <= 1
    assert ((joint > 1) == ~deciding.any(axis=0)).all()
    one = deciding.sum(axis=0) == 1
    assert np.allclose(joint[one], t.min(axis=0)[one])  # half is not most
    two = deciding.all(axis=0)
    assert (t.min(axis=0)[two] <= joint[two] + 1e-12).all()
    assert (joint[two] <= t.max(axis=0)[two] + 1e-12).all()


# ---- what was seen


def roles_of(store, fold):
    split = store.split(fold=fold)
    return {role: store.records["path"][rows[0]] for role, rows in split.items()}


def test_a_judged_recording_that_was_trained_on(place, tmp_path, capsys):
    "Reports 11: people measure a model on what it has seen, as it was or exported anew."
    paths = roles_of(Store(place / "store"), 0)
    r = read_recording(place / "data" / paths["train"])
    half = Recording("Exported", 0.5 * resample(r.x, r.fs, 250), 250)
    write_recording(tmp_path / "ward", half)
    write_recording(tmp_path / "ward", Recording("New", simulate(("AF",), 10, 500, rng=99), 500))
    data = {role: str(place / "data" / path) for role, path in paths.items()}
    with chdir(tmp_path):
        for role, note in (("train", SEEN_NOTES["train"]), ("tune", SEEN_NOTES["tune"])):
            options = PredictOptions(str(place / "fold0"), data[role], f"{role}.json", cpu=True)
            said = said_of(capsys, ecgmm_predict, options)
            assert json.loads((tmp_path / f"{role}.json").read_text())[0]["notes"] == note
            assert "known to the model: 1 " in said
        options = PredictOptions(str(place / "fold0"), data["test"], cpu=True)
        said = said_of(capsys, ecgmm_predict, options)
        assert "known to the model" not in said and "trained" not in said
        said = said_of(
            capsys, ecgmm_predict, PredictOptions(str(place / "fold0"), "ward", cpu=True)
        )
        first, second = sorted(said.splitlines()[:2])
        assert SEEN_NOTES["train"] in first and SEEN_NOTES["train"] not in second
        assert "known to the model: 1 trained on" in said
    known = predict([place / "fold1", place / "fold0"], data["test"], cpu=True)
    assert known["notes"][0] == SEEN_NOTES["train"]  # the other member has seen it


def test_a_model_without_its_list(place, tmp_path):
    "It judges and says nothing; it is not scored as if it had seen nobody."
    shutil.copytree(place / "fold0" / "model", tmp_path / "m")
    (tmp_path / "m" / "seen.csv").unlink()
    trained_on = place / "data" / roles_of(Store(place / "store"), 0)["train"]
    assert predict(tmp_path / "m", trained_on, cpu=True)["notes"][0] == ""
    with pytest.raises(EcgmmError, match="the list of what it has seen is missing"):
        evaluate(tmp_path / "m", place / "store", cpu=True, exclude_seen=True)


def test_models_of_all_folds_have_seen_everybody(place):
    "What is new to one member of a mean was trained on by the other."
    models = [place / "fold0", place / "fold1"]
    with pytest.raises(
        EcgmmError, match=r"90 of 90 labelled recordings .*train \d+, tune \d+.*such as"
    ):
        evaluate(models, place / "store", cpu=True)
    with pytest.raises(EcgmmError, match="no labelled recording of .* is new to the model"):
        evaluate(models, place / "store", cpu=True, exclude_seen=True)


def test_a_patient_who_was_seen_elsewhere(place, tmp_path):
    "Another recording of a person whom a table names: refused, though no sample is in common."
    store = Store(place / "store")
    split = store.split(fold=0)
    names = store.records["name"]
    seen, new = names[split.train[0]], names[split.test[0]]
    table = pd.read_csv(place / "patients.csv")
    patient = dict(zip(table["record"], table["patient"], strict=True))
    for k, name in enumerate(("Z1", "Z2", *(f"Z{k}" for k in range(3, 23)))):
        x = simulate(("AF",) if k % 2 else ("NSR",), 10, 500, rng=100 + k)
        codes = (Labels.challenge2020().items[1 if k % 2 else 20].code,)
        write_recording(tmp_path / "data", Recording(name, x, 500, codes=codes))
    own = pd.DataFrame(dict(record=["Z1", "Z2"], patient=[patient[seen], patient[new]]))
    pd.concat([table, own]).to_csv(tmp_path / "patients.csv", index=False)
    tables = Tables(patients=str(tmp_path / "patients.csv"))
    other = prepare(tmp_path / "data", tmp_path / "store", tables=tables, progress=False)
    with pytest.raises(EcgmmError, match=r"1 of 22 labelled recordings .*Z1\.hea"):
        evaluate(place / "fold0", other, cpu=True)
    e = evaluate(place / "fold0", other, cpu=True, exclude_seen=True)
    assert e.left_out == {"train": 1} and len(e.predictions) == 21


# ---- small stores


def test_a_store_in_which_nothing_can_be_ranked(place, tmp_path):
    "Twelve recordings of six kinds: no ranking, no picture, and still a page and strict JSON."
    kinds = ("AF", "NSR", "SB", "LBBB", "PAC", "RBBB")
    items = {label.abbreviation: label for label in Labels.challenge2020().items}
    for k in range(12):
        kind = kinds[k % 6]
        x = simulate((kind,), 10, 500, rng=200 + k)
        write_recording(tmp_path / "data", Recording(f"T{k}", x, 500, codes=(items[kind].code,)))
    store = prepare(tmp_path / "data", tmp_path / "store", progress=False)
    e = evaluate(place / "fold0", store, out=tmp_path / "out", cpu=True)
    assert e.left_out == {} and len(e.predictions) == 12
    metrics = json.loads(
        (tmp_path / "out" / "metrics.json").read_text(), parse_constant=lambda c: pytest.fail(c)
    )
    assert metrics["recordings"] == 12 and metrics["scores"]["within_source"]["value"] is None
    assert not list((tmp_path / "out").glob("*.png"))
    assert "not a medical device" in (tmp_path / "out" / "card.md").read_text().lower()
    again = evaluate(place / "fold0", store, out=tmp_path / "out", cpu=True)
    assert (again.decided == e.decided).all()
    assert again.scores.equals(e.scores)


# ---- README


def test_the_lines_of_the_readme_fit_each_other():
    "Each line is a command as it stands, and each model in it was made by a line before it."
    text = (ROOT / "README.md").read_text()
    (block,) = [b for b in text.split("```")[1::2] if "ecgmm_thresholds" in b]
    made = set()
    for line in block.strip().splitlines():
        name, *words = line.split("#")[0].split()
        options = read_options(name.removeprefix("ecgmm_"), words)
        used = getattr(options, "model", "").split(",") if hasattr(options, "model") else []
        used += [folder for word in words for folder in re.findall(r"@([^,]+)", word)]
        assert set(used) <= made, line
        if name == "ecgmm_pretrain":
            made.add(f"models/{options.method}-{options.settings.branch.modality}-fold0")
        if name == "ecgmm_finetune":
            made.add(f"models/{run_name(options.settings)}-fold{options.fold}")
    assert "models/gate-fold0" in made


def test_without_options_the_commands_follow_each_other():
    "finetune makes the folder that thresholds, predict and evaluate read, of the store of prepare."
    made = f"models/{run_name(read_options('finetune', []).settings)}-fold0"
    options = {name: read_options(name, []) for name in ("thresholds", "predict", "evaluate")}
    assert {o.model for o in options.values()} == {made}
    assert options["evaluate"].store == read_options("prepare", []).store
    assert options["predict"].data in read_options("prepare", []).data


def test_the_config_says_what_was_trained_on(place):
    assert read_config(place / "fold0" / "model")["seen"]["rows"] > 0
