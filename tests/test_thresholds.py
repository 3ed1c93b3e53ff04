"Corner cases of decisions and judgements; notebooks 50 and 51 have the checks that teach."

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from ecgmm import EcgmmError
from ecgmm.finetune import finetune
from ecgmm.judgement import (
    chosen_files,
    choose,
    expected_calibration_error,
    judge,
    metric_interval,
    read_predictions,
    reliability,
)
from ecgmm.labels import Labels
from ecgmm.metrics import save_predictions
from ecgmm.settings import (
    Branch,
    ChoiceSettings,
    ClassifierSettings,
    TrainSettings,
    from_dict,
    main,
)
from ecgmm.store import prepare
from ecgmm.synthetic import synthesize
from ecgmm.thresholds import (
    SEARCHES,
    ChallengeGoal,
    best_threshold,
    calibrate,
    choose_decision,
    coordinate_ascent,
    decide,
    find_cuts,
    fit_calibration,
    goal_name,
    make_goal,
    shrunk_thresholds,
    simulate_classifier,
)

CLASSIFIER = simulate_classifier(0)
TUNE, TEST = (CLASSIFIER.draw(n, np.random.default_rng(n), f"fold{n}") for n in (200, 201))


def cut(gain, prob):
    cuts = find_cuts(np.array(prob), np.ones(len(prob), bool))
    sums = np.concatenate([[0], np.cumsum(np.array(gain)[cuts.order])[cuts.ends]])
    return best_threshold(sums, cuts)[0]


def test_a_threshold_between_neighbours_in_double_precision():
    near = 0.3 + np.array([np.spacing(0.3), 0])
    assert near[0] >= cut([1.0, -1.0], near) > near[1]
    assert cut([-1.0], [1.0]) > 1  # never, although the probability is 1
    assert cut([1.0], [0.0]) == 0
    assert not decide({"thresholds": [float(np.nextafter(1, 2))] * 24}, np.ones((1, 24)))[1].any()


def test_nothing_known_of_a_class():
    known = np.ones(TUNE.y.shape, bool)
    known[:, 3] = False
    part = replace(TUNE, known=known)
    for search in SEARCHES.values():
        thresholds = search(part, "auto")
        assert np.isfinite(thresholds).all()
    assert fit_calibration(part)["temperature"][3] == 1
    assert np.isnan(expected_calibration_error(part)[3])
    assert len(reliability(part, 3).n) == 0


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_few_or_separated_recordings(kind):
    "A class with fewer than five positives stays as it is; no temperature falls to 0."
    y, prob = np.zeros((20, 24), np.uint8), np.full((20, 24), 0.4)
    y[:10], prob[:10] = 1, 0.6
    y[:, 0] = np.arange(20) < 4
    fold = replace(TUNE.take(slice(20)), y=y, prob=prob)
    fitted = fit_calibration(fold, kind)
    np.testing.assert_allclose(calibrate(fitted, prob)[:, 0], prob[:, 0], rtol=1e-12)
    if kind == "temperature":
        np.testing.assert_allclose(fitted["temperature"][1:], 0.25, atol=1e-3)
    ends = np.array([[0.0] * 12 + [1.0] * 12])
    assert (calibrate({"kind": "temperature", "temperature": [2.0] * 24}, ends) == ends).all()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: shrunk_thresholds(TUNE, prior=-1), "prior must be above 0"),
        (lambda: goal_name(TUNE.labels, "auroc"), "auto or one of challenge, f_measure"),
        (lambda: make_goal(TUNE.with_prob(TUNE.prob + 1)), "must be from 0 to 1"),
        (
            lambda: make_goal(replace(TUNE, y=np.zeros_like(TUNE.y))),
            "need recordings that have a class",
        ),
        (
            lambda: make_goal(replace(TUNE, y=np.eye(24, dtype=np.uint8)[[20] * 200])),
            "more than the normal class",
        ),
        (
            lambda: coordinate_ascent(ChallengeGoal(TUNE), TUNE.prob, np.array([0.1, 0.2])),
            "24 finite thresholds are needed to start with",
        ),
        (lambda: fit_calibration(TUNE, "platt"), "temperature, isotonic, none, got 'platt'"),
        (lambda: calibrate({}, TUNE.prob), "temperature, isotonic, none, got None"),
        (lambda: calibrate({"kind": "isotonic"}, TUNE.prob), "24 entries in 'x', got 0"),
        (
            lambda: calibrate({"kind": "temperature", "temperature": [0.0] * 24}, TUNE.prob),
            "must be above 0",
        ),
        (lambda: calibrate({"kind": "none"}, TUNE.prob[0]), "of shape (recordings, classes)"),
        (lambda: calibrate({"kind": "none"}, TUNE.prob * np.nan), "from 0 to 1"),
        (lambda: decide({"thresholds": [0.5]}, TUNE.prob), "24 finite thresholds"),
        (lambda: decide({"thresholds": [np.nan] * 24}, TUNE.prob), "24 finite thresholds"),
        (lambda: decide({}, TUNE.prob), "ecgmm_thresholds"),
        (
            lambda: choose_decision(TUNE, ChoiceSettings(search="best")),
            "common, official, exact, shrunk, got 'best'",
        ),
        (lambda: reliability(TUNE, 0, 0), "at least one bin"),
        (lambda: judge({"tune": TUNE, "test": TUNE}), "in tune and in test"),
        (lambda: from_dict(ChoiceSettings, {"protocol": "leaky"}), "protocol"),
        (lambda: ChoiceSettings(best_by="f1"), "best_by"),
    ],
)
def test_what_cannot_be(call, words):
    with pytest.raises(EcgmmError) as error:
        call()
    assert words in str(error.value), error.value


def test_a_search_of_ones_own_that_returns_too_few(monkeypatch):
    monkeypatch.setitem(SEARCHES, "mine", lambda fold, goal: [0.5])
    with pytest.raises(EcgmmError, match="24 finite thresholds are needed"):
        choose_decision(TUNE, ChoiceSettings(search="mine"))


def test_patients_of_several_recordings_are_drawn_as_a_whole():
    "The interval follows the groups, whatever numbers they have and in whatever order they stand."
    decided = TEST.prob >= 0.2
    plain = metric_interval(TEST, decided, draws=100)
    other = replace(TEST, group=TEST.group * 7 + 3)
    assert metric_interval(other, decided, draws=100) == plain
    paired = replace(TEST, group=TEST.group // 50)
    assert np.ptp(metric_interval(paired, decided, draws=100)) != np.ptp(plain)
    assert np.isnan(metric_interval(replace(TEST, group=TEST.group // 100), decided)).all()


def test_prediction_needs_neither_scikit_learn_nor_training():
    heavy = ("sklearn", "accelerate", "ecgmm.training", "ecgmm.finetune", "ecgmm.store")
    code = f"import ecgmm.thresholds, sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    home = tmp_path_factory.mktemp("run")
    synthesize(home / "hospitals", n=120, seed=0)
    store = prepare(home / "hospitals", home / "store", progress=False)
    small = ClassifierSettings(
        (Branch("signal", "xresnet1d_small"),), train=TrainSettings(epochs=1)
    )
    finetune(store, home / "run", small, split=store.split(fold=0), cpu=True, progress=False)
    return home / "run"


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_predictions_of_several_roles_with_patients(run):
    "Other predictions in the file of a run, and patients with several recordings."
    file = run / "predictions.npz"
    roles = read_predictions(file)
    before = choose(run, draws=20).to_dict()
    late = roles["test"].with_prob(0.5 * roles["test"].prob + 0.5 * roles["test"].y)
    save_predictions(roles | {"paper": late}, file)
    assert choose(run, draws=20).to_dict() == before
    paper = choose(run, ChoiceSettings(protocol="paper"), draws=20)
    assert paper.epoch_by == "test"
    assert paper.decision == choose_decision(late, ChoiceSettings(protocol="paper"))
    families = replace(roles["test"], group=np.arange(len(roles["test"])) // 2)
    save_predictions(roles | {"test": families}, file)
    assert choose(run, draws=20).interval != before["metrics"]["interval"]


def test_files_that_are_not_as_they_should_be(run):
    mine = run / "thresholds-paper.json"
    mine.write_text("mine")  # somebody else's file of that name
    with pytest.raises(EcgmmError, match="thresholds-paper.json is there already"):
        choose(run, ChoiceSettings(protocol="paper"), draws=5)
    assert mine.read_text() == "mine"
    file = run / "predictions-auprc.npz"
    auprc, roles = ChoiceSettings(best_by="auprc"), read_predictions(file)
    n = len(roles["tune"])
    save_predictions(
        roles | {"tune": replace(roles["tune"], paths=np.resize(roles["test"].paths, n))}, file
    )
    with pytest.raises(EcgmmError, match="in tune and in test"):
        choose(run, auprc)
    save_predictions({"test": roles["test"]}, file)
    with pytest.raises(EcgmmError, match="has no predictions of tune"):
        choose(run, auprc)
    file.write_bytes(b"PK")
    with pytest.raises(
        EcgmmError, match=r"predictions-auprc.npz: these predictions cannot be read"
    ):
        choose(run, auprc)
    file.unlink()
    with pytest.raises(EcgmmError, match=r"for auprc there is no predictions-auprc.npz"):
        choose(run, auprc)
    shutil.rmtree(run / "model-auprc")
    with pytest.raises(EcgmmError, match="chosen by auroc; for auprc there is no model-auprc"):
        choose(run, auprc)


def test_the_run_or_its_model_folder(run):
    assert chosen_files(run, "auprc") == chosen_files(run / "model-auprc", "auprc")
    assert chosen_files(run, "auroc") == chosen_files(run / "model", "auroc")
    with pytest.raises(EcgmmError, match="was not chosen by auprc: give .*model-auprc"):
        chosen_files(run / "model", "auprc")
    with pytest.raises(EcgmmError, match="is not there"):
        choose(run.parent / "nowhere")
    with pytest.raises(EcgmmError, match="a finished classifier is needed"):
        choose(run.parent)


def test_labels_without_a_reward_matrix():
    fold = simulate_classifier(3, Labels.ptbxl("rhythm")).draw(300, np.random.default_rng(1))
    assert choose_decision(fold)["choice"]["goal"] == "f_measure"
    assert choose_decision(TUNE, ChoiceSettings(goal="f_measure"))["choice"]["goal"] == "f_measure"
    assert choose_decision(TUNE)["choice"]["goal"] == "challenge"


def test_the_card_names_the_metric_of_the_interval(run):
    for goal, title in (("f_measure", "F1"), ("challenge", "Challenge score")):
        choose(run, ChoiceSettings(goal=goal), draws=20)
        assert f"The {title}'s 95 % interval" in (run / "model" / "README.md").read_text()


def test_a_search_of_ones_own_on_the_command_line(run, tmp_path, monkeypatch, capsys):
    part = tmp_path / "my_search.py"
    part.write_text(
        "from ecgmm.thresholds import SEARCHES\n"
        "SEARCHES['mine'] = lambda fold, goal: [0.25] * len(fold.labels)\n"
    )
    words = ["--import", part, "--model", run / "model", "--search", "mine"]
    monkeypatch.setattr(sys, "argv", ["ecgmm_thresholds", *map(str, words)])
    try:
        main()
    finally:
        SEARCHES.pop("mine", None)
    out = capsys.readouterr().out
    assert "search mine, goal challenge" in out and "Challenge score" in out
    decision = json.loads((run / "thresholds.json").read_text())
    assert decision["thresholds"] == [0.25] * 24
    assert set(decision["searches"]) == {"common", "official", "exact", "shrunk", "mine"}
