"""tools/gpu.sh, as far as a machine without a GPU can tell.

Every check with tiny settings, and that one failure stops no other.
"""

import json
import os
import subprocess
import sys

import gpu
import nbformat
from conftest import ROOT


def test_every_check_with_tiny_settings(tmp_path):
    done = subprocess.run(
        [ROOT / "tools" / "gpu.sh", "out", "--cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    names = [name for members in gpu.checks(cpu=True).values() for name, _ in members]
    assert [c["name"] for c in told["checks"]] == names and all(c["passed"] for c in told["checks"])
    assert (
        {"device", "torch", "date", "commit", "python"} <= set(told)
        and told["device"]
        and told["commit"]
    )
    for word in ("simclr", "byol", "dino", "classifier", "fusion"):
        assert {"float32", "bf16"} <= {
            name.split(", ")[-1] for name in names if name.startswith(word)
        }
    figures = {c["name"]: c["figures"] for c in told["checks"]}
    assert all(
        f["recordings per second"] > 0
        for name, f in figures.items()
        if name.startswith(("simclr", "byol", "dino", "prediction"))
    )
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.strip().splitlines()[-1].startswith(
        f"{len(names)} of {len(names)} checks passed"
    ) and {p.name for p in (tmp_path / "out").iterdir()} == {"log.txt", "results.json"}


def test_a_failing_check_stops_no_other(tmp_path, monkeypatch):
    """An error is a failed check.

    A process that dies fails what it did not come to, and what it had done counts.
    """
    line = gpu.run_check("x", lambda work: 1 / 0, None)
    assert (
        not line["passed"]
        and "ZeroDivisionError" in line["error"]
        and gpu.text(line).startswith("FAILED")
    )
    assert gpu.run_check("x", lambda work: {"a": 1.0}, None)["passed"]
    (tmp_path / "dies.py").write_text(
        "import json, os\n"
        "line = dict(name='first', passed=True, seconds=1.0, figures={}, error='')\n"
        "print('@' + json.dumps(line), flush=True)\n"
        "print('a device-side assert', flush=True)\n"
        "os.abort()"
    )
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "dies.py"))
    first, second = gpu.process_lines(["g"], ["first", "second"], tmp_path, False, 60)
    assert first["passed"] and not second["passed"] and "device-side assert" in second["error"]
    (late,) = gpu.process_lines(["g"], ["third"], tmp_path, False, 0)
    assert not late["passed"] and "the time was up" in late["error"]


def test_without_a_gpu_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "gpu.py", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode and "there is no GPU" in done.stderr and not (tmp_path / "out").exists()


def test_cuda_cells_are_found_and_run(tmp_path):
    """Every notebook with such a cell has a check on a GPU.

    The cells above are run first, and an assertion counts.
    """
    marked = {
        p.stem
        for p in (ROOT / "nbs").glob("*.ipynb")
        if any("#| cuda" in c.source for c in nbformat.read(p, 4).cells)
    }
    assert marked and {f"notebook-{stem}" for stem in marked} == {
        g for g in gpu.checks(cpu=False) if g.startswith("notebook-")
    }
    for last, status in (("assert x == 2", 0), ("assert x == 3", 1)):
        cells = [
            nbformat.v4.new_code_cell(s)
            for s in ("x = 1", "%cd -q .\nx += 1", "#| slow\nx = 5", f"#| cuda\n{last}", "x = y")
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "x.ipynb")
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); "
            "import gpu; from pathlib import Path; "
            "print(gpu.run_cuda_cells(Path('x.ipynb').resolve()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == status and ("'cells': 1" in done.stdout) == (status == 0), (
            done.stderr
        )
