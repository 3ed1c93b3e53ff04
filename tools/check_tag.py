"""Refuse a release whose tag, version, citation and changelog do not agree.

python tools/check_tag.py v0.1.0
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def faults(tag, root=ROOT):
    "What does not agree with the version in settings.ini, as sentences."
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    version = config["DEFAULT"]["version"]
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text("utf-8"), re.M)
    newest = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text("utf-8"), re.M)
    found = {
        "the tag": tag.removeprefix("v"),
        "CITATION.cff": cited[1] if cited else "none",
        "the newest entry of CHANGELOG.md": newest[1] if newest else "none",
    }
    return [
        f"{what} has version {there}, settings.ini has {version}"
        for what, there in found.items()
        if there != version
    ]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit("\n".join(faults(sys.argv[1])) or 0)
