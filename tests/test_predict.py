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
from ecgmm.data import Recording, read_recording, write_recording
from ecgmm.labels import ABBREVIATIONS, CLASSES
from ecgmm.finetune import finetune
from ecgmm.folder import save_model
from ecgmm.labels import Labels
from ecgmm.models import Classifier
from ecgmm.predict import ecgmm_predict, predict
from ecgmm.settings import Branch, ClassifierSettings, PrepareSettings, TrainSettings
from ecgmm.store import prepare
from ecgmm.synthetic import simulate, synthesize

SCRIPT = """import resource, sys
from ecgmm.predict import ecgmm_predict
sys.argv[0] = "ecgmm_predict"
try: ecgmm_predict()
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
            dict(fs=500, leads="I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5"),
        ),
        ("no lead moves", (model, "x.npy"), dict(fs=500, unit="uV")),
        ("not an array that numpy can read", (model, "pickled.npy"), dict(fs=500)),
        ("some may be tolerated, got noise", (model, cut), dict(tolerate="noise")),
    ]:
        with chdir(tmp_path), pytest.raises(EcgmmError) as stopped:
            ecgmm_predict(*map(str, args), cpu=True, **options)
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
        predict(model, ecg, 500, cpu=True).loc[0, list(ABBREVIATIONS)].to_numpy(float),
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
        "import sys\nfrom ecgmm.predict import ecgmm_predict\n"
        "sys.argv[0] = 'ecgmm_predict'\necgmm_predict()\n"
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
