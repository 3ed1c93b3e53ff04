"""The sets of versions that the package is tried with, as constraints for pip.

python tools/versions.py lowest     # the lower bounds of settings.ini
python tools/versions.py colab      # what Google Colab ships
python tools/versions.py tested     # constraints.txt: what `make` installs
python tools/versions.py newest     # no constraint at all
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = {"tested": "constraints.txt", "colab": "constraints-colab.txt"}
SETS = ("lowest", "colab", "tested", "newest")


def requirements():
    "Name -> lower bound of each runtime requirement."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    bounds = dict(
        re.fullmatch(r"([\w.-]+)>=([\d.]+)", word).groups()
        for word in config["DEFAULT"]["requirements"].split()
    )
    return bounds


def pins(which):
    "Name -> version of a set."
    if which == "newest":
        return {}
    if which == "lowest":
        return requirements()
    lines = (ROOT / FILES[which]).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


if __name__ == "__main__":
    if sys.argv[1:] not in [[which] for which in SETS]:
        sys.exit(__doc__)
    print("".join(f"{name}=={version}\n" for name, version in pins(sys.argv[1]).items()), end="")
