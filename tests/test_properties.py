"What has to hold for any input: hypothesis draws the inputs, and keeps the smallest that fails."

import string

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ecgmm import EcgmmError
from ecgmm.data import Recording, read_recording, resample, write_recording
from ecgmm.folds import make_folds, make_groups, roles
from ecgmm.settings import Branch, ClassifierSettings, TrainSettings, as_dict, from_dict

# the same inputs each time, without a limit by the clock, and no folder of examples
settings.register_profile(
    "repeated",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeated")

words = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=8)
paths = st.text(st.characters(codec="utf-8", exclude_characters=",\n\r\0"), min_size=1).filter(
    lambda text: text == text.strip()
)
branches = st.builds(
    Branch, words, encoder=st.none() | words, pretrained=st.none() | paths.filter(str.strip)
)


# ---- what people type


@given(branches)
def test_a_branch_is_read_as_it_is_written(branch):
    assert Branch.parse(str(branch)) == branch


@given(st.text(max_size=30))
def test_any_text_is_a_branch_or_refused(text):
    try:
        branch = Branch.parse(text)
    except EcgmmError:
        return
    assert branch.modality and Branch.parse(str(branch)) == branch


@given(
    st.lists(branches, min_size=1, max_size=3, unique_by=lambda b: b.modality),
    st.integers(1, 500),
    st.floats(1e-6, 1.0),
    st.floats(0, 0.9),
)
def test_settings_survive_their_file(chosen, epochs, lr, dropout):
    made = ClassifierSettings(
        branches=tuple(chosen), dropout=dropout, train=TrainSettings(epochs=epochs, lr=lr)
    )
    assert from_dict(ClassifierSettings, as_dict(made)) == made


@given(st.data(), st.sampled_from([", ", "; ", ",", " ; "]))
def test_diagnoses_are_understood_however_they_are_named(data, separator):
    "By code, abbreviation or name, in any order and number, and the vector counts each once."
    labels = pytest.importorskip("ecgmm.labels").Labels.challenge2020()
    chosen = data.draw(st.lists(st.sampled_from(labels.items), min_size=1, max_size=5))
    fields = st.sampled_from(["code", "abbreviation", "name"])
    text = separator.join(getattr(label, data.draw(fields)) for label in chosen)
    codes, missing = labels.parse(text)
    assert (set(codes), tuple(missing)) == ({label.code for label in chosen}, ())
    assert labels.vector(codes).sum() == len(set(chosen))


@given(st.text(max_size=40))
def test_any_text_is_diagnoses_and_a_rest(text):
    "Nothing that is typed ends in an error, and codes are understood as themselves."
    labels = pytest.importorskip("ecgmm.labels").Labels.challenge2020()
    codes, _ = labels.parse(text)
    assert labels.parse(",".join(codes))[0] == codes


# ---- units


@given(
    arrays(np.float32, (12, 40), elements=st.floats(-30, 30, width=16)),
    st.sampled_from([100, 257, 500, 1000]),
)
def test_a_recording_is_read_as_it_was_written(tmp_path_factory, x, fs):
    "In mV, to within half a unit of the file: a microvolt."
    folder = tmp_path_factory.mktemp("recording")
    again = read_recording(write_recording(folder, Recording("R1", x, fs, 50, "Male", ("1",))))
    assert (again.fs, again.codes) == (fs, ("1",))
    assert np.abs(again.x - x).max() <= 0.0005 + 1e-5


@given(
    st.integers(2, 3000),
    st.sampled_from([50, 100, 128, 257, 333, 360, 500, 1000]),
    st.floats(-10, 10),
    st.floats(-1, 1),
)
def test_a_line_is_resampled_to_the_same_line(n, fs, level, slope):
    "Offset and slow drift come through to a part in a thousand, whatever the length and the rate."
    line = level + slope * np.arange(n) / fs
    y = resample(line[None], fs)
    assert y.shape == (1, -(-n * 100 // fs))
    seconds = np.arange(y.shape[1]) / 100
    ripple = 1e-3 * max(1, np.abs(line).max())  # the filter's, relative to the level
    assert np.abs(y[0] - (level + slope * seconds)).max() < ripple


# ---- windows


@given(st.integers(0, 5000), st.integers(1, 600), st.integers(1, 600))
def test_windows_cover_a_recording(n, length, stride):
    "They begin at 0, end with the recording, and never jump further than a stride."
    windows = pytest.importorskip("ecgmm.windows")
    starts = windows.window_starts(n, length, stride)
    steps = np.diff(starts)
    assert starts[0] == 0 and starts[-1] == max(n - length, 0)
    assert (steps > 0).all() and (steps <= stride).all()
    if stride <= length:
        covered = np.zeros(max(n, length), bool)
        for start in starts:
            covered[start : start + length] = True
        assert covered[:n].all()


# ---- splits

names = st.sampled_from(["", "", "a", "b", "c", "d"])


@given(st.lists(st.tuples(names, st.sampled_from("vwxyz")), max_size=30))
def test_groups_are_the_connected_parts(rows):
    "Equal where a patient or samples connect, over any number of steps: a slow walk says the same."
    patients, samples = [p for p, _ in rows], [s for _, s in rows]
    groups = make_groups(patients, samples)
    assert len(groups) == len(rows)
    for start in range(len(rows)):
        reached, frontier = {start}, [start]
        while frontier:
            k = frontier.pop()
            for j in set(range(len(rows))) - reached:
                if samples[j] == samples[k] or (patients[j] and patients[j] == patients[k]):
                    reached.add(j)
                    frontier.append(j)
        assert reached == set(np.flatnonzero(groups == groups[start]))


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from("ab"), st.integers(0, 7)), max_size=80),
    st.integers(3, 10),
    st.integers(0, 99),
)
def test_no_split_tears_a_group(rows, n_folds, seed):
    "Each recording is in one fold of those asked for, and a group in one role of any split."
    assume(rows)
    table = pd.DataFrame(rows, columns=["group", "source", "labels"])
    y = (table["labels"].to_numpy()[:, None] >> np.arange(3)) & 1
    source = table.groupby("group")["source"].transform("first")
    folds = make_folds(
        y.astype(np.uint8), table["group"].to_numpy(), source, n_folds=n_folds, seed=seed
    )
    assert ((folds >= 0) & (folds < n_folds)).all()
    for k in range(n_folds):
        role = pd.Series(roles(folds, k, n_folds))
        assert (role.groupby(table["group"]).nunique() == 1).all()


def test_the_inputs_are_the_same_each_time():
    assert settings.default.derandomize and settings.default.database is None
