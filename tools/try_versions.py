"""Install the package into an empty environment with one set of versions, and use all of it.

    python tools/try_versions.py lowest|colab|tested|newest [--torch 2.13.0]
        [--folder FOLDER] [--wheel FILE] [--notebooks 12_metrics ...]

The package gets its runtime requirements and nothing else: no nbdev, no Jupyter. The commands run
in a folder of their own, and the cells of the notebooks that need no Jupyter as plain code. The
sets are those of tools/versions.py; --torch takes another PyTorch than the set's.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from versions import ROOT, SETS, pins

NOTEBOOKS = [
    "02_settings",
    "00_data",
    "02_runs",
    "07_spectrogram",
    "04_folds",
    "05_store",
    "06_windows",
    "12_metrics",
    "50_thresholds",
]
WAY = [
    "ecgmm_synthesize --out data --n 90",
    "ecgmm_prepare --data data --store store --workers 1",
    "ecgmm_pretrain --method simclr --branch signal=xresnet1d_small --epochs 1 --cpu",
    "ecgmm_finetune --branches signal=xresnet1d_small --epochs 1 --cpu",
    "ecgmm_finetune --branches signal@models/simclr-signal-fold0 --epochs 2 --freeze_epochs 1"
    " --cpu",
    "ecgmm_fuse --branches signal=xresnet1d_small,spectrogram=se_resnet_small --join gate"
    " --epochs 1 --cpu",
    "ecgmm_thresholds --model models/gate-fold0",
    "ecgmm_predict --model models/gate-fold0/model --data data --out scores.csv --cpu",
]
CELLS = r"""
import json, linecache, re, sys
import matplotlib
matplotlib.use("Agg")
display = print
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code" or re.search(r"^#\|\s*(slow|eval: false)", source, re.M):
        continue
    source, name = re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M), f"cell {cell['id']}"
    # what asks for a function's source finds it
    linecache.cache[name] = len(source), None, source.splitlines(True), name
    try:
        exec(compile(source, name, "exec"), globals())
    except BaseException:
        print(source)
        raise
"""


def source_copy(folder):
    "The files from which the package is built, and no leftovers of earlier builds."
    for name in (
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "settings.ini",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "ecgmm", folder / "ecgmm", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(words, cwd, log):
    "Whether a command succeeds; what it says goes to the log."
    start, env = (
        time.time(),
        {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
    )
    done = subprocess.run(
        [str(w) for w in words],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log.write(f"$ {' '.join(map(str, words))[:200]}\n{done.stdout}\n")
    return done.returncode == 0, time.time() - start, done.stdout[-2000:]


def install(which, torch, package, folder, log):
    "An environment with the package and its requirements; its folder of programs."
    wanted = pins(which) | ({"torch": torch} if torch else {})
    (folder / "constraints.txt").write_text(
        "".join(f"{name}=={version}\n" for name, version in wanted.items())
    )
    programs = folder / "venv" / "bin"
    (folder / "source").mkdir()
    commands = [[sys.executable, "-m", "venv", folder / "venv"]]
    if "torch" in wanted:
        commands.append(
            [
                programs / "python",
                ROOT / "tools" / "install_torch.py",
                "-c",
                folder / "constraints.txt",
            ]
        )
    commands.append(
        [
            programs / "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "-c",
            folder / "constraints.txt",
            package or source_copy(folder / "source"),
        ]
    )
    commands.append([programs / "pip", "freeze"])
    for words in commands:
        fine, _, output = run(words, folder, log)
        if not fine:
            sys.exit(f"{which}: this failed: {' '.join(map(str, words))}\n{output}")
    print(
        f"{which}: "
        + " ".join(
            line
            for line in output.split()
            if line.split("==")[0].lower().replace("_", "-") in pins("lowest")
        ),
        flush=True,
    )
    return programs


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("set", choices=SETS)
    ap.add_argument("--torch", help="its version, instead of the set's")
    ap.add_argument(
        "--folder",
        type=Path,
        help="an empty or new folder for all of it; a temporary one if not given",
    )
    ap.add_argument("--wheel", type=Path, help="a wheel that was built, instead of the sources")
    ap.add_argument("--notebooks", nargs="*", default=NOTEBOOKS)
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (a.folder or Path(temporary)).resolve()
        (folder / "work").mkdir(parents=True)
        failed = []
        with open(folder / "log.txt", "w") as log:
            programs = install(a.set, a.torch, a.wheel, folder, log)
            ways = [
                (line, [programs / line.split()[0], *line.split()[1:]], folder / "work")
                for line in WAY
            ]
            books = [
                (
                    name,
                    [programs / "python", "-c", CELLS, ROOT / "nbs" / f"{name}.ipynb"],
                    folder / "work",
                )
                for name in a.notebooks
            ]
            for name, words, cwd in ways + books:
                fine, seconds, output = run(words, cwd, log)
                print(f"{'passed' if fine else 'FAILED'} {seconds:4.0f} s  {name}", flush=True)
                if not fine:
                    failed.append(name)
                    print(output, flush=True)
    sys.exit(f"{a.set}: {len(failed)} failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
