"Headers and signal files as they are found in the wild, damaged, or made to do harm."

import errno
import os
from unittest.mock import patch

import numpy as np
import pytest
import wfdb

from ecgmm import EcgmmError
from ecgmm.data import (
    LEADS,
    MissingLeads,
    Recording,
    plot_ecg,
    read_recording,
    recording_files,
    write_recording,
)

RNG = np.random.default_rng(0)
X = (0.5 * RNG.normal(size=(12, 2000))).clip(-2, 2).round(3).astype(np.float32)
V6 = 12  # the line of lead V6


@pytest.fixture
def header(tmp_path):
    about = dict(age=74, sex="Male", codes=("59118001", "164884008"))
    return write_recording(tmp_path, Recording("A0001", X, 500, **about))


def respell(header, *pairs):
    "The header with pieces of it replaced, each of which has to be there."
    text = header.read_text()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    header.write_text(text)
    return header


def error_of(path):
    "What is said of a bad file; it starts with the file's path."
    with pytest.raises(EcgmmError) as caught:
        read_recording(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


# ---- the header


@pytest.mark.parametrize(
    "old, new",
    [
        ("#Dx", "# Dx"),
        ("#Age", "# Age"),
        ("#Age", "#AGE "),
        ("/mV", "/mv"),
        ("16+24", "16x1+24"),
        ("1000/mV", "1000.0(0)/mV"),
        ("1000/mV", "1/uV"),
        ("1000/mV", "1/µV"),
        ("1000/mV", "1000000/V"),
        ("164884008", "164884008, NaN"),
        ("164884008", "164884008,59118001"),
        (",164884008", "\n#Dx: 164884008"),
        (",164884008", "; 164884008"),
        (" 500 2000", " 500/500(0) 2000"),
        (" 500 2000", " 500"),
        (" 500 2000", " 500 2000 12-May-2020 12:33:59"),
        ("#Sex: Male", "#Sex: M"),
        (" aVR\n", " AVR\n"),
        ("\n", "\r\n"),
    ],
)
def test_spellings_of_one_header(header, old, new):
    first, same = read_recording(header), read_recording(respell(header, (old, new)))
    np.testing.assert_allclose(same.x, first.x, atol=1e-6)
    assert (same.fs, same.age, same.sex) == (first.fs, first.age, first.sex)
    assert same.codes == first.codes == ("59118001", "164884008")


@pytest.mark.parametrize(
    "old, new, age, sex",
    [("74", "NaN", None, "Male"), ("74", "300", None, "Male"), ("Male", "Unknown", 74, "")],
)
def test_what_is_not_known_of_a_person_stays_unknown(header, old, new, age, sex):
    r = read_recording(respell(header, (old, new)))
    assert r.sex == sex and (np.isnan(r.age) if age is None else r.age == age)


@pytest.mark.parametrize(
    "needed, old, new",
    [
        ("outside its folder", "A0001.mat 16", "../A0001.mat 16"),
        ("outside its folder", "A0001.mat 16", "a\\A0001.mat 16"),
        ("is truncated", " 500 2000", " 500 2001"),
        ("holds more than", " 500 2000", " 500 1000"),
        ("no samples", " 500 2000", " 500 0"),
        ("first line must be", "A0001 12 500 2000", "A0001 twelve leads"),
        ("signal line 1 is not in WFDB's form", "A0001.mat 16+24 1000/mV", "A0001.mat x"),
        ("1000000 signals announced, 12", "A0001 12", f"A0001 {10**6}"),
        ("unknown lead 'V7'", " V6", " V7"),
        ("given twice", " V6", " V5"),
        ("gain and name are needed", " 0 V6\n", "\n"),
        ("a voltage is needed", "/mV", "/mmHg"),
        ("gain of lead I is 0", "1000/mV", "0/mV"),
        ("the gain of lead I is '1e', a number", "1000/mV", "1e/mV"),
        ("no converter has a unit of 1e+300 mV", "1000/mV", "1e-300/mV"),
        ("no converter has a unit of 1e-300 mV", "1000/mV", "1e300/mV"),
        ("lead I starts with", f" 16 0 {round(1000 * float(X[0, 0]))} ", " 16 0 7777 "),
        ("sampling rate between", " 500 2000", " 0 2000"),
        ("the sampling rate is '5.0.0', a number", " 500 2000", " 5.0.0 2000"),
        ("more than is read of one recording", " 500 2000", f" 500 {10**12}"),
        ("at most 18 digits", " 500 2000", f" 500 {10**30}"),
        ("at most 18 digits is needed, got -1000", "1000/mV", f"1000(-{10**400})/mV"),
        ("a line of more than 1000 characters", "1000/mV", f"1000(-{10**1000})/mV"),
        ("the format 999, which WFDB does not know", "16+24", "999+24"),
        ("shifts a lead by 900000", "16+24", "16:900000+24"),
        ("0 samples a frame", "16+24", "16x0+24"),
    ],
)
def test_a_header_that_lies(header, needed, old, new):
    assert needed in error_of(respell(header, (old, new)))


def test_a_header_with_a_line_too_few(header):
    lines = header.read_text().splitlines(keepends=True)
    header.write_text("".join(lines[:V6] + lines[V6 + 1 :]))
    assert "12 signals announced, 11" in error_of(header)


def test_what_is_no_header(tmp_path):
    (tmp_path / "E0001.hea").mkdir()
    assert "the header file is missing: a folder has its name" in error_of(tmp_path / "E0001.hea")
    assert "no such header file" in error_of(tmp_path / "none.hea")
    assert "File name too long" in error_of(tmp_path / f"{'n' * 300}.hea")
    (tmp_path / "E0002.hea").write_bytes(b"# \n" * 500_000)
    assert "larger than 1 MiB" in error_of(tmp_path / "E0002.hea")
    (tmp_path / "E0003.hea").write_bytes(b"")
    assert "got 'nothing'" in error_of(tmp_path / "E0003.hea")
    for name in ("a\0b.hea", "\ud800.hea"):
        with pytest.raises(EcgmmError, match="no file can have this name"):
            read_recording(tmp_path / name)


# ---- the signal file


def test_a_damaged_signal_file(header):
    mat = header.with_suffix(".mat")
    mat.write_bytes(mat.read_bytes()[:-2] + b"\x7f\x7f")
    assert "checksum of lead V6" in error_of(header)
    mat.write_bytes(mat.read_bytes()[:1000])
    assert "is truncated: 48024 bytes needed" in error_of(header)
    mat.unlink()
    assert "its signal file A0001.mat is missing" in error_of(header)
    mat.mkdir()
    assert "is missing: a folder has its name" in error_of(header)
    mat.rmdir()
    mat.symlink_to(mat.name)
    assert "Too many levels of symbolic links" in error_of(header)
    mat.unlink()
    os.mkfifo(mat)  # reading it would wait for ever
    assert "is missing: no file has its name" in error_of(header)


def test_missing_leads_are_carried_by_the_error(header):
    lines = header.read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace(" 12 ", " 11 ")
    header.write_text("".join(lines[:V6] + lines[V6 + 1 :]))
    mat = header.with_suffix(".mat")
    adc = np.round(X[:11] * 1000).astype("<i2")
    mat.write_bytes(mat.read_bytes()[:24] + adc.T.tobytes())
    for derive in (False, True):
        with pytest.raises(MissingLeads) as caught:
            read_recording(header, derive=derive)
        assert caught.value.leads == ("V6",)
        assert str(caught.value) == f"{header}: lead V6 missing"


@pytest.mark.parametrize("fmt", ["16", "24", "32", "212"])
def test_other_formats_come_through_wfdb(tmp_path, fmt):
    x = X[:, :400].T.astype(float)
    x[10:20, 3] = np.nan
    wfdb.wrsamp(
        "D1",
        500,
        ["mV"] * 12,
        list(LEADS),
        x,
        fmt=[fmt] * 12,
        adc_gain=[500.0] * 12,
        baseline=[0] * 12,
        comments=["Dx: 426783006"],
        write_dir=str(tmp_path),
    )
    r = read_recording(tmp_path / "D1")
    np.testing.assert_allclose(r.x, x.T, atol=0.0011)
    assert (np.isnan(r.x).sum(), r.codes) == (10, ("426783006",))


@pytest.mark.parametrize("fmt, n", [("16", 2e8), ("212", 2.66e8), ("32", 1e8), ("516", 5)])
def test_a_huge_file_is_refused_by_its_size(header, fmt, n):
    "4.8 GB, all of it holes, in each format; then an honest length; then no length at all."
    respell(header, ("16+24", fmt), (" 500 2000", f" 500 {int(n)}"))
    with open(header.with_suffix(".mat"), "r+b") as f:
        f.truncate(4_800_000_000)
    error_of(header)
    if fmt != "516":
        respell(header, (f" 500 {int(n)}", " 500 2000"))
        assert "holds more than the 2000 samples" in error_of(header)
    respell(header, (f" 500 {5 if fmt == '516' else 2000}", " 500"))
    needed = "the header must say" if fmt == "516" else "more than is read of one recording"
    assert needed in error_of(header)


# ---- what is the machine's fault is not the file's


def in_format_212(folder):
    options = dict(fmt=["212"] * 12, adc_gain=[500.0] * 12, baseline=[0] * 12)
    x = X.T.astype(float)
    wfdb.wrsamp("D212", 500, ["mV"] * 12, list(LEADS), x, write_dir=str(folder), **options)
    return folder / "D212.hea"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENFILE, "Too many open files in system"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize(
    "other, place",
    [
        (False, "pathlib.Path.open"),
        (True, "pathlib.Path.open"),
        (True, "wfdb.rdheader"),
        (True, "wfdb.rdrecord"),
        (False, "numpy.ascontiguousarray"),
    ],
)
def test_a_shortage_is_passed_on(header, error, other, place):
    path = in_format_212(header.parent) if other else header
    with patch(place, side_effect=error), pytest.raises(type(error)) as caught:
        read_recording(path)
    assert not isinstance(caught.value, EcgmmError)
    read_recording(path)  # and a moment later it is read


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("other, place", [(False, "pathlib.Path.open"), (True, "wfdb.rdrecord")])
def test_a_broken_file_is_a_reason(header, code, other, place):
    path = in_format_212(header.parent) if other else header
    with patch(place, side_effect=OSError(code, os.strerror(code))):
        assert os.strerror(code) in error_of(path)


# ---- writing and drawing


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ä|"])
def test_a_name_that_no_file_should_have(name):
    with pytest.raises(EcgmmError, match="the name of a recording"):
        recording_files(Recording(name, X, 500))


def test_eleven_leads_are_not_written():
    with pytest.raises(EcgmmError, match="A1: twelve leads are needed"):
        recording_files(Recording("A1", X[:11], 500))


@pytest.mark.parametrize("n", [100, 400, 403, 823, 999, 1000, 1001, 1500])
def test_any_length_is_drawn(n):
    from matplotlib import pyplot as plt

    plt.close(plot_ecg(np.zeros((12, n)), 100, "$1").figure)
