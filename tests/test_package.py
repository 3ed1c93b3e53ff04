"Requirements, versions, and the machinery that installs and tries the package."

import ast
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import colab_cells
import install_torch
import nbformat
import pytest
import versions
import yaml
from conftest import CFG, NOTEBOOKS, ROOT, succeed
from packaging.requirements import Requirement


# ---- requirements

DISTRIBUTIONS = {  # where the module's name is not the distribution's
    "sklearn": "scikit-learn",
    "iterstrat": "iterative-stratification",
    "mpl_toolkits": "matplotlib",
    "yaml": "pyyaml",
    "PIL": "pillow",
}
PROGRAMS = {  # called by make, hooks or tests, and imported nowhere
    "jupyterlab": "jupyter lab",
    "pytest-xdist": "pytest -n",
    "ruff": "ruff",
    "mypy": "mypy",
    "codespell": "codespell",
    "build": "-m build",
}
BOUNDS = {"ghapi"}  # held back for nbdev


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


def imports_of(paths):
    "The distributions that Python files and the code cells of notebooks import."
    names = set()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = nbformat.reads(text, 4).cells
            text = "\n".join(c.source for c in cells if c.cell_type == "code")
            text = re.sub(r"^(\s*)[%!].*", r"\1pass", text, flags=re.M)
        names |= imported(text)
    own = {path.stem for path in paths}
    return {DISTRIBUTIONS.get(name, name).lower() for name in names - own}


def test_runtime_requirements_are_what_is_imported():
    "Nothing is imported that is not declared, and nothing is declared that is not imported."
    assert imports_of(list((ROOT / "ecgmm").glob("*.py"))) == required("requirements")


def test_development_requirements_are_what_is_used():
    "By notebooks, tools and tests, as an import or as a program."
    scripts = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tests").glob("*.py")]
    used = imports_of([*scripts, ROOT / "setup.py", *NOTEBOOKS])
    runtime, development = required("requirements"), required("dev_requirements")
    assert used - {"traps"} <= runtime | development, "imported and not declared"
    unused = development - used - set(PROGRAMS) - BOUNDS
    assert not unused, f"declared and not used: {unused}"
    called = "\n".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("Makefile", ".pre-commit-config.yaml", "tests/test_habits.py")
    )
    assert [name for name, words in PROGRAMS.items() if words not in called] == []


def test_an_undeclared_import_is_found():
    assert imported(
        "import os, yaml.loader\nfrom numpy import x\nfrom . import y\n"
        "def f():\n    import torch.nn as nn\nfrom ecgmm.data import z"
    ) == {"yaml", "numpy", "torch"}


def test_versions_that_are_tried():
    """Every runtime requirement has a lower bound and no upper one.

    Each pin stands within the bounds.
    """
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
    assert succeed(
        sys.executable, ROOT / "tools" / "versions.py", "lowest", cwd=ROOT
    ).splitlines() == [f"{n}=={v}" for n, v in versions.pins("lowest").items()]


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
    return succeed("make", "--no-print-directory", "-n", "-f", ROOT / "Makefile", *words, cwd=ROOT)


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
    succeed("make", "-f", ROOT / "Makefile", "clean", "DEMO=demo", cwd=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"demo", "store", "models", "study", "data"}


def test_demo_and_test_take_the_torch_that_fits(tmp_path):
    "The right PyTorch is chosen before anything that would bring another."
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    for target in ("demo", "test", "docs"):
        said = succeed("make", "--no-print-directory", "-n", target, cwd=tmp_path)
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
    """Each job calls what exists, all Pythons of the metadata are tested, and pages are published
    after the tests."""
    flows = {
        p.name: yaml.safe_load(p.read_text())
        for p in (ROOT / ".github" / "workflows").glob("*.yml")
    }
    jobs = {name: job for flow in flows.values() for name, job in flow["jobs"].items()}
    assert {name: lost for name, job in jobs.items() if (lost := missing(job))} == {}
    assert all(need in jobs for job in jobs.values() for need in job.get("needs", []))
    assert jobs["test"]["strategy"]["matrix"]["python-version"] == CFG["pythons"].split()
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
    tracked = [Path(line) for line in succeed("git", "ls-files", cwd=ROOT).splitlines()]
    found = {
        str(p)
        for p in tracked
        if p.suffix in (".py", ".md", ".ini", ".yml", ".toml", ".txt", ".in", ".sh", "")
        and (ROOT / p).is_file()
        and address.search((ROOT / p).read_text(encoding="utf-8"))
    }
    assert found <= made, f"an address of the repository: {found - made}"
    for path in NOTEBOOKS:
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
    """The installing cell on a machine like Colab.

    A repository to clone, a /content folder, and a pip that notes what it is told.
    """
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
        succeed(*git, "add", ".", cwd=tmp_path)
        succeed(*git, "commit", "-q", "-m", "x", cwd=tmp_path)

    succeed(*git, "init", "-q", cwd=tmp_path)
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
