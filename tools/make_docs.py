"""Build the site into _docs with Quarto; without Quarto, prepare its pages in _proc and check them.

    python tools/make_docs.py

Preparing is what nbdev does before Quarto renders: imports and exported cells are run for the documentation tables, names in
backticks become links, hidden cells go. README.md is not touched: tools/make_readme.py makes it. Nothing is installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]
TICKED = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)(?:\(\))?`(?![`\]])")


def joined(text):
    return text if isinstance(text, str) else "".join(text or [])


def sidebar_pages(entry):
    "Every page that a sidebar names, in order."
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, list):
        return [page for part in entry for page in sidebar_pages(part)]
    return sidebar_pages(entry.get("contents", []))


def check(pages, notebooks):
    "What is wrong with the prepared pages, as a list of sentences."
    wrong, links, lib = [], NbdevLookup(), get_config().lib_path
    sidebar = sidebar_pages(
        yaml.safe_load((pages / "_quarto.yml").read_text())["website"]["sidebar"]
    )
    for page in sidebar:
        if sidebar.count(page) > 1:
            wrong.append(f"_quarto.yml: the sidebar names {page} twice")
        if not (pages / page).is_file():
            wrong.append(f"_quarto.yml: the sidebar names {page}, which is not there")
    for notebook in notebooks:
        name, page = notebook.name, pages / notebook.name
        if name not in sidebar:
            wrong.append(f"_quarto.yml: the sidebar does not name {name}")
        if not page.is_file():
            wrong.append(f"{name}: no page was prepared")
            continue
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        prose = [joined(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        outputs = [o for c in cells for o in c.get("outputs", [])]
        tables = "\n".join(joined(o.get("data", {}).get("text/markdown")) for o in outputs)
        wrong += [
            f"{name}: a cell ends in {o['ename']}: {o['evalue'][:100]}"
            for o in outputs
            if o["output_type"] == "error"
        ]
        module = re.search(
            r"^#\|\s*default_exp\s+(\w+)",
            "\n".join(joined(c["source"]) for c in json.loads(notebook.read_text())["cells"]),
            re.M,
        )
        for symbol in exported(lib / f"{module[1]}.py") if module else []:
            if not re.search(
                rf"^#+ (<kbd>class</kbd> )?{symbol}\b", tables.replace("\\_", "_"), re.M
            ):
                wrong.append(f"{name}: `{symbol}` has no documentation on its page")
        for text in prose:
            text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
            wrong += [
                f"{name}: `{s}` is a name of ours without a link"
                for s in TICKED.findall(text)
                if links.doc(s) and f"[`{s}" not in text
            ]
            wrong += [
                f"{name}: a link to {target}, which is not there"
                for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)", text)
                if not (notebook.parent / target).exists()
            ]
    return wrong


def exported(module):
    "The functions and classes of a generated module's `__all__`."
    text = module.read_text(encoding="utf-8")
    names = re.findall(r"'(\w+)'", re.search(r"^__all__ = \[(.*?)\]", text, re.M | re.S)[1])
    return [n for n in names if re.search(rf"^(def|class) {n}\b", text, re.M)]


def main():
    os.chdir(ROOT)
    warnings.filterwarnings(
        "ignore", "Found cells containing imports"
    )  # plot settings beside imports do no harm here
    notebooks = sorted((ROOT / "nbs").glob("*.ipynb"))
    try:
        pages = proc_nbs(force=True, n_workers=0)
    except Exception as e:
        sys.exit(f"a page could not be prepared: {e}\n{type(e.__cause__).__name__}: {e.__cause__}")
    wrong = check(Path(pages), notebooks)
    if wrong:
        sys.exit("\n".join([f"{len(wrong)} faults in the prepared pages:", *wrong]))
    print(f"{len(notebooks)} pages are prepared in {Path(pages).name}, and checked")
    if not shutil.which("quarto"):
        print(
            "Quarto is not installed, so the pages were not rendered: install it (the quarto-cli package brings it) and run this again"
        )
        return
    subprocess.run(["quarto", "render", "--no-cache"], cwd=pages, check=True)
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(Path(pages) / "_docs", ROOT / "_docs")
    print("the site is in _docs")


if __name__ == "__main__":
    main()
