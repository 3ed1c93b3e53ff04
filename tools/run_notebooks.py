"""Run notebooks in place and save their outputs, or check that these belong to the cells.

    python tools/run_notebooks.py [NAME ...]        # run, save, stamp
    python tools/run_notebooks.py --check           # fail where the code changed after the last run

A cell marked `#| eval: false` is not run; one marked `slow`, `data` or `cuda` runs where its flag
is given with `--flags` (`data` is given by itself where real recordings are found). A cell that is
not run keeps its saved outputs. The stamp is a hash of the code cells, kept in the notebook's
metadata.
"""

import argparse
import hashlib
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import clean_nb

from ecgmm.data import real_data

NBS = Path(__file__).resolve().parents[1] / "nbs"
FLAGS = {"slow", "data", "cuda"}


def directives(cell):
    return set(re.findall(r"^#\|\s*(\S+(?: false)?)", cell.source, re.M))


def stamp(nb):
    code = [c.source for c in nb.cells if c.cell_type == "code"]
    return hashlib.sha256("\x00".join(code).encode()).hexdigest()[:16]


def execute(nb, flags):
    "Run the cells of a notebook, but for those whose flag is not among `flags`."

    def skipped(c):
        return "eval: false" in directives(c) or directives(c) & (FLAGS - flags)

    client = NotebookClient(
        nb,
        timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": str(NBS)}},
        coalesce_streams=True,
    )
    os.environ["PYTHONWARNINGS"] = (
        "ignore:IProgress not found"  # tqdm, where no widgets are installed
    )
    os.environ["TQDM_DISABLE"] = "1"  # a bar would be saved with the notebook
    with client.setup_kernel():
        for k, cell in enumerate(nb.cells):
            if cell.cell_type == "code" and not skipped(cell):
                client.execute_cell(cell, k)


def run(path, flags):
    nb, start = nbformat.read(path, 4), time.time()
    execute(nb, flags)
    nb.metadata["ecgmm"] = {"executed": stamp(nb)}
    clean_nb(nb, allowed_metadata_keys=["ecgmm"], clean_ids=True)
    nbformat.write(nb, path)
    print(f"{path.name}: {time.time() - start:.0f} s, {path.stat().st_size // 1024} kB", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument(
        "names", nargs="*", help="notebooks, such as 00_data; all of them if none is given"
    )
    ap.add_argument("--flags", nargs="*", default=[], choices=sorted(FLAGS))
    ap.add_argument("--check", action="store_true")
    a = ap.parse_args()
    paths = [NBS / f"{n.removesuffix('.ipynb')}.ipynb" for n in a.names] or sorted(
        NBS.glob("*.ipynb")
    )
    if not a.check:
        flags = set(a.flags) | ({"data"} if real_data() else set())
        for p in paths:
            run(p, flags)
        return
    stale = []
    for p in paths:
        nb = nbformat.read(p, 4)
        if nb.metadata.get("ecgmm", {}).get("executed") != stamp(nb):
            stale.append(p.name)
    sys.exit(f"stale outputs, run tools/run_notebooks.py on: {', '.join(stale)}" if stale else 0)


if __name__ == "__main__":
    main()
