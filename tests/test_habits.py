"How the repository is written and kept: format, lint, types, spelling, forms, releases."

import ast
import re
import shutil
import sys

import check_tag
import large_files
import pytest
import yaml
from conftest import BIN, CFG, NOTEBOOKS, ROOT, is_long, run

WRITTEN = ["nbs", "tests", "tools", "setup.py"]  # by people; ecgmm/*.py is made from nbs
SCRIPTS = [*sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "tools").glob("*.py"))]


# ---- what `make check` does


def test_format():
    status, output = run(BIN / "ruff", "format", "--no-cache", "--check", *WRITTEN)
    assert status == 0, f"run `make check`:\n{output}"


def test_lint():
    options = ("--no-cache", "--output-format", "concise")
    status, output = run(BIN / "ruff", "check", *options, *WRITTEN, "ecgmm")
    assert status == 0, output


def test_types():
    "Types agree in the package, the tools and the tests; pyproject.toml says how strictly."
    status, output = run(BIN / "mypy", "--cache-dir", "/dev/null")
    assert status == 0, output


def test_spelling():
    status, output = run(BIN / "codespell")
    assert status == 0, output


def nodes(source):
    "The functions of a source: name -> number of syntax nodes."
    return {
        f.name: sum(1 for _ in ast.walk(f))
        for f in ast.walk(ast.parse(source))
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_size(path):
    "No line above 100 columns, no function above 500 syntax nodes."
    source = path.read_text(encoding="utf-8")
    assert [k for k, line in enumerate(source.splitlines(), 1) if len(line) > 100] == []
    assert [f"{name}: {n}" for name, n in nodes(source).items() if n > 500] == []


def long_lines(source):
    "Lines above 100 columns of a module, other than those that nbdev writes into it."
    made = re.compile(r'"""|# %% |__all__ = ')
    kept = re.sub(r"^__all__ = \[.*?\]$", "", source, flags=re.M | re.S)
    return [line for line in kept.splitlines() if len(line) > 100 and not made.match(line)]


@pytest.mark.parametrize("path", sorted((ROOT / "ecgmm").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_no_exported_line_is_long(path):
    "`ruff format` leaves text as it is, so docstrings, comments and messages are cut by hand."
    assert long_lines(path.read_text(encoding="utf-8")) == []


def test_a_long_line_is_found():
    long = "x" * 101
    source = f'"""{long}"""\n__all__ = ["{long}",\n "{long}"]\n# %% {long}\n# {long}\ny = 1'
    assert long_lines(source) == [f"# {long}"]


def test_the_size_of_a_function_is_found():
    assert nodes("def f():\n    x = 1\n\n\ndef g(): pass") == {"f": 6, "g": 3}


# ---- tests


def borrowed(source):
    "Test modules from which a source imports."
    tree = ast.walk(ast.parse(source))
    names = [n.module or "" for n in tree if isinstance(n, ast.ImportFrom)]
    return [name for name in names if name.startswith("test_")]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda p: p.stem)
def test_no_test_module_imports_another(path):
    "What several need stands in conftest, children, patience or run_cells."
    assert borrowed(path.read_text(encoding="utf-8")) == []


def test_a_borrowed_helper_is_found():
    assert borrowed("from test_x import run\nfrom conftest import ROOT") == ["test_x"]


def test_a_unit_test_needs_nothing_else():
    "Run alone, it builds no wheel and runs no notebook."
    one = "tests/test_habits.py::test_a_borrowed_helper_is_found"
    status, output = run(sys.executable, "-m", "pytest", "--setup-plan", "-p", "no:xdist", one)
    assert status == 0 and "wheel" not in output and "test_notebook" not in output, output


def test_quick_trains_and_builds_nothing(request):
    "Whatever takes long, by its unit or by its mark, is left out by `make quick`."
    made = {"built", "about", "model", "stores", "home"}
    for item in request.session.items:
        if made & set(item.fixturenames):
            assert is_long(item), item.nodeid


# ---- pre-commit, forms, releases


def hooks():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    return [(repo["repo"], hook) for repo in config["repos"] for hook in repo["hooks"]]


def test_hooks_fetch_nothing():
    "Each hook is a program that `make` installs, or a tool of ours."
    assert len(hooks()) >= 5
    for repo, hook in hooks():
        program, *words = hook["entry"].split()
        assert (repo, hook["language"]) == ("local", "system"), hook["id"]
        if program == "python":
            assert (ROOT / words[0]).is_file(), words[0]
        else:
            assert (BIN / program).is_file() or shutil.which(program), program


def test_large_files(tmp_path):
    "None is tracked, and one would be found."
    tracked = run("git", "ls-files", "-z")[1].split("\0")
    assert large_files.large([ROOT / name for name in tracked if name]) == []
    (tmp_path / "weights").write_bytes(bytes(large_files.LIMIT + 1))
    assert large_files.large([tmp_path / "weights"]) == [f"{tmp_path / 'weights'}: 1.0 MB"]


def test_issue_forms():
    "A report of a fault names the version, the command and its whole output."
    forms = {
        p.stem: yaml.safe_load(p.read_text(encoding="utf-8"))
        for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    }
    assert forms.pop("config") == {"blank_issues_enabled": False}
    for name, form in forms.items():
        assert form["name"] and form["description"], name
        fields = {field["id"]: field for field in form["body"] if "id" in field}
        assert "`ecgmm --version`" in fields["version"]["attributes"]["description"]
        for field in fields.values():
            assert field["attributes"]["label"] and "required" in field["validations"]
        if name != "idea":
            required = {k for k, field in fields.items() if field["validations"]["required"]}
            assert {"version", "command", "output"} <= required
            assert "whole output" in fields["output"]["attributes"]["description"].lower()


def test_citation():
    "The software, in its version, and the paper that it implements."
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["repository-code"]) == (CFG["version"], CFG["git_url"])
    (paper,) = cited["references"]
    assert paper["title"] in (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper["url"].endswith("2210.06297") and paper["year"] == 2022
    assert paper["authors"][0]["family-names"] == "Phan" and len(paper["authors"]) == 7


def test_a_release_is_built_tested_and_then_published():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    build, publish = flow["jobs"]["build"], flow["jobs"]["publish"]
    commands = [step["run"] for step in build["steps"] if "run" in step]
    assert ["check_tag" in commands[0], "make dist" in commands[1]] == [True, True]
    assert any("--wheel dist/" in line for line in commands[2:])
    assert publish["needs"] == ["build"] and publish["permissions"] == {"id-token": "write"}
    assert "secrets" not in str(flow)  # a trusted publisher needs no password


def test_a_release_of_another_version_is_refused(tmp_path):
    version = CFG["version"]
    assert check_tag.faults(f"v{version}") == []
    assert check_tag.faults("v9.9") == [
        f"the tag has version 9.9, settings.ini has {version}",
    ]
    for name in ("settings.ini", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    text = (tmp_path / "CHANGELOG.md").read_text(encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(re.sub(r"^## \S+", "## 0.0", text, flags=re.M))
    assert len(check_tag.faults(f"v{version}", tmp_path)) == 1


def test_each_extension_has_its_place():
    "CONTRIBUTING's table of extensions names notebooks and registries that exist."
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| an? ([a-z ]+) \| `(\d\d_\w+)` \| `([^`]+)` \|", text, re.M)
    stems = {p.stem: p for p in NOTEBOOKS}
    assert len(rows) == 10
    for what, notebook, line in rows:
        assert notebook in stems, f"{what}: there is no {notebook}"
        registry = re.match(r"[A-Z]+\b", line)
        if registry:
            source = stems[notebook].read_text(encoding="utf-8")
            assert re.search(rf'"{registry[0]}\b[^"]* = ', source), f"{what}: no {registry[0]}"
