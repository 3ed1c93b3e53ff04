"""Put the two Colab cells under a notebook's title: a badge, and the cell that installs.

    python tools/colab_cells.py NAME ...      # such as 09_download; `all` for every notebook

The repository's address stands in settings.ini (git_url, branch) and nowhere else: after a move,
change it there and run this.

A notebook that has them gets them brought up to date, so this can be run again at any time. The
installing cell is never run here, so saved outputs that were fresh stay fresh: the notebook's stamp
is renewed.
"""

import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from run_notebooks import stamp

ROOT = Path(__file__).resolve().parents[1]
ID = "colab"  # both cells' ids start with it
INSTALL = """#| hide
#| eval: false
import os, sys


def _run(*words):
    import subprocess

    out = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return subprocess.run(words, text=True, **out)


# Google Colab: get the repository and install its package; run again, it gets what is new
if os.path.isdir("/content"):
    url = "URL"
    home = "HOME"
    os.environ["GIT_TERMINAL_PROMPT"] = "0"
    there = os.path.isdir(f"{home}/.git")
    if there:
        got = _run("git", "-C", home, "pull", "-q", "--ff-only")
    else:
        got = _run("git", "clone", "-q", "--depth", "1", url, home)
    if got.returncode and not there:
        raise RuntimeError(
            f"{url} could not be cloned, so nothing below will run: there is no network, "
            f"or the repository is private or elsewhere. git says: {got.stdout}"
        )
    if got.returncode:
        print(f"{home} stays as it is, what is new could not be pulled: {got.stdout}")
    got = _run(sys.executable, "-m", "pip", "install", "-q", home)
    if got.returncode:
        raise RuntimeError(
            f"{home} could not be installed, so nothing below will run. pip says: {got.stdout}"
        )
    os.chdir(f"{home}/nbs")"""


def cells(name):
    "The sources of the badge and of the installing cell."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    url, branch, lib = (config["DEFAULT"][key] for key in ("git_url", "branch", "lib_name"))
    slug = url.removeprefix("https://github.com/")
    badge = (
        f'<a href="https://colab.research.google.com/github/{slug}/blob/{branch}/nbs/{name}.ipynb">'
        '<img src="https://colab.research.google.com/assets/colab-badge.svg" '
        'alt="Open in Colab"></a>'
    )
    install = INSTALL.replace("URL", url).replace("HOME", f"/content/{lib}")
    return badge, install


def place(nb, name):
    "Bring both cells to their place, right under the title."
    badge, install = cells(name)

    def ours(c):
        return c.source.startswith('<a href="https://colab.research.google.com/') or (
            '"/content"' in c.source and '"clone"' in c.source
        )

    old = [c for c in nb.cells if ours(c)]
    nb.cells = [c for c in nb.cells if not ours(c)]
    title = next(
        k for k, c in enumerate(nb.cells) if c.cell_type == "markdown" and c.source.startswith("# ")
    )
    made = [
        nbformat.v4.new_markdown_cell(badge, id=f"{ID}-badge"),
        nbformat.v4.new_code_cell(install, id=f"{ID}-install"),
    ]
    for c in made:
        c.id = next((o.id for o in old if o.cell_type == c.cell_type), c.id)
    nb.cells[title + 1 : title + 1] = made


def main(names):
    if names == ["all"]:
        names = [path.stem for path in sorted((ROOT / "nbs").glob("*.ipynb"))]
    for name in names:
        path = ROOT / "nbs" / f"{name.removesuffix('.ipynb')}.ipynb"
        nb = nbformat.read(path, 4)
        fresh = nb.metadata.get("ecgmm", {}).get("executed") == stamp(nb)
        place(nb, path.stem)
        if fresh:
            nb.metadata["ecgmm"]["executed"] = stamp(nb)
        nbformat.write(nb, path)
        print(f"{path.name}: badge and installing cell under the title")


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(sys.argv[1:])
