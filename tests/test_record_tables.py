"Tables of patients that cannot be read, and how they are refused."

import numpy as np
import pytest

from ecgmm import EcgmmError
from ecgmm.record_tables import RecordNames, read_patients

PATHS = ["ward/W1.hea", "ward/0007.hea", "ward/HR00001.hea", "ward/HR00042.hea"]
NAMES, SOURCES = RecordNames(PATHS, [p[5:-4] for p in PATHS]), ["ward"] * 4

UNREADABLE = {
    "other columns": (b"file,who\nA,B\n", "record,patient"),
    "empty": (b"", "it is empty"),
    "blank": (b"\n\n", "it is empty"),
    "latin": ("record,patient\nW1,M\u00fcller\n".encode("latin-1"), "save it as UTF-8"),
    "utf16": ("record,patient\nW1,a\n".encode("utf-16"), "save it as UTF-8"),
    "a letter": (b"ecg_id,patient_id\n1,2\nx,3\n", "line 3: a whole number is needed for ecg_id"),
    "nan": (b"ecg_id,patient_id\n1,nan\n", "names none of the 4 recordings"),
    "infinite": (b"ecg_id,patient_id\n1,1e999\n", "got '1e999'"),
    "negative": (b"ecg_id,patient_id\n-1,2\n", "got '-1'"),
    "ragged": (b"record,patient\na,b\na,b,c\n", "Expected 2 fields"),
    "open quote": (b'record,patient\n"a,b\n', "columns record,patient"),
    "bars": (b"record|patient\na|b\n", "got the columns record|patient"),
    "two patients": (b"record,patient\nW1,a\nW1.hea,b\n", "W1.hea has both 'a' and 'b'"),
    "nothing": (None, "No such file"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_table_that_cannot_be_read_is_one_line_with_its_file(tmp_path, kind):
    content, message = UNREADABLE[kind]
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EcgmmError) as error:
        read_patients(path, NAMES, SOURCES)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(EcgmmError, match="a CSV file in UTF-8"):
        read_patients(tmp_path, NAMES, SOURCES)


def test_a_byte_order_mark_a_space_and_a_line_that_stands_twice_do_no_harm(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("record, patient\nW1,M\u00fcller\nW1,M\u00fcller\n", encoding="utf-8-sig")
    assert read_patients(path, NAMES, SOURCES).of == {0: "M\u00fcller"}


def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path):
    whole = [
        'record,patient\n0007,01\nW1.hea,"M\u00fc,ller"\n'.encode(),
        b"ecg_id,patient_id,age\n1,15709.0,56\n42,13243.0,19\n",
    ]
    path, strange = tmp_path / "table.csv", np.frombuffer(b"\0\r\n\t,\"'x-.9\xff\xc3 ", np.uint8)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        content = np.frombuffer(whole[seed % 2], np.uint8).copy()
        content[rng.integers(len(content), size=3)] = rng.choice(strange, 3)
        path.write_bytes(content.tobytes())
        try:
            read_patients(path, NAMES, SOURCES)
        except EcgmmError as error:
            assert str(path) in str(error)
