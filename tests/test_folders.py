"""Nothing of a user's is ever destroyed.

What each command does in a folder that is not its own, is in use, was half made, or lies on a full
disk. Each test guards a kind, over all that writes.
"""

import json
import os
import resource
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
from children import child
from safetensors.torch import load_file

import ecgmm.finetune
import ecgmm.pretrain
import ecgmm.store
from ecgmm.finetune import finetune
from ecgmm.folder import load_model
from ecgmm.runs import finished, read_marker
from ecgmm.settings import Branch, ClassifierSettings, PrepareSettings, TrainSettings
from ecgmm.store import Store, prepare
from ecgmm.synthetic import synthesize
from ecgmm.judgement import choose
from ecgmm.windows import Batches

SMALL = ClassifierSettings(
    (Branch("spectrogram", "se_resnet_small"),), train=TrainSettings(epochs=1, batch_size=16)
)


def train(store, folder, settings=SMALL):
    "A small classifier on fold 0."
    finetune(store, folder, settings, split=store.split(fold=0), cpu=True, progress=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Simulated hospitals, their store, and a classifier."
    home = tmp_path_factory.mktemp("home")
    synthesize(home / "hospitals", n=60, seed=0, workers=1)
    store = prepare(home / "hospitals", home / "store", workers=1, progress=False)
    train(store, home / "classifier")
    return home


def words(home, name, out):
    "What makes a command write into a folder, as quickly as it can."
    store, branch = ["--store", home / "store"], "spectrogram=se_resnet_small"
    small = ["--epochs", 1, "--batch_size", 16, "--cpu"]
    return {
        "ecgmm_synthesize": ["--out", out, "--n", 12],
        "ecgmm_prepare": ["--data", home / "hospitals", "--store", out, "--workers", 1],
        "ecgmm_pretrain": [*store, "--out", out, "--branch", branch, *small, "--probe_every", 0],
        "ecgmm_finetune": [*store, "--out", out, "--branches", branch, *small],
        "ecgmm_fuse": [
            *store,
            "--out",
            out,
            "--branches",
            f"signal=xresnet1d_small,{branch}",
            "--epochs",
            1,
            "--windows_per_recording",
            1,
            "--cpu",
        ],
        "ecgmm_compare": [
            *store,
            "--out",
            out,
            "--arms",
            "scratch",
            "--modalities",
            "spectrogram",
            "--folds",
            0,
            "--seeds",
            0,
            "--epochs",
            1,
            "--cpu",
        ],
        "ecgmm_reproduce": [
            *store,
            "--out",
            out,
            "--models",
            "spectrogram",
            "--arms",
            "scratch",
            "--folds",
            0,
            "--size",
            "small",
            "--epochs",
            1,
            "--cpu",
        ],
    }[name]


def content(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize(
    "name",
    [
        "ecgmm_synthesize",
        "ecgmm_prepare",
        "ecgmm_pretrain",
        "ecgmm_finetune",
        "ecgmm_fuse",
        "ecgmm_compare",
        "ecgmm_reproduce",
    ],
)
def test_in_a_folder_of_somebody_else(home, tmp_path, name):
    """The Challenge's own `training/`, and files with every name that we use.

    Refused by name, before anything is changed, with --overwrite or without.
    """
    other = tmp_path / "challenge-2020"
    shutil.copytree(home / "hospitals" / "training", other / "training")
    for mine in (
        "model/config.json",
        "model/model.safetensors",
        "run.json",
        "records.csv",
        "scores.csv",
        "seen.csv",
        "patients.csv",
        "report/index.html",
    ):
        (other / mine).parent.mkdir(exist_ok=True)
        (other / mine).write_text("years of work")
    before = content(other)
    for more in ([], ["--overwrite"])[: 1 if name in ("ecgmm_compare", "ecgmm_reproduce") else 2]:
        status, _, err = child(name, *words(home, name, other), *more).end()
        assert (
            status == 1
            and "is there already" in err
            and str(other) in err
            and "Traceback" not in err
        ), err
        assert content(other) == before


def test_neighbours_of_a_folder_are_left_alone(home, tmp_path):
    "Names that a store once used for itself are other people's names."
    for name in ("store.old", "store.part", ".store.1.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    prepare(home / "hospitals", tmp_path / "store", workers=1, progress=False)
    prepare(
        home / "hospitals",
        tmp_path / "store",
        PrepareSettings(seed=1),
        overwrite=True,
        workers=1,
        progress=False,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".store.1.part",
        "store",
        "store.old",
        "store.part",
    ]
    for name in ("store.old", "store.part", ".store.1.part"):
        assert content(tmp_path / name) == {"thesis.txt": b"years of work"}


INSIDE = {
    "ecgmm_prepare": (ecgmm.store, "_write_tables"),
    "ecgmm_pretrain": (ecgmm.pretrain, "fit"),
    "ecgmm_finetune": (ecgmm.finetune, "fit"),
    "ecgmm_fuse": (ecgmm.finetune, "fit"),
}


@pytest.mark.parametrize("name", INSIDE)
def test_two_at_once(home, tmp_path, name):
    """The second is told who is at work, with the same options and with others.

    The first ends as if it had been alone.
    """
    module, step = INSIDE[name]
    (at_work, says), (told, goes_on) = os.pipe(), os.pipe()

    def paused():
        whole = getattr(module, step)

        def waits(*args, **named):
            os.write(says, b"x")
            os.read(told, 1)
            return whole(*args, **named)

        setattr(module, step, waits)

    first = child(name, *words(home, name, tmp_path / "x"), before=paused)
    os.close(says)
    os.read(at_work, 1)  # or its end, should it fail
    for more in ([], ["--seed", 1, "--overwrite"]):
        status, _, err = child(name, *words(home, name, tmp_path / "x"), *more).end()
        assert (
            status == 1
            and f"process {first.pid} on" in err
            and "is at work here" in err
            and "Traceback" not in err
        ), err
    os.write(goes_on, b"x")
    status, out, err = first.end()
    for pipe in (at_work, told, goes_on):
        os.close(pipe)
    assert status == 0, err
    assert (
        read_marker(tmp_path / "x")["state"] == "done"
        and not (tmp_path / "x" / "run.lock").exists()
    )
    if name == "ecgmm_prepare":
        assert {n: c for n, c in content(tmp_path / "x").items() if n != "card.md"} == {
            n: c for n, c in content(home / "store").items() if n != "card.md"
        }  # the card has the folder's name


def killed(call, below, stop):
    """Run `call` in a process of its own that kills itself at its `stop`-th change of anything
    below a folder; True if it came that far."""
    pid = os.fork()
    if pid == 0:
        seen = [0]

        def hook(event, args):
            write = (
                event == "open"
                and isinstance(args[2], int)
                and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if not (
                write or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
            ) or not str(args[0]).startswith(str(below)):
                return
            seen[0] += 1
            if seen[0] == stop:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


def settled(folder):
    "All that is in a folder, but for the seconds that training took."

    def of(p):
        if p.suffix == ".safetensors":
            return {k: v.numpy().tobytes() for k, v in load_file(p).items()}
        if p.suffix == ".npz":
            with np.load(p) as held:
                return {k: v.tobytes() for k, v in held.items()}
        if p.name == "history.jsonl":
            return [
                {k: v for k, v in json.loads(line).items() if k != "seconds"}
                for line in p.read_text().splitlines()
            ]
        return p.read_bytes()

    return {str(p.relative_to(folder)): of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def swept(tmp_path, start, call, every):
    """Killed at each `every`-th change and called again.

    Always the end of an undisturbed call, and nothing left behind.
    """
    x = tmp_path / "x"
    start(x)
    call(x)
    whole, stop, places = settled(tmp_path), 1, 0
    while True:
        shutil.rmtree(x)
        start(x)
        if not killed(lambda: call(x), x, stop):
            break
        call(x)
        now = settled(tmp_path)
        assert sorted(now) == sorted(whole), stop
        assert now == whole, (stop, [k for k in now if now[k] != whole[k]])
        stop, places = stop + every, places + 1
    assert places >= 5
    return places


def test_a_killed_store(home, tmp_path):
    swept(
        tmp_path,
        lambda f: None,
        lambda f: prepare(home / "hospitals", f, workers=1, progress=False),
        every=3,
    )


def test_a_killed_store_that_replaces_another(home, tmp_path):
    whole = content(home / "store")

    def start(f):
        return shutil.copytree(home / "store", f)

    swept(
        tmp_path,
        start,
        lambda f: prepare(
            home / "hospitals",
            f,
            PrepareSettings(seed=1),
            overwrite=True,
            workers=1,
            progress=False,
        ),
        every=4,
    )
    assert content(home / "store") == whole


def test_a_killed_classifier(home, tmp_path):
    store = Store(home / "store")
    swept(
        tmp_path,
        lambda f: None,
        lambda f: train(store, f, replace(SMALL, paper=True)),
        every=9,
    )


def test_killed_thresholds(home, tmp_path):
    swept(
        tmp_path,
        lambda f: shutil.copytree(home / "classifier", f),
        lambda f: choose(f, draws=20),
        every=1,
    )


def full(room):  # bytes
    "As if the disk were full: no file of this process may be larger."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


@pytest.mark.parametrize(
    "name, room",
    [
        ("ecgmm_prepare", 100_000),
        ("ecgmm_pretrain", 60_000),
        ("ecgmm_pretrain", 1_500),
        ("ecgmm_finetune", 60_000),
        ("ecgmm_fuse", 200_000),
        ("ecgmm_thresholds", 1_000),
        ("ecgmm_synthesize", 50_000),
    ],
)
def test_a_full_disk(home, tmp_path, name, room):
    """One clear line, what filled the disk is gone, and with more room the same call ends as it
    should."""
    out = tmp_path / "x"
    if name == "ecgmm_thresholds":
        shutil.copytree(home / "classifier", out)
    options = ["--model", out] if name == "ecgmm_thresholds" else words(home, name, out)
    status, _, err = child(name, *options, before=lambda: full(room)).end()
    assert (
        status == 1
        and "no space left on the disk; free some and run the same command again" in err
        and "Traceback" not in err
    ), err
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith((".part", ".lock"))]
    status, _, err = child(name, *options).end()
    assert status == 0, err
    if name != "ecgmm_thresholds":
        assert read_marker(out)["state"] == "done"


def test_interrupted(home, tmp_path):
    "Ctrl-C, or a notebook's stop button: no traceback, and the same command goes on."

    def interrupted():
        whole = Batches.epoch

        def epoch(self, *args, **named):
            for k, batch in enumerate(whole(self, *args, **named)):
                if k == 1 and self.y is not None and os.path.exists("x/training/history.jsonl"):
                    os.kill(os.getpid(), signal.SIGINT)  # in the second epoch
                yield batch

        Batches.epoch = epoch

    status, _, err = child(
        "ecgmm_finetune",
        *words(home, "ecgmm_finetune", "x"),
        "--epochs",
        2,
        cwd=tmp_path,
        before=interrupted,
    ).end()
    assert (
        status == 1
        and "stopped; what is done is kept, and the same command goes on from there" in err
        and "Traceback" not in err
    ), err
    history = tmp_path / "x" / "training" / "history.jsonl"
    assert len(history.read_text().splitlines()) == 1 and not (tmp_path / "x" / "run.lock").exists()
    first = history.read_text()
    status, _, err = child(
        "ecgmm_finetune", *words(home, "ecgmm_finetune", tmp_path / "x"), "--epochs", 2
    ).end()
    assert status == 0 and history.read_text().startswith(first), err


def test_readers_never_write(home, tmp_path):
    "All that reads works on folders in which nothing can be written or renamed."
    shutil.copytree(home / "classifier", tmp_path / "c")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    events = []

    def hook(event, args):
        write = (
            event == "open"
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if (
            (write or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"))
            and str(args[0]).startswith((str(tmp_path), str(home)))
            and reading
        ):
            events.append((event, args[0]))

    reading = True
    sys.addaudithook(hook)
    load_model(tmp_path / "c" / "model")
    Store(home / "store")
    finished(tmp_path / "c", "classifier")
    train(Store(home / "store"), tmp_path / "c")  # done already: it is read
    reading = False
    assert not events and {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
