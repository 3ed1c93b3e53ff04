"The package as a stranger gets it: a wheel, built once for all the processes of a test session."
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"                                                 # before PyTorch is imported: threads do not outlive a fork

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from try_versions import source_copy


def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words), "--no-index", "--no-deps", "--disable-pip-version-check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "A folder with the installed wheel and nothing else. It is built from a copy: the repository stays as it is."
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: home = home.parent                      # what the processes share
    installed, work = home / "installed", home / "wheel"
    with open(home / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)                                            # the first builds, the others wait for it
        if not installed.is_dir():
            shutil.rmtree(work, ignore_errors=True)
            (work / "source").mkdir(parents=True)
            pip("wheel", "--no-build-isolation", "--wheel-dir", work, source_copy(work / "source"))
            pip("install", "--target", work / "installed", *work.glob("*.whl"))
            (work / "installed").rename(installed)
    return installed
