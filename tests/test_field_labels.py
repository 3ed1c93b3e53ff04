"Labels, tables and copies as people bring them, each kind through `prepare`."

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ecgmm import EcgmmError
from ecgmm.data import Recording, read_recording, resample, write_recording
from ecgmm.labels import Labels, find_labels
from ecgmm.settings import PrepareSettings, Tables
from ecgmm.store import Store, label_report, prepare
from ecgmm.synthetic import simulate

AF, RBBB, NSR = "164889003", "59118001", "426783006"
UNDERSTOOD = {
    AF: "AF",
    "AF": "AF",
    "af": "AF",
    "A-fib": "AF",
    "atrial fibrillation": "AF",
    "Atrial_Fibrillation": "AF",
    f"{AF}.0": "AF",
    "1.64889003E+08": "AF",
    f"[{AF}, {RBBB}]": "AF RBBB",
    f"['{AF}', '{RBBB}']": "AF RBBB",
    f"{{{AF}}}": "AF",
    f'"{AF}"': "AF",
    f"'{AF}','{RBBB}'": "AF RBBB",
    f"{AF}|atrial fibrillation|": "AF",
    f"{AF} | atrial fibrillation": "AF",
    f"{AF}: atrial fibrillation": "AF",
    f"SNOMED {AF}": "AF",
    f"{AF} {RBBB}": "AF RBBB",
    f"{AF}\t{RBBB}": "AF RBBB",
    f"{AF};{RBBB}": "AF RBBB",
    f"{AF}/{RBBB}": "AF RBBB",
    "AF and RBBB": "AF RBBB",
    "sinus rhythm, left axis deviation": "NSR LAD",
}
NOT_UNDERSTOOD = (
    *("borderline ecg", "no AF", "AF?", "AF unlikely", "normal variant", "abc", "12", "AF (-)"),
    *("AF -", "AF +/-", "[ ] AF", "AF, ruled out", "No AF, AFL", "AF, none", "Exclude: AF; RBBB"),
    *("left bundle branch block, incomplete", "AF, history of", "999999999", "1.65E+08"),
)
NOTHING = ("", "Unknown", "NaN", "[]", "none")


def wave(seed, fs=500):
    return simulate(("NSR",), 10, fs, rng=seed)


def write(folder, name, seed, dx="", x=None, fs=500):
    header = write_recording(
        folder, Recording(name, wave(seed) if x is None else x, fs, 60, "Male")
    )
    header.write_text(header.read_text().replace("#Dx: ", f"#Dx: {dx}"))
    return header


def made(folder, **options):
    return prepare(folder, folder.parent / "store", workers=1, progress=False, **options)


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    "One recording for each way of writing."
    folder = tmp_path_factory.mktemp("ward") / "ward"
    texts = [*UNDERSTOOD, *NOT_UNDERSTOOD, *NOTHING]
    for k, text in enumerate(texts):
        write(folder, f"W{k:02d}", k, text)
    return made(folder), texts


def test_a_known_spelling_is_the_class(ward):
    store, texts = ward
    names = np.array(store.labels.abbreviations)
    for i, text in enumerate(texts[: len(UNDERSTOOD)]):
        assert set(names[store.y[i] > 0]) == set(UNDERSTOOD[text].split()), text
        assert store.known[i].all() and store.records["not_understood"][i] == "", text


def test_what_is_not_understood_is_no_negative(ward):
    store, texts = ward
    rows = range(len(UNDERSTOOD), len(texts))
    assert not store.known[rows].any() and not store.records["labelled"][rows].any()
    roles = np.concatenate(store.split(fold=0).values())
    assert not set(rows) & set(roles)
    said = "\n".join(label_report(store.records, store.labels))
    assert (
        "ward: not understood" in said and f"{len(NOT_UNDERSTOOD)} recordings have nothing" in said
    )


def test_a_word_that_is_not_understood_leaves_the_rest_open(tmp_path):
    for k, text in enumerate((f"{NSR}, borderline", f"{NSR},999999999", "999999999", "164884008")):
        write(tmp_path / "ward", f"W{k}", k, text)
    store = made(tmp_path / "ward")
    assert store.known.sum(axis=1).tolist() == [1, 1, 0, 24]
    said = "\n".join(label_report(store.records, store.labels))
    assert "164884008" in said and "PVC stays 0" in said


ONE_HOT = {
    "NORM,IMI,AMI\nW0,0,1,0\n": ("ptbxl-superclass", "MI", 1),
    "NORM,IMI,AMI\nW0,1,0,0\n": ("ptbxl-superclass", "MI", None),
    "PVC,VPB\nW0,1,0\n": ("challenge2020", "PVC", 1),
    "VPB,PVC\nW0,1,0\n": ("challenge2020", "PVC", 1),
    "427172004,17338001\nW0,1,0\n": ("challenge2020", "PVC", 1),
    "RBBB,CRBBB\nW0,0,0\n": ("challenge2020", "RBBB", 0),
    "diagnosis,AF\nW0,NSR,1\n": ("challenge2020", "AF", 1),
    "diagnosis,diagnosis2\nW0,AF,RBBB\n": ("challenge2020", "RBBB", 1),
    "labels,remark\nW0,,nothing said\n": ("challenge2020", "NSR", 1),  # the header stands
}


@pytest.mark.parametrize("text", ONE_HOT)
def test_columns_of_a_table_become_three_values(tmp_path, text):
    name, abbreviation, value = ONE_HOT[text]
    write(tmp_path / "ward", "W0", 0, NSR)
    table = tmp_path / "table.csv"
    table.write_text(f"record,{text}")
    if "nothing said" in text:
        table.write_text(table.read_text() + "W1,AF,\n")
        write(tmp_path / "ward", "W1", 1)
    labels = find_labels(name)
    store = made(tmp_path / "ward", labels=labels, tables=Tables(labels=str(table)))
    target = store.targets[0, labels.index(abbreviation)]
    assert (None if np.isnan(target) else target) == value


def test_a_line_with_more_cells_than_the_head_is_an_error(tmp_path):
    write(tmp_path / "ward", "W0", 0, NSR)
    table = tmp_path / "table.csv"
    for text in ("record,labels\nW0,AF,RBBB\n", '"record","patient"\n"1","W0","P1"\n'):
        table.write_text(text)
        kind = "patients" if "patient" in text else "labels"
        with pytest.raises(EcgmmError, match="a line has more fields than the head"):
            made(tmp_path / "ward", tables=Tables(**{kind: str(table)}))


def test_a_path_of_another_hospital_is_not_ours(tmp_path):
    for k in range(2):
        write(tmp_path / "data" / "hospA", f"000{k}", k, NSR)
    table = tmp_path / "patients.csv"
    table.write_text("record,patient\nhospB/0000,B0\nhospB/0001,B1\n")
    for place in (tmp_path / "data", tmp_path / "data" / "hospA"):
        with pytest.raises(
            EcgmmError, match="names none of the 2 recordings: the first name there"
        ):
            prepare(place, tmp_path / "s", tables=Tables(patients=str(table)), progress=False)
    table.write_text("record,patient\nhospB/0000,B0\nhospA/0000,A0\nhospA/0001,unknown\n")
    store = made(tmp_path / "data", tables=Tables(patients=str(table)))
    assert store.records["patient"].tolist() == ["A0", ""]
    assert store.meta["remarks"] == [
        "patients.csv: 1 lines name no recording here (hospB/0000, ...)",
        "patients.csv: nothing about 1 of 2 recordings of hospA",
    ]


def test_what_a_spreadsheet_makes_of_names_and_patients(tmp_path):
    names = ["0001", "0002", "0003", "0004", "0005"]
    for k, name in enumerate(names):
        write(tmp_path / "ward", name, k, NSR)
    table = tmp_path / "patients.csv"
    lines = ["1,12", "2.0,12.0", '="0003",p1', "'0004,P1", "ward/0005.png,nan"]
    table.write_text("record;patient\n" + "\n".join(lines).replace(",", ";") + "\n")
    store = made(tmp_path / "ward", tables=Tables(patients=str(table)))
    assert store.records["patient"].tolist() == ["12", "12", "p1", "p1", ""]


def test_all_versions_of_a_recording_of_ptbxl_get_its_patient(tmp_path):
    for k, path in enumerate(
        ("records100/00000/00001_lr", "records500/00000/00001_hr", "g1/HR00001")
    ):
        write(tmp_path / "data" / Path(path).parent, Path(path).name, k, NSR)
    table = tmp_path / "ptbxl_database.csv"
    table.write_text("ecg_id,patient_id,sex\n1,15709.0,1\n")
    store = made(tmp_path / "data", tables=Tables(patients=str(table)))
    assert set(store.records["patient"]) == {"ptb-xl:15709"}


WAYS = {
    "names": lambda k: f"E{k}",
    "suffix": lambda k: f"E{k}.mat",
    "header": lambda k: f"E{k}.hea",
    "path": lambda k: f"ward/E{k}",
    "another machine's path": lambda k: f"C:\\data\\ward\\E{k}.mat",
    "case": lambda k: f"e{k}",
    "spaces": lambda k: f"  E{k} ",
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("way", WAYS)
def test_patients_are_matched_however_a_table_names_recordings(tmp_path, way, mark):
    for k in range(6):
        write(tmp_path / "data" / "ward", f"E{k}", k, NSR)
    lines = "".join(f"{WAYS[way](k)},p{k // 2}\n" for k in range(6))
    table = tmp_path / "patients.csv"
    table.write_text(f"{mark}record,patient\n{lines}", encoding="utf-8")
    store = made(tmp_path / "data", tables=Tables(patients=str(table)))
    assert store.records["patient"].tolist() == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert (store.groups[::2] == store.groups[1::2]).all()


def test_a_header_with_another_name_than_its_file_keeps_its_patient(tmp_path):
    for k in range(4):
        header = write(tmp_path / "ward", f"E{k}", k, NSR)
        text = header.read_text()
        header.write_text(f"study-{k}" + text[text.index(" ") :])
    table = tmp_path / "patients.csv"
    for names in ("E{}", "study-{}"):
        lines = "".join(f"{names.format(k)},p{k // 2}\n" for k in range(4))
        table.write_text(f"record,patient\n{lines}")
        tables = Tables(patients=str(table))
        store = made(tmp_path / "ward", tables=tables, overwrite=True)
        assert store.records["patient"].tolist() == ["p0", "p0", "p1", "p1"]


def test_one_name_in_two_hospitals_is_not_one_patient(tmp_path):
    for k, hospital in enumerate("ab"):
        write(tmp_path / "data" / hospital, "r1", k, NSR)
        write(tmp_path / "data" / hospital, f"only-{hospital}", 10 + k, NSR)
    table = tmp_path / "patients.csv"
    table.write_text("record,patient\nr1,p\nonly-a,q\nonly-b,r\n")
    with pytest.raises(EcgmmError, match="'r1' can mean .*a/r1.hea and .*b/r1.hea: give the path"):
        made(tmp_path / "data", tables=Tables(patients=str(table)))
    table.write_text("record,patient\na/r1,p\nb/r1,q\nonly-a,p\nonly-b,q\n")
    store = made(tmp_path / "data", tables=Tables(patients=str(table)))
    assert dict(zip(store.records["path"], store.groups))["a/r1.hea"] != store.groups[-1]


def test_a_source_that_a_table_names_nobody_of_is_an_error(tmp_path):
    for k, hospital in enumerate("ab"):
        write(tmp_path / "data" / hospital, f"{hospital}1", k, NSR)
    table = tmp_path / "patients.csv"
    table.write_text("record,patient\na1,p\n")
    with pytest.raises(EcgmmError, match="none of the 1 recordings of the source 'b'"):
        made(tmp_path / "data", tables=Tables(patients=str(table)))
    table.write_text("record,patient\na1,p\nb/*,\n")
    assert made(tmp_path / "data", tables=Tables(patients=str(table))).records["patient"][1] == ""


def test_labels_of_a_table_and_official_folds(tmp_path):
    for k in range(6):
        write(tmp_path / "ward", f"E{k}", k)
    table = tmp_path / "table.csv"
    words = ["AF", "normal sinus rhythm", f"{AF}.0", "gremlins", "", "SB"]
    lines = [f"E{k}.dat,{word},{k % 3 + 8}\n" for k, word in enumerate(words)]
    table.write_text("filename,diagnosis,strat_fold\n" + "".join(lines))
    store = made(tmp_path / "ward", tables=Tables(labels=str(table), folds=str(table)))
    assert store.records["labelled"].tolist() == [1, 1, 1, 0, 0, 1]
    assert store.folds.tolist() == [2, 1, 0, 2, 1, 0]  # 10 is tested, 9 is tune
    split = store.split(fold=0)
    assert (list(split.test), list(split.tune), list(split.train)) == ([2, 5], [1], [0])


CHANGES = {
    "rate": lambda x: (resample(x, 500, 100), 100),
    "another rate": lambda x: (resample(x, 500, 257), 257),
    "gain": lambda x: (x * 1.0005, 500),
    "half the gain": lambda x: (x / 2, 500),
    "offset": lambda x: (x + np.linspace(-0.4, 0.4, 12)[:, None], 500),
    "shift": lambda x: (x[:, 40:], 500),
    "rounding": lambda x: (np.round(x * 50) / 50, 500),
    "filter": lambda x: (resample(resample(x, 500, 125), 125, 500), 500),
}


def test_copies_share_a_group_and_others_do_not(tmp_path):
    for k in range(12):
        write(tmp_path / "data" / "one", f"A{k:02d}", k, NSR)
    for k, change in enumerate(CHANGES.values()):
        x, fs = change(wave(k))
        write(tmp_path / "data" / "two", f"B{k:02d}", 0, NSR, x.astype(np.float32), fs)
    store = made(tmp_path / "data")
    group = dict(zip(store.records["name"], store.groups))
    fold = dict(zip(store.records["name"], store.folds))
    for k, name in enumerate(CHANGES):
        assert group[f"A{k:02d}"] == group[f"B{k:02d}"], name
        assert fold[f"A{k:02d}"] == fold[f"B{k:02d}"], name
    assert len(set(store.groups)) == 12


def test_a_byte_order_mark_in_a_header_is_no_part_of_the_name(tmp_path):
    header = write(tmp_path / "ward", "r", 0, NSR)
    header.write_bytes(b"\xef\xbb\xbf" + header.read_bytes())
    assert read_recording(header).name == "r"
    assert made(tmp_path / "ward").records["name"].tolist() == ["r"]


def test_five_labels_of_ones_own_are_three_valued_too(tmp_path):
    labels = Labels.ptbxl("superclass")
    for k, text in enumerate(("NORM", "MI, gremlins", "gremlins")):
        write(tmp_path / "ward", f"W{k}", k, text)
    store = made(tmp_path / "ward", labels=labels, settings=PrepareSettings())
    assert store.known.sum(axis=1).tolist() == [5, 1, 0]
    again = pd.read_csv(Store(store.folder).folder / "records.csv")
    assert again["NORM"].isna().tolist() == [False, True, True]
