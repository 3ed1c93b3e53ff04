"A run that is killed in an epoch and resumed ends with the weights of one never stopped."

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import HANG
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("toy_fit.py")
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
RUN = [sys.executable, str(SCRIPT)]
KIND = ["--noise", "0.2", "--norm"]


def train(weights, *options):
    return subprocess.run(
        [*RUN, str(weights), *options],
        env=ENV,
        check=True,
        capture_output=True,
        text=True,
        timeout=HANG,
    ).stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder / "weights", *KIND, "--folder", str(folder))
    return folder


@pytest.mark.parametrize(
    "killed_at", [3, 25]
)  # before the first checkpoint, and in the third of four epochs
def test_killed_and_resumed(tmp_path, whole, killed_at):
    process = subprocess.Popen(
        [
            *RUN,
            str(tmp_path / "never"),
            *KIND,
            "--kill-at",
            str(killed_at),
            "--folder",
            str(tmp_path / "b"),
        ],
        env=ENV,
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = process.communicate(timeout=HANG)
    assert (
        process.returncode == -signal.SIGKILL
        and said.splitlines()[-1] == f"step {killed_at}"
        and not (tmp_path / "never.0").exists()
    )
    done = tmp_path / "b" / "history.jsonl"
    assert (len(done.read_text().splitlines()) if done.exists() else 0) == killed_at // 10
    (tmp_path / "b").mkdir(exist_ok=True)
    half = tmp_path / "b" / f".checkpoint.safetensors.{socket.gethostname()}.{process.pid}.0.part"
    half.write_bytes(b"half of a checkpoint")  # as a kill while writing leaves it
    steps = [
        line
        for line in train(tmp_path / "resumed", *KIND, "--folder", str(tmp_path / "b")).splitlines()
        if line.startswith("step")
    ]
    assert not half.exists()
    assert steps[0] == f"step {killed_at // 10 * 10}" and steps[-1] == "step 39"
    expected, resumed = load_file(whole / "weights.0"), load_file(tmp_path / "resumed.0")
    assert expected.keys() == resumed.keys() and len(expected) > 15
    for name in expected:
        assert torch.equal(expected[name], resumed[name]), name
    histories = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (folder / "history.jsonl").read_text().splitlines()
        ]
        for folder in (whole, tmp_path / "b")
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 4
