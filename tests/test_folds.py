"Corner cases of folds: groups against their definition."

import numpy as np
import pandas as pd

from ecgmm.folds import (
    header_key,
    joined_groups,
    make_groups,
    namespaces,
    patient_key,
    table_digests,
)


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
