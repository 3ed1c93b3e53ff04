"""What tests share: places, ways to run a program, the wheel, and the order of the tests.

`pytest --quick` (`make quick`) leaves out what trains, builds the wheel, or goes a long way with
the commands; a test that needs the package in a folder of its own gets a copy of it there.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: threads do not outlive a fork

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = sorted(p.stem for p in (ROOT / "ecgmm").glob("[!_]*.py"))
_settings = ConfigParser(delimiters=["="])
_settings.read(ROOT / "settings.ini", encoding="utf-8")
CFG = _settings["DEFAULT"]
SCRIPTS = {  # command -> module and function, as settings.ini has them
    name.strip(): target.strip().split(":")
    for name, target in (
        line.split("=") for line in CFG["console_scripts"].splitlines() if line.strip()
    )
}

sys.path.insert(0, str(ROOT / "tools"))

from patience import HANG
from try_versions import source_copy


def run(*words, cwd=ROOT, **env):
    "Exit status of a program, and what it printed."
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    return done.returncode, done.stdout + done.stderr


def succeed(*words, cwd, **env):
    "Standard output of a program that must succeed; none of its paths leads to the repository."
    hidden = ("PYTHONPATH", "PYTHONHOME", "MAKEFLAGS")
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k not in hidden} | env,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}"
    return done.stdout


def copy_of_the_tree(folder):
    "A copy of all that nbdev and the tools read."
    for name in ("nbs", "ecgmm", "tools"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in (
        "settings.ini",
        "_quarto.yml",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "CITATION.cff",
    ):
        shutil.copy(ROOT / name, folder / name)
    return folder


def pip(*words):
    options = ("--no-index", "--no-deps", "--disable-pip-version-check")
    status, output = run(sys.executable, "-m", "pip", *words, *options)
    assert status == 0, output


@pytest.fixture(scope="session")
def wheel(request, tmp_path_factory):
    "A folder with the installed wheel alone; with --quick a copy of the package, not built."
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = home.parent  # what the processes share
    installed, work = home / "installed", home / "wheel"
    with open(home / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first builds, the others wait for it
        if not installed.is_dir():
            shutil.rmtree(work, ignore_errors=True)
            (work / "source").mkdir(parents=True)
            source_copy(work / "source")
            if request.config.getoption("quick"):
                (work / "installed").mkdir()
                (work / "source" / "ecgmm").rename(work / "installed" / "ecgmm")
            else:
                options = ("--no-build-isolation", "--wheel-dir", work)
                pip("wheel", *options, work / "source")
                pip("install", "--target", work / "installed", *work.glob("*.whl"))
            (work / "installed").rename(installed)
    return installed


SECONDS = {  # of one core, roughly: test modules and notebooks; those not named take a few
    "test_readme": 140,
    "test_pretrain": 80,
    "test_commands": 60,
    "test_folders": 40,
    "test_wheel": 40,
    "test_habits": 14,
    "test_properties": 10,
    "test_gpu": 60,
    "test_predict": 30,
    "test_prepare": 20,
    "test_windows": 10,
    "test_folds": 5,
    "test_site": 20,
    "test_thresholds": 20,
    "test_two_processes_ssl": 20,
    "test_two_processes": 15,
    "test_resume": 15,
    "test_seen": 15,
    "test_metrics": 7,
    "60_results": 55,
    "55_study": 50,
    "40_fusion": 50,
    "30_finetune": 50,
    "31_comparison": 60,
    "29_pretrain": 45,
    "22_dino": 45,
    "24_simulated": 60,
    "21_byol": 35,
    "20_simclr": 35,
    "50_thresholds": 20,
    "51_clinic": 20,
    "51_judgement": 35,
    "52_ensemble": 8,
    "52_predict": 25,
    "53_evaluate": 35,
    "test_evaluate": 30,
    "54_answers": 10,
    "test_answers": 15,
    "70_plan": 60,
    "13_intervals": 15,
    "13_probes": 20,
    "11_training": 20,
    "10_models": 20,
    "05_store": 15,
    "06_windows": 15,
    "03_synthetic": 20,
    "04_copies": 10,
    "04_record_tables": 5,
    "15_seen": 10,
    "12_metrics": 10,
    "test_data": 10,
    "test_models": 10,
    "14_folder": 10,
    "00_data": 10,
    "01_labels": 8,
    "test_download": 10,
    "test_runs": 10,
    "index": 20,
    "09_download": 15,
}


def unit(item):
    "What stays together: a notebook, or a module of tests, whose fixtures are made once."
    return (
        item.callspec.id if getattr(item, "originalname", "") == "test_notebook" else item.path.stem
    )


def dealt(units):
    """The order of tests, given the unit of each.

    The longest units come first, in two halves of like length with as many tests each:
    `--dist worksteal` gives each of two processes a half.
    """
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


LONG = 15  # seconds from which a unit is left out by --quick


def is_long(item):
    "What --quick leaves out."
    return SECONDS.get(unit(item), 0) >= LONG or item.get_closest_marker("long") is not None


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what takes long")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes long; `make quick` leaves it out")


def pytest_collection_modifyitems(config, items):
    if config.getoption("quick"):
        config.hook.pytest_deselected(items=[item for item in items if is_long(item)])
        items[:] = [item for item in items if not is_long(item)]
    items[:] = [items[k] for k in dealt([unit(item) for item in items])]
