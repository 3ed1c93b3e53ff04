"""Self-supervised methods compare the records of a batch with each other.

Two processes with half of it do as one with all of it.
"""

from pathlib import Path

import pytest
from children import run_script
from safetensors.torch import load_file
from toy_ssl import CASES


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Case -> the tensors that one process left, and those of each of two; and what the two printed."
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    printed = [
        run_script(Path(__file__).with_name("toy_ssl.py"), folder, processes=n).stdout
        for n, folder in zip((1, 2), folders)
    ]
    return {
        c: [load_file(folders[n] / f"{c}.{rank}") for n, rank in ((0, 0), (1, 0), (1, 1))]
        for c in CASES
    }, printed


def furthest(a, b, chosen=lambda name: True):
    """The largest difference between two sets of tensors, over those that are chosen.

    Of a tensor beyond 1 relative to its size.
    """
    assert a.keys() == b.keys() and any(map(chosen, a))
    return max(
        ((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=1)).item() for k in a if chosen(k)
    )


def is_grad(name):
    return name.startswith("grad.")


@pytest.mark.parametrize("case", ["simclr", "simclr_unnamed", "byol", "dino"])
def test_two_are_as_one(runs, case):
    one, first, second = runs[0][case]
    assert (
        furthest(first, second) == 0
    )  # both processes end alike: weights, target or teacher, centre
    assert furthest(one, first) < 1e-5
    assert (
        max(v.abs().max() for k, v in one.items() if is_grad(k)) > 1e-2
    )  # and there was something to compare
    losses = [
        float(v)
        for line in runs[1][0].splitlines()
        if line.startswith(f"{case} ")
        for v in line.split()[1:]
    ]
    assert len(losses) == 4 and losses[-1] != losses[0]


def test_a_gather_without_gradient_is_noticed(runs):
    """The usual all_gather gives the right loss and the wrong gradient.

    A projection does not learn what it is as another process's negative.
    """
    one, first, second = runs[0]["simclr_plain"]
    assert furthest(one, runs[0]["simclr"][0]) == 0  # in one process it is the same
    assert furthest(first, second) == 0
    assert furthest(one, first, is_grad) > 1e-3 and furthest(one, first) > 1e-2
    loss = {case: runs[1][1].split(f"{case} ")[1].split()[0] for case in ("simclr", "simclr_plain")}
    assert loss["simclr"] != loss["simclr_plain"]


def test_the_centre_is_of_all_processes(runs):
    one, first, second = runs[0]["dino"]
    assert one["centre"].abs().max() > 0.05
    for k in one:
        if k == "centre" or k.startswith("teacher."):
            assert (one[k] - first[k]).abs().max() < 1e-6 and (first[k] == second[k]).all(), k
    one, first, second = runs[0]["dino_plain"]  # with a mean of one's own records the centres part
    assert (first["centre"] - second["centre"]).abs().max() > 1e-4 and (
        one["centre"] - first["centre"]
    ).abs().max() > 1e-4


def test_batches_of_two_sizes_are_an_error(runs):
    assert runs[1][1].count("as many rows from each process are needed, got [8, 6]") == 2
    assert "rows from each process" not in runs[1][0]
