"""The repository's own rules.

Exported and clean, floors, fresh outputs, imports that do nothing, commands that explain
themselves.
"""

import ast
import os
import re
import shutil
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import nbformat
import pytest
from colab_cells import cells as colab_cells
from conftest import BIN, MODULES, NOTEBOOKS, ROOT, SCRIPTS, copy_of_the_tree, run
from patience import HANG
from run_cells import code_cells, directives

from ecgmm.settings import COMMANDS, METHODS, Branch
from ecgmm.study import AnswerTable


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
    png = (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwAD"
        "hgGAWjR9awAAAABJRU5ErkJggg=="
    )
    cells = [
        new.new_markdown_cell("# ecgmm\n\n> One line."),
        new.new_code_cell("#| hide\nsecret = 1"),
        new.new_markdown_cell(
            "[data](00_data.ipynb#x) [rules](../CONTRIBUTING.md) [web](https://x.org/y)\n"
            '[here](#ecgmm) <img src="images/a.png">'
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

[data](nbs/00_data.ipynb#x) [rules](CONTRIBUTING.md) [web](https://x.org/y)
[here](#ecgmm) <img src="nbs/images/a.png">

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
    sources = [c.source for c in nbformat.read(path, 4).cells]
    title = next(k for k, source in enumerate(sources) if source.startswith("# "))
    assert tuple(sources[title + 1 : title + 3]) == colab_cells(path.stem), (
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
    "What a notebook imports from itself, from a later one, or from a module that none makes."
    if path.stem not in floors.values():
        return []  # it makes no module and only uses the package
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


def test_a_notebook_that_makes_no_module_imports_what_it_likes(tmp_path):
    book = tmp_path / "07_tour.ipynb"
    cells = [nbformat.v4.new_code_cell("from ecgmm.models import x")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), book)
    assert upward_imports(book, {"models": "10_models", **floor_of([book])}) == []


# ---- the code


def forbidden(source):
    """What exported code must not do.

    Star imports, loading with holes, and files that run code when they are read.
    """
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
    """What makes a test depend on how busy the machine is.

    A sleep, a limit that a slow machine can reach, a duration in an assertion.
    """
    found, tree = [], ast.parse(source)

    def called(node):
        return {
            getattr(n.func, "attr", getattr(n.func, "id", ""))
            for n in ast.walk(node)
            if isinstance(n, ast.Call)
        }

    def named(node, kind):
        return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, kind)}

    def short(node):
        return (
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
    """In tests, and in those cells of notebooks that are neither the package nor marked `slow`,
    which `make bench` runs."""
    cells = (
        [path.read_text()]
        if path.suffix == ".py"
        else [
            without_magics(c.source)
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
import accelerate, matplotlib.pyplot, pandas, safetensors.torch, scipy.signal, sklearn.metrics
import tqdm, wfdb

CHANGES = (
    "os.mkdir", "os.remove", "os.rename", "os.system", "os.putenv", "socket.connect",
    "subprocess.Popen",
)


def states():
    numbers = [v.tolist() if hasattr(v, "tolist") else v for v in numpy.random.get_state()]
    return repr((
        random.getstate(), numbers, torch.random.get_rng_state().tolist(),
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), threading.active_count(),
        dict(os.environ), os.getcwd(), matplotlib.get_backend(), dict(matplotlib.rcParams),
    ))


def probe(module):
    "What importing it did that it should not do."
    seen = []

    def hook(event, args):
        if event == "open" and isinstance(args[2], int) and args[0] != os.devnull:
            if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                seen.append(f"opens {args[0]} for writing")
        if event in CHANGES:
            seen.append(f"{event} {args[0]}")

    before = states()
    sys.addaudithook(hook)
    __import__(module)
    found = list(seen)
    if before != states():
        found.append("changes a global state (random generators, threads, environment, settings)")
    if torch.cuda.is_initialized():
        found.append("starts CUDA")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        found.append("starts a process group")
    return found


wrong = 0
for module in sys.argv[1:]:
    pid = os.fork()  # a process in which no part of the package was ever imported
    if pid == 0:
        found = probe(module)
        for line in found:
            print(f"{module} {line}")
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


def undocumented(text):
    "The options of a `--help` that carry no words of their own, in a frame or without one."
    text = re.sub("[│╭╮╰╯─]", " ", text)
    silent = []
    for first, rest in re.findall(r"^ {1,4}(-\S[^\n]*)((?:\n {6,}\S[^\n]*)*)", text, re.M):
        name, _, words = first.strip().partition("  ")
        words = re.sub(r"\(default: .*?\)", "", f"{words} {rest}".replace("\n", " "))
        if not re.search(r"[a-z]{3}", words):
            silent.append(name.split()[0])
    return silent


@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - {"ecgmm"}))
def test_help(script):
    status, output = run(BIN / script, "--help", COLUMNS="160")
    assert status == 0, output
    assert output.startswith(f"usage: {script}") and re.search(r"\boptions\b", output)
    assert not undocumented(output), (
        f"options without a description: {undocumented(output)}\n{output}"
    )
    description = output.split("\n\n")[1]
    assert len(description.split()) > 4, "the command does not say what it does"


PLAIN = """usage: x

options:
  -h, --help       show this help
  --out OUT        (default: x)
  --long_one LONG
                   what it is (default: 3)
  --silent
  --n N            how many (default: 4)
"""
FRAMED = """usage: x
╭─ options ──────────────────────────────────────────────╮
│ -h, --help           show this help message and exit   │
│ --out PATH           (default: x)                      │
│ --settings.long INT                                    │
│                      what it is (default: 3)           │
│ --silent                                               │
│ --n INT              how many (default: 4)             │
╰────────────────────────────────────────────────────────╯
"""


@pytest.mark.parametrize("text", [PLAIN, FRAMED])
def test_an_undocumented_option_is_found(text):
    assert undocumented(text) == ["--out", "--silent"]


def test_every_command_is_at_home():
    """Each command has its script, and a function of its name in the module that does the work."""
    assert {":".join(target) for target in SCRIPTS.values()} == {"ecgmm.settings:main"}
    assert set(SCRIPTS) == {"ecgmm"} | {f"ecgmm_{name}" for name in COMMANDS}
    defined = {
        (f"ecgmm.{m}", name)
        for m in MODULES
        for name in re.findall(r"^def ecgmm_(\w+)", (ROOT / "ecgmm" / f"{m}.py").read_text(), re.M)
    }
    assert defined == {(command.module, name) for name, command in COMMANDS.items()}


def options_of(settings):
    "The names of all options of a dataclass, with those of the settings in it."
    names = set()
    for field in fields(settings):
        kind = type(field.default)
        nested = is_dataclass(kind) and kind is not Branch  # a branch is one word
        names |= options_of(kind) if nested else {field.name}
    return names


def wrong_options(text):
    "Options that stand behind a command of ours and that it does not have."
    methods = {name for method in METHODS.values() for name in options_of(method.settings)}
    everywhere = {"help", "import", *methods}
    wrong = []
    for name, rest in re.findall(r"\becgmm_(\w+)((?:(?!ecgmm_)[^`)|\n])*)", text):
        known = everywhere | options_of(COMMANDS[name].options) if name in COMMANDS else None
        known = known and known | {f"no_{o}" for o in known}  # a flag that is usually on
        given = [o.replace("-", "_") for o in re.findall(r"(?<!\S)--([a-z_-]+)", rest)]
        if "import" in given:  # a part of one's own may have options of its own
            continue
        wrong += [f"ecgmm_{name} --{o}" for o in given if known is not None and o not in known]
    return wrong


TEXTS = sorted(
    [*(ROOT / "ecgmm").glob("*.py"), *(ROOT / "nbs").glob("*.ipynb"), *ROOT.glob("*.md")]
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_commands_in_texts_have_the_options(path):
    "What messages, pages and examples tell people to type can be typed."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, 4).cells
        # other cells may type a wrong option, or one of a method of their own, to show what happens
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert not wrong_options(text)


def test_a_wrong_option_in_a_text_is_found():
    text = "first (ecgmm_finetune --pretrained x --lr 1) or `ecgmm_predict --model m --lr 1`"
    assert wrong_options(text) == ["ecgmm_finetune --pretrained", "ecgmm_predict --lr"]


def test_ecgmm_lists_the_commands():
    for words in ([], ["--help"]):
        status, output = run(BIN / "ecgmm", *words)
        assert status == 0 and all(f"\n  {name} " in output for name in COMMANDS)
    assert run(BIN / "ecgmm", "--version") == run(sys.executable, "-m", "ecgmm", "--version")
    plain = run(BIN / "ecgmm", "finetune", "--help")
    assert plain == run(BIN / "ecgmm_finetune", "--help") and plain[0] == 0


LIGHT = """
import sys
sys.argv = ["ecgmm_finetune", "--help"]
from ecgmm.settings import main
try: main()
except SystemExit: pass
print(sorted({"torch", "scipy", "pandas", "sklearn", "wfdb", "matplotlib"} & set(sys.modules)))
"""


def test_help_imports_nothing_heavy():
    status, output = run(sys.executable, "-c", LIGHT)
    assert status == 0 and output.splitlines()[-1] == "[]", output


def test_raw_results_have_the_columns_of_today():
    "One reader serves results of every age: their columns were renamed, not their values."
    folder = ROOT / "ecgmm" / "raw_results"
    heads = {f.name: f.read_text().partition("\n")[0].split(",") for f in folder.glob("*.csv")}
    assert [name for name, head in heads.items() if "arm" in head] == []
    for file in sorted(folder.glob("*-real.npz")):
        answers = AnswerTable.load(file.with_suffix(""))
        assert {"model", "pretraining", "fold", "seed", "auroc"} <= set(answers.scores)
        assert set(answers.scores["fold"]) == set(answers.y)
