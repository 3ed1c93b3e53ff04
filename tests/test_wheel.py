"The package as others get it: source archive, wheel, metadata, and the README's first lines."

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import try_versions
from conftest import CFG, ROOT, SCRIPTS, succeed


# ---- source archive and wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source archive of the package's files alone, and the wheel that pip builds from that
    archive."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "source").mkdir()
    try_versions.source_copy(folder / "source")
    succeed(
        sys.executable,
        "-c",
        f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})",
        cwd=folder / "source",
    )
    (archive,) = folder.glob("*.tar.gz")
    succeed(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        folder,
        archive,
        cwd=folder,
    )
    (wheel,) = folder.glob("*.whl")
    return archive, wheel


def test_archive_and_wheel_hold_the_package(built):
    archive, wheel = built
    package = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "ecgmm").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    with tarfile.open(archive) as f:
        there = {name.split("/", 1)[1] for name in f.getnames() if "/" in name}
    assert (
        package
        | {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
        <= there
    )
    with zipfile.ZipFile(wheel) as f:
        installed = {name for name in f.namelist() if ".dist-info/" not in name}
    assert installed == package and "ecgmm/py.typed" in package


PYTHONS = CFG["pythons"].split()
SMOKE = """
import importlib, sys
from pathlib import Path
import ecgmm
from ecgmm.labels import Labels, code_names
here = Path(ecgmm.__file__).resolve().parent
assert here.is_relative_to(Path(sys.argv[1]).resolve()), here
modules = sorted(p.stem for p in here.glob("[!_]*.py"))
for module in modules:
    assert Path(importlib.import_module(f"ecgmm.{module}").__file__).parent == here
assert Labels.challenge2020().reward.shape == (24, 24) and len(code_names()) > 100
assert (here / "py.typed").is_file()
print(len(modules))
"""


def python_with_requirements(version):
    """A Python of this version on this machine that finds the requirements, and where it finds
    them; a reason if there is none."""
    python = (
        sys.executable
        if f"{sys.version_info[0]}.{sys.version_info[1]}" == version
        else shutil.which(f"python{version}")
    )
    if python is None:
        return None, f"no python{version} on PATH"
    probe = (
        "import sysconfig, torch, numpy, scipy, pandas, matplotlib, sklearn, wfdb, iterstrat, "
        "accelerate, safetensors, tqdm, psutil, tyro; "
        "print(sysconfig.get_path('purelib'))"
    )
    done = subprocess.run(
        [python, "-c", probe],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    if done.returncode:
        output = [
            line
            for line in done.stderr.splitlines()
            if line.strip() and not line.startswith(("Traceback", "  "))
        ]
        return None, f"python{version}: {output[0] if output else 'does not start'}"
    return python, done.stdout.strip()


@pytest.mark.parametrize("version", PYTHONS)
def test_wheel_from_the_archive_works_elsewhere(built, tmp_path, version):
    """Installed into an empty environment, with the requirements of this one, far from the
    repository."""
    python, found = python_with_requirements(version)
    if python is None:
        pytest.skip(found)
    succeed(python, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    site = Path(
        succeed(
            programs / "python",
            "-c",
            "import sysconfig; print(sysconfig.get_path('purelib'))",
            cwd=tmp_path,
        ).strip()
    )
    succeed(
        sys.executable,
        "-m",
        "pip",
        "--python",
        programs / "python",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        built[1],
        cwd=tmp_path,
    )
    (site / "requirements.pth").write_text(
        found + "\n"
    )  # stands behind the environment's own folder
    n = int(succeed(programs / "python", "-c", SMOKE, tmp_path, cwd=tmp_path))
    assert n == len(list((ROOT / "ecgmm").glob("[!_]*.py")))
    succeed(programs / "ecgmm_synthesize", "--n", 12, "--out", "data", cwd=tmp_path)
    succeed(
        programs / "ecgmm_prepare",
        "--data",
        "data",
        "--store",
        "store",
        "--workers",
        1,
        cwd=tmp_path,
    )
    assert (tmp_path / "store" / "records.csv").is_file()
    assert "usage: ecgmm_predict" in succeed(programs / "ecgmm_predict", "--help", cwd=tmp_path)
    assert set(SCRIPTS) == {p.name for p in programs.glob("ecgmm*")}


# ---- metadata


@pytest.fixture(scope="module")
def about(built):
    with zipfile.ZipFile(built[1]) as f:
        return email.message_from_bytes(
            f.read(next(n for n in f.namelist() if n.endswith(".dist-info/METADATA")))
        )


def test_metadata_is_what_an_index_shows(about):
    assert (
        about["Name"] == "ecgmm"
        and about["Version"] == CFG["version"]
        and about["Summary"] == CFG["description"]
        and about["Author"]
        and about["Keywords"]
    )
    assert about["License-Expression"] == "MIT AND BSD-2-Clause AND CC-BY-4.0" and about.get_all(
        "License-File"
    ) == ["LICENSE", "ecgmm/tables/LICENSE"]
    urls = dict(entry.split(", ") for entry in about.get_all("Project-URL"))
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(urls) and all(
        u.startswith((CFG["git_url"], CFG["doc_host"])) for u in urls.values()
    )
    named = [
        c.rsplit(" ", 1)[1]
        for c in about.get_all("Classifier")
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", c)
    ]
    assert (
        named == PYTHONS
        and about["Requires-Python"] == f">={PYTHONS[0]}" == f">={CFG['min_python']}"
    )


def links(markdown):
    "Targets of links and pictures outside of code blocks."
    prose = re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)
    return re.findall(r"""(?:\]\(|src=["']|href=["'])([^\s)"']+)""", prose)


def test_the_description_leads_somewhere_from_anywhere(about):
    "Each link that is relative in README.md is the same file's address here."
    there, here = (
        links(about.get_payload(decode=True).decode()),
        links((ROOT / "README.md").read_text(encoding="utf-8")),
    )
    assert about["Description-Content-Type"] == "text/markdown" and len(there) == len(here) > 20
    relative = [(r, t) for r, t in zip(here, there) if not re.match(r"\w+:|#", r)]
    assert relative and all(re.match(r"https://|#", t) for t in there)
    for path, address in relative:
        assert (ROOT / path.split("#")[0]).exists() and address in (
            f"{CFG['git_url']}/{kind}/{CFG['branch']}/{path}" for kind in ("blob", "raw")
        )


def test_the_ten_lines_are_a_script(tmp_path):
    """As they stand in the README (with fewer recordings), without a guard, where new processes
    would start from the script itself."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$",
        (ROOT / "README.md").read_text(encoding="utf-8").split("## Ten lines")[1].split("\n## ")[0],
        re.M | re.S,
    )
    lines = "\n".join(blocks)
    assert "__name__" not in lines and "n=300" in lines
    (tmp_path / "ten.py").write_text(
        "import multiprocessing\nmultiprocessing.set_start_method('spawn', force=True)\n"
        + lines.replace("n=300", "n=60")
    )
    output = succeed(
        sys.executable, "ten.py", cwd=tmp_path, PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path)
    )
    assert output.count("auroc") == 1, output
