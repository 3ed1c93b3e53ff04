"""Two CPU processes with half of each batch train as one process with the whole batch does."""

from functools import partial
from pathlib import Path

import torch
from children import run_script
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("toy_fit.py")
run = partial(run_script, SCRIPT)


def weights(path):
    return load_file(path), torch.cat([v.flatten().double() for v in load_file(path).values()])


def test_two_are_as_one(tmp_path):
    run(tmp_path / "one")
    told = run(tmp_path / "two", "--folder", tmp_path / "run", processes=2).stdout
    (names, one), (_, two), (_, other) = (
        weights(tmp_path / "one.0"),
        weights(tmp_path / "two.0"),
        weights(tmp_path / "two.1"),
    )
    assert torch.equal(two, other)  # both processes end with the best epoch's weights
    assert (one - two).abs().max() < 1e-5, (one - two).abs().max()
    assert names["net.0.weight"].abs().max() > 0.1
    lines = [line for line in told.splitlines() if line.startswith("right")]
    assert len(lines) == 2 and lines[0] == lines[1]  # and with the same history
    again = run(tmp_path / "again", "--folder", tmp_path / "run", processes=2)
    assert "step" not in again.stdout  # nothing is left to train
    assert torch.equal(weights(tmp_path / "again.1")[1], two)
    alone = run(
        tmp_path / "alone", "--folder", tmp_path / "run", check=False
    )  # with another number of processes it would be another run
    assert (
        alone.returncode != 0 and "made with processes=2, this run has processes=1" in alone.stderr
    )


def test_one_process_with_a_bad_batch_stops_both(tmp_path):
    failed = run(tmp_path / "never", "--bad-rank", "1", processes=2, check=False)
    assert failed.returncode != 0 and failed.stderr.count("a finite loss is needed") >= 1
    assert not list(tmp_path.iterdir())
