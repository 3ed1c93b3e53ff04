"""README.md from nbs/index.ipynb, without Quarto.

    python tools/make_readme.py            # write README.md
    python tools/make_readme.py --check    # fail where README.md is not what the notebook gives

Hidden cells and directive lines are left out, text outputs become fenced blocks, pictures become
files in nbs/images.
"""

import argparse
import base64
import hashlib
import posixpath
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
IMAGES = "nbs/images"


def text_of(output):
    "The text of one output, or None."
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else None
    return output.get("data", {}).get("text/plain")


def seen_from_root(markdown):
    "Links and pictures are written as seen from nbs/; the README stands one folder higher."

    def moved(m):
        return m[1] + posixpath.normpath(posixpath.join("nbs", m[2]))

    return re.sub(r"""(\]\(|(?:src|href)=["'])(?!\w+:|[#/])([^\s)"'#]+)""", moved, markdown)


def readme(notebook):
    "README.md's text, and the pictures it shows: path -> bytes."
    parts, pictures = [], {}
    for cell in nbformat.read(notebook, 4).cells:
        directives = (
            set(re.findall(r"^#\|\s*(\w+)", cell.source, re.M))
            if cell.cell_type == "code"
            else set()
        )
        if directives & {"hide", "default_exp"}:
            continue
        if cell.cell_type == "markdown":
            parts.append(seen_from_root(cell.source).strip())
        if cell.cell_type != "code":
            continue
        code = "\n".join(
            line for line in cell.source.splitlines() if not line.startswith("#|")
        ).strip()
        if code and "echo: false" not in cell.source:
            parts.append(f"```python\n{code}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                picture = base64.b64decode(data["image/png"])
                path = f"{IMAGES}/{hashlib.sha256(picture).hexdigest()[:12]}.png"
                pictures[path] = picture
                parts.append(f"![]({path})")
            elif "text/markdown" in data:
                parts.append(data["text/markdown"].strip())
            elif text := (text_of(output) or "").strip("\n"):
                parts.append(f"```\n{text}\n```")
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--check", action="store_true")
    a = ap.parse_args()
    text, pictures = readme(ROOT / "nbs" / "index.ipynb")
    files = {"README.md": text.encode(), **pictures}
    if a.check:
        stale = [
            path
            for path, content in files.items()
            if not (ROOT / path).is_file() or (ROOT / path).read_bytes() != content
        ]
        sys.exit(
            f"not what nbs/index.ipynb gives, run tools/make_readme.py: {', '.join(stale)}"
            if stale
            else 0
        )
    for path, content in files.items():
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_bytes(content)
    print(f"README.md: {len(text.split())} words, {len(pictures)} pictures")


if __name__ == "__main__":
    main()
