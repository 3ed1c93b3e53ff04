"Inputs of the metrics that are refused, and how; the checks that teach are in 12_metrics."

import numpy as np
import pytest

from ecgmm import EcgmmError
from ecgmm.intervals import paired_difference
from ecgmm.labels import Labels
from ecgmm.metrics import (
    METRICS,
    Metric,
    Predictions,
    bootstrap_interval,
    challenge_score,
    f_scores,
    per_class,
    report,
)

Y = np.eye(3, 24, dtype=bool)


@pytest.mark.parametrize(
    "y, decided, message",
    [
        (Y, Y[:2], "labels and decisions must have one shape, got (3, 24) and (2, 24)"),
        (Y * 0.5, Y, "labels must be 0 or 1, got 0.5"),
        (np.full((1, 2), np.nan), Y, "labels must be 0 or 1, got nan"),
        (Y[:0], Y[:0], "at least one recording, got (0, 24)"),
        (Y[0], Y[0], "the shape (recordings, classes)"),
        (Y, Y + 1.0, "decisions must be 0 or 1, got 2.0"),
    ],
)
def test_decisions_that_are_refused(y, decided, message):
    for function in (f_scores, challenge_score):
        with pytest.raises(EcgmmError) as error:
            function(y, decided)
        assert message in str(error.value)
        assert function.__name__ not in str(error.value)  # names of functions help nobody


def test_probabilities_that_are_refused():
    with pytest.raises(EcgmmError, match="labels and probabilities must have one shape"):
        per_class(Y, np.zeros((5, 24)))
    with pytest.raises(EcgmmError, match="got inf for recording 1, class 2"):
        per_class(Y, np.where(np.arange(72).reshape(3, 24) == 26, np.inf, 0.5))


def test_any_kind_of_number_will_do():
    as_bool = report(Y, Y * 0.9, Y)
    assert report(Y.astype(np.float32), Y * 0.9, Y.astype(int)) == as_bool


def test_a_metric_sees_the_labels_of_the_report():
    labels = Labels.ptbxl("superclass")
    seen = []
    METRICS["own"] = Metric("Own", lambda y, prob, decided, labels, known: seen.append(labels) or 1)
    try:
        report(Y[:, :5], Y[:, :5] * 0.5, Y[:, :5], labels=labels)
    finally:
        del METRICS["own"]
    assert seen == [labels]


def test_no_interval_from_nothing():
    rng = np.random.default_rng(0)
    with pytest.raises(EcgmmError, match="n must be at least 1"):
        bootstrap_interval(np.mean, np.arange(3), rng=rng, n=0)
    with pytest.raises(EcgmmError, match="arrays of one length above 0"):
        bootstrap_interval(np.mean, np.arange(0), rng=rng)
    with pytest.raises(EcgmmError, match="level must be between 0 and 1, got 95"):
        paired_difference(np.ones(3), np.zeros(3), level=95)


def test_predictions_say_what_does_not_fit():
    labels, n = Labels.challenge2020(), np.arange(3)
    whole = dict(y=Y, prob=Y * 0.5, rows=n, paths=["a", "b", "c"], group=n)
    assert len(Predictions(labels, **whole)) == 3
    for name, wrong in dict(rows=n[:2], paths=["a"], group=n[1:], prob=Y[:2] * 0.5).items():
        with pytest.raises(EcgmmError, match=f"{name} must have the shape"):
            Predictions(labels, **whole | {name: wrong})
    with pytest.raises(EcgmmError, match="y must have 24 columns"):
        Predictions(labels, **whole | dict(y=Y[:, :5]))
