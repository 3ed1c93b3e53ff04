"The package as a stranger gets it: a wheel, built once for all the processes of a test session."

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: threads do not outlive a fork

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from try_versions import source_copy


def pip(*words):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            *map(str, words),
            "--no-index",
            "--no-deps",
            "--disable-pip-version-check",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "A folder with the installed wheel and nothing else. It is built from a copy: the repository stays as it is."
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = home.parent  # what the processes share
    installed, work = home / "installed", home / "wheel"
    with open(home / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first builds, the others wait for it
        if not installed.is_dir():
            shutil.rmtree(work, ignore_errors=True)
            (work / "source").mkdir(parents=True)
            pip("wheel", "--no-build-isolation", "--wheel-dir", work, source_copy(work / "source"))
            pip("install", "--target", work / "installed", *work.glob("*.whl"))
            (work / "installed").rename(installed)
    return installed


SECONDS = {  # of one core, roughly: test modules and notebooks; what is not named takes a few
    "test_readme": 140,
    "test_pretrain": 80,
    "test_commands": 60,
    "test_folders": 40,
    "test_package": 40,
    "test_predict": 30,
    "test_prepare": 20,
    "test_windows": 10,
    "test_folds": 5,
    "test_thresholds": 20,
    "test_two_processes_ssl": 20,
    "test_two_processes": 15,
    "test_resume": 15,
    "60_results": 55,
    "55_study": 50,
    "40_fusion": 50,
    "30_finetune": 50,
    "31_comparison": 45,
    "29_pretrain": 45,
    "22_dino": 45,
    "21_byol": 35,
    "20_simclr": 35,
    "50_thresholds": 20,
    "51_judgement": 35,
    "52_predict": 25,
    "54_answers": 10,
    "test_answers": 15,
    "70_plan": 20,
    "13_probes": 20,
    "11_training": 20,
    "10_models": 20,
    "05_store": 15,
    "06_windows": 15,
    "03_synthetic": 10,
    "12_metrics": 10,
    "test_data": 10,
    "test_models": 10,
    "14_folder": 10,
    "00_data": 10,
    "01_labels": 8,
    "test_download": 10,
    "test_runs": 10,
}


def unit(item):
    "What stays together: a notebook, or a module of tests, whose fixtures are made once."
    return (
        item.callspec.id if getattr(item, "originalname", "") == "test_notebook" else item.path.stem
    )


def dealt(units):
    "The order of tests, given the unit of each: the longest units first, in two halves of like length with as many tests each. `--dist worksteal` gives each of two processes a half."
    known, rest = {}, []
    for k, name in enumerate(units):
        (known.setdefault(name, []) if name in SECONDS else rest).append(k)
    halves, spent = ([], []), [0, 0]
    for name in sorted(known, key=SECONDS.get, reverse=True):
        shorter = spent.index(min(spent))
        halves[shorter].extend(known[name])
        spent[shorter] += SECONDS[name]
    room = max(0, len(units) // 2 - len(halves[0]))
    return halves[0] + rest[:room] + halves[1] + rest[room:]


def pytest_collection_modifyitems(items):
    items[:] = [items[k] for k in dealt([unit(item) for item in items])]
