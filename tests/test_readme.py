"""The README's table 'the paper's commands and ours'.

Each command of the right column runs as it stands, small networks and one epoch appended, and means
what the paper's options mean.
"""

import hashlib
import json
import os
import re
import subprocess
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import BIN, ROOT, SCRIPTS
from patience import HANG

from ecgmm.folder import load_model
from ecgmm.models import Backbone
from ecgmm.settings import Branch
from ecgmm.synthetic import synthesize

ROWS = re.findall(r"^\| (.+) \| `(ecgmm_\w+[^`]*)` \|$", (ROOT / "README.md").read_text(), re.M)
SMALL = {  # what makes each command small
    "ecgmm_prepare": "--workers 1",
    "ecgmm_finetune": "--epochs 1 --cpu",
    "ecgmm_fuse": "--epochs 1 --cpu",
    "ecgmm_pretrain": "--epochs 1 --cpu",
    "ecgmm_reproduce": "--size small --epochs 1 --pretrain_epochs 1 --models spectrogram"
    " --arms scratch --cpu",
    "ecgmm_predict": "--cpu",
    "ecgmm_evaluate": "--cpu",
    "ecgmm_compare": "--arms scratch,random --modalities spectrogram --epochs 1 --cpu",
    "ecgmm_synthesize": "--n 40",
    "ecgmm_demo": "--n 60 --epochs 1 --pretrain_epochs 1 --folds 0",
}
ENCODERS = {"signal": "xresnet1d_small", "spectrogram": "se_resnet_small"}
USUAL = {"ecgmm_finetune": "signal", "ecgmm_fuse": "signal,spectrogram", "ecgmm_pretrain": "signal"}


def options_of(command):
    "The options of a command line with their values; a flag has an empty one."
    words = command.split()[1:]
    assert not words or words[0].startswith("--"), command
    found = {}
    for word in words:
        if word.startswith("--"):
            found[word] = ""
        else:
            found[list(found)[-1]] = word
    return found


def branches_of(command):
    "The branches that a command trains."
    options = options_of(command)
    text = options.get("--branches", options.get("--branch", USUAL[command.split()[0]]))
    return [Branch.parse(part) for part in text.split(",")]


def small(command):
    "The command with small networks and few epochs in the place of the paper's."
    name, options = command.split()[0], options_of(command)
    more = SMALL.get(name, "").split()
    if name in USUAL:
        branches = [
            b if b.pretrained else replace(b, encoder=ENCODERS[b.modality])
            for b in branches_of(command)
        ]
        options["--branch" if name == "ecgmm_pretrain" else "--branches"] = ",".join(
            map(str, branches)
        )
    if options.get("--method") == "dino":
        more += ["--n_prototypes", "128"]
    kept = [word for pair in options.items() if pair[0] not in more for word in pair]
    return " ".join([name, *filter(None, kept), *more])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def folder(tmp_path):
    """A folder in which the commands run one after the other, and a server with a simulated
    database in the Challenge's layout."""
    where = tmp_path
    synthesize(where / "server", n=100, seed=0)
    files = sorted(p for p in (where / "server").rglob("*") if p.is_file())
    sums = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.relative_to(where / 'server')}"
        for p in files
    ]
    (where / "server" / "SHA256SUMS.txt").write_text("\n".join(sums) + "\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=where / "server"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (where / "work").mkdir()
    (where / "work" / "url").write_text(f"http://127.0.0.1:{server.server_address[1]}/")
    yield where / "work"
    server.shutdown()


def run(command, folder):
    more = (
        f" --base_url {(folder / 'url').read_text()}"
        if command.startswith("ecgmm_download")
        else ""
    )
    words = (small(command) + more).split()
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG,
        env=os.environ | {"OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, (
        f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    )


def test_the_table_lists_every_command():
    assert {command.split()[0] for _, command in ROWS} == set(SCRIPTS) - {"ecgmm"}


def check_pretraining_and_thresholds(folder):
    "What the pre-trained encoders saw, and how thresholds were chosen."
    for method in ("simclr", "byol"):
        _, config = load_model(
            folder / "models" / f"{method}-signal-fold8" / "model", Backbone.from_config
        )
        assert (
            config["pretraining"]["method"]["views"] == "paper-pair"
            and config["pretraining"]["n_windows"] == 1
            and config["folds"]["test"] == 8
        )
    paper = json.loads(
        (folder / "models" / "signal-fold0" / "thresholds-paper-auprc.json").read_text()
    )
    assert (
        set(paper["thresholds"]) <= {0.1, 0.2, 0.3, 0.4, 0.5}
        and paper["optimistic"] is True
        and paper["choice"]["best_by"] == "auprc"
    )
    _, gate = load_model(
        folder / "models" / "gate-fold0" / "model"
    )  # with the decision that stands beside the weights
    assert (
        gate["choice"]["protocol"] == "held-out"
        and gate["calibration"]["kind"] == "platt"
        and len(set(gate["thresholds"])) > 1
    )


def test_every_row_runs_and_means_what_the_paper_means(folder):
    """All commands in their order, each once.

    Then batch size, rate, fold, gating and the pre-trained files, as the model folders tell.
    """
    assert len(ROWS) == len({command for _, command in ROWS}) > 20
    for _, command in ROWS:
        run(command, folder)
    for theirs, command in ROWS:
        if command.split()[0] in ("ecgmm_finetune", "ecgmm_fuse"):
            check_classifier(folder, theirs, command)
    check_pretraining_and_thresholds(folder)


def check_classifier(folder, theirs, command):
    "Batch size, learning rate, fold, join and pre-trained encoders, as the model folder has them."
    options, branches = options_of(command), branches_of(command)
    fold, join = int(options.get("--fold", 0)), options.get("--join", "concat")
    pretrained = [Path(b.pretrained).name for b in branches if b.pretrained]
    if len(branches) > 1:
        name = join + "-pretrained" * bool(pretrained)
    else:
        name = f"{pretrained[0]}-tuned" if pretrained else branches[0].modality
    model = folder / "models" / f"{name}-fold{fold}" / "model"
    config = json.loads((model / "config.json").read_text())
    train = config["settings"]["train"]
    assert train["batch_size"] == int(options["--batch_size"]), name
    assert train["lr"] == float(options["--lr"]) and train["windows_per_recording"] == 5
    assert config["folds"]["test"] == fold and config["join"] == join
    if match := re.search(r"--batch_size (\d+)", theirs):
        assert train["batch_size"] == 5 * int(match[1])  # their recordings, our windows
    methods = {m: p["method"]["name"] for m, p in config.get("pretraining", {}).items()}
    expected = {b.modality: Path(b.pretrained).name.split("-")[0] for b in branches if b.pretrained}
    assert methods == expected, name
