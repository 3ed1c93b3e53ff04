"The README's table 'the paper's commands and ours': each command of the right column runs as it stands, small networks and one epoch appended, and means what the paper's options mean."

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from patience import HANG

from ecgmm.folder import load_classifier, load_model
from ecgmm.models import Backbone
from ecgmm.synthetic import synthesize

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ROWS = re.findall(r"^\| (.+) \| `(ecgmm_\w+[^`]*)` \|$", (ROOT / "README.md").read_text(), re.M)
SMALL = {  # what makes each command small; an option given twice counts the second time
    "ecgmm_prepare": "--workers 1",
    "ecgmm_finetune": "--epochs 1 --cpu",
    "ecgmm_fuse": "--epochs 1 --cpu --signal_encoder xresnet1d_small --spectrogram_encoder se_resnet_small",
    "ecgmm_pretrain": "--epochs 1 --cpu",
    "ecgmm_reproduce": "--size small --epochs 1 --pretrain_epochs 1 --models spectrogram --arms scratch --cpu",
    "ecgmm_predict": "--cpu",
    "ecgmm_compare": "--arms scratch,random --modalities spectrogram --tune_epochs 1 --cpu",
    "ecgmm_synthesize": "--n 40",
    "ecgmm_demo": "--n 60 --epochs 1 --pretrain_epochs 1 --folds 0",
}


def small(command):
    "The command with what makes it small."
    name, spectrogram = command.split()[0], "spectrogram" in command
    more = SMALL.get(name, "")
    if name in ("ecgmm_finetune", "ecgmm_pretrain"):
        more += " --encoder " + ("se_resnet_small" if spectrogram else "xresnet1d_small")
    if "--method dino" in command:
        more += " --n_prototypes 128"
    return f"{command} {more}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def folder(tmp_path):
    "A folder in which the commands run one after the other, and a server with a simulated database in the Challenge's layout."
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
    scripts = {
        line.split("=")[0].strip()
        for line in (ROOT / "settings.ini").read_text().split("console_scripts =")[1].splitlines()
        if "=" in line
    }
    assert {command.split()[0] for _, command in ROWS} == scripts


def test_every_row_runs_and_means_what_the_paper_means(folder):
    "All commands in their order, each once; then batch size, rate, fold, gating and the pre-trained files, as the model folders tell."
    assert len(ROWS) == len({command for _, command in ROWS}) > 20
    for _, command in ROWS:
        run(command, folder)
    for theirs, command in ROWS:
        words = command.split()
        option = dict(zip(words[1:], words[2:]))
        if words[0] not in ("ecgmm_finetune", "ecgmm_fuse"):
            continue
        fold = int(option.get("--fold", 0))
        if words[0] == "ecgmm_fuse":
            name = (
                ("gate" if "--gating" in words else "concat")
                + "-pretrained" * ("--pretrained_signal" in words)
                + f"-fold{fold}"
            )
        else:
            name = (
                f"{Path(option['--pretrained']).name}-tuned-fold{fold}"
                if "--pretrained" in option
                else f"{option.get('--modality', 'signal')}-fold{fold}"
            )
        config = json.loads((folder / "models" / name / "model" / "config.json").read_text())
        settings = config["settings"]
        assert (
            settings["batch_size"] == int(option["--batch_size"])
            and settings["lr"] == float(option["--lr"])
            and settings["fold"] == fold
            and settings["windows_per_recording"] == 5
        ), name
        if match := re.search(r"--batch_size (\d+)", theirs):
            assert settings["batch_size"] == 5 * int(match[1])  # their recordings, our windows
        if words[0] == "ecgmm_fuse":
            assert config["join"] == ("gate" if "--gating" in words else "concat")
            if "--pretrained_signal" in words:
                assert {m: p["method"] for m, p in config["pretraining"].items()} == {
                    "signal": "dino",
                    "spectrogram": "dino",
                }
    for method in ("simclr", "byol"):
        _, config = load_model(
            folder / "models" / f"{method}-signal-fold8" / "model", Backbone.from_config
        )
        assert (
            config["pretraining"]["views"] == "paper-pair"
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
    _, gate = load_classifier(
        folder / "models" / "gate-fold0" / "model"
    )  # with the decision that stands beside the weights
    assert (
        gate["choice"]["protocol"] == "held-out"
        and gate["calibration"]["kind"] == "temperature"
        and len(set(gate["thresholds"])) > 1
    )
