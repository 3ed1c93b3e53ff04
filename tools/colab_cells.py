"""Put the two Colab cells under a notebook's title: a badge, and a hidden cell that installs the package on Colab.

    python tools/colab_cells.py NAME ...      # such as 04_download

A notebook that has them gets them brought up to date, so this can be run again at any time. The installing cell is never run
here, so saved outputs that were fresh stay fresh: the notebook's stamp is renewed.
"""
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from run_notebooks import stamp

ROOT = Path(__file__).resolve().parents[1]
ID = "colab"    # both cells' ids start with it


def cells(name):
    "The sources of the badge and of the installing cell."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    url, branch, lib = (config["DEFAULT"][key] for key in ("git_url", "branch", "lib_name"))
    slug = url.removeprefix("https://github.com/")
    badge = (f'<a href="https://colab.research.google.com/github/{slug}/blob/{branch}/nbs/{name}.ipynb">'
             '<img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open in Colab"></a>')
    install = ("#| hide\n#| eval: false\nimport os\n"
               'if os.path.isdir("/content"):  # Google Colab: the repository and its package\n'
               f"    !git clone -q --depth 1 {url} /content/{lib} && pip install -q /content/{lib}\n"
               f"    %cd -q /content/{lib}/nbs")
    return badge, install


def place(nb, name):
    "Bring both cells to their place, right under the title."
    badge, install = cells(name)
    ours = lambda c: c.source.startswith('<a href="https://colab.research.google.com/') or ('"/content"' in c.source and "git clone" in c.source)
    old = [c for c in nb.cells if ours(c)]
    nb.cells = [c for c in nb.cells if not ours(c)]
    title = next(k for k, c in enumerate(nb.cells) if c.cell_type == "markdown" and c.source.startswith("# "))
    made = [nbformat.v4.new_markdown_cell(badge, id=f"{ID}-badge"), nbformat.v4.new_code_cell(install, id=f"{ID}-install")]
    for c in made: c.id = next((o.id for o in old if o.cell_type == c.cell_type), c.id)
    nb.cells[title + 1:title + 1] = made


def main(names):
    for name in names:
        path = ROOT / "nbs" / f"{name.removesuffix('.ipynb')}.ipynb"
        nb = nbformat.read(path, 4)
        fresh = nb.metadata.get("ecgmm", {}).get("executed") == stamp(nb)
        place(nb, path.stem)
        if fresh: nb.metadata["ecgmm"]["executed"] = stamp(nb)
        nbformat.write(nb, path)
        print(f"{path.name}: badge and installing cell under the title")


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1].startswith("-"): sys.exit(__doc__)
    main(sys.argv[1:])
