"The package as others get it: source archive, wheel, metadata, requirements, and the machinery that installs and tries it."

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from patience import HANG

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
CFG = CONFIG["DEFAULT"]
sys.path.insert(0, str(ROOT / "tools"))

import colab_cells
import install_torch
import try_versions
import versions


def run(*words, cwd, **env):
    "Standard output of a command that has to succeed; the repository is on no path of it."
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "MAKEFLAGS")
    }
    done = subprocess.run(
        [str(w) for w in words],
        cwd=cwd,
        env=inherited | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}"
    return done.stdout


# ---- source archive and wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A source archive of the package's files alone, and the wheel that pip builds from that archive."
    folder = tmp_path_factory.mktemp("built")
    (folder / "source").mkdir()
    try_versions.source_copy(folder / "source")
    run(
        sys.executable,
        "-c",
        f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})",
        cwd=folder / "source",
    )
    (archive,) = folder.glob("*.tar.gz")
    run(
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
for module in modules: assert Path(importlib.import_module(f"ecgmm.{module}").__file__).parent == here
assert Labels.challenge2020().reward.shape == (24, 24) and len(code_names()) > 100 and (here / "py.typed").is_file()
print(len(modules))
"""


def python_with_requirements(version):
    "A Python of this version on this machine that finds the requirements, and where it finds them; a reason if there is none."
    python = (
        sys.executable
        if f"{sys.version_info[0]}.{sys.version_info[1]}" == version
        else shutil.which(f"python{version}")
    )
    if python is None:
        return None, f"no python{version} on PATH"
    probe = "import sysconfig, torch, numpy, scipy, pandas, matplotlib, sklearn, wfdb, iterstrat, accelerate, safetensors, tqdm, fastcore, psutil; print(sysconfig.get_path('purelib'))"
    done = subprocess.run(
        [python, "-c", probe],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    if done.returncode:
        said = [
            line
            for line in done.stderr.splitlines()
            if line.strip() and not line.startswith(("Traceback", "  "))
        ]
        return None, f"python{version}: {said[0] if said else 'does not start'}"
    return python, done.stdout.strip()


@pytest.mark.parametrize("version", PYTHONS)
def test_wheel_from_the_archive_works_elsewhere(built, tmp_path, version):
    "Installed into an empty environment, with the requirements of this one, far from the repository."
    python, found = python_with_requirements(version)
    if python is None:
        pytest.skip(found)
    run(python, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    site = Path(
        run(
            programs / "python",
            "-c",
            "import sysconfig; print(sysconfig.get_path('purelib'))",
            cwd=tmp_path,
        ).strip()
    )
    run(
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
    n = int(run(programs / "python", "-c", SMOKE, tmp_path, cwd=tmp_path))
    assert n == len(list((ROOT / "ecgmm").glob("[!_]*.py")))
    run(programs / "ecgmm_synthesize", "--n", 12, "--out", "data", cwd=tmp_path)
    run(
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
    assert "usage: ecgmm_predict" in run(programs / "ecgmm_predict", "--help", cwd=tmp_path)
    scripts = {
        line.split("=")[0].strip() for line in CFG["console_scripts"].splitlines() if line.strip()
    }
    assert scripts == {p.name for p in programs.glob("ecgmm_*")}


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
    "As they stand in the README (with fewer recordings), without a guard, where new processes would start from the script itself."
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
    said = run(sys.executable, "ten.py", cwd=tmp_path, PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path))
    assert said.count("auroc") == 1, said


# ---- requirements

DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "iterstrat": "iterative-stratification",
    "mpl_toolkits": "matplotlib",
    "yaml": "pyyaml",
    "ruff": "ruff",
}


def imported(source):
    "The top-level modules that a source imports, other than Python's own and ours."
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"ecgmm", "__main__"}


def required(key):
    return {re.split(r"[<>=!~]", word)[0].lower() for word in CFG[key].split()}


def test_runtime_requirements_are_what_is_imported():
    "Nothing is imported that is not declared, and nothing is declared that is not imported."
    found = set().union(
        *(imported(p.read_text(encoding="utf-8")) for p in (ROOT / "ecgmm").glob("*.py"))
    )
    assert {DISTRIBUTIONS.get(name, name).lower() for name in found} == required("requirements")


def test_tools_and_tests_need_what_is_declared():
    files = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tests").glob("*.py")]
    own = {p.stem for p in files}
    found = set().union(*(imported(p.read_text(encoding="utf-8")) for p in files)) - own
    assert {DISTRIBUTIONS.get(name, name).lower() for name in found} <= required(
        "requirements"
    ) | required("dev_requirements")


def test_an_undeclared_import_is_found():
    assert imported(
        "import os, yaml.loader\nfrom numpy import x\nfrom . import y\ndef f():\n    import torch.nn as nn\nfrom ecgmm.data import z"
    ) == {"yaml", "numpy", "torch"}


def test_versions_that_are_tried():
    "Every runtime requirement has a lower bound and no upper one; each pin stands within the bounds."
    requirements = {r.name: r.specifier for r in map(Requirement, CFG["requirements"].split())}
    assert all([s.operator for s in specifier] == [">="] for specifier in requirements.values())
    for which in versions.SETS:
        for name, version in versions.pins(which).items():
            if name in requirements:
                assert version in requirements[name], (
                    f"{which}: {name} {version} is not {requirements[name]}"
                )
    assert set(versions.pins("lowest")) == set(requirements) and set(versions.pins("colab")) <= set(
        requirements
    ) <= set(versions.pins("tested"))
    assert run(sys.executable, ROOT / "tools" / "versions.py", "lowest", cwd=ROOT).splitlines() == [
        f"{n}=={v}" for n, v in versions.pins("lowest").items()
    ]


def test_nothing_that_colab_ships_is_replaced():
    "Colab's versions meet what the package asks for, so that pip leaves them as they are."
    bounds = {r.name: r.specifier for r in map(Requirement, CFG["requirements"].split())}
    assert not [
        f"{name} {version}"
        for name, version in versions.pins("colab").items()
        if version not in bounds[name]
    ]


def test_the_tested_versions_are_installed():
    "constraints.txt says what the tests ran with."
    wrong = {
        name: (version, metadata.version(name).split("+")[0])
        for name, version in versions.pins("tested").items()
        if metadata.version(name).split("+")[0] != version
    }
    assert not wrong, f"pinned and installed differ: {wrong}"


# ---- a PyTorch that fits the machine


@pytest.mark.parametrize(
    "system, there, gpu, wanted",
    [
        ("Linux", False, False, True),
        ("Linux", True, False, False),
        ("Linux", False, True, False),
        ("Darwin", False, False, False),
    ],
)
def test_who_gets_the_build_for_cpus(system, there, gpu, wanted):
    assert (install_torch.decide(system, there, gpu) == "") == wanted


@pytest.mark.parametrize(
    "has, index, tried, warned",
    [
        (
            "pip",
            "https://x.org/cpu",
            1,
            False,
        ),  # pip's own sources have a build for CPUs: no other address is asked
        ("index", "https://x.org/cpu", 2, False),  # PyTorch's address has it
        ("none", "https://x.org/cpu", 3, True),  # neither: the usual one, with a word on its size
        ("none", "", 2, True),
    ],
)  # no address is to be asked
def test_torch_for_cpus_or_the_usual_one(tmp_path, monkeypatch, capsys, has, index, tried, warned):
    (tmp_path / "c.txt").write_text("numpy==2.0\ntorch==2.13.0\n")
    calls = []

    def install(*words):
        calls.append(words)
        return words[0] == "torch==2.13.0" or has == "pip" or has == "index" and index in words

    monkeypatch.setattr(sys, "argv", ["install_torch", "-c", str(tmp_path / "c.txt")])
    monkeypatch.setenv("TORCH_INDEX", index)
    monkeypatch.setattr(install_torch, "decide", lambda *_: "")
    install_torch.main(install)
    assert (
        len(calls) == tried
        and all(words[0] == "torch==2.13.0+cpu" for words in calls[: tried - warned])
        and index not in calls[0]
    )
    assert ("about 6 GB" in capsys.readouterr().out) == warned


# ---- make, and what runs on other machines


def recipe(*words):
    return run("make", "--no-print-directory", "-n", "-f", ROOT / "Makefile", *words, cwd=ROOT)


def test_clean_takes_no_folder_of_the_user(tmp_path):
    "Whatever variable is given, only names of ours are removed; a demo, a store and models stay."
    variables = set(re.findall(r"\$\((\w+)\)", (ROOT / "Makefile").read_text())) | {"DEMO", "OUT"}
    said = recipe(
        "clean", *(f"{name}=/data/results" for name in sorted(variables - {"MAKE", "CURDIR"}))
    )
    assert "/data/results" not in said
    removed = [word for line in said.splitlines() for word in line.removeprefix("rm -rf").split()]
    assert set(removed) == {".venv", "_docs", "_proc", "build", "dist", "ecgmm.egg-info"}
    for name in (*removed, "demo", "store", "models", "study", "data"):
        (tmp_path / name).mkdir()
    run("make", "-f", ROOT / "Makefile", "clean", "DEMO=demo", cwd=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"demo", "store", "models", "study", "data"}


def test_demo_and_test_take_the_torch_that_fits(tmp_path):
    "The right PyTorch is chosen before anything that would bring another."
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    for target in ("demo", "test", "docs"):
        said = run("make", "--no-print-directory", "-n", target, cwd=tmp_path)
        assert 0 < said.index("install_torch.py -c constraints.txt") < said.index("pip install"), (
            said
        )


def targets():
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


def missing(job):
    "What the steps of a job call that is not there."
    lost = []
    for step in job["steps"]:
        words = step.get("run", "").split()
        if words[:1] == ["make"]:
            lost += [w for w in words[1:] if "=" not in w and w not in targets()]
        lost += [
            w for w in words if w.startswith(("tools/", "tests/")) and not (ROOT / w).is_file()
        ]
        if words[:1] not in ([], ["make"], ["python"]):
            lost.append(words[0])
    return lost


def test_workflows():
    "Each job calls what exists, all Pythons of the metadata are tested, and pages are published after the tests."
    flows = {
        p.name: yaml.safe_load(p.read_text())
        for p in (ROOT / ".github" / "workflows").glob("*.yml")
    }
    jobs = {name: job for flow in flows.values() for name, job in flow["jobs"].items()}
    assert {name: lost for name, job in jobs.items() if (lost := missing(job))} == {}
    assert all(need in jobs for job in jobs.values() for need in job.get("needs", []))
    assert jobs["test"]["strategy"]["matrix"]["python-version"] == PYTHONS
    assert {i["set"] for i in jobs["versions"]["strategy"]["matrix"]["include"]} == {
        "lowest",
        "colab",
    }
    publishing = [
        job
        for job in jobs.values()
        if any("deploy-pages" in step.get("uses", "") for step in job["steps"])
    ]
    assert [set(job["needs"]) for job in publishing] == [{"test", "versions"}]
    assert missing(
        {
            "steps": [
                {"run": "make nothing PYTHON=python"},
                {"run": "python tools/none.py"},
                {"run": "curl x"},
            ]
        }
    ) == ["nothing", "tools/none.py", "curl"]


# ---- the repository's address, and Colab


def test_the_address_stands_in_one_place():
    "Every copy outside of settings.ini is generated from it, or checked against it here."
    owner = CFG["git_url"].removeprefix("https://github.com/")
    quarto = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]
    assert (
        quarto["site-url"] == CFG["doc_host"] + CFG["doc_baseurl"]
        and quarto["repo-url"] == CFG["git_url"]
        and quarto["repo-branch"] == CFG["branch"]
    )
    assert (
        [entry["href"] for entry in quarto["navbar"]["right"]] == [CFG["git_url"]]
        and quarto["title"] == CFG["title"]
        and quarto["description"] == CFG["description"]
    )
    made = {
        "settings.ini",
        "_quarto.yml",
        "nbs/_quarto.yml",
        "ecgmm/_modidx.py",
        "README.md",
    }  # a link to _quarto.yml; nbdev's module index; README.md is made of the index
    address = re.compile(
        rf"{re.escape(owner)}\b|{re.escape(CFG['doc_host'].removeprefix('https://'))}"
    )
    tracked = [Path(line) for line in run("git", "ls-files", cwd=ROOT).splitlines()]
    found = {
        str(p)
        for p in tracked
        if p.suffix in (".py", ".md", ".ini", ".yml", ".toml", ".txt", ".in", ".sh", "")
        and (ROOT / p).is_file()
        and address.search((ROOT / p).read_text(encoding="utf-8"))
    }
    assert found <= made, f"an address of the repository: {found - made}"
    for path in (ROOT / "nbs").glob("*.ipynb"):
        others = [
            c.source
            for c in nbformat.read(path, 4).cells
            if c.source not in colab_cells.cells(path.stem)
        ]
        assert not [s for s in others if address.search(s)], (
            f"{path.name}: an address outside the Colab cells"
        )


@pytest.fixture
def colab(tmp_path, monkeypatch):
    "The installing cell on a machine like Colab: a repository to clone, a /content folder, and a pip that notes what it is told."
    origin, content, log = tmp_path / "origin", tmp_path / "content", []
    (origin / "nbs").mkdir(parents=True)
    (origin / "nbs" / "x.txt").write_text("1")
    git = (
        "git",
        "-c",
        "user.name=x",
        "-c",
        "user.email=x@x.org",
        "-c",
        "init.defaultBranch=main",
        "-C",
        origin,
    )

    def commit():
        run(*git, "add", ".", cwd=tmp_path)
        run(*git, "commit", "-q", "-m", "x", cwd=tmp_path)

    run(*git, "init", "-q", cwd=tmp_path)
    commit()
    content.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "1")
    real = subprocess.run

    def pip_or_git(words, **how):
        if "pip" not in words:
            return real(words, **how)
        log.append(words)
        return subprocess.CompletedProcess(words, 0, "")

    monkeypatch.setattr(subprocess, "run", pip_or_git)

    def cell(url=f"file://{origin}"):
        exec(
            colab_cells.cells("00_data")[1]
            .replace("/content", str(content))
            .replace(CFG["git_url"], url),
            {},
        )

    return cell, content / "ecgmm", origin, commit, log


def test_the_colab_cell_runs_twice(colab):
    "A second run gets what is new; where a person changed something, that stays, and is said."
    cell, home, origin, commit, log = colab
    cell()
    assert Path.cwd() == home / "nbs" and len(log) == 1 and log[0][-1] == str(home)
    (origin / "nbs" / "x.txt").write_text("2")
    commit()
    cell()
    assert (home / "nbs" / "x.txt").read_text() == "2" and len(log) == 2


def test_the_colab_cell_leaves_what_a_person_changed(colab, capsys):
    cell, home, origin, commit, log = colab
    cell()
    (home / "nbs" / "x.txt").write_text("mine")
    (origin / "nbs" / "x.txt").write_text("2")
    commit()
    cell()
    assert (
        (home / "nbs" / "x.txt").read_text() == "mine"
        and "stays as it is" in capsys.readouterr().out
        and Path.cwd() == home / "nbs"
    )


def test_the_colab_cell_says_why_it_fails(colab):
    cell, home, *_ = colab
    with pytest.raises(RuntimeError, match="could not be cloned.*private"):
        cell("file:///nowhere/at/all")
    home.mkdir()
    (home / "else").touch()
    with pytest.raises(RuntimeError, match="could not be cloned"):
        cell()  # something else stands there: git's word is handed on
    assert (home / "else").exists()


def test_elsewhere_the_colab_cell_does_nothing(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was run"))
    if not Path("/content").is_dir():
        exec(colab_cells.cells("00_data")[1], {})
