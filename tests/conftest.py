"The package as a stranger gets it: a wheel, built once for all the processes of a test session."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("setup.py", "pyproject.toml", "setup.cfg", "MANIFEST.in", "settings.ini", "README.md", "LICENSE")   # beside the package; those of them that are there


def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words), "--no-index", "--no-deps", "--disable-pip-version-check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "A folder with the installed wheel and nothing else. It is built from a copy: the repository stays as it is."
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: home = home.parent                      # what the processes share
    installed, work = home / "installed", home / "wheel"
    with FileLock(home / "wheel.lock"):                                             # the first builds, the others wait for it
        if not installed.is_dir():
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(ROOT / "ecgmm", work / "ecgmm", ignore=shutil.ignore_patterns("__pycache__"))
            for name in SOURCES:
                if (ROOT / name).exists(): shutil.copy(ROOT / name, work / name)
            pip("wheel", "--no-build-isolation", "--wheel-dir", work / "made", work)
            pip("install", "--target", work / "installed", *(work / "made").glob("*.whl"))
            (work / "installed").rename(installed)
    return installed
