"Corner cases of decisions and judgements; notebooks 50 and 51 have the checks that teach."

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from ecgmm import EcgmmError
from ecgmm.clinic import expected_calibration_error, reliability
from ecgmm.finetune import finetune
from ecgmm.folder import read_config
from ecgmm.judgement import (
    chosen_files,
    choose,
    judge,
    metric_interval,
    read_predictions,
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
    CALIBRATIONS,
    INTERCEPTS,
    NEVER,
    SEARCHES,
    SLOPES,
    ChallengeGoal,
    best_threshold,
    calibrate,
    choose_decision,
    coordinate_ascent,
    decide,
    exact_thresholds,
    exclusive_groups,
    find_cuts,
    fit_band,
    fit_calibration,
    goal_name,
    make_goal,
    shrunk_thresholds,
    simulate_classifier,
    uncertain,
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
    assert "IAVB" in fit_calibration(TUNE)["calibrated"]
    for kind in CALIBRATIONS:
        assert TUNE.labels.abbreviations[3] not in fit_calibration(part, kind)["calibrated"]
    assert np.isnan(expected_calibration_error(part)[3])
    assert len(reliability(part, 3).n) == 0


def with_labels(y, prob):
    "A fold of these labels and probabilities."
    return replace(TUNE.take(slice(len(y))), y=y.astype(np.uint8), prob=prob)


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_few_or_separated_recordings(kind):
    "Where a fit has no end, or nothing to be fitted to, nothing is calibrated, and that is said."
    y = np.zeros((20, 24), bool)
    y[:10] = True
    for labels in (y, np.zeros_like(y), np.ones_like(y)):
        fold = with_labels(labels, np.where(y, 0.6, 0.4))
        fitted = fit_calibration(fold, kind)
        assert (calibrate(fitted, fold.prob) == fold.prob).all()
        assert fitted["calibrated"] == [] and bool(fitted["note"]) == (kind != "none")


@pytest.mark.parametrize("kind", CALIBRATIONS)
@pytest.mark.parametrize("n", [1, 2, 5, 33, 200])
def test_a_fit_stays_within_its_bounds(kind, n):
    "Whatever the recordings: no slope and no intercept beyond the bounds, and JSON without NaN."
    rng = np.random.default_rng(n)
    for prevalence in (0.0, 0.02, 0.3, 1.0):
        y = rng.random((n, 24)) < prevalence
        for prob in (rng.random(y.shape), np.where(y, 0.9, 0.05), y * 1.0, 1.0 - y):
            fitted = fit_calibration(with_labels(y, prob), kind)
            json.dumps(fitted, allow_nan=False)
            for field, (low, high) in (("slope", SLOPES), ("intercept", INTERCEPTS)):
                values = np.array(fitted.get(field, [low]))
                assert (low <= values).all() and (values <= high).all()
            ends = np.array([[0.0] * 24, [1.0] * 24])
            if kind != "isotonic":
                assert (calibrate(fitted, ends) == ends).all()


def test_the_default_does_no_harm_on_46_recordings():
    "Over many folds of 46 recordings the mean unseen log loss is not above that of none."
    change = []
    for seed in range(100):
        classifier, rng = simulate_classifier(seed), np.random.default_rng(seed)
        fold, unseen = classifier.draw(46, rng), classifier.draw(1000, rng)
        losses = []
        for kind in ("none", ChoiceSettings().calibration):
            prob = calibrate(fit_calibration(fold, kind), unseen.prob)
            losses.append(-np.log(np.where(unseen.y, prob, 1 - prob)).mean())
        change.append(losses[1] - losses[0])
    assert np.mean(change) < 0


def test_a_calibration_of_ones_own(monkeypatch):
    "It is known to all of the choice by its name, and what it writes needs no function to be read."
    half = {"slope": [0.5] * 24, "intercept": [0.0] * 24, "calibrated": [], "note": ""}
    monkeypatch.setitem(CALIBRATIONS, "half", lambda fold: half)
    decision = choose_decision(TUNE, ChoiceSettings(calibration="half"))
    monkeypatch.delitem(CALIBRATIONS, "half")
    prob, _ = decide(decision, TUNE.prob)
    np.testing.assert_allclose(prob, expit(logit(TUNE.prob) / 2))
    wrong = {"slope": [0.5], "intercept": [0.0]}
    monkeypatch.setitem(CALIBRATIONS, "wrong", lambda fold: wrong)
    with pytest.raises(EcgmmError, match="24 finite numbers in 'slope'"):
        fit_calibration(TUNE, "wrong")


@pytest.mark.parametrize("goal", ["youden", "cost=2", "f_beta", "sensitivity=1", "specificity=0.9"])
def test_goals_know_what_is_unknown(goal):
    "What stands in the place of an unknown label or its probability changes no threshold."
    rng = np.random.default_rng(3)
    known = rng.random(TUNE.y.shape) < 0.7
    part = replace(TUNE, known=known)
    other = part.with_prob(np.where(known, TUNE.prob, rng.random(known.shape)))
    for search in SEARCHES.values():
        assert (search(part, goal) == search(other, goal)).all()
    least = exact_thresholds(part, "sensitivity=1")
    assert not ((part.prob < least) & (part.y == 1)).any()


@pytest.mark.parametrize("name", ["exact", "shrunk"])
def test_a_limit_is_kept_whatever_the_pull(name):
    thresholds = SEARCHES[name](TUNE, "sensitivity=0.9")
    decided, y = TUNE.prob >= thresholds, TUNE.y == 1
    assert ((y & decided).sum(0) >= 0.9 * y.sum(0)).all()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: shrunk_thresholds(TUNE, prior=-1), "prior must be above 0"),
        (lambda: goal_name(TUNE.labels, "auroc"), "one of auto, challenge, f_measure"),
        (lambda: ChoiceSettings(goal="sensitivity=nan"), "above 0 and at most 1"),
        (lambda: ChoiceSettings(goal="cost=inf"), "needs a number above 0"),
        (lambda: ChoiceSettings(goal="f_beta="), "needs a number above 0"),
        (lambda: ChoiceSettings(goal="auto=1"), "takes no value"),
        (lambda: ChoiceSettings(uncertain=1.0), "above 0 and below 1"),
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
        (lambda: fit_calibration(TUNE, "beta"), "per-class, isotonic, got 'beta'"),
        (lambda: calibrate({}, TUNE.prob), "a calibration needs a kind"),
        (
            lambda: calibrate({"kind": "platt", "slope": [1.0] * 24}, TUNE.prob),
            "24 finite numbers in 'intercept'",
        ),
        (
            lambda: calibrate(
                {"kind": "a", "slope": [0.0] * 24, "intercept": [0.0] * 24}, TUNE.prob
            ),
            "must be above 0",
        ),
        (lambda: calibrate({"kind": "a", "curves": [None]}, TUNE.prob), "24 entries in 'curves'"),
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


@pytest.mark.parametrize("wanted", [0.03, 0.05, 0.2])
def test_the_share_of_wrong_answers_that_was_promised(wanted):
    "Over many folds, and thresholds from elsewhere, other patients get no more wrong answers."
    thresholds = shrunk_thresholds(TUNE)
    rng, risks = np.random.default_rng(5), []
    unseen = CLASSIFIER.draw(2000, rng)
    wrong = (unseen.prob >= thresholds) != unseen.y
    for _ in range(60):
        fold = CLASSIFIER.draw(50, rng)
        decided = fold.prob >= thresholds
        found = fit_band(fold, decided, thresholds=thresholds, wanted=wanted)
        decision = {"thresholds": thresholds, "uncertain": found}
        risks.append((wrong & ~uncertain(decision, unseen.prob)).mean())
    assert np.mean(risks) <= wanted


def test_patients_of_several_recordings_promise_no_more():
    "Four identical recordings of each patient give the band of one; a smaller share, a wider one."
    decided, t = TUNE.prob >= 0.2, np.full(24, 0.2)
    fourfold = TUNE.take(np.repeat(np.arange(200), 4))
    bands = []
    for wanted in (0.2, 0.05, 0.02):
        once = fit_band(TUNE, decided, thresholds=t, wanted=wanted)
        several = fit_band(fourfold, np.repeat(decided, 4, 0), thresholds=t, wanted=wanted)
        assert several == pytest.approx(once)
        bands.append(once["band"])
    assert bands == sorted(bands) and bands[0] < bands[-1]
    few = TUNE.take(slice(30))
    with pytest.raises(EcgmmError, match="from 99 patients in tune on, here there are 30"):
        fit_band(few, decided[:30], thresholds=t, wanted=0.01)


def test_what_is_unknown_or_not_decided_is_not_uncertain_either():
    known = np.random.default_rng(1).random(TUNE.y.shape) < 0.6
    part, t = replace(TUNE, known=known), np.full(24, 0.2)
    t[3] = NEVER
    other = part.with_prob(np.where(known, TUNE.prob, 0.21))
    bands = [fit_band(p, p.prob >= t, thresholds=t, wanted=0.02) for p in (part, other)]
    assert bands[0] == bands[1] and bands[0]["band"] > 0
    near = uncertain({"thresholds": t, "uncertain": bands[0]}, TUNE.prob)
    assert near.any() and not near[:, 3].any()


def test_one_of_each_group_whatever_the_probabilities():
    groups = exclusive_groups(TUNE.labels)
    rng = np.random.default_rng(0)
    for t in (np.zeros(24), np.ones(24), rng.random(24), np.full(24, NEVER)):
        for prob in (rng.random((50, 24)), rng.integers(0, 2, (50, 24)) * 1.0):
            free = prob >= t
            alone = decide({"thresholds": t, "exclusive": groups}, prob)[1]
            several = free[:, groups[0]].sum(1)
            assert (alone[:, groups[0]].sum(1) == np.minimum(several, 1)).all()
            assert not (alone & ~free).any()


def test_a_class_that_is_not_decided_leaves_the_search_of_the_others():
    "It stands at never while they are searched, so what is searched is what is reached."
    learned = np.full(24, 9)
    rhythm = TUNE.labels.index("NSR")
    learned[rhythm] = 2
    choice = ChoiceSettings(calibration="none", search="exact")
    decision = choose_decision(TUNE, choice, trained_positives=learned)
    assert decision["undecided"] == {"NSR": "2 positives in train"}
    t = np.array(decision["thresholds"])
    assert t[rhythm] == NEVER
    goal = ChallengeGoal(TUNE)
    reached = goal.score(TUNE.prob >= t)
    for k in np.flatnonzero(TUNE.y.any(0) & (np.arange(24) != rhythm)):
        for value in (*np.quantile(TUNE.prob[:, k], np.linspace(0, 1, 30)), 2):
            assert goal.score(TUNE.prob >= np.where(np.arange(24) == k, value, t)) <= reached + 1e-9


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
    by_paper = ChoiceSettings(protocol="paper")
    paper = choose(run, by_paper, draws=20)
    assert paper.epoch_by == "test"
    learned = read_config(run / "model")["trained_positives"]
    assert paper.decision == choose_decision(late, by_paper, trained_positives=learned)
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


def test_classes_are_decided_by_what_was_trained_on(run, monkeypatch):
    "The numbers stand in the model's config; the decision, the card and what is printed say them."
    positives = [50] * 23 + [2]
    config = read_config(run / "model")
    monkeypatch.setattr(
        "ecgmm.judgement.read_config", lambda model: config | {"trained_positives": positives}
    )
    judgement = choose(run, draws=5)
    assert judgement.decision["undecided"] == {"TInv": "2 positives in train"}
    assert read_config(run / "model")["thresholds"][-1] == NEVER
    card = (run / "model" / "README.md").read_text()
    assert "| TInv | 59931005 | T wave inversion | not decided (2 positives in train) |" in card
    assert "It decides 23 of 24 classes; the others had fewer than 3 recordings" in card
    assert not judgement.decided[:, -1].any()


def test_one_rhythm_and_uncertain_answers_on_the_command_line(run, monkeypatch, capsys):
    words = ["--model", run, "--exclusive", "--uncertain", "0.4", "--no-undecided"]
    words += ["--calibration", "temperature", "--goal", "sensitivity=0.8"]
    monkeypatch.setattr(sys, "argv", ["ecgmm_thresholds", *map(str, words)])
    main()
    out, card = capsys.readouterr().out, (run / "model" / "README.md").read_text()
    assert "goal sensitivity=0.8, calibration temperature" in out
    assert "decides 24 of 24 classes\n" in out
    assert "uncertain: at most 0.4 of all answers wrong" in out
    assert out.count("with one rhythm at most") == 2
    assert "Of AF, AFL, SB, NSR, STach only one is decided" in card
    assert "So at most 0.4 of all answers should be wrong" in card
    config = read_config(run / "model")
    prob = read_predictions(run / "predictions.npz")["test"].prob
    _, decided = decide(config, prob)
    rhythms = exclusive_groups(Labels.challenge2020())
    assert decided[:, rhythms[0]].sum(1).max() <= 1
    measured = json.loads((run / "thresholds.json").read_text())["measured"]
    assert set(measured["exclusive"]) == set(measured["uncertain"]) == {"tune", "test"}


def test_a_wrong_goal_is_said_at_once(run, monkeypatch, capsys):
    words = ["ecgmm_thresholds", "--model", str(run), "--goal", "sensitivity=90"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main()
    assert "goal sensitivity=VALUE needs a number above 0" in capsys.readouterr().err


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
    words = ["--import", part, "--model", run / "model", "--search", "mine", "--no-undecided"]
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
