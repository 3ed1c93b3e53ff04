"""Run a notebook's cells as "Run all" does; the first error ends it.

They run in their order, in one interpreter, in the folder where this was started.

    python -P run_cells.py PACKAGE NOTEBOOK
    python -P run_cells.py PACKAGE NOTEBOOK ... --flagged

PACKAGE is the folder that ecgmm has to come from. With `--flagged` each cell marked `data` or
`cuda` is run after nothing but imports and exported cells, and gives a line of JSON: what it
printed.

Cells marked `slow` or `eval: false` are left out. Those marked `data` or `cuda` are not: where
there are no recordings or no GPU they say so.
"""

import ast
import contextlib
import io
import json
import re
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import ecgmm


class Cell(NamedTuple):
    "A code cell: its id and its source."

    id: str
    source: str


def code_cells(notebook):
    """In their order.

    Read as the JSON that they are, since nbformat takes longer to import than some notebooks to
    run.
    """
    return [
        Cell(c["id"], "".join(c["source"]))
        for c in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    ]


def directives(cell):
    return set(re.findall(r"^#\|\s*(eval: false|\w+)", cell.source, re.M))


def run_all(notebook):
    "Every cell, or an end with status 1, the cell's source and its error."
    from execnb.shell import CaptureShell

    shell, ran = CaptureShell(mpl_format="png"), 0
    shell.showtraceback = shell.showsyntaxerror = lambda *args, **named: (
        None
    )  # it is told once, below, without colours
    for cell in code_cells(notebook):
        if directives(cell) & {"slow", "eval: false"}:
            continue
        outputs = shell.run(cell.source)
        if shell.exc:
            said = ["".join(o.get("text", o.get("traceback", ""))) for o in outputs]
            sys.exit(
                "\n".join(
                    [
                        f"{notebook}: the cell {cell.id} ends in {type(shell.exc).__name__}",
                        cell.source,
                        *said,
                    ]
                )
            )
        ran += 1
    print(f"{ran} cells ran")


def imports(source):
    "The import statements of a cell."
    return ast.unparse(
        ast.Module(
            [n for n in ast.parse(source).body if isinstance(n, (ast.Import, ast.ImportFrom))], []
        )
    )


def flagged(notebook):
    """What the cells marked `data` or `cuda` print and raise, each after the imports and the
    exported cells above it."""
    names = {"__name__": "__main__"}
    for cell in code_cells(notebook):
        marks = directives(cell)
        if marks & {"data", "cuda"}:
            error, out = "", io.StringIO()
            try:
                with contextlib.redirect_stdout(out):
                    exec(cell.source, names)
            except Exception:
                error = traceback.format_exc()
            print(
                json.dumps(
                    dict(notebook=notebook.name, cell=cell.id, said=out.getvalue(), error=error)
                )
            )
        elif not marks & {"slow", "eval: false"}:
            exec(
                cell.source if marks & {"export", "exporti", "exports"} else imports(cell.source),
                names,
            )


def main(package, *words):
    if not Path(ecgmm.__file__).is_relative_to(Path(package).resolve()):
        sys.exit(f"ecgmm has to come from {package}, it comes from {ecgmm.__file__}")
    for notebook in (Path(w) for w in words if w != "--flagged"):
        (flagged if "--flagged" in words else run_all)(notebook)


if __name__ == "__main__":
    main(*sys.argv[1:])
