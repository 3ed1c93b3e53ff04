"Files of predictions: goes on, leaves, refuses; races, full disks, pictures and the command."

import contextlib
import errno
import json
import os
import shutil
import socket
from contextlib import chdir
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from ecgmm import EcgmmError
from ecgmm.answers import FORMATS, ecgmm_predict, save_predictions
from ecgmm.data import Recording, write_recording
from ecgmm.folder import save_decision, save_model
from ecgmm.labels import Labels
from ecgmm.models import Classifier
from ecgmm.predict import open_model, predict, predictions
from ecgmm.settings import PredictOptions
from ecgmm.synthetic import simulate

CLASSES = ("AF", "LBBB", "SB", "PAC", "NSR", "STach")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "An untrained model of PTB-XL's five superclasses."
    labels = Labels.ptbxl("superclass")
    config = dict(
        branches=[dict(modality="signal", encoder="xresnet1d_small")],
        labels=labels.to_dict(),
        preprocessing=dict(denoise=False, derive=False, max_missing=0.05),
        thresholds=[0.5] * len(labels),
    )
    torch.manual_seed(0)
    net = Classifier.from_config(config)
    net.branches["signal"].front.fit([torch.randn(8, 12, 250)])
    return save_model(tmp_path_factory.mktemp("run") / "model", net, config)


@pytest.fixture(scope="module")
def opened(model):
    return open_model(model, cpu=True)


@pytest.fixture(scope="module")
def ecg():
    return simulate(("AF",), 10, 500, rng=1)


def make_ward(folder):
    "Six recordings as files."
    return [
        write_recording(folder, Recording(f"R{k}", simulate((c,), 10, 500, rng=k), 500))
        for k, c in enumerate(CLASSES)
    ]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def scores(folder):
    return {name: content for name, content in contents(folder).items() if name.endswith(".csv")}


def score(opened, files, out, **options):
    "Write the Challenge's files; the predictions."
    return list(save_predictions(predictions(opened, files, **options), out, format="challenge"))


def differing(old, new):
    "Files of other content; how recordings share batches may change the last digits."
    names = []
    for name in sorted(old.keys() | new.keys()):
        lines = [files.get(name, b"").decode().split("\n") for files in (old, new)]
        same = lines[0][:3] == lines[1][:3]
        if same and lines[0] != lines[1]:
            a, b = (np.array(line[3].split(","), float) for line in lines)
            same = np.allclose(a, b, rtol=0, atol=1e-6)
        if not same:
            names.append(name)
    return names


# ---- the Challenge's folder


def test_the_same_again_touches_nothing(tmp_path, opened):
    make_ward(tmp_path / "ward")
    stamps = []
    for _ in range(2):
        assert not any(p.reason for p in score(opened, tmp_path / "ward", tmp_path / "out"))
        stamps.append({p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()})
    assert stamps[0] == stamps[1] and len(stamps[0]) == 7


@pytest.mark.parametrize("kind, n", [(".mat", 2), (".mat", 6), (".hea", 2)])
def test_a_share_that_comes_and_goes(tmp_path, opened, kind, n):
    "What cannot be read now loses nothing that was judged before; back, it is judged as before."
    make_ward(tmp_path / "ward")
    out = tmp_path / "out"
    score(opened, tmp_path / "ward", out)
    judged = scores(out)
    gone = {f: f.read_bytes() for f in sorted((tmp_path / "ward").glob(f"*{kind}"))[:n]}
    for f in gone:  # the list of headers is what a folder is known by
        f.write_bytes(b"") if kind == ".hea" else f.unlink()
    lost = [p for p in score(opened, tmp_path / "ward", out) if p.reason]
    assert len(lost) == n and differing(judged, scores(out)) == []
    assert all(f"({p.name}.csv, judged by an earlier call, is kept)" in p.reason for p in lost)
    for f, content in gone.items():
        f.write_bytes(content)
    assert not any(p.reason for p in score(opened, tmp_path / "ward", out))
    assert differing(judged, scores(out)) == []


def test_changed_recordings_are_judged_again(tmp_path, opened):
    ward = make_ward(tmp_path / "ward")
    out = tmp_path / "out"
    score(opened, tmp_path / "ward", out)
    judged = scores(out)
    write_recording(tmp_path / "ward", Recording("R0", simulate(("RBBB",), 10, 500, rng=9), 500))
    score(opened, tmp_path / "ward", out)
    assert differing(judged, scores(out)) == ["R0.csv"]
    (out / "R1.csv").unlink()  # somebody took one: it is made again
    score(opened, tmp_path / "ward", out)
    assert sorted(scores(out)) == [f"{header.stem}.csv" for header in ward]


def test_the_second_of_a_name_takes_no_place(tmp_path, opened):
    first, _ = (
        write_recording(tmp_path / "ward" / k, Recording("same", simulate((c,), rng=1), 500))
        for k, c in (("a", "AF"), ("b", "LBBB"))
    )
    score(opened, tmp_path / "ward", tmp_path / "out")
    judged = scores(tmp_path / "out")
    first.with_suffix(".mat").unlink()
    assert all(p.reason for p in score(opened, tmp_path / "ward", tmp_path / "out"))
    assert scores(tmp_path / "out") == judged


def test_answers_of_unknown_recordings_replace_nothing(tmp_path, opened, ecg):
    for k, make in enumerate(
        (
            lambda: list(predictions(opened, ecg, fs=500)),
            lambda: predictions(opened, iter([Recording("stream", ecg, 500)])),
        )
    ):
        out = tmp_path / str(k)
        list(save_predictions(make(), out, format="challenge"))
        whole = contents(out)
        with pytest.raises(EcgmmError, match="is there already; give another name"):
            list(save_predictions(make(), out, format="challenge"))
        assert contents(out) == whole


def test_a_killed_call_goes_on(tmp_path, opened):
    ward, out = make_ward(tmp_path / "ward"), tmp_path / "out"
    score(opened, ward, tmp_path / "whole")
    half = save_predictions(predictions(opened, ward, batch_size=10), out, format="challenge")
    next(half)
    half.close()
    (out / f".{ward[2].stem}.csv.{socket.gethostname()}.{2**22 + 1}.0.part").write_text("half")
    assert json.loads((out / "run.json").read_text())["state"] == "begun"
    score(opened, ward, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_another_model_or_other_recordings_are_refused(tmp_path, model, opened):
    ward, out = make_ward(tmp_path / "ward"), tmp_path / "out"
    score(opened, ward, out)
    whole = contents(out)
    save_decision(model, {"thresholds": [0.9] * 5}, tmp_path / "ours.json")
    strict = open_model(model, cpu=True, decision=tmp_path / "ours.json")
    for net, files, options in (
        (opened, ward[1:], {}),
        (opened, ward, dict(tolerate="flat")),
        (strict, ward, {}),
    ):
        with pytest.raises(EcgmmError, match="is there already"):
            score(net, files, out, **options)
        assert contents(out) == whole
    for p in predictions(strict, ward):
        assert (p.decided == (p.prob >= 0.9)).all() and (p.thresholds == 0.9).all()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / f"{ward[0].stem}.csv").write_text("mine")
    with pytest.raises(EcgmmError, match="is there already"):
        score(opened, ward, theirs)
    assert contents(theirs) == {f"{ward[0].stem}.csv": b"mine"}


# ---- races, killed calls, full disks


@pytest.mark.parametrize("links", [True, False])  # some file systems have no links
@pytest.mark.parametrize("format", ["csv", "json"])
def test_of_two_calls_the_first_to_end_has_the_name(tmp_path, opened, ecg, format, links):
    few = [Recording(f"R{k}", ecg, 500) for k in range(3)]
    out = tmp_path / f"race.{format}"
    refuse = contextlib.nullcontext()
    if not links:
        error = OSError(errno.EPERM, "Operation not permitted")
        refuse = mock.patch.object(os, "link", side_effect=error)
    one, two = (save_predictions(predictions(opened, few[:k]), out, format=format) for k in (2, 3))
    next(one), next(two)  # both at work
    with refuse:
        list(two)
        whole = out.read_bytes()
        with pytest.raises(EcgmmError, match="is there already; give another name"):
            list(one)
    assert contents(tmp_path) == {out.name: whole} and whole.count(b"R2") == 1


def test_half_files_of_dead_calls_are_swept(tmp_path, opened, ecg):
    out = tmp_path / "swept.csv"
    host = socket.gethostname()
    dead, alive = (
        out.with_name(f".{out.name}.{host}.{pid}.0.part") for pid in (2**22 + 1, os.getppid())
    )
    dead.write_text("half")
    alive.write_text("theirs")
    for _ in range(2):
        list(save_predictions(predictions(opened, ecg, fs=500), out))
        assert not dead.exists() and alive.read_text() == "theirs"
        os.link(out, dead)  # killed when the file had its name, before it could report that
    dead.unlink()
    with pytest.raises(EcgmmError, match="is there already"):
        save_predictions(predictions(opened, ecg, fs=500), out)


@pytest.mark.parametrize("format", list(FORMATS))
def test_a_full_disk_leaves_nothing(tmp_path, opened, ecg, format):
    "One line, and no recording is blamed."
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        mock.patch.object(os, "fsync", side_effect=full),
        pytest.raises(EcgmmError, match="no space left on the disk"),
    ):
        made = predictions(opened, ecg, fs=500)
        list(save_predictions(made, tmp_path / "full" / "x", format=format))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    (tmp_path / "a file").write_text("")
    with pytest.raises(EcgmmError, match="a file"):
        made = predictions(opened, ecg, fs=500)
        list(save_predictions(made, tmp_path / "a file" / "x", format=format))


def test_no_recording_at_all(tmp_path):
    for format in ("csv", "json"):
        list(save_predictions([], tmp_path / f"none.{format}", format=format))
    assert (tmp_path / "none.csv").read_text() == ""
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_no_cell_is_a_formula(tmp_path, opened, ecg):
    named = [Recording(name, ecg, 500) for name in ("=1+1", "@x", "-y", "+z", "fine")]
    list(save_predictions(predictions(opened, named), tmp_path / "x.csv"))
    names = pd.read_csv(tmp_path / "x.csv")["name"].tolist()
    assert names == ["'=1+1", "'@x", "'-y", "'+z", "fine"]


# ---- pictures and the command


def judge(model, data, out=None, **options):
    ecgmm_predict(PredictOptions(str(model), data, out, cpu=True, **options))


def test_pictures_of_others_stay(tmp_path, model, capsys):
    "A file, a link or a folder of a picture's name; the other pictures are drawn."
    make_ward(tmp_path / "ward")
    mine = tmp_path / "pictures"
    with chdir(tmp_path):
        judge(model, "ward", "first.csv", picture=True)
        assert sorted(os.listdir(mine)) == [f"R{k}.png" for k in range(6)]
        for name in ("R0", "R1", "R2", "R3"):
            (mine / f"{name}.png").unlink()
        (mine / "R0.png").write_bytes(b"my own drawing")
        (mine / "R1.png").symlink_to("nowhere")
        (mine / "R2.png").mkdir()
        (mine / f".R3.png.{socket.gethostname()}.{2**22 + 1}.0.part").write_bytes(b"half")
        for k in range(2):
            capsys.readouterr()
            judge(model, "ward", f"again{k}.csv", picture=True)
            said = capsys.readouterr().out
            assert (mine / "R0.png").read_bytes() == b"my own drawing"
            assert os.readlink(mine / "R1.png") == "nowhere" and (mine / "R2.png").is_dir()
            assert sorted(os.listdir(mine)) == [f"R{k}.png" for k in range(6)]
            assert said.count("is there already and is another picture: it was left as it is") == 3
            assert "6 of 6 recordings judged" in said and "(3 not drawn, see above)" in said
            assert len(pd.read_csv(f"again{k}.csv")) == 6


def test_the_command_done_already(tmp_path, model, capsys):
    make_ward(tmp_path / "ward")
    with chdir(tmp_path):
        for done in (False, True):
            judge(model, "ward", "scores", format="challenge")
            line, following = capsys.readouterr().out.splitlines()
            assert ("done already" in line) == done and "6 of 6 recordings judged" in line
            assert following.startswith("next: ecgmm_evaluate --model")


def test_the_command_refuses(tmp_path, model, ecg, capsys):
    ward = make_ward(tmp_path / "ward")
    (tmp_path / "taken.csv").write_text("mine")
    with chdir(tmp_path):
        for option in ("model", "data", "out", "decision"):  # "" would be the current folder
            options = dict(model=str(model), data="ward", cpu=True) | {option: ""}
            with pytest.raises(EcgmmError, match=f"--{option}: a name is needed"):
                ecgmm_predict(PredictOptions(**options))
        for words, out in [
            ("is there already", "taken.csv"),
            ("must end with .csv or .json", "x.txt"),
        ]:
            with pytest.raises(EcgmmError, match=words):
                judge(model, "ward", out)
        shutil.copytree("ward", "cut")
        for file in Path("cut").glob("*.mat"):
            file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(EcgmmError, match="no recording could be judged"):
            judge(model, "cut")
    assert f"{ward[0].stem}.mat is truncated" in capsys.readouterr().out  # the reasons come first


def test_a_decision_kept_elsewhere(tmp_path, model, ecg):
    make_ward(tmp_path / "ward")
    file = tmp_path / "ours.json"
    save_decision(model, {"thresholds": [0.9] * 5}, file)
    with chdir(tmp_path):
        judge(model, "ward", "strict.csv", decision=str(file))
    table = pd.read_csv(tmp_path / "strict.csv", keep_default_na=False)
    strict = predict(open_model(model, cpu=True, decision=file), tmp_path / "ward")
    assert table["decided"].tolist() == strict["decided"].tolist()
