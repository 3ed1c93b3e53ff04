"""The speed ratios of the notebooks: runs the cells marked `slow` and prints what they say.

    python tools/bench.py [NAME ...]      # all notebooks with such cells, if none is named

Each ratio compares two ways within one run on one machine, so a noisy machine shifts it little.
Nothing is saved.
"""

import platform
import re
import sys

import nbformat
from run_notebooks import NBS, directives, execute

from ecgmm.data import real_data
from ecgmm.results import environment

print("; ".join(f"{k}: {v}" for k, v in environment().items()), platform.system())
flags = {"slow"} | ({"data"} if real_data() else set())
names = sys.argv[1:] or [
    p.stem for p in sorted(NBS.glob("*.ipynb")) if re.search(r"#\| slow", p.read_text())
]
for name in names:
    nb = nbformat.read(NBS / f"{name}.ipynb", 4)
    execute(nb, flags)
    for cell in nb.cells:
        if "slow" in directives(cell):
            for output in cell.outputs:
                print(
                    f"{name}: {output.get('text', '').strip()}"
                    if output.get("text", "").strip()
                    else "",
                    end="\n" if output.get("text") else "",
                    flush=True,
                )
