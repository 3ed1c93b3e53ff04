"Hostile files, a full disk, a killed run: what `prepare` promises when things go wrong."

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import wfdb
from patience import HANG, killed_when_it_opens

import ecgmm.data
from ecgmm import EcgmmError
from ecgmm.data import LEADS, Recording, read_recording, write_recording
from ecgmm.folds import table_digests
from ecgmm.record_tables import patient_lines
from ecgmm.labels import Label, Labels
from ecgmm.runs import fingerprint
from ecgmm.settings import PrepareOptions, PrepareSettings, Tables
from ecgmm.store import (
    Store,
    _code,
    _plain,
    _read_input,
    ecgmm_prepare,
    find_recordings,
    prepare,
    prepare_recording,
    prepare_samples,
)


def record(name, seed, seconds=10, fs=500, codes=("426783006",)):
    "Smooth noise that obeys Einthoven and Goldberger."
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(0, 0.02, (12, int(seconds * fs))), axis=1)
    x -= np.linspace(0, 1, x.shape[1]) * x[:, -1:]
    one, two = x[0], x[1]
    x[2:6] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return Recording(name, x.astype(np.float32), fs, 50 + seed % 40, "Male", codes)


def database(root, n=8):
    for k in range(n):
        write_recording(root / "training" / "ward" / "g1", record(f"W{k:04d}", k))
    return root


def edit(header, old, new):
    text = header.read_text()
    assert old in text, (old, text[:200])
    header.write_text(text.replace(old, new))


def drop_lead(header, count):
    "Take the last leads out of header and signal, consistently."
    r = read_recording(header)
    lines = header.read_text().splitlines()
    lines[0] = lines[0].replace(" 12 ", f" {12 - count} ")
    header.write_text("\n".join(lines[: 13 - count] + lines[13:]) + "\n")
    adc = np.round(r.x[: 12 - count] * 1000).astype("<i2")
    header.with_suffix(".mat").write_bytes(
        header.with_suffix(".mat").read_bytes()[:24] + adc.T.tobytes()
    )


def rewrite(header, change):
    "The same record with other samples."
    r = read_recording(header)
    x = r.x.copy()
    change(x)
    write_recording(header.parent, Recording(r.name, x, r.fs, r.age, r.sex, r.codes))


def all_missing(x):
    x[4] = np.nan


def too_large(x):
    x *= 40 / np.abs(x).max()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def prepare_code(*words):
    "Python that runs the command with these words."
    argv = ["ecgmm_prepare", *map(str, words)]
    return f"import sys; from ecgmm.settings import main\nsys.argv = {argv!r}\nmain()"


def all_flat(x):
    x[:] = 0.3


N_HOLES = 200_000_000


def holes(header, fmt):
    "A signal file of 4.8 GB that takes no room on the disk, announced by its header."
    edit(header, "16+24", fmt)
    edit(header, " 500 5000", f" 500 {N_HOLES}")
    with open(header.with_suffix(".mat"), "wb") as f:
        f.truncate(24 * N_HOLES)


SKIPPED = {  # what is done to the files of one record, and what its line in skipped.csv must say
    "no signal file": (lambda h: h.with_suffix(".mat").unlink(), "missing"),
    "no header": (lambda h: h.unlink(), "without a header"),
    "cut signal file": (
        lambda h: h.with_suffix(".mat").write_bytes(h.with_suffix(".mat").read_bytes()[:-7]),
        "truncated",
    ),
    "empty signal file": (lambda h: h.with_suffix(".mat").write_bytes(b""), "truncated"),
    "longer header": (lambda h: edit(h, " 500 5000", " 500 5100"), "truncated"),
    "shorter header": (lambda h: edit(h, " 500 5000", " 500 400"), "holds more than"),
    "other samples": (
        lambda h: h.with_suffix(".mat").write_bytes(
            h.with_suffix(".mat").read_bytes()[:-2] + b"\x11\x11"
        ),
        "checksum",
    ),
    "a lead of missing samples": (lambda h: rewrite(h, all_missing), "lead aVL is missing"),
    "eleven leads": (lambda h: drop_lead(h, 1), "lead V6 missing"),
    "eight leads": (lambda h: drop_lead(h, 4), "leads V3, V4, V5, V6 missing"),
    "no samples": (lambda h: edit(h, " 500 5000", " 500 0"), "no samples"),
    "half a second": (
        lambda h: write_recording(h.parent, record(h.stem, 1, seconds=0.5)),
        "0.50 s long",
    ),
    "a path that leads out": (
        lambda h: edit(h, f"{h.stem}.mat", f"../../{h.stem}.mat"),
        "outside its folder",
    ),
    "an absolute path": (lambda h: edit(h, f"{h.stem}.mat", "/etc/passwd"), "outside its folder"),
    "a signal file that is a folder": (
        lambda h: (h.with_suffix(".mat").unlink(), h.with_suffix(".mat").mkdir()),
        "missing",
    ),
    "bytes instead of a header": (lambda h: h.write_bytes(os.urandom(500)), "first line"),
    "an empty header": (lambda h: h.write_bytes(b""), "first line"),
    "a huge header": (lambda h: h.write_bytes(b"# \n" * 500_000), "larger than 1 MiB"),
    "gain zero": (lambda h: edit(h, "1000/mV", "0/mV"), "gain"),
    "volts read as millivolts": (lambda h: rewrite(h, too_large), "unit or the gain"),
    "no lead connected": (lambda h: rewrite(h, all_flat), "flat"),
    "a doubled lead": (lambda h: edit(h, " V6", " V5"), "given twice"),
    "a unit that is no voltage": (lambda h: edit(h, "/mV", "/mmHg"), "voltage"),
    "a rate of nothing": (lambda h: edit(h, " 12 500 ", " 12 0 "), "sampling rate"),
    "a number that is none": (
        lambda h: edit(h, "1000/mV 16", "1e/mV 16"),
        "the gain of lead I is '1e'",
    ),
    "a rate that is no number": (
        lambda h: edit(h, " 12 500 ", " 12 5.0.0 "),
        "the sampling rate is '5.0.0'",
    ),
    "a baseline without end": (
        lambda h: edit(h, "1000/mV 16", f"1000({10**400})/mV 16"),
        "at most 18 digits",
    ),
    "a gain of nearly nothing": (lambda h: edit(h, "1000/mV", "1e-300/mV"), "no converter"),
    "a gain of nearly everything": (lambda h: edit(h, "1000/mV", "1e300/mV"), "no converter"),
    "a gain that leaves nothing": (
        lambda h: edit(h, "1000/mV", "90000000/mV"),
        "no lead changes by a microvolt",
    ),
    "ten to the twelve samples": (
        lambda h: edit(h, " 500 5000", f" 500 {10**12}"),
        "more than is read",
    ),
    "a million signals": (
        lambda h: edit(h, " 12 500 ", f" {10**6} 500 "),
        "1000000 signals announced",
    ),
    "a file of holes": (lambda h: holes(h, "16"), "more than is read"),
    "a file of holes, packed": (lambda h: holes(h, "212"), "more than is read"),
    "holes without a length": (
        lambda h: (holes(h, "212"), edit(h, f" 500 {N_HOLES}", " 500")),
        "more than is read",
    ),
    "a file that is too long": (
        lambda h: (holes(h, "16"), edit(h, f" 500 {N_HOLES}", " 500 5000")),
        "holds more than",
    ),
    "a packed file that is too long": (
        lambda h: (holes(h, "212"), edit(h, f" 500 {N_HOLES}", " 500 5000")),
        "holds more than",
    ),
    "a format that nobody knows": (lambda h: edit(h, "16+24", "77+24"), "the format 77"),
    "a header that is a folder": (
        lambda h: (h.unlink(), h.mkdir()),
        "a folder with the name of a header",
    ),
    "a header that is a pipe": (pipe, "a pipe or device"),
    "a signal file that is a pipe": (
        lambda h: pipe(h.with_suffix(".mat")),
        "no file has its name",
    ),
}


def test_every_bad_file_has_its_line_and_the_rest_is_prepared(tmp_path):
    root = database(tmp_path / "db", len(SKIPPED) + 3)
    headers = sorted(root.rglob("*.hea"))
    for header, (spoil, _) in zip(headers, SKIPPED.values()):
        spoil(header)
    before = (
        # KiB; all of one such file would be 5 GB
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "import atexit; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "atexit.register(lambda: print('PEAK', peak() - start))"
    )
    p = prepare_in_a_process(root, tmp_path / "store", before)
    output = p.communicate(timeout=HANG)[0]
    assert p.returncode == 0 and "Warning" not in output, output
    assert int(output.split("PEAK")[1]) < 1 << 20, output
    store = Store(tmp_path / "store")
    skipped = pd.read_csv(store.folder / "skipped.csv").set_index("path")["reason"]
    extra = {
        str(h.relative_to(root).with_suffix(".mat")) for h in headers if h.is_dir() or h.is_fifo()
    }  # the signal file of such a header is listed, too
    assert (
        len(store) == 3 and len(skipped) == len(SKIPPED) + len(extra) and extra < set(skipped.index)
    )
    for header, (what, (_, said)) in zip(headers, SKIPPED.items()):
        path = str(header.relative_to(root).with_suffix("")) + (
            ".mat" if what == "no header" else ".hea"
        )
        assert said and said in skipped[path], (what, skipped[path])
        if what not in ("no header", "a header that is a folder", "a header that is a pipe"):
            with pytest.raises(EcgmmError) as e:
                prepare_recording(header)
            assert str(header) in str(e.value), (what, e.value)
        assert "\n" not in skipped[path] and str(root) not in skipped[path].split(":")[0]
    card = (store.folder / "card.md").read_text()
    assert "outside its folder" in card


def test_whatever_a_header_says_the_error_names_the_file(tmp_path):
    """Headers with pieces taken out, doubled, exchanged.

    Each is read, or an EcgmmError with the path.
    """
    rng, plain = np.random.default_rng(0), write_recording(tmp_path, record("A", 1))
    lines, pieces = (
        plain.read_text().splitlines(),
        [
            "0",
            "-1",
            "1e",
            "1e999",
            "9" * 17,
            "212",
            "16x2",
            "16:3",
            "24+1",
            "~",
            "../x",
            "/",
            "A.mat",
            "\u0663",
            "\x0c",
            "\u2028",
            "(",
            "/mV",
            "V6",
            "#",
            "",
        ],
    )
    refused = 0
    for _k in range(600):
        words = [line.split(" ") for line in lines]
        for _ in range(rng.integers(1, 4)):
            line = words[rng.integers(0, 13) if rng.random() < 0.7 else 0]
            at = rng.integers(len(line))
            line[at] = (
                str(rng.choice(pieces))
                if rng.random() < 0.7
                else line[at] + str(rng.choice(pieces))
            )
        if rng.random() < 0.2:
            del words[rng.integers(len(words))]
        plain.write_text("\n".join(" ".join(line) for line in words))
        try:
            prepare_recording(plain)
        except EcgmmError as e:
            refused += 1
            assert str(plain) in str(e), e
    assert refused > 100


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), MemoryError("no memory")],
    ids=["files", "memory"],
)
@pytest.mark.parametrize("fmt", ["16", "212"])
def test_what_the_machine_lacks_leaves_no_recording_out(tmp_path, error, fmt):
    root = tmp_path / "db"
    for k in range(4):
        write_recording(root, record(f"W{k}", k))
    if fmt != "16":
        for k in range(4):
            wfdb.wrsamp(
                f"W{k}",
                500,
                ["mV"] * 12,
                list(LEADS),
                record(f"W{k}", k).x.T.astype(float),
                fmt=[fmt] * 12,
                adc_gain=[200.0] * 12,
                baseline=[0] * 12,
                comments=["Dx: 426783006"],
                write_dir=str(root),
            )
    real, calls = ecgmm.data._read_samples if fmt == "16" else wfdb.rdrecord, []

    def fails(*args, **named):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return real(*args, **named)

    with (
        patch("ecgmm.data._read_samples" if fmt == "16" else "wfdb.rdrecord", fails),
        pytest.raises((OSError, MemoryError, EcgmmError)) as e,
    ):
        prepare(root, tmp_path / "store", progress=False, workers=1)
    assert error.args[-1] in str(e.value)
    store = prepare(root, tmp_path / "store", progress=False, workers=1)
    assert len(store) == 4 and len(pd.read_csv(store.folder / "skipped.csv")) == 0


def test_an_unreadable_file(tmp_path):
    root = database(tmp_path / "db", 3)
    header = next(root.rglob("W0001.hea"))
    header.unlink()
    header.symlink_to(tmp_path / "nowhere.hea")
    loop = header.with_name("W0002.hea")
    loop.unlink()
    loop.symlink_to(loop)
    (root / "elsewhere").symlink_to(tmp_path)
    store = prepare(root, tmp_path / "store", progress=False)
    skipped = pd.read_csv(store.folder / "skipped.csv")
    assert len(store) == 1 and len(skipped) == 3, skipped
    assert "not followed" in skipped.set_index("path")["reason"]["elsewhere"]


def odd_database(folder):
    "Six recordings that can be read, five of them odd."
    plain = record("A", 1)
    write_recording(folder, plain)
    shuffled = write_recording(
        folder, record("B", 1)
    )  # the same leads, in another order, with their names
    order = np.random.default_rng(0).permutation(12)
    lines = shuffled.read_text().splitlines()
    adc = np.round(plain.x * 1000).astype("<i2")
    shuffled.write_text("\n".join([lines[0]] + [lines[1 + k] for k in order] + lines[13:]) + "\n")
    shuffled.with_suffix(".mat").write_bytes(
        shuffled.with_suffix(".mat").read_bytes()[:24] + adc[order].T.tobytes()
    )
    write_recording(folder, record("C", 3, codes=("999999999", "AF?")))  # codes that no table knows
    write_recording(folder, record("D", 4, seconds=1800, fs=100))  # half an hour
    holes = record("E", 5)
    holes.x[2, 100:120] = np.nan
    write_recording(folder, holes)
    write_recording(folder, record("F", 6, codes=("Unknown",)))  # no diagnosis at all


def test_what_is_odd_but_readable_is_kept(tmp_path):
    odd_database(tmp_path / "db" / "ward")
    store = prepare(tmp_path / "db", tmp_path / "store", progress=False)
    r = store.records.set_index("name")
    assert len(store) == 6 and len(pd.read_csv(store.folder / "skipped.csv")) == 0
    assert (
        r.loc["A", "hash"] == r.loc["B", "hash"]
        and store.groups[0] == store.groups[1]
        and store.folds[0] == store.folds[1]
    )
    assert (
        r.loc["C", "codes"] == ""
        and r.loc["C", "not_understood"] == "999999999; AF?"
        and r.loc["C", "labelled"] == 0
        and not store.known[2].any()
    )
    assert "999999999" in (store.folder / "card.md").read_text()
    assert r.loc["D", "length"] == 180_000
    assert r.loc["E", "missing"] > 0 and np.isfinite(store.x(4)).all()
    assert r.loc["F", "labelled"] == 0
    assert (
        sum(len(v) for v in store.split(fold=0).values()) == 4
        and len(store.split(fold=0).unlabelled) + len(store.split(fold=0).held_out) == 6
    )


def test_files_in_upper_case_are_listed(tmp_path):
    root = database(tmp_path / "db", 3)
    for file in list(root.rglob("W0001.*")):
        file.rename(file.with_suffix(file.suffix.upper()))
    store = prepare(root, tmp_path / "store", progress=False)
    skipped = pd.read_csv(store.folder / "skipped.csv")
    assert (
        len(store) == 2 and len(skipped) == 2 and skipped["reason"].str.contains("lower case").all()
    )


def test_names_that_no_table_can_hold(tmp_path):
    root = database(tmp_path / "db", 3)
    source = next(root.rglob("W0001.hea"))
    (source.parent / "a\rb.hea").write_bytes(source.read_bytes())
    with open(os.fsencode(source.parent) + b"/\xff.hea", "wb") as f:
        f.write(source.read_bytes())
    with open(source.parent / "long.hea", "w") as f:
        f.write("x" + " " * 100_000 + "\n")
    store = prepare(root, tmp_path / "store", progress=False)
    skipped = pd.read_csv(store.folder / "skipped.csv")
    assert (
        len(store) == 3
        and len(skipped) == 3
        and skipped["reason"].str.contains("cannot be printed").sum() == 2
    ), skipped


def test_overwrite_does_it_again_and_a_table_of_others_is_refused(tmp_path):
    root = database(tmp_path / "db", 3)
    first = (
        (prepare(root, tmp_path / "store", progress=False).folder / "meta.json").stat().st_mtime_ns
    )
    assert (
        prepare(root, tmp_path / "store", overwrite=True, progress=False).folder / "meta.json"
    ).stat().st_mtime_ns != first
    (tmp_path / "patients.csv").write_text("record,patient\nX1,a\n")
    with pytest.raises(ValueError, match="names none of the 3 recordings"):
        tables = Tables(patients=str(tmp_path / "patients.csv"))
        prepare(root, tmp_path / "other", tables=tables, progress=False)


def test_nothing_usable_is_one_clear_error(tmp_path):
    root = database(tmp_path / "db", 2)
    for header in root.rglob("*.hea"):
        header.with_suffix(".mat").unlink()
    with pytest.raises(ValueError, match="none of the 2 files can be used"):
        prepare(root, tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


UNUSABLE = {  # calls that cannot end in a store, each with what is said
    "no usable file": (
        lambda root: [h.with_suffix(".mat").unlink() for h in root.rglob("*.hea")],
        dict,
        "none of the 4 files can be used",
    ),
    "no header": (
        lambda root: [h.unlink() for h in root.rglob("*.hea")],
        dict,
        "no WFDB header",
    ),
    "no folder": (shutil.rmtree, dict, "is not a folder"),
    "an impossible seed": (
        lambda root: None,
        lambda: dict(settings=PrepareSettings(seed=2**32)),
        "seed must be",
    ),
    "too many folds": (
        lambda root: None,
        lambda: dict(settings=PrepareSettings(n_folds=1000)),
        "n_folds must be at most",
    ),
    "too few folds": (
        lambda root: None,
        lambda: dict(settings=PrepareSettings(n_folds=2)),
        "n_folds must be at least 3",
    ),
    "no data": (lambda root: None, lambda: dict(data=""), "a folder with recordings"),
    "no list": (lambda root: None, lambda: dict(data=[]), "a folder with recordings"),
    "no table": (
        lambda root: None,
        lambda: dict(tables=Tables(patients="nowhere.csv")),
        "nowhere.csv",
    ),
    "a bad option": (
        lambda root: None,
        lambda: dict(settings=PrepareSettings(max_missing=2.0)),
        "max_missing",
    ),
    "no worker": (lambda root: None, lambda: dict(workers=0), "workers must be at least 1"),
    "a label named as a column": (
        lambda root: None,
        lambda: dict(labels=Labels("own", (Label("age", "1", "old"),))),
        "choose another",
    ),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_store_is_replaced_only_by_another(tmp_path, what):
    """Whatever is wrong with the new data or options, --overwrite leaves the finished store as it
    is, whole and open."""
    root, (spoil, options, said) = database(tmp_path / "db", 4), UNUSABLE[what]
    store = prepare(root, tmp_path / "store", progress=False)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in store.folder.iterdir()}
    spoil(root)
    with pytest.raises(EcgmmError, match=said):
        prepare(**dict(data=root, store=store.folder, overwrite=True, progress=False) | options())
    assert {
        p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in store.folder.iterdir()
    } == before and len(Store(store.folder)) == 4


def test_one_usable_recording_is_enough_to_replace_a_store(tmp_path):
    root = database(tmp_path / "db", 4)
    prepare(root, tmp_path / "store", progress=False)
    for header in sorted(root.rglob("*.hea"))[:3]:
        header.with_suffix(".mat").unlink()
    store = prepare(root, tmp_path / "store", overwrite=True, progress=False)
    assert (
        list(store.records["name"]) == ["W0003"]
        and len(pd.read_csv(store.folder / "skipped.csv")) == 3
    )


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "No such file"),
        ("folder", "directory"),
        (b"", "it is empty"),
        ("record,patient\nW0000,M\u00fcller\n".encode("latin-1"), "UTF-8"),
        (b"ecg_id,patient_id\nx,1\n", "line 2"),
        (b"a;b\n", "record,patient"),
    ],
)
def test_a_table_of_patients_that_cannot_be_read_is_one_line(tmp_path, content, said):
    root, table = database(tmp_path / "db", 2), tmp_path / "people.csv"
    if content == "folder":
        table.mkdir()
    elif content is not None:
        table.write_bytes(content)
    words = ["--data", root, "--store", tmp_path / "store", "--patients", table]
    code = prepare_code(*words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode == 1
        and done.stderr.count("\n") == 1
        and str(table) in done.stderr
        and said in done.stderr
    ), done.stderr
    assert not (tmp_path / "store").exists()


def test_a_folder_that_is_no_store_is_never_replaced(tmp_path):
    root = database(tmp_path / "db", 2)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a store"):
        prepare(root, tmp_path / "thesis", overwrite=True, progress=False)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def prepare_in_a_process(root, store, before=""):
    words = ["--data", root, "--store", store, "--workers", 1]
    code = f"import resource\n{before}\n" + prepare_code(*words)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_full_disk(tmp_path):
    root = database(tmp_path / "db", 8)  # 8 records of 24 kB in a shard
    p = prepare_in_a_process(
        root, tmp_path / "store", "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    )
    said = p.communicate()[0]
    assert (
        p.returncode == 1
        and "no space left" in said
        and "run the same command again" in said
        and "Traceback" not in said
    ), said
    assert not [
        p for p in (tmp_path / "store").iterdir() if p.name.endswith(".part")
    ]  # what filled the disk is gone
    assert len(prepare(root, tmp_path / "store", progress=False)) == 8


def test_killed_in_the_middle_and_resumed(tmp_path):
    root = database(tmp_path / "db", 520)  # three shards
    whole = prepare(root, tmp_path / "whole", progress=False, workers=2)
    p = prepare_in_a_process(root, tmp_path / "store", killed_when_it_opens("shard-001"))
    first, said = tmp_path / "store" / "shard-000.json", p.communicate()[0]
    assert p.returncode == -signal.SIGKILL, said
    with pytest.raises(ValueError, match="not finished"):
        Store(tmp_path / "store")
    assert first.exists()
    made = first.with_suffix(".npy").stat().st_mtime_ns
    store = prepare(root, tmp_path / "store", progress=False)
    assert (store.folder / "shard-000.npy").stat().st_mtime_ns == made  # not done again
    for k in range(3):
        assert (store.folder / f"shard-{k:03d}.npy").read_bytes() == (
            whole.folder / f"shard-{k:03d}.npy"
        ).read_bytes()
    for name in ("records.csv", "folds.csv", "skipped.csv"):
        assert (store.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert store.meta == whole.meta  # one worker or two
    assert sorted(p.name for p in store.folder.iterdir()) == sorted(
        p.name for p in whole.folder.iterdir()
    )  # and nothing is left behind


def test_changed_files_are_noticed(tmp_path):
    root = database(tmp_path / "db", 4)
    prepare(root, tmp_path / "store", progress=False)
    write_recording(root / "training" / "ward" / "g1", record("W0009", 9))
    with pytest.raises(ValueError, match="with another files"):
        prepare(root, tmp_path / "store", progress=False)
    assert len(prepare(root, tmp_path / "store", overwrite=True, progress=False)) == 5


def test_a_damaged_store_says_so(tmp_path):
    store = prepare(database(tmp_path / "db", 4), tmp_path / "store", progress=False)
    for change, said in (
        (lambda m: m.update(leads=list(LEADS)[::-1]), "leads"),
        (lambda m: m.update(fs=500), "fs"),
        (lambda m: m.update(version=99), "version"),
        (lambda m: m.update(shards=[17]), "int16"),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(store.folder, copy)

        meta = json.loads((copy / "meta.json").read_text())
        change(meta)
        (copy / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(ValueError, match=said):
            Store(copy)
    (store.folder / "shard-000.npy").write_bytes(b"\x93NUMPY garbage")
    with pytest.raises(ValueError):
        Store(store.folder)


def test_a_source_alone_has_its_folders_name(tmp_path):
    """Prepared with the others or by itself, from its folder or from a part of it, a recording's
    source is the same."""
    root = tmp_path / "challenge-2020"
    for k in range(6):
        write_recording(root / "training" / "georgia" / f"g{k % 2 + 1}", record(f"E{k:04d}", k))
    for n, start in enumerate(
        (
            root,
            root / "training",
            root / "training" / "georgia",
            root / "training" / "georgia" / "g1",
        )
    ):
        assert set(prepare(start, tmp_path / f"store-{n}", progress=False).records["source"]) == {
            "georgia"
        }


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    root = database(tmp_path / "db", 2)
    monkeypatch.chdir(root)
    for nothing in ("", " ", [], [root, ""]):
        with pytest.raises(EcgmmError, match="a folder with recordings is needed"):
            prepare(nothing, tmp_path / "store", progress=False)
    with pytest.raises(EcgmmError, match="a folder for the store is needed"):
        prepare(root, "", progress=False)
    with pytest.raises(EcgmmError, match="a folder with recordings is needed"):
        ecgmm_prepare(PrepareOptions(data=(" ",), store=str(tmp_path / "store")))
    assert not (tmp_path / "store").exists()


def test_too_many_folds_are_refused_before_anything_is_read(tmp_path):
    root = database(tmp_path / "db", 12)
    people = tmp_path / "people.csv"
    people.write_text("record,patient\n" + "".join(f"W{k:04d},{k % 11}\n" for k in range(12)))
    with patch("ecgmm.store.prepare_recording", side_effect=AssertionError):
        with pytest.raises(EcgmmError, match="at most 12 for 12 groups of recordings, got 13"):
            prepare(root, tmp_path / "store", PrepareSettings(n_folds=13), progress=False)
        with pytest.raises(EcgmmError, match="at most 11 for 11 groups of recordings, got 12"):
            settings = PrepareSettings(n_folds=12)
            prepare(
                root,
                tmp_path / "store",
                settings,
                tables=Tables(patients=str(people)),
                progress=False,
            )


def test_paths_that_a_spreadsheet_would_compute(tmp_path):
    for name in ("=1+1.hea", "@SUM(1).mat", "-2/x.hea"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    headers, reasons = find_recordings(tmp_path)
    assert not headers and set(reasons) == {"./=1+1.hea", "./@SUM(1).mat", "./-2/x.hea"}
    assert all("begins like a formula" in reason for reason in reasons.values())


def test_a_folder_that_cannot_be_listed(tmp_path):
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    with patch("os.scandir", side_effect=denied):
        reasons = find_recordings(tmp_path)[1]
    assert reasons == {".": "the folder cannot be listed: Permission denied"}
    passing = OSError(errno.EMFILE, "Too many open files", str(tmp_path))
    with patch("os.scandir", side_effect=passing), pytest.raises(OSError, match="Too many"):
        find_recordings(tmp_path)  # nothing is left out for that


@pytest.mark.parametrize(
    "change, fs, reason",
    [
        (lambda x: x.T, 500, r"\(12, T\) in mV is needed, got \(5000, 12\)"),
        (lambda x: np.where(np.arange(5000) == 9, np.inf, x), 500, "infinite values in lead I"),
        (lambda x: np.where(np.arange(5000) == 9, 3e38, x), 500, "values up to"),
        (lambda x: 1e-5 * x, 500, "no lead changes by a microvolt"),
        (lambda x: x, 0, "positive sampling rate"),
        (lambda x: x, np.nan, "positive sampling rate"),
    ],
)
def test_arrays_that_are_no_ecg(change, fs, reason):
    with pytest.raises(EcgmmError, match=reason):
        prepare_samples(change(record("A", 0).x), fs)


def test_a_file_too_large_is_not_read(tmp_path):
    header = write_recording(tmp_path, record("A", 0))
    os.truncate(header.with_suffix(".mat"), 5 << 30)  # 5 GB of holes
    found = _read_input(tmp_path, {}, header.relative_to(tmp_path))
    assert found.entries["A.mat"][2] == "too large to be read"


@pytest.mark.parametrize("number", range(1, 200))
def test_one_rule_says_whose_fault_an_error_is(tmp_path, number):
    error = OSError(number, os.strerror(number))
    with patch("ecgmm.store._begin", side_effect=error):
        if ecgmm.data.file_fault(error):
            found = _read_input(tmp_path, {}, tmp_path / "A.hea")
            assert found.digest == fingerprint([["not readable"]])
        else:
            with pytest.raises(OSError):
                _read_input(tmp_path, {}, tmp_path / "A.hea")


def test_names_of_strangers_are_text_in_the_card():
    assert [_code("a/b"), _code("`<b>x.hea")] == ["`a/b`", r"\`&lt;b&gt;x.hea"]
    assert _plain("<img src=x> | `y`") == r"&lt;img src=x&gt; \| \`y\`"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A store with a table of patients that names more recordings than there are."
    folder = tmp_path_factory.mktemp("small")
    people = folder / "people.csv"
    people.write_text("record,patient\n" + "".join(f"W{k:04d},{k % 3}\n" for k in range(20)))
    root = database(folder / "db", 4)
    tables = Tables(patients=str(people))
    return prepare(root, folder / "store", tables=tables, workers=1, progress=False).folder


@pytest.fixture
def damaged(small, tmp_path):
    "A function that checks that a store with other bytes in a file, or without it, is refused."

    def check(name, content, message):
        spoiled = tmp_path / "spoiled"
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(small, spoiled)
        if content is None:
            (spoiled / name).unlink()
        else:
            (spoiled / name).write_bytes(content)
        with pytest.raises(EcgmmError) as error:
            _ = Store(spoiled).named
        text = str(error.value)
        assert message in text and str(spoiled) in text and "prepare" in text, (content, text)
        assert "\n" not in text

    return check


FILES = ("records.csv", "folds.csv", "patients.csv", "meta.json", "shard-000.npy", "signatures.npy")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_store_is_missing_or_spoiled(small, damaged, name):
    whole = (small / name).read_bytes()
    first_line, half = whole.splitlines(keepends=True)[0], whole[: len(whole) // 2]
    for content in (None, b"", b"\n", b"\xff\xfe\x00", first_line, half, b"a,b\n1,2\n", b'"'):
        damaged(name, content, name)


@pytest.mark.parametrize(
    "key", ["shards", "n_folds", "content", "fold_hash", "options", "labels", "digests"]
)
def test_a_value_of_meta_json_is_missing_or_spoiled(small, damaged, key):
    meta = json.loads((small / "meta.json").read_text())
    for value in (None, -1.5, [None], True):
        damaged("meta.json", json.dumps(meta | {key: value}).encode(), "meta.json")
    del meta[key]
    damaged("meta.json", json.dumps(meta).encode(), "meta.json")


def test_labels_that_are_spoiled(small, damaged):
    meta = json.loads((small / "meta.json").read_text())
    for labels in ({}, {"name": "own"}, meta["labels"] | {"items": [1]}):
        damaged("meta.json", json.dumps(meta | {"labels": labels}).encode(), "labels are damaged")


SPOILED_CELLS = dict(
    shard=("1", "-1", "99999999", "", "a", "0.5"),
    start=("-1", "99999999", str(2**62), "", "x"),
    length=("0", "-5", "99999999", str(2**63 - 1), str(2**63), "1e3"),
    NSR=("2", "", "-1"),
    age=("old",),
    fold=("10", "-1", ""),
    group=("g", ""),
)


@pytest.mark.parametrize("name", ["records.csv", "folds.csv"])
def test_a_column_is_missing_or_a_cell_is_spoiled(small, damaged, name):
    table = pd.read_csv(small / name, dtype=str, keep_default_na=False)
    for column in table:
        without = table.drop(columns=column).to_csv(index=False).encode()
        damaged(name, without, f"{name}: without the column {column}")
    for column in set(table) & set(SPOILED_CELLS):
        for value in SPOILED_CELLS[column]:
            spoiled = table.assign(**{column: [*table[column][:-1], value]})
            damaged(name, spoiled.to_csv(index=False).encode(), name)


def test_the_digests_are_of_the_whole_table_of_patients(small):
    named = Store(small).named
    assert len(named) == 20
    assert named == table_digests(patient_lines(small.parent / "people.csv"))
