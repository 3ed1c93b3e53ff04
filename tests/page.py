"""What a browser says about a page: its width, its pictures, its errors; and how it looks.

`python tests/page.py PAGE OUT` writes OUT/1200.png and OUT/400.png.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from patience import HANG

WIDTHS = (1200, 400)  # CSS pixels: a desk and a telephone
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
MEASURE = """<script>
const faults = [];
addEventListener("error", e => faults.push(String(e.message || e.target.outerHTML)), true);
addEventListener("load", () => {
  const page = document.documentElement;
  const wide = [...document.querySelectorAll("body *")].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll"));
  const found = {
    width: innerWidth,
    scrolled: page.scrollWidth,
    silent: [...document.images].filter(i => !i.alt.trim()).length,
    broken: [...document.images].filter(i => !i.naturalWidth).length,
    pictures: document.images.length,
    cut: [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1)
      .map(e => e.textContent.trim().slice(0, 40)),
    wide: wide.slice(0, 5).map(e => e.tagName + " " + e.textContent.slice(0, 40)),
    faults: faults,
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
FRAME = """<!doctype html><pre id="found"></pre>
<script>addEventListener("message", e => found.textContent = e.data)</script>
<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>"""


def browser() -> str | None:
    "A Chromium of this machine, or the one that the environment names."
    return os.environ.get("ECGMM_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def _chromium(*words, cwd):
    "Standard output and errors of a run without a window."
    words = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *words)
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [browser(), f"--user-data-dir={profile}", *words],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=HANG,
            check=True,
        )
    return done.stdout, done.stderr


def measure(page: Path, width: int) -> dict:
    "What a page looks like in a window of a width: see `MEASURE`; and what the console says."
    text = page.read_text().replace("<head>", f"<head>{MEASURE}", 1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "inner.html").write_text(text)
        (Path(folder) / "outer.html").write_text(FRAME.format(width=width))
        address = f"file://{folder}/outer.html"
        words = ("--virtual-time-budget=10000", "--enable-logging=stderr", "--dump-dom", address)
        dom, said = _chromium(*words, cwd=folder)
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found and found[1], f"nothing was measured: {dom[:500]}"
    text = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(text) | dict(console=[x for x in said.splitlines() if "CONSOLE" in x])


def look(page: Path, out: Path) -> None:
    "Pictures of a page at both widths."
    out.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(page, Path(folder) / "inner.html")
            frame = FRAME.format(width=width).replace("900px", "12000px")
            (Path(folder) / "outer.html").write_text(f"<style>body{{margin:0}}</style>{frame}")
            size, file = f"--window-size={max(width, 500)},12000", out.resolve() / f"{width}.png"
            address = f"file://{folder}/outer.html"
            _chromium(size, f"--screenshot={file}", address, cwd=folder)


if __name__ == "__main__":
    look(Path(sys.argv[1]), Path(sys.argv[2]))
