"The repository's own rules: exported and clean, floors, fresh outputs, imports that do nothing, commands that explain themselves."

import ast
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
from patience import HANG
from run_cells import code_cells, directives

from ecgmm.settings import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = sorted(p.stem for p in (ROOT / "ecgmm").glob("[!_]*.py"))
BIN = Path(sys.executable).parent
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")


def run(*command, cwd=ROOT, **env):
    "Exit status, and stdout and stderr together."
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    return done.returncode, done.stdout + done.stderr


def copy_of_the_tree(folder):
    "A copy of all that nbdev and the tools read."
    for name in ("nbs", "ecgmm", "tools"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    for name in ("settings.ini", "_quarto.yml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


# ---- notebooks and what is made from them


def test_notebooks_are_clean_and_exported(tmp_path):
    copy_of_the_tree(tmp_path)
    for command in ("nbdev_clean", "nbdev_export"):
        status, output = run(BIN / command, cwd=tmp_path)
        assert status == 0, output
    made = [
        p.relative_to(tmp_path)
        for folder, end in (("nbs", "*.ipynb"), ("ecgmm", "*.py"))
        for p in sorted((tmp_path / folder).glob(end))
    ]
    assert {p.name for p in made if p.suffix == ".py"} == {
        p.name for p in (ROOT / "ecgmm").glob("*.py")
    }
    changed = [
        str(p)
        for p in [*made, Path("settings.ini")]
        if (tmp_path / p).read_bytes() != (ROOT / p).read_bytes()
    ]
    assert not changed, f"not clean or not exported, run `make export`: {', '.join(changed)}"


def test_every_module_has_its_notebook():
    said = {
        re.search(
            r"not edit! File to edit: \.\./nbs/(\S+)\.",
            (ROOT / "ecgmm" / f"{m}.py").read_text(),
            re.I,
        )[1]
        for m in MODULES
    }
    assert said <= {p.name for p in NOTEBOOKS} | {p.stem for p in NOTEBOOKS}, (
        f"modules whose notebook is gone: {said}"
    )


def test_readme_is_made_from_the_index():
    status, output = run(sys.executable, "tools/make_readme.py", "--check")
    assert status == 0, output


def test_readme_tool(tmp_path):
    "Hidden cells and directives go, outputs and pictures stay, links are seen from the top level."
    (tmp_path / "tools").mkdir()
    (tmp_path / "nbs").mkdir()
    shutil.copy(ROOT / "tools" / "make_readme.py", tmp_path / "tools")
    new = nbformat.v4
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    cells = [
        new.new_markdown_cell("# ecgmm\n\n> One line."),
        new.new_code_cell("#| hide\nsecret = 1"),
        new.new_markdown_cell(
            '[data](00_data.ipynb#x) [rules](../CONTRIBUTING.md) [web](https://x.org/y) [here](#ecgmm) <img src="images/a.png">'
        ),
        new.new_code_cell(
            "#| data\nprint(6 * 7)",
            outputs=[
                new.new_output("stream", name="stdout", text="42\n"),
                new.new_output("stream", name="stderr", text="noise\n"),
            ],
        ),
        new.new_code_cell(
            "plot()",
            outputs=[
                new.new_output("display_data", data={"image/png": png, "text/plain": "<Figure>"})
            ],
        ),
        new.new_code_cell(
            "#| echo: false\ntable",
            outputs=[
                new.new_output("execute_result", data={"text/markdown": "| a |", "text/plain": "a"})
            ],
        ),
    ]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    tool = (sys.executable, tmp_path / "tools" / "make_readme.py")
    assert run(*tool, "--check")[0] == 1
    assert run(*tool)[0] == 0 and run(*tool, "--check")[0] == 0
    (picture,) = (tmp_path / "nbs" / "images").iterdir()
    assert (
        (tmp_path / "README.md").read_text()
        == f"""# ecgmm

> One line.

[data](nbs/00_data.ipynb#x) [rules](CONTRIBUTING.md) [web](https://x.org/y) [here](#ecgmm) <img src="nbs/images/a.png">

```python
print(6 * 7)
```

```
42
```

```python
plot()
```

![](nbs/images/{picture.name})

| a |
"""
    )
    picture.unlink()
    assert run(*tool, "--check")[0] == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_colab_cells(path):
    "Badge and installing cell stand under the title, as tools/colab_cells.py makes them."
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from colab_cells import cells
    finally:
        sys.path.pop(0)
    sources = [c.source for c in nbformat.read(path, 4).cells]
    title = next(k for k, source in enumerate(sources) if source.startswith("# "))
    assert tuple(sources[title + 1 : title + 3]) == cells(path.stem), (
        f"run tools/colab_cells.py {path.stem}"
    )


def test_saved_outputs_are_fresh():
    status, output = run(sys.executable, "tools/run_notebooks.py", "--check")
    assert status == 0, output


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_saved_outputs_are_whole_and_small(path):
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    errors = [o.ename for c in code for o in c.outputs if o.output_type == "error"]
    assert not errors, f"saved errors: {errors}"
    assert any(c.outputs for c in code), "never run and saved"
    assert path.stat().st_size <= 900 * 1024


def bars(outputs):
    "The progress that was saved with a notebook: a bar as text or as a widget, or a line of a log."
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    return re.findall(
        r"\d+%\|[^\n]*|[^\n]*(?:it/s|s/it|\bleft\b[^\n]*/s|/s, [^\n]* left)[^\n]*", text
    ) + [key for o in outputs for key in o.get("data", {}) if "widget" in key]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_bars_are_saved(path):
    "But for the cells that show `progress` itself."
    assert [
        line
        for c in nbformat.read(path, 4).cells
        if c.cell_type == "code" and "progress(" not in c.source
        for line in bars(c.outputs)
    ] == []


def test_a_saved_bar_is_found():
    new = nbformat.v4.new_output
    for text in (
        "epoch 1:  40%|####      | 4/10 [00:03<00:05,  1.2it/s]",
        "prepare: 40 of 100 recordings, 12.00 recordings/s, 00:05 left",
        "a: 3it [00:04, 1.39s/it]",
    ):
        for output in (
            new("stream", name="stderr", text=f"before\n{text}\n"),
            new("display_data", data={"text/plain": text}),
        ):
            assert len(bars([output])) == 1
    assert bars([new("display_data", data={"application/vnd.jupyter.widget-view+json": {}})]) == [
        "application/vnd.jupyter.widget-view+json"
    ]
    assert (
        bars(
            [
                new(
                    "stream",
                    name="stdout",
                    text="40% of the recordings are left out\n12 records/s\n",
                )
            ]
        )
        == []
    )


def test_prepared_pages(tmp_path):
    "The site up to the point where Quarto takes over: documentation, links, sidebar."
    copy_of_the_tree(tmp_path)
    no_quarto = os.pathsep.join(
        p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "quarto").exists()
    )
    status, output = run(
        sys.executable, "tools/make_docs.py", cwd=tmp_path, PYTHONPATH=str(tmp_path), PATH=no_quarto
    )
    assert status == 0, output[-4000:]
    assert f"{len(NOTEBOOKS)} pages are prepared" in output and "Quarto is not installed" in output

    # the check sees what is missing: a page, a name's documentation, a link, a place in the sidebar
    (tmp_path / "_proc" / "00_data.ipynb").rename(tmp_path / "00_data.ipynb")
    sidebar = tmp_path / "_proc" / "_quarto.yml"
    sidebar.write_text(sidebar.read_text().replace("- 10_models.ipynb", "- nowhere.ipynb"))
    page = tmp_path / "_proc" / "09_download.ipynb"
    nb = nbformat.read(page, 4)
    nb.cells = [c for c in nb.cells if "show_doc(fetch)" not in c.source]
    nb.cells.append(
        nbformat.v4.new_markdown_cell(
            "`read_recording` without a link, and [one](nowhere.md) to nowhere"
        )
    )
    nbformat.write(nb, page)
    probe = "from make_docs import *; os.chdir(ROOT); print('\\n'.join(check(ROOT / '_proc', sorted((ROOT / 'nbs').glob('*.ipynb')))))"
    status, output = run(
        sys.executable,
        "-c",
        probe,
        cwd=tmp_path,
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(tmp_path / "tools")]),
    )
    assert sorted(output.strip().splitlines()) == [
        "00_data.ipynb: no page was prepared",
        "09_download.ipynb: `fetch` has no documentation on its page",
        "09_download.ipynb: `read_recording` is a name of ours without a link",
        "09_download.ipynb: a link to nowhere.md, which is not there",
        "_quarto.yml: the sidebar does not name 10_models.ipynb",
        "_quarto.yml: the sidebar names 00_data.ipynb, which is not there",
        "_quarto.yml: the sidebar names nowhere.ipynb, which is not there",
    ]


# ---- floors


def without_magics(source):
    return re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M)


def imported_modules(source):
    "The modules of the package that a cell imports."
    found = set()
    for node in ast.walk(ast.parse(without_magics(source))):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ecgmm.")}
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ecgmm."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.module == "ecgmm":
            found |= {a.name for a in node.names} - {"__version__", "EcgmmError"}
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"{'.' * node.level}{node.module or ''}")
    return found


def floor_of(paths):
    "Module -> name of its notebook: 04_folds stands below 05_store."
    floors = {}
    for path in paths:
        for cell in nbformat.read(path, 4).cells:
            if m := re.search(r"^#\|\s*default_exp\s+(\w+)", cell.source, re.M):
                floors[m[1]] = path.stem
    return floors


def upward_imports(path, floors):
    "What a notebook imports from itself or from above, or from a module that no notebook makes. On the ground floor several stand in the order of their names."
    if not path.name[:2].isdigit():
        return []  # the index stands above the house
    code = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    return sorted(
        f"{path.stem} imports {m}"
        for m in set().union(*map(imported_modules, code))
        if floors.get(m, "~") >= path.stem
    )


def test_imports_go_downwards():
    floors = floor_of(NOTEBOOKS)
    assert set(floors) == set(MODULES)
    assert not [line for path in NOTEBOOKS for line in upward_imports(path, floors)]
    above = [p.name[:2] for p in NOTEBOOKS if p.name[:2] != "02"]  # runs and settings share one
    assert len(set(above)) == len(above), "two notebooks on one floor"


@pytest.mark.parametrize(
    "line",
    [
        "from ecgmm.models import x",
        "import ecgmm.models as m",
        "from ecgmm import models",
        "def f():\n    from ecgmm.data import x, y\n    import ecgmm.models",
        "if True:\n    !ls\n    %cd x\nfrom ecgmm.models import (x,\n  y)",
        "from ecgmm.upstairs import x",
        "from .models import x",
        "from ecgmm.metrics import x",
    ],
)
def test_an_upward_import_is_found(tmp_path, line):
    book = tmp_path / "07_upstairs.ipynb"
    cells = [
        nbformat.v4.new_code_cell(s)
        for s in ("#| default_exp upstairs", "from ecgmm.data import read_recording", line)
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), book)
    floors = {"data": "00_data", "models": "10_models", **floor_of([book])}
    assert floors["upstairs"] == "07_upstairs" and len(upward_imports(book, floors)) == 1
    nbformat.write(nbformat.v4.new_notebook(cells=cells[:2]), book)
    assert upward_imports(book, floors) == []


# ---- the code


def test_ruff():
    status, output = run(
        BIN / "ruff", "check", "--no-cache", "--select", "F", "ecgmm", "tests", "tools", "setup.py"
    )
    assert status == 0, output


def forbidden(source):
    "What exported code must not do: star imports, loading with holes, and files that run code when they are read."
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
            found.append("star import")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {a.name.split(".")[0] for a in node.names} | {
                (getattr(node, "module", "") or "").split(".")[0]
            }
            found += [
                f"{n} import" for n in names & {"pickle", "joblib", "dill", "cloudpickle", "shelve"}
            ]
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "load"
            and isinstance(node.value, ast.Name)
            and node.value.id == "torch"
        ):
            found.append("torch.load")
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "torch"
            and any(a.name == "load" for a in node.names)
        ):
            found.append("torch.load")
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            if node.arg == "strict" and node.value.value is False:
                found.append("strict=False")
            if node.arg == "allow_pickle" and node.value.value is not False:
                found.append("allow_pickle")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_nothing_forbidden(module):
    assert forbidden((ROOT / "ecgmm" / f"{module}.py").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source, why",
    [
        ("from x import *", "star import"),
        ("net.load_state_dict(s, strict = False)", "strict=False"),
        ("w = torch.load(f)", "torch.load"),
        ("f = torch.load", "torch.load"),
        ("from torch import load", "torch.load"),
        ("import pickle", "pickle import"),
        ("def f():\n    from pickle import loads", "pickle import"),
        ("np.load(f, allow_pickle=True)", "allow_pickle"),
    ],
)
def test_the_forbidden_is_found(source, why):
    assert forbidden(source) == [why]


# ---- no test depends on the clock


def clock_bound(source):
    "What makes a test depend on how busy the machine is: a sleep, a limit that a slow machine can reach, a duration in an assertion."
    found, tree = [], ast.parse(without_magics(source))
    called = lambda node: {
        getattr(n.func, "attr", getattr(n.func, "id", ""))
        for n in ast.walk(node)
        if isinstance(n, ast.Call)
    }
    named = lambda node, kind: {
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, kind)
    }
    short = lambda node: (
        isinstance(node, ast.Constant)
        and isinstance(node.value, (int, float))
        and node.value < HANG
    )
    clocked = set().union(
        *(
            named(n, ast.Store)
            for n in ast.walk(tree)
            if isinstance(n, ast.Assign)
            and called(n.value) & {"time", "monotonic", "perf_counter", "process_time"}
        )
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name == "sleep":
                found.append("sleep")
            if (
                name in ("wait", "join", "communicate")
                and any(map(short, node.args))
                or any(k.arg in ("timeout", "deadline") and short(k.value) for k in node.keywords)
            ):
                found.append(f"{name} with a limit")
        if isinstance(node, ast.Assert) and named(node.test, ast.Load) & clocked:
            found.append("a duration in an assertion")
    return found


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *sorted((ROOT / "tests").glob("*.py"))], ids=lambda p: p.stem
)
def test_no_test_depends_on_the_clock(path):
    "In tests, and in those cells of notebooks that are neither the package nor marked `slow`, which `make bench` runs."
    cells = (
        [path.read_text()]
        if path.suffix == ".py"
        else [
            c.source
            for c in code_cells(path)
            if not directives(c) & {"export", "exports", "slow", "eval: false"}
        ]
    )
    assert [line for source in cells for line in clock_bound(source)] == []


@pytest.mark.parametrize(
    "source, why",
    [
        ("time.sleep(0.1)", "sleep"),
        ("from time import sleep\nwhile not f.exists(): sleep(1)", "sleep"),
        ("p.wait(30)", "wait with a limit"),
        ("thread.join(0.5)", "join with a limit"),
        ("subprocess.run(x, timeout=120)", "run with a limit"),
        ("settings(deadline=200)", "settings with a limit"),
        (
            "start = time.time(); f(); spent = time.time() - start\nassert spent < 3",
            "a duration in an assertion",
        ),
    ],
)
def test_a_test_that_depends_on_the_clock_is_found(source, why):
    assert clock_bound(source) == [why]


def test_a_limit_against_hanging_is_no_wait():
    assert (
        clock_bound(
            "p.wait(); ', '.join(x); subprocess.run(x, timeout=HANG); p.communicate(timeout=3600)"
        )
        == []
    )


# ---- importing does nothing

IMPORTS = r"""
import os, random, socket, subprocess, sys, threading
import numpy, torch
import accelerate, matplotlib.pyplot, pandas, safetensors.torch, scipy.signal, sklearn.metrics, tqdm, wfdb

def probe(module):
    "What importing it did that it should not do."
    seen = []
    def hook(event, args):
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and args[0] != os.devnull: seen.append(f"opens {args[0]} for writing")
        if event in ("os.mkdir", "os.remove", "os.rename", "socket.connect", "subprocess.Popen", "os.system", "os.putenv"): seen.append(f"{event} {args[0]}")
    states = lambda: (random.getstate(), [v.tolist() if hasattr(v, "tolist") else v for v in numpy.random.get_state()], torch.random.get_rng_state().tolist(),
                      torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), threading.active_count(),
                      dict(os.environ), os.getcwd(), matplotlib.get_backend(), dict(matplotlib.rcParams))
    before = states()
    sys.addaudithook(hook)
    __import__(module)
    hooked = list(seen)
    if repr(before) != repr(states()): hooked.append("changes a global state (random generators, threads, environment, settings)")
    if torch.cuda.is_initialized(): hooked.append("starts CUDA")
    if torch.distributed.is_available() and torch.distributed.is_initialized(): hooked.append("starts a process group")
    return hooked

wrong = 0
for module in sys.argv[1:]:
    pid = os.fork()                       # a process in which no part of the package was ever imported
    if pid == 0:
        found = probe(module)
        for line in found: print(f"{module} {line}")
        sys.stdout.flush()
        os._exit(bool(found))
    wrong |= os.waitpid(pid, 0)[1]
sys.exit(bool(wrong))
"""


def test_importing_does_nothing(tmp_path):
    (tmp_path / "noisy.py").write_text("import random\nrandom.random()\nopen('noise', 'w').close()")
    env = dict(
        PYTHONDONTWRITEBYTECODE="1",
        OMP_NUM_THREADS="1",
        PYTHONWARNINGS="ignore::DeprecationWarning",
        PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]),
    )
    status, output = run(
        sys.executable,
        "-c",
        IMPORTS,
        "ecgmm",
        *[f"ecgmm.{m}" for m in MODULES],
        cwd=tmp_path,
        **env,
    )
    assert status == 0, output
    assert os.listdir(tmp_path) == ["noisy.py"]
    status, output = run(
        sys.executable, "-c", IMPORTS, "noisy", cwd=tmp_path, **env
    )  # the probe itself
    assert (
        status == 1
        and "noisy opens noise for writing" in output
        and "noisy changes a global state" in output
    ), output


@pytest.mark.parametrize(
    "module, absent",
    [
        ("data", ["torch", "sklearn", "accelerate"]),
        ("download", ["torch", "sklearn", "accelerate", "numpy", "matplotlib"]),
    ],
)
def test_light_imports(module, absent):
    status, output = run(
        sys.executable,
        "-c",
        f"import sys, ecgmm.{module}; print([m for m in {absent} if m in sys.modules])",
    )
    assert (status, output.strip()) == (0, "[]")


# ---- the commands

SCRIPTS = [
    line.split("=")[0].strip()
    for line in CONFIG["DEFAULT"]["console_scripts"].splitlines()
    if line.strip()
]


def undocumented(text):
    "The options and arguments of a `--help` that carry no words of their own."
    start = text.find("positional arguments:" if "positional arguments:" in text else "options:")
    entries = re.findall(r"^  (\S[^\n]*)((?:\n {6,}[^\n]*)*)", text[start:], re.M)
    silent = []
    for first, rest in entries:
        name, _, words = first.partition("  ")
        words = re.sub(r"\(default: .*?\)", "", f"{words} {rest}".replace("\n", " "))
        if not re.search(r"[a-z]{3}", words):
            silent.append(name.split()[0])
    return silent


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    status, output = run(BIN / script, "--help", COLUMNS="160")
    assert status == 0, output
    assert output.startswith(f"usage: {script}") and "options:" in output
    assert not undocumented(output), (
        f"options without a description: {undocumented(output)}\n{output}"
    )
    description = output.split("\n\n")[1]
    assert len(description.split()) > 4, "the command does not say what it does"


def test_an_undocumented_option_is_found():
    text = "usage: x\n\noptions:\n  -h, --help       show this help\n  --out OUT        (default: x)\n  --long_one LONG\n                   what it is (default: 3)\n  --silent\n  --n N            how many (default: 4)\n"
    assert undocumented(text) == ["--out", "--silent"]


def test_every_command_is_at_home():
    "Each console script points at a function of a module, and each `ecgmm_...` command of a module has its script."
    targets = set()
    for line in filter(str.strip, CONFIG["DEFAULT"]["console_scripts"].splitlines()):
        name, target = (word.strip() for word in line.split("="))
        if target == "ecgmm.settings:main":  # it finds the function by the program's name
            if name == "ecgmm":
                continue
            target = f"{COMMANDS[name.removeprefix('ecgmm_')].module}:{name}"
        targets.add(target)
    defined = {
        f"ecgmm.{m}:{name}"
        for m in MODULES
        for name in re.findall(r"^def (ecgmm_\w+)", (ROOT / "ecgmm" / f"{m}.py").read_text(), re.M)
    }
    assert targets == defined
