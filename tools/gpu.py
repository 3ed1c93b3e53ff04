"""Check what only a GPU can show, and measure how fast it is.

log.txt and results.json go into one small folder.

    tools/gpu.sh [FOLDER] [--cpu] [--only WORD ...]

Every `cuda` cell of the notebooks; each method, each modality and the fusion trained in float32 and
in bfloat16; a training that was stopped and goes on; prediction on GPU and CPU side by side. On a
GPU each group of checks is a process of its own; a check that fails stops no other. With --cpu the
same checks run with tiny settings on the CPU, all but the `cuda` cells.
"""

import argparse
import datetime
import json
import linecache
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 345  # s for all of it on a GPU; what has not begun by then has failed
FULL = dict(
    n=400,
    signal="xresnet1d50",
    spectrogram="se_resnet34",
    windows=320,
    recordings=128,
    prototypes=4096,
    windows_per_recording=5,
)
TINY = dict(
    n=60,
    signal="xresnet1d_small",
    spectrogram="se_resnet_small",
    windows=32,
    recordings=24,
    prototypes=64,
    windows_per_recording=1,
)
MODALITIES, METHODS, PRECISIONS = (
    ("signal", "spectrogram"),
    ("simclr", "byol", "dino"),
    ("no", "bf16"),
)


def cuda_notebooks():
    "The notebooks with a cell that is marked `cuda`."
    return [
        p
        for p in sorted((ROOT / "nbs").glob("*.ipynb"))
        if any(marks(c) & {"cuda"} for c in code_cells(p))
    ]


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def marks(source):
    return set(re.findall(r"^#\|\s*(eval: false|\w+)", source, re.M))


# ---- the checks: each takes the work folder and returns figures; an error is a failure


class Work:
    """Where a group of checks works.

    The database and the store that all share, a folder of its own, and the settings.
    """

    def __init__(self, home, group, cpu):
        from ecgmm.store import Store

        self.data, self.store, self.folder = home / "data", Store(home / "store"), home / group
        self.cpu, self.size = cpu, TINY if cpu else FULL
        self.device = "cpu" if cpu else "cuda"


def run_cuda_cells(path):
    "The cells of a notebook up to its last `cuda` cell; the number of those."
    import __main__

    sources = code_cells(path)
    at = [k for k, s in enumerate(sources) if "cuda" in marks(s)]
    names = vars(__main__)
    names.pop("__file__", None)
    names.setdefault("display", print)
    os.chdir(path.parent)
    for k, source in enumerate(sources[: at[-1] + 1]):
        if marks(source) & {"slow", "data", "eval: false"}:
            continue
        source, name = (
            re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M),
            f"{path.stem}, code cell {k}",
        )
        linecache.cache[name] = (
            len(source),
            None,
            source.splitlines(True),
            name,
        )  # what asks for a function's source finds it
        exec(compile(source, name, "exec"), names)
    return dict(cells=len(at))


def finite(history):
    import math

    assert history and all(math.isfinite(h["loss"]) for h in history), history
    return {"loss": history[-1]["loss"], "first loss": history[0]["loss"]}


def train_method(work, method, modality, precision):
    "Pre-training of two epochs; recordings per second in the second one."
    from ecgmm.pretrain import pretrain
    from ecgmm.settings import METHODS, Branch, PretrainSettings, TrainSettings

    size, split = work.size, work.store.split(fold=0)
    options = {"n_prototypes": size["prototypes"]} if method == "dino" else {}
    training = TrainSettings(
        epochs=2,
        batch_size=size["recordings"],
        windows_per_recording=size["windows_per_recording"],
        lr=2e-3,
        weight_decay=1e-3,
        precision=precision,
    )
    settings = PretrainSettings(
        METHODS[method].settings(**options),
        Branch(modality, size[modality]),
        probe_every=0,
        train=training,
    )
    history = pretrain(
        work.store,
        work.folder / f"{method}-{modality}-{precision}",
        settings,
        split=split,
        cpu=work.cpu,
        progress=False,
    )
    windows = len(split.unlabelled) * size["windows_per_recording"]
    rows = windows // size["recordings"] * size["recordings"]
    return finite(history) | {"recordings per second": rows / history[-1]["seconds"]}


def speed(work, history):
    size, rows = work.size, len(work.store.split(fold=0)["train"])
    return {
        "windows per second": rows
        * size["windows_per_recording"]
        // size["windows"]
        * size["windows"]
        / history[-1]["seconds"]
    }


def train_classifier(work, modality, precision):
    return train(work, modality, [modality], precision)


def train_fusion(work, precision):
    return train(work, "gate", MODALITIES, precision)


def train(work, name, modalities, precision):
    "A classifier of one branch or more, in the folder of a name and a precision."
    from ecgmm.finetune import finetune
    from ecgmm.settings import Branch, ClassifierSettings, TrainSettings

    training = TrainSettings(
        epochs=2,
        batch_size=work.size["windows"],
        windows_per_recording=work.size["windows_per_recording"],
        precision=precision,
    )
    branches = tuple(Branch(m, work.size[m]) for m in modalities)
    result = finetune(
        work.store,
        work.folder / f"{name}-{precision}",
        ClassifierSettings(branches, join="gate", train=training),
        split=work.store.split(fold=0),
        cpu=work.cpu,
        progress=False,
    )
    return finite(result["history"]) | speed(work, result["history"])


def fresh(work, modality):
    "A classifier from scratch, the same at each call, and its batches."
    import torch
    from ecgmm.models import Classifier
    from ecgmm.windows import Batches, Windows

    rows = work.store.split(fold=0)["train"]
    batches = Batches(
        Windows(work.store, rows, device=work.device),
        work.store.y[rows],
        batch_size=work.size["windows"],
        windows_per_recording=work.size["windows_per_recording"],
    )
    torch.manual_seed(0)
    model = Classifier.from_config(
        dict(branches=[dict(modality=modality, encoder=work.size[modality])])
    ).to(work.device)
    model.branches[modality].front.fit(batch["x"] for batch in batches.epoch(0))
    return model, batches


def resume(work, modality):
    """Three epochs at once, and three of which the second was broken off.

    The largest difference of a weight, against how far the weights moved.
    """
    from ecgmm.settings import TrainSettings
    from ecgmm.training import fit
    from ecgmm.windows import accelerator_for

    weights = []
    for name, stop in (("whole", None), ("stopped", 1)):
        for breaks in [stop, None] if stop is not None else [None]:
            model, batches = fresh(work, modality)
            start = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

            def look(model, epoch, breaks=breaks):
                if epoch == breaks:
                    raise KeyboardInterrupt
                return {}

            file = work.folder / f"{modality}-{name}" / "history.jsonl"
            before = file.read_text() if file.is_file() else ""
            try:
                history = fit(
                    model,
                    batches,
                    TrainSettings(epochs=3, lr=1e-3, weight_decay=0),
                    folder=work.folder / f"{modality}-{name}",
                    evaluate=look,
                    accelerator=accelerator_for(work.cpu),
                    progress=False,
                )
            except KeyboardInterrupt:
                assert breaks is not None
        assert (
            len(history) == 3
            and file.read_text().startswith(before)
            and before.count("\n") == (stop or 0)
        )  # the first epochs were not trained again
        weights.append(
            {k: v.detach().cpu() for k, v in model.state_dict().items() if v.is_floating_point()}
        )
    gap = max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0])
    moved = max(float((weights[0][k] - start[k]).abs().max()) for k in weights[0])
    assert gap <= (0 if work.cpu else 0.01 * moved), (
        f"weights differ by {gap:.3g}, they moved by {moved:.3g}"
    )
    return {"largest difference": gap, "largest move": moved}


def predict_both(work, precision):
    "A fusion's probabilities of the whole database, on the device and on the CPU."
    import numpy as np
    import torch
    from ecgmm.predict import predictions

    folder = work.folder / f"gate-{precision}" / "model"
    if not folder.is_dir():
        train_fusion(work, precision)
    start = time.time()
    here = list(predictions(folder, work.data, cpu=work.cpu))
    if not work.cpu:
        torch.cuda.synchronize()
    seconds = time.time() - start
    judged = [p for p in here if not p.reason]
    assert len(judged) > 0.8 * len(here) and all(np.isfinite(p.prob).all() for p in judged), (
        f"{len(judged)} of {len(here)} judged"
    )
    some = [p.path for p in judged[:40]]
    there = list(predictions(folder, some, cpu=True))
    gap = max(float(np.abs(a.prob - b.prob).max()) for a, b in zip(judged, there))
    assert gap < 5e-3, f"probabilities on {work.device} and on the CPU differ by {gap:.3g}"
    return {"recordings per second": len(here) / seconds, "largest difference to the CPU": gap}


def forward_speed(work, modality):
    "Windows per second of a classifier alone."
    import torch

    model, batches = fresh(work, modality)
    x, n = next(iter(batches.epoch(0)))["x"], 3 if work.cpu else 30
    model.eval()
    with torch.no_grad():
        for k in range(n + 2):
            if k == 2:
                start = wait(work)
            model(x)
    return {"windows per second": n * len(x) / (wait(work) - start)}


def wait(work):
    import torch

    if not work.cpu:
        torch.cuda.synchronize()
    return time.time()


def checks(cpu):
    "Group -> [(name, function of a `Work`)]."

    def named(p):
        return {"no": "float32"}.get(p, p)

    groups = (
        {}
        if cpu
        else {
            f"notebook-{p.stem}": [
                (f"the cuda cells of {p.stem}", lambda work, p=p: run_cuda_cells(p))
            ]
            for p in cuda_notebooks()
        }
    )
    for method in METHODS:
        groups[method] = [
            (f"{method}, {m}, {named(p)}", lambda work, a=(method, m, p): train_method(work, *a))
            for m in MODALITIES
            for p in PRECISIONS
        ]
    groups["classifier"] = [
        (f"classifier, {m}, {named(p)}", lambda work, a=(m, p): train_classifier(work, *a))
        for m in MODALITIES
        for p in PRECISIONS
    ]
    groups["fusion"] = [
        (f"fusion with a gate, {named(p)}", lambda work, p=p: train_fusion(work, p))
        for p in PRECISIONS
    ]
    groups["fusion"] += [
        (f"prediction, fusion of {named(p)}", lambda work, p=p: predict_both(work, p))
        for p in PRECISIONS
    ]
    groups["resume"] = [
        (f"stopped and continued, {m}", lambda work, m=m: resume(work, m)) for m in MODALITIES
    ]
    groups["resume"] += [
        (f"forward pass, {m}", lambda work, m=m: forward_speed(work, m)) for m in MODALITIES
    ]
    return groups


# ---- running them


def run_check(name, check, work):
    "One check as a line of the results."
    start, error, figures = time.time(), "", {}
    try:
        figures = check(work)
    except (Exception, SystemExit):
        error = traceback.format_exc()
    return dict(
        name=name,
        passed=not error,
        seconds=round(time.time() - start, 1),
        figures=figures,
        error=error,
    )


def run_groups(groups, home, cpu):
    "The checks of some groups, one line of JSON each; this is what a process does."
    import warnings

    warnings.filterwarnings("ignore")
    for group in groups:
        work = Work(home, group, cpu)
        for name, check in checks(cpu)[group]:
            print("\n@" + json.dumps(run_check(name, check, work)), flush=True)


def text(line):
    "A check for a person's eyes."
    figures = ", ".join(f"{k} {v:.4g}" for k, v in line["figures"].items())
    return (
        f"{'passed' if line['passed'] else 'FAILED'} {line['seconds']:6.1f} s  {line['name']}"
        + (f": {figures}" if figures else "")
        + (f"\n{line['error']}" if line["error"] else "")
    )


def process_lines(groups, names, home, cpu, left):
    "The results of one process; what it did not come to has failed."
    words = [sys.executable, __file__, "--home", home, *["--cpu"] * cpu, "--groups", *groups]
    lines, output = [], "the time was up before it began"
    if left > 5:
        try:
            output = subprocess.run(
                [str(w) for w in words],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=left,
            ).stdout
        except subprocess.TimeoutExpired as e:
            output = (e.stdout or b"").decode(errors="replace") + "\nthe time was up"
        lines = [json.loads(line[1:]) for line in output.splitlines() if line.startswith("@{")]
    done = {line["name"] for line in lines}
    return lines + [
        dict(name=n, passed=False, seconds=0.0, figures={}, error=output[-3000:])
        for n in names
        if n not in done
    ]


def environment(cpu):
    "What the figures belong to."
    import torch

    git = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    device = platform.processor() or platform.machine() if cpu else torch.cuda.get_device_name()
    return dict(
        device=device,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        commit=git.stdout.strip() or os.environ.get("COMMIT", "unknown"),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        cpu=cpu,
    )


def make_store(home, cpu):
    from ecgmm.store import prepare
    from ecgmm.synthetic import synthesize

    synthesize(home / "data", n=(TINY if cpu else FULL)["n"], seed=0)
    prepare(home / "data", home / "store", progress=False)


def parse():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument(
        "folder",
        nargs="?",
        default=os.environ.get("OUT", "gpu-report"),
        help="where log.txt and results.json go",
    )
    ap.add_argument("--cpu", action="store_true", help="tiny settings on the CPU")
    ap.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="groups: simclr, byol, dino, classifier, fusion, resume, notebook-08_views, ...",
    )
    ap.add_argument("--groups", nargs="*", help=argparse.SUPPRESS)
    ap.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    return ap.parse_args()


def all_lines(home, a, start):
    "The results of all groups that are wanted, as they come."
    wanted = {
        group: [name for name, _ in members]
        for group, members in checks(a.cpu).items()
        if not a.only or group in a.only
    }
    # on the CPU nothing can break a process for the others
    for groups in [list(wanted)] if a.cpu else [[group] for group in wanted]:
        left = (600 if a.cpu else LIMIT) - (time.time() - start)
        names = [name for group in groups for name in wanted[group]]
        yield from process_lines(groups, names, home, a.cpu, left)


def write_results(folder, content):
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")


def main():
    a = parse()
    if a.groups:
        return run_groups(a.groups, a.home, a.cpu)
    import torch

    if not a.cpu and not torch.cuda.is_available():
        sys.exit("there is no GPU that PyTorch can use; --cpu runs the checks with tiny settings")
    folder, start, lines = Path(a.folder), time.time(), []
    folder.mkdir(parents=True, exist_ok=True)
    machine = environment(a.cpu)
    with tempfile.TemporaryDirectory() as home, open(folder / "log.txt", "w") as log:

        def say(words):
            print(words, flush=True)
            print(words, file=log, flush=True)

        say(", ".join(f"{k} {v}" for k, v in machine.items()))
        make_store(Path(home), a.cpu)
        for line in all_lines(Path(home), a, start):
            lines.append(line)
            say(text(line))
            seconds = round(time.time() - start, 1)
            write_results(folder, machine | dict(seconds=seconds, checks=lines))
        failed = [line["name"] for line in lines if not line["passed"]]
        passed = f"{len(lines) - len(failed)} of {len(lines)} checks passed"
        say(f"{passed} in {time.time() - start:.0f} s")
    sys.exit(1 if failed or not lines else 0)


if __name__ == "__main__":
    main()
