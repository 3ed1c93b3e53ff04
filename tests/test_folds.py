"Corner cases of folds: unreadable tables of patients, and groups against their definition."

import numpy as np
import pandas as pd
import pytest

from ecgmm import EcgmmError
from ecgmm.folds import (
    header_key,
    joined_groups,
    make_groups,
    namespaces,
    patient_key,
    read_patients,
    table_digests,
)

UNREADABLE = {
    "other columns": (b"file,who\nA,B\n", "record,patient"),
    "empty": (b"", "it is empty"),
    "blank": (b"\n\n", "it is empty"),
    "latin": ("record,patient\nW1,M\u00fcller\n".encode("latin-1"), "save it as UTF-8"),
    "utf16": ("record,patient\nW1,a\n".encode("utf-16"), "save it as UTF-8"),
    "a letter": (b"ecg_id,patient_id\n1,2\nx,3\n", "line 3: a whole number is needed for ecg_id"),
    "nan": (b"ecg_id,patient_id\n1,nan\n", "for patient_id, got 'nan'"),
    "infinite": (b"ecg_id,patient_id\n1,1e999\n", "got '1e999'"),
    "negative": (b"ecg_id,patient_id\n-1,2\n", "got '-1'"),
    "ragged": (b"record,patient\na,b\na,b,c\n", "Expected 2 fields"),
    "open quote": (b'record,patient\n"a,b\n', "columns record,patient"),
    "semicolons": (b"record;patient\na;b\n", "got record;patient"),
    "two patients": (b"record,patient\nW1,a\nW1.hea,b\n", "W1 has a and b"),
    "nothing": (None, "No such file"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_table_that_cannot_be_read_is_one_line_with_its_file(tmp_path, kind):
    content, message = UNREADABLE[kind]
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EcgmmError) as error:
        read_patients(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(EcgmmError, match="a CSV file in UTF-8"):
        read_patients(tmp_path)


def test_a_byte_order_mark_a_space_and_a_line_that_stands_twice_do_no_harm(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("record, patient\nW1,M\u00fcller\nW1,M\u00fcller\n", encoding="utf-8-sig")
    assert read_patients(path) == {"W1": "M\u00fcller"}


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
            read_patients(path)
        except EcgmmError as error:
            assert str(path) in str(error)


def test_nothing_at_all():
    assert len(make_groups([], [])) == 0 and namespaces({}) == ({}, 0)
    columns = ["source", "name", "length", "age", "sex", "codes"]
    assert len(header_key(pd.DataFrame([], columns=columns))) == 0


def reached_from(start, rows, tied):
    "All that is tied to `start`, over any number of steps."
    reached, todo = set(), [start]
    while todo:
        row = todo.pop()
        if row not in reached:
            reached.add(row)
            todo += [other for other in rows if tied(row, other)]
    return reached


def walked(tables, lists):
    "Sets of (table, row) that are connected, by the definition."
    rows = {(k, i): r for k, t in enumerate(tables) for i, r in enumerate(t.to_dict("records"))}

    def common(p, q):
        return any(recording in lists[q] for recording in lists[p])

    one_list = {name: reached_from(name, lists, common) for name in lists}

    def same_person(p, q):
        (table_p, _, name_p), (table_q, _, name_q) = p.partition(":"), q.partition(":")
        if p == q != "":
            return True
        return name_p == name_q != "" and table_q in one_list.get(table_p, ())

    def tied(p, q):
        a, b = rows[p], rows[q]
        return (
            any(a[c] == b[c] != "" for c in ("hash", "header"))
            or same_person(a["patient"], b["patient"])
            or (p[0] == q[0] and a["group"] == b["group"])
        )

    left, found = set(rows), set()
    while left:
        found.add(frozenset(reached_from(min(left), left, tied)))
        left -= set().union(*found)
    return found


def random_table(rng, number):
    n = rng.integers(0, 12)

    def maybe(kinds, known):
        return [f"{rng.integers(kinds)}" if rng.random() < known else "" for _ in range(n)]

    return pd.DataFrame(
        dict(
            hash=[f"{h}" for h in rng.integers(40, size=n)],
            patient=patient_key(maybe(30, 0.5), f"t{number}"),
            header=maybe(40, 0.3),
            group=rng.permutation(n) // 2,
        ),
        dtype=object,
    )


def random_list(rng):
    recordings = rng.integers(40, size=rng.integers(1, 8))
    return {f"record {r}": f"{rng.integers(3)}" for r in recordings}


def test_groups_are_what_can_be_reached():
    "From loners to long chains, with tables of patients that are one over none, one or two steps."
    sizes, merged, different = set(), set(), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        tables = [random_table(rng, k) for k in range(rng.integers(1, 5))]
        lists = {f"t{k}": random_list(rng) for k in range(len(tables)) if rng.random() < 0.8}
        digests = {t: table_digests(patients) for t, patients in lists.items()}
        found = {}
        for k, groups in enumerate(joined_groups(tables, digests)):
            for i, number in enumerate(groups):
                found.setdefault(number, set()).add((k, i))
        found = set(map(frozenset, found.values()))
        assert found == walked(tables, lists)
        sizes |= set(map(len, found))
        merged.add(len(lists) - len(set(namespaces(digests)[0].values())))
        different += found != walked(tables, {})
    assert {1, 2, 5} <= sizes and {0, 1, 2} <= merged, (sizes, merged)
    assert different > 10, different
