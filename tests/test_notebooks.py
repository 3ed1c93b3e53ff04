"Every notebook is a test: its cells run in order, in a process of its own, and each assertion has to hold."
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ecgmm.data import real_data

ROOT = Path(__file__).resolve().parents[1]
SLOWEST = ["55_study", "60_results", "40_fusion", "22_dino", "23_pretrain", "30_finetune", "21_byol", "20_simclr", "31_comparison", "50_thresholds", "52_predict", "70_plan", "13_probes", "11_training", "06_store", "10_models", "01_synthetic", "12_metrics", "07_windows"]  # these first: two processes then end together
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"), key=lambda p: (SLOWEST.index(p.stem) if p.stem in SLOWEST else len(SLOWEST), p.name))


def run_notebook(path, *flags, cwd=ROOT, timeout=900):
    "Exit status and output of nbdev's test of one notebook."
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if real_data(): env["ECGMM_REAL"] = str(real_data())
    command = [Path(sys.executable).with_name("nbdev_test"), "--path", path, *(["--flags", " ".join(flags)] if flags else [])]
    run = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    status, output = run_notebook(path, *(["data"] if real_data() else []))
    assert status == 0 and "Success." in output, output[-4000:]       # nbdev ends with 0, too, when it finds no notebook


def test_data_cells_had_their_recordings():
    "No recordings, no `data` cells: that is said, not hidden."
    marked = [p.stem for p in NOTEBOOKS if re.search(r"^#\|\s*data\s*$", "\n".join(c.source for c in nbformat.read(p, 4).cells), re.M)]
    if not real_data(): pytest.skip(f"no real recordings in ECGMM_REAL or ../shared/data: the cells marked `data` of {', '.join(marked)} did not run")
    assert sorted(real_data().rglob("*.hea")), f"{real_data()} holds no recording"


def test_a_failing_cell_fails(tmp_path):
    "The runner itself: a false assertion is noticed, and a cell with a flag runs only when the flag is given."
    cell = nbformat.v4.new_code_cell
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    (tmp_path / "nbs").mkdir()
    book = tmp_path / "nbs" / "00_x.ipynb"
    nb = nbformat.v4.new_notebook(cells=[cell("x = 1"), cell("#| data\nassert x == 2")], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    nbformat.write(nb, book)
    status, output = run_notebook(book, cwd=tmp_path)
    assert status == 0 and "Success." in output
    status, output = run_notebook(book, "data", cwd=tmp_path)
    assert status == 1 and "assert x == 2" in output and "Success." not in output
