"""Install PyTorch's build for CPUs where there is no NVIDIA GPU and no PyTorch yet.

    .venv/bin/python tools/install_torch.py -c constraints.txt

On Linux the plain `torch` of the Python package index is the build for GPUs, with gigabytes of
libraries. The build for CPUs is looked for where pip looks anyway, and then at PyTorch's own
address (TORCH_INDEX in the environment names another; empty: none); where neither has it, the plain
one is taken, and that is said.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def decide(system, torch_there, gpu):
    "Why the choice is left to pip; an empty text where the CPU build is wanted."
    if torch_there:
        return "PyTorch is there already"
    if gpu:
        return "there is an NVIDIA GPU: pip takes the usual PyTorch"
    if system != "Linux":
        return f"on {system} the usual PyTorch has no GPU libraries"
    return ""


def attempts(version, index):
    "What to give `pip install`, one after the other until one succeeds."
    cpu = [f"torch=={version}+cpu"]
    return (
        [cpu]
        + [[*cpu, "--extra-index-url", index, "--retries", "1", "--timeout", "20"]] * bool(index)
        + [[f"torch=={version}"]]
    )


def has_gpu():
    "Whether NVIDIA's driver answers."
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def pip(*words):
    "Whether `pip install` succeeds."
    return (
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *words]
        ).returncode
        == 0
    )


def main(install=pip):
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument(
        "-c", "--constraints", default="constraints.txt", help="file with a line torch==VERSION"
    )
    a = ap.parse_args()
    if why := decide(platform.system(), importlib.util.find_spec("torch") is not None, has_gpu()):
        return print(why)
    version = re.search(r"^torch==(\S+)$", Path(a.constraints).read_text(encoding="utf-8"), re.M)[1]
    *cpu, plain = attempts(version, os.environ.get("TORCH_INDEX", CPU_INDEX))
    for words in cpu:
        print(f"PyTorch for CPUs: pip install {' '.join(words)}", flush=True)
        if install(*words):
            return
    print(
        "No PyTorch build for CPUs was found. The usual one is taken: "
        "about 6 GB with its GPU libraries.",
        flush=True,
    )
    if not install(*plain):
        sys.exit(f"torch=={version} cannot be installed")


if __name__ == "__main__":
    main()
