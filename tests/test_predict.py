"""Prediction as a user meets it.

The command in a process of its own, a thousand recordings, hostile files, a model folder that
travelled.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from patience import HANG

from ecgmm import EcgmmError
from ecgmm.answers import ecgmm_predict
from ecgmm.data import Recording, read_recording, write_recording
from ecgmm.labels import ABBREVIATIONS, CLASSES
from ecgmm.finetune import finetune
from ecgmm.folder import save_model
from ecgmm.labels import Labels
from ecgmm.models import Classifier
from ecgmm.predict import (
    LEADS,
    READERS,
    TOLERABLE,
    check_array,
    load_recording,
    open_model,
    predict,
    predictions,
)
from ecgmm.settings import (
    Branch,
    ClassifierSettings,
    PredictOptions,
    PrepareSettings,
    TrainSettings,
)
from ecgmm.store import prepare
from ecgmm.synthetic import simulate, synthesize

SCRIPT = """import resource, sys
from ecgmm.settings import main
sys.argv[0] = "ecgmm_predict"
try: main()
finally: print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


def command(*args, cwd):  # the model folder, the recordings, options
    "Exit status, stdout, stderr, and the peak of resident memory in MiB."
    script = cwd / "run_predict.py"
    script.write_text(SCRIPT)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            "--model",
            str(args[0]),
            "--data",
            *map(str, args[1:]),
            "--cpu",
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=HANG,
        env=env,
    )
    assert "Traceback" not in done.stderr, done.stderr
    (peak,) = re.findall(r"^peak (\d+)\n", done.stderr, re.M)
    return done.returncode, done.stdout, done.stderr.replace(f"peak {peak}\n", ""), int(peak)


def untrained(folder):
    "A model folder with random weights: enough where the question is not what it says."
    config = dict(
        branches=[dict(modality="signal", encoder="xresnet1d_small")],
        labels=Labels.challenge2020().to_dict(),
        preprocessing=dict(denoise=False, derive=False, max_missing=0.05),
        thresholds=[0.5] * len(CLASSES),
    )
    torch.manual_seed(0)
    model = Classifier.from_config(config)
    model.branches["signal"].front.fit([torch.randn(8, 12, 250)])
    return save_model(folder, model, config)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def ecg():
    return simulate(("AF",), 10, 500, rng=1)


# ---- many


def test_a_thousand_recordings_stream(tmp_path, model):
    """Ten times the recordings, the same memory.

    Each has its row, in order, and the same samples the same row.
    """
    kinds = [
        write_recording(tmp_path / "kinds", Recording(f"K{k}", simulate((c,), 10, 500, rng=k), 500))
        for k, c in enumerate(ABBREVIATIONS[:20])
    ]
    texts = [k.read_text() for k in kinds]
    for folder, n in (("hundred", 100), ("thousand", 1000)):
        for k in range(n):
            at, kind = tmp_path / folder / f"g{1 + k // 500}" / f"H{k:04d}", kinds[k % 20]
            at.parent.mkdir(parents=True, exist_ok=True)
            os.link(kind.with_suffix(".mat"), at.with_suffix(".mat"))
            at.with_suffix(".hea").write_text(
                texts[k % 20]
                .replace(kind.stem + ".mat", at.name + ".mat")
                .replace(f"{kind.stem} 12", f"{at.name} 12")
            )
    peaks = {}
    for folder in ("hundred", "thousand"):
        status, said, errors, peaks[folder] = command(
            model, folder, "--out", f"{folder}.csv", cwd=tmp_path
        )
        assert status == 0, said + errors
    assert "1000 of 1000 recordings judged" in said and "not a medical device" in said
    print(peaks)
    assert peaks["thousand"] - peaks["hundred"] < 40, peaks
    table = pd.read_csv(tmp_path / "thousand.csv", keep_default_na=False)
    assert list(table["name"]) == [f"H{k:04d}" for k in range(1000)]
    prob = table[list(ABBREVIATIONS)].to_numpy(float)
    assert (
        np.allclose(prob, np.tile(prob[:20], (50, 1)), atol=1e-6)
        and len(np.unique(prob[:20, 0])) == 20
    )


# ---- travelled


def test_a_copied_folder_judges_alike_without_its_store(tmp_path):
    synthesize(tmp_path / "data", n=60, seed=0)
    store = prepare(
        tmp_path / "data", tmp_path / "store", PrepareSettings(denoise=True), progress=False
    )
    settings = ClassifierSettings(
        (Branch("spectrogram", "se_resnet_small"),), train=TrainSettings(epochs=1)
    )
    split = store.split(fold=0)
    finetune(store, tmp_path / "run", settings, split=split, cpu=True, progress=False)
    said = []
    for k, folder in enumerate((tmp_path / "run" / "model", tmp_path / "elsewhere" / "m")):
        if k:
            shutil.copytree(tmp_path / "run" / "model", folder)
            for gone in ("run", "store"):
                shutil.rmtree(tmp_path / gone)
        status, *_ = command(folder, "data", "--out", f"{k}.csv", cwd=tmp_path)
        assert status == 0
        said.append((tmp_path / f"{k}.csv").read_bytes())
    assert said[0] == said[1] and said[0].count(b"\n") == 61
    table = pd.read_csv(tmp_path / "1.csv")
    assert np.allclose(
        table[list(ABBREVIATIONS)],
        predict(tmp_path / "elsewhere" / "m", tmp_path / "data", cpu=True)[list(ABBREVIATIONS)],
        atol=1e-6,
    )


# ---- hostile


def edit(header, old, new):
    text = header.read_text()
    assert old in text, text
    header.write_text(text.replace(old, new))


def lead_dropout(header, *leads):
    "Take leads out of header and signal, consistently."
    r, lines = read_recording(header), header.read_text().splitlines()
    keep = [k for k in range(12) if lines[1 + k].split()[-1] not in leads]
    lines = [lines[0].replace(" 12 ", f" {len(keep)} "), *[lines[1 + k] for k in keep], *lines[13:]]
    header.write_text("\n".join(lines) + "\n")
    header.with_suffix(".mat").write_bytes(
        b"\0" * 24 + np.round(r.x[keep] * 1000).astype("<i2").T.tobytes()
    )


def other(header, x, fs=500):
    write_recording(header.parent, Recording(header.stem, x.astype(np.float32), fs))


HOSTILE = {  # what is done to a file, and what is said about it
    "cut": (
        lambda h, x: h.with_suffix(".mat").write_bytes(h.with_suffix(".mat").read_bytes()[:-1000]),
        "cut.mat is truncated",
    ),
    "alone": (lambda h, x: h.with_suffix(".mat").unlink(), "its signal file alone.mat is missing"),
    "empty": (lambda h, x: h.write_bytes(b""), "the first line must be"),
    "noise": (lambda h, x: h.write_bytes(bytes(range(256))), "the first line must be"),
    "eleven": (lambda h, x: lead_dropout(h, "V3"), "lead V3 missing"),
    "nan": (lambda h, x: other(h, x * np.nan), "every sample of every lead is missing"),
    "gap": (
        lambda h, x: other(h, np.where(np.arange(5000) < 1000, np.nan, x)),
        "20% of lead I is missing, at most 5% can be bridged",
    ),
    "flat": (lambda h, x: other(h, np.where(np.arange(12)[:, None] == 10, 0, x)), "lead V5 flat"),
    "dead": (lambda h, x: other(h, 0 * x), "all twelve leads are flat"),
    "large": (lambda h, x: edit(h, "1000/mV", "1/mV"), "as if uV were called mV"),
    "small": (lambda h, x: edit(h, "1000/mV", "1000/uV"), "as if V were called mV"),
    "mmhg": (lambda h, x: edit(h, "1000/mV", "1000/mmHg"), "a voltage is needed"),
    "brief": (lambda h, x: other(h, x[:, :1000]), "2 s long, at least 2.5 s are needed"),
    "rate": (
        lambda h, x: edit(h, "rate 12 500", "rate 12 0.5"),
        "a sampling rate between 1 and 100,000 Hz is needed",
    ),
    "folder": (
        lambda h, x: (h.with_suffix(".mat").unlink(), h.with_suffix(".mat").mkdir()),
        "is missing",
    ),
}


def hostile_ward(tmp_path, ecg):
    "A folder with every hostile file, a signal without a header, and two recordings that are well."
    ward = tmp_path / "my ward" / "room 1"
    for name in (*HOSTILE, "fine", "two"):
        header = write_recording(ward, Recording(name, ecg, 500))
        if name in HOSTILE:
            HOSTILE[name][0](header, ecg)
    lead_dropout(ward / "two.hea", "III", "aVR", "aVL", "aVF")
    (ward / "lost.mat").write_bytes(b"")


def test_hostile_files_get_a_line_each_and_stop_nobody(tmp_path, model, ecg):
    hostile_ward(tmp_path, ecg)
    status, said, errors, _ = command(
        model, "my ward", "--out", "out.json", "--picture", cwd=tmp_path
    )
    assert status == 0 and all(
        line.startswith("predict: ") for line in errors.split("\n") if line.strip()
    ), errors  # progress
    assert f"2 of {len(HOSTILE) + 3} recordings judged" in said
    rows = {
        r["name"]: r
        for r in json.loads(
            (tmp_path / "out.json").read_text(),
            parse_constant=lambda c: pytest.fail(f"{c} in JSON"),
        )
    }
    assert set(rows) == {*HOSTILE, "fine", "two", "lost"}
    for name, words in [*((n, w) for n, (_, w) in HOSTILE.items()), ("lost", "without a header")]:
        assert words in rows[name]["reason"] and rows[name]["probabilities"] is None, rows[name]
        (line,) = [
            line for line in said.splitlines() if f"{name}.hea:" in line or f"{name}.mat:" in line
        ]  # a line, with the file's name
        assert words in line and "my ward" in line
    assert (
        rows["two"]["notes"] == "III, aVR, aVL, aVF computed from two limb leads"
        and rows["fine"]["notes"] == ""
    )
    assert np.allclose(
        list(rows["two"]["probabilities"].values()),
        list(rows["fine"]["probabilities"].values()),
        atol=0.01,
    )
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"fine.png", "two.png"}


def test_what_is_tolerated_is_judged(tmp_path, model, ecg):
    hostile_ward(tmp_path, ecg)
    status, said, *_ = command(
        model,
        "my ward",
        "--out",
        "scores",
        "--format",
        "challenge",
        "--tolerate",
        "flat,short,missing,gaps",
        cwd=tmp_path,
    )
    allowed = {"flat", "brief", "eleven", "gap", "fine", "two"}
    assert status == 0 and {p.stem for p in (tmp_path / "scores").glob("*.csv")} == allowed, said
    for name in allowed:
        first, codes, labels, scores = (
            (tmp_path / "scores" / f"{name}.csv").read_text().splitlines()
        )
        assert first == f"#{name}" and codes.split(",") == [c.code for c in CLASSES]
        assert [int(v) for v in labels.split(",")] == [
            int(float(v) >= 0.5) for v in scores.split(",")
        ]


def test_where_nothing_can_be_judged(tmp_path, model, ecg, capsys):
    "Exit status 1 and the reason, never a trace."
    (tmp_path / "empty").mkdir()
    cut = write_recording(tmp_path / "cut", Recording("C1", ecg, 500))
    HOSTILE["cut"][0](cut, ecg)
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "not a model").mkdir()
    (tmp_path / "not a model" / "config.json").write_text("{}")
    np.save(tmp_path / "x.npy", ecg)
    for words, args, options in [
        ("there is no model elsewhere: train one", ("elsewhere", "cut"), {}),
        ("no WFDB header (.hea) below empty", (model, "empty"), {}),
        ("truncated", (model, "cut"), {}),
        ("truncated", (model, cut), {}),
        ("no such header file", (model, "nowhere.hea"), {}),
        ("has no config.json", ("empty", "cut"), {}),
        ("has no model.safetensors", ("not a model", "cut"), {}),
        ("fs from 1 to 100,000 Hz is needed, got None", (model, "x.npy"), {}),
        (
            "each of the 11 leads is needed",
            (model, "x.npy"),
            dict(fs=500, leads=LEADS[:11]),
        ),
        ("no lead moves", (model, "x.npy"), dict(fs=500, unit="uV")),
        ("not an array that numpy can read", (model, "pickled.npy"), dict(fs=500)),
        ("some may be tolerated, got noise", (model, cut), dict(tolerate=("noise",))),
    ]:
        with chdir(tmp_path), pytest.raises(EcgmmError) as stopped:
            ecgmm_predict(PredictOptions(*map(str, args), cpu=True, **options))
        said = capsys.readouterr().out + str(stopped.value)
        assert words in said, (args, said)
    status, said, errors, _ = command(model, "cut", cwd=tmp_path)
    assert (
        status == 1
        and "cut/C1.hea: C1.mat is truncated" in said
        and "no recording could be judged" in errors
    )


def test_an_array_from_a_file(tmp_path, model, ecg):
    np.save(tmp_path / "x.npy", (ecg[::-1] * 1000).round().astype(np.int16))
    status, said, errors, _ = command(
        model,
        "x.npy",
        "--fs",
        500,
        "--unit",
        "uV",
        "--leads",
        "V6,V5,V4,V3,V2,V1,aVF,aVL,aVR,III,II,I",
        "--format",
        "csv",
        cwd=tmp_path,
    )
    assert (
        status == 0 and "1 of 1 recordings judged" in errors
    )  # the terminal's CSV is nothing but CSV
    (tmp_path / "said.csv").write_text(said)
    (row,) = pd.read_csv(tmp_path / "said.csv").to_dict("records")
    assert np.allclose(
        [row[c] for c in ABBREVIATIONS],
        predict(model, ecg, fs=500, cpu=True).loc[0, list(ABBREVIATIONS)].to_numpy(float),
        atol=1e-3,
    )


# ---- pipes, and a share that goes away


@pytest.mark.parametrize("format", ["table", "csv", "json"])
@pytest.mark.parametrize("closed", ["stdout", "both"])
def test_a_closed_pipe_ends_it_quietly(tmp_path, model, ecg, format, closed):
    """Nobody reads (`| head` that is gone already).

    No trace, and a shell's status for a closed pipe.
    """
    for k in range(3):
        write_recording(tmp_path / "ward", Recording(f"P{k}", ecg, 500))
    (tmp_path / "run.py").write_text(
        "import sys\nfrom ecgmm.settings import main\nsys.argv[0] = 'ecgmm_predict'\nmain()\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [
                sys.executable,
                "run.py",
                "--model",
                str(model),
                "--data",
                "ward",
                "--format",
                format,
                "--cpu",
            ],
            cwd=tmp_path,
            stdout=writer,
            stderr=subprocess.PIPE if closed == "stdout" else writer,
            text=True,
            timeout=HANG,
            env=env,
        )
    finally:
        os.close(writer)
    assert done.returncode == 141
    if closed == "stdout":
        assert not re.search("Traceback|BrokenPipe|Exception ignored", done.stderr), done.stderr


def test_what_was_judged_outlives_its_recordings(tmp_path, model, ecg):
    """The same command after the signal files went away.

    An error, and every result is still there; with the files, done already.
    """
    for k in range(3):
        write_recording(tmp_path / "ward", Recording(f"P{k}", ecg, 500))

    def ask():
        return command(model, "ward", "--out", "scores", "--format", "challenge", cwd=tmp_path)

    def results():
        return {p.name: p.read_bytes() for p in (tmp_path / "scores").glob("*.csv")}

    assert ask()[0] == 0 and len(results()) == 3
    judged = results()
    for gone in (1, 3):
        away = {p: p.read_bytes() for p in sorted((tmp_path / "ward").glob("*.mat"))[:gone]}
        for p in away:
            p.unlink()
        status, said, errors, _ = ask()
        assert (
            status == (gone == 3)
            and results() == judged
            and said.count("judged by an earlier call, is kept") == gone
        ), said + errors
        for p, content in away.items():
            p.write_bytes(content)
    for words in ("3 of 3 recordings judged, written to scores", "done already"):
        status, said, *_ = ask()
        assert status == 0 and words in said and results() == judged, said


# ---- corner cases of arrays and of single recordings


@pytest.mark.parametrize(
    "change, more, reason",
    [
        (lambda x: x + 0j, {}, "real numbers are needed, got complex64"),
        (lambda x: x.astype(str), {}, "real numbers are needed, got <U"),
        (lambda x: x[0], {}, "got the shape (5000,)"),
        (lambda x: x[None], {}, "got the shape (1, 12, 5000)"),
        (lambda x: x[:, :0], {}, "no samples"),
        (lambda x: x, dict(fs=0.002), "got 0.002"),
        (lambda x: x, dict(fs=np.nan), "got nan"),
        (lambda x: x, dict(fs="500"), "got '500'"),
        (lambda x: x, dict(fs=-500), "got -500"),
        (lambda x: x, dict(fs=True), "got True"),
    ],
)
def test_what_is_no_recording(ecg, change, more, reason):
    with pytest.raises(EcgmmError, match=re.escape(reason)):
        check_array(change(ecg), **dict(fs=500) | more)


TOY = {"preprocessing": dict(denoise=False, max_missing=0.05), "window": 250}


def test_what_no_tolerance_allows(ecg, tmp_path):
    for x, reason in [
        (np.nan * ecg, "every sample of every lead is missing"),
        (0 * ecg, "all twelve leads are flat"),
        (ecg[:, :250], "0.50 s long, between 1 and 3600 s"),
    ]:
        with pytest.raises(EcgmmError, match=reason):
            load_recording(x, TOY, fs=500, tolerate=TOLERABLE)
    for name, content in (("text.npy", b"no array"), ("cut.npy", b"\x93NUMPY"), ("empty.npy", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EcgmmError, match="not an array that numpy can read"):
            load_recording(tmp_path / name, TOY, fs=500)
    with pytest.raises(EcgmmError, match="nowhere.npy: No such file"):
        load_recording(tmp_path / "nowhere.npy", TOY, fs=500)


@pytest.mark.parametrize("gone", [(0,), (0, 2), (1, 3, 4), (0, 1, 2, 3)])
def test_a_lead_without_samples_is_like_one_that_is_not_there(ecg, gone):
    "Both follow from two limb leads in the same way, with the same note."
    keep = [k for k in range(12) if k not in gone]
    blank = np.where(np.isin(np.arange(12), gone)[:, None], np.nan, ecg)
    leads = [LEADS[k] for k in keep]
    absent = load_recording(ecg[keep], TOY, fs=500, leads=leads)
    empty = load_recording(blank, TOY, fs=500)
    both = load_recording(blank[1:], TOY, fs=500, leads=LEADS[1:]) if 0 in gone else empty
    names = ", ".join(LEADS[k] for k in gone)
    for r in (absent, empty, both):
        assert (r.samples == absent.samples).all()
        assert r.notes == [f"{names} computed from two limb leads"]
    assert np.abs(absent.samples - load_recording(ecg, TOY, fs=500).samples).max() <= 1


# ---- models


def test_a_run_or_its_model_folder(tmp_path, model, ecg):
    "Both are taken; the error of anything else says how to get a model."
    shutil.copytree(model, tmp_path / "run" / "model")
    here, there = (predict(tmp_path / m, ecg, fs=500, cpu=True) for m in ("run", "run/model"))
    assert here.equals(there)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        with pytest.raises(EcgmmError, match=f"train one with `ecgmm_finetune .*{name}`"):
            open_model(tmp_path / name)
    with pytest.raises(EcgmmError, match="is for a model folder"):
        open_model(open_model(model), decision="decision.json")


def test_a_model_of_unknown_or_unusable_fields(model, ecg):
    net, config = open_model(model, cpu=True)
    for field, values in dict(
        preprocessing=(None, {}, "none"),
        window=(None, 0, "250"),
        labels=(None, 5),
        thresholds=(None, [0.5], [np.nan] * 24, ["0.5"] * 24),
    ).items():
        for value in values:
            with pytest.raises(EcgmmError, match=f"no usable '{field}'"):
                predict((net, config | {field: value}), ecg, fs=500)
    for nothing in ("", [""]):
        with pytest.raises(EcgmmError, match="got an empty one"):
            predict(model, nothing, cpu=True)


PACKAGES = (
    "sklearn iterstrat accelerate ecgmm.training ecgmm.finetune ecgmm.fusion ecgmm.pretrain "
    "ecgmm.simclr ecgmm.byol ecgmm.dino ecgmm.probes"
).split()


def test_prediction_needs_no_training(tmp_path, model, ecg):
    "Neither its import nor a prediction loads what only training uses."
    np.save(tmp_path / "x.npy", ecg)
    script = (
        "import sys, ecgmm.answers\nbefore = set(sys.modules)\n"
        "from ecgmm.predict import predict\n"
        f"predict({str(model)!r}, 'x.npy', fs=500, cpu=True)\n"
        f"print([(when, m) for m in {PACKAGES} for when, loaded in "
        "(('import', before), ('predict', sys.modules)) if m in loaded])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
        env=env,
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr


# ---- readers


READER = """
import pandas as pd
from ecgmm.predict import READERS, Signals
def read_csv(path):
    table = pd.read_csv(path)
    return Signals(table.to_numpy("float32").T / 1000, list(table.columns), 500)
READERS[".csv"] = read_csv
"""


def test_a_reader_of_ones_own_by_import(tmp_path, model, ecg):
    "The command finds, names and judges files of a kind that a user's file adds."
    (tmp_path / "my_reader.py").write_text(READER)
    (tmp_path / "ward").mkdir()
    columns = dict(zip(LEADS, ecg * 1000, strict=True))
    pd.DataFrame(columns).to_csv(tmp_path / "ward" / "monday.csv", index=False)
    status, said, errors, _ = command(
        model, "ward", "--import", "my_reader.py", "--format", "csv", cwd=tmp_path
    )
    assert status == 0, errors
    assert said.splitlines()[1].startswith("monday,ward/monday.csv,"), said
    status, _, errors, _ = command(model, "ward", cwd=tmp_path)
    assert status == 1 and "no WFDB header" in errors


def test_a_reader_may_give_a_recording_or_rows(tmp_path, model, ecg):
    readers = {".one": lambda path: Recording("x", ecg, 500), ".rows": lambda path: ecg}
    try:
        READERS.update(readers)
        found = list(predictions(model, ["a.one", "b.rows", ecg], fs=500, cpu=True))
    finally:
        for suffix in readers:
            del READERS[suffix]
    assert [p.name for p in found] == ["a", "b", "array-2"]
    assert all((p.prob == found[2].prob).all() for p in found)
