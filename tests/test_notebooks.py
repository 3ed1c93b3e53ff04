"""Every notebook is a test: its cells run in order, and each assertion has to hold.

They run as a stranger runs them: in an empty folder, with the installed wheel instead of this
repository. All but the cells marked `slow` run.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT, SECONDS, dealt
from patience import HANG
from run_cells import code_cells, directives

from ecgmm.data import real_data

RUNNER = Path(__file__).with_name("run_cells.py")


def run_cells(package, *words, cwd, python_path=None, **env):
    "Exit status and output of the cells' runner, which finds `ecgmm` in one folder only."
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(python_path or package), **env}
    done = subprocess.run(
        [sys.executable, "-P", str(RUNNER), str(package), *map(str, words)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path, wheel, tmp_path):
    status, output = run_cells(
        wheel,
        path,
        cwd=tmp_path,
        **({"ECGMM_REAL": str(real_data().resolve())} if real_data() else {}),
    )
    assert status == 0 and re.search(r"^[1-9]\d* cells ran$", output, re.M), output


def test_two_processes_end_together():
    """Every test has its place; the two halves, as two processes get them, take about as long.

    A unit stays in one piece, and the longest comes first.
    """
    assert set(SECONDS) <= {p.stem for p in [*NOTEBOOKS, *Path(__file__).parent.glob("test_*.py")]}
    units = [
        *(name for name in sorted(SECONDS) for _ in range(1 if name[0].isdigit() else 7)),
        *["test_repository"] * 200,
    ]
    order = dealt(units)
    assert sorted(order) == list(range(len(units)))
    names = [units[k] for k in order]
    halves = [
        list(dict.fromkeys(n for n in half if n in SECONDS))
        for half in (names[: len(names) // 2], names[len(names) // 2 :])
    ]
    assert not set(halves[0]) & set(halves[1]) and sorted(halves[0] + halves[1]) == sorted(SECONDS)
    for half in halves:
        assert [SECONDS[n] for n in half] == sorted((SECONDS[n] for n in half), reverse=True)
    spent = [sum(map(SECONDS.get, half)) for half in halves]
    assert abs(spent[0] - spent[1]) <= 20, spent


def test_data_cells_had_their_recordings():
    "No recordings, no `data` cells: that is said, not hidden."
    marked = [p.stem for p in NOTEBOOKS if any("data" in directives(c) for c in code_cells(p))]
    if not real_data():
        pytest.skip(
            "no real recordings in ECGMM_REAL or ../shared/data: "
            f"the cells marked `data` of {', '.join(marked)} only said so"
        )
    assert sorted(real_data().rglob("*.hea")), f"{real_data()} holds no recording"


def book(path, *sources):
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources]), path
    )
    return path


def test_a_failing_cell_fails(tmp_path, wheel):
    """The runner itself.

    A false assertion is noticed, wherever it is, and only `slow` and `eval: false` leave a cell
    out.
    """
    fine = ("x = 1", "#| slow\nassert x == 2", "#| hide\n#| eval: false\nassert x == 3", "%cd -q .")
    status, output = run_cells(wheel, book(tmp_path / "x.ipynb", *fine), cwd=tmp_path)
    assert status == 0 and "2 cells ran" in output, output
    for wrong in ("#| data\nassert x == 4", "#| cuda\nprint('so far')\nassert x == 4", "x = = 4"):
        status, output = run_cells(
            wheel, book(tmp_path / "x.ipynb", *fine, wrong, "y = 5"), cwd=tmp_path
        )
        assert status == 1 and wrong in output and "cells ran" not in output, output
        assert ("AssertionError" if "assert" in wrong else "SyntaxError") in output and (
            "so far" in output
        ) == ("so far" in wrong), output


def test_another_ecgmm_is_noticed(tmp_path, wheel):
    "Neither this folder nor an installation of it may stand in for the wheel."
    status, output = run_cells(
        wheel, book(tmp_path / "x.ipynb", "x = 1"), cwd=tmp_path, python_path=ROOT
    )
    assert status == 1 and f"it comes from {ROOT}" in output
    assert not list(wheel.rglob("*.ipynb")) and sorted(
        p.name for p in (wheel / "ecgmm" / "raw_results").iterdir()
    ) == sorted(p.name for p in (ROOT / "ecgmm" / "raw_results").iterdir())


def test_without_recordings_and_without_a_gpu_a_cell_says_so(tmp_path, wheel):
    """In each notebook each cell marked `data` or `cuda` prints one sentence, whatever was run
    before it."""
    status, output = run_cells(
        wheel,
        *sorted(NOTEBOOKS),
        "--flagged",
        cwd=tmp_path,
        ECGMM_REAL=str(tmp_path / "nowhere"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert status == 0, output
    told = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert (
        len(told)
        == sum(bool(directives(c) & {"data", "cuda"}) for p in NOTEBOOKS for c in code_cells(p))
        > 20
    )
    wrong = [
        t
        for t in told
        if t["error"]
        or not re.fullmatch(r"There (is|are) no [^\n]+, so this cell [^\n.]+\.\n", t["said"])
    ]
    assert not wrong, wrong


def bound(tree):
    "Names that a cell makes."
    nodes = list(ast.walk(tree))
    return (
        {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        | {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        | {
            a.asname or a.name.split(".")[0]
            for n in nodes
            if isinstance(n, (ast.Import, ast.ImportFrom))
            for a in n.names
        }
    )


def needed_from_flagged(path):
    "What a cell without a flag takes from one that may have done nothing."
    missing, sure, doubtful = [], set(), set()
    for cell in code_cells(path):
        tree = ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", cell.source, flags=re.M))
        if directives(cell) & {"data", "cuda", "slow"}:
            doubtful |= bound(tree) - sure
            continue
        missing += sorted(
            {
                n.id
                for n in ast.walk(tree)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
            }
            & doubtful - bound(tree)
        )
        sure |= bound(tree)
        doubtful -= sure
    return missing


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_cell_needs_one_that_may_do_nothing(path):
    assert needed_from_flagged(path) == []


def test_a_needed_name_is_found(tmp_path):
    assert needed_from_flagged(
        book(
            tmp_path / "x.ipynb",
            "x = 1",
            "#| data\nif True: x = y = 2",
            "print(x)",
            "print(y)",
            "y = 3",
            "print(y)",
        )
    ) == ["y"]
