"""Build the site into _docs with Quarto; without Quarto, prepare its pages in _proc and check them.

    python tools/make_docs.py

Preparing is what nbdev does before Quarto renders: imports and exported cells are run for the
documentation tables, names in backticks become links, hidden cells go. README.md is not touched:
tools/make_readme.py makes it. Nothing is installed.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]
TICKED = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)(?:\(\))?`(?![`\]])")
MENTION = re.compile(r"(?<![\[\w/`.(])`?(\d\d_[a-z]+)`?(?![\w\]/.])")
FENCED = re.compile(r"^```.*?^```", re.M | re.S)


def joined(text):
    return text if isinstance(text, str) else "".join(text or [])


@dataclass
class Page:
    "A prepared page: its address, and its cells by kind."

    name: str  # 00_data.ipynb
    address: str  # data.html
    prose: list[str]  # markdown cells without their fenced blocks
    code: list[
        tuple[str, bool]
    ]  # source of each code cell that is shown, and whether it has output
    tables: str  # what show_doc wrote
    errors: list[str]  # of cells that ended in one

    @classmethod
    def read(cls, path):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        front = "".join(joined(c["source"]) for c in cells if c["cell_type"] == "raw")
        address = re.search(r"^output-file: (\S+)$", front, re.M)
        code = [c for c in cells if c["cell_type"] == "code"]
        outputs = [o for c in code for o in c["outputs"]]
        texts = [joined(o.get("data", {}).get("text/markdown")) for o in outputs]
        return cls(
            name=path.name,
            address=address[1] if address else path.stem + ".html",
            prose=[
                FENCED.sub("", joined(c["source"])) for c in cells if c["cell_type"] == "markdown"
            ],
            code=[
                (joined(c["source"]), bool(c["outputs"]))
                for c in code
                if "#| echo: false" not in joined(c["source"])
            ],
            tables="\n".join(texts).replace("\\_", "_"),
            errors=[
                f"{o['ename']}: {o['evalue'][:100]}" for o in outputs if o["output_type"] == "error"
            ],
        )

    def anchors(self):
        "What can stand behind `#` in a link to this page, as Pandoc names headings."
        text = "\n".join([*self.prose, FENCED.sub("", self.tables)])
        headings = re.findall(r"^#+ +(.+?)\s*$", text, re.M)
        return {anchor(h) for h in headings} | set(re.findall(r"\bid=\"([^\"]+)\"", text))


def anchor(heading):
    "The name that Pandoc gives a heading."
    if own := re.search(r"\{[^}]*#([\w.-]+)[^}]*\}$", heading):
        return own[1]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)|<[^>]*>", r"\1", heading)
    text = re.sub(r"[^\w\s.-]", "", text).lower()
    return re.sub(r"^[^a-z]+", "", "-".join(text.split()))


def sidebar_pages(entry):
    "Every page that a sidebar names, in order."
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, list):
        return [page for part in entry for page in sidebar_pages(part)]
    return sidebar_pages(entry.get("contents", []))


def sidebar_faults(pages, notebooks):
    "Pages that the sidebar lacks, names twice, or names in vain."
    config = yaml.safe_load((pages / "_quarto.yml").read_text(encoding="utf-8"))
    sidebar = sidebar_pages(config["website"]["sidebar"])
    names = [n.name for n in notebooks]
    faults = [f"names {page} twice" for page in set(sidebar) if sidebar.count(page) > 1]
    faults += [
        f"names {page}, which is not there" for page in sidebar if not (pages / page).is_file()
    ]
    faults += [f"does not name {name}" for name in names if name not in sidebar]
    return [f"_quarto.yml: the sidebar {fault}" for fault in faults]


def public_names(notebook):
    "The public functions and classes of a notebook's module, and its upper-case constants."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join(joined(c["source"]) for c in cells)
    module = re.search(r"^#\|\s*default_exp\s+(\w+)", source, re.M)
    if not module:
        return [], []
    text = (get_config().lib_path / f"{module[1]}.py").read_text(encoding="utf-8")
    names = re.findall(r"'(\w+)'", re.search(r"^__all__ = \[(.*?)\]", text, re.M | re.S)[1])
    defined = [n for n in names if re.search(rf"^(def|class) {n}\b", text, re.M)]
    return defined, [n for n in names if re.fullmatch(r"[A-Z][A-Z0-9_]+", n) and n not in defined]


def definitions(source):
    "The names that a cell defines: functions, classes, and what it assigns."
    try:
        tree = ast.parse(re.sub(r"^\s*[%!].*", "", source, flags=re.M))
    except SyntaxError:
        return set()
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names |= {n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)}
    return names


def shown(page):
    "The names whose source stands on a page."
    return set().union(*(definitions(source) for source, _ in page.code))


def name_faults(page, notebook):
    "Public names without documentation, constants whose value nobody sees."
    defined, constants = public_names(notebook)
    for name in defined:
        if not re.search(rf"^#+ (<kbd>class</kbd> )?{name}\b", page.tables, re.M):
            yield f"`{name}` has no documentation on its page"
    visible = shown(page)
    for name in constants:
        printed = any(
            has_output and re.search(rf"\b{name}\b", source) for source, has_output in page.code
        )
        if name not in visible and not printed:
            yield f"`{name}` is a public constant that its page does not show"


def prose_faults(page, stems):
    "Names of ours and of notebooks that stand in prose without a link."
    links = NbdevLookup()
    for text in page.prose:
        for name in TICKED.findall(text):
            if links.doc(name) and f"[`{name}" not in text:
                yield f"`{name}` is a name of ours without a link"
        for stem in MENTION.findall(re.sub(r"\[[^\]]*\]\([^)]*\)", "", text)):
            if stem in stems:
                yield f"{stem} is a notebook without a link"


def link_faults(page, notebook, anchors):
    "Links of a page to files and anchors that are not there."
    config = get_config()
    site = f"{config.doc_host}{config.doc_baseurl}/"
    for text in [*page.prose, page.tables]:
        for target in re.findall(r"\]\(([^)\s]+)", text):
            address, _, place = target.partition("#")
            if target.startswith(site):
                address = address.removeprefix(site)
            elif re.match(r"\w+:", target):
                continue
            elif not (notebook.parent / address).exists():
                yield f"a link to {address}, which is not there"
                continue
            there = anchors.get(address or page.name)
            if place and there is not None and place not in there:
                yield f"a link to {address}#{place}, which is no heading there"


def check(pages, notebooks):
    "What is wrong with the prepared pages, as a list of sentences."
    faults = sidebar_faults(pages, notebooks)
    found = {n: Page.read(pages / n.name) for n in notebooks if (pages / n.name).is_file()}
    faults += [f"{n.name}: no page was prepared" for n in notebooks if n not in found]
    anchors = {}
    for page in found.values():
        anchors[page.name] = anchors[page.address] = page.anchors()
    for notebook, page in found.items():
        own = [f"a cell ends in {error}" for error in page.errors]
        own += name_faults(page, notebook)
        own += prose_faults(page, {n.stem for n in notebooks})
        own += link_faults(page, notebook, anchors)
        faults += [f"{notebook.name}: {fault}" for fault in dict.fromkeys(own)]
    return faults


def main():
    os.chdir(ROOT)
    # plot settings beside imports do no harm here
    warnings.filterwarnings("ignore", "Found cells containing imports")
    notebooks = sorted((ROOT / "nbs").glob("*.ipynb"))
    try:
        pages = proc_nbs(force=True, n_workers=0)
    except Exception as e:
        sys.exit(f"a page could not be prepared: {e}\n{type(e.__cause__).__name__}: {e.__cause__}")
    faults = check(Path(pages), notebooks)
    if faults:
        sys.exit("\n".join([f"{len(faults)} faults in the prepared pages:", *faults]))
    print(f"{len(notebooks)} pages are prepared in {Path(pages).name}, and checked")
    if not shutil.which("quarto"):
        print(
            "Quarto is not installed, so the pages were not rendered: "
            "install it (the quarto-cli package brings it) and run this again"
        )
        return
    subprocess.run(["quarto", "render", "--no-cache"], cwd=pages, check=True)
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(Path(pages) / "_docs", ROOT / "_docs")
    print("the site is in _docs")


if __name__ == "__main__":
    main()
