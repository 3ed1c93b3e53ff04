"Model folders that are not as they should be: foreign, half written, changed, too large."

import json
import shutil
import struct
import subprocess
import sys
import zlib

import pytest
import torch
from safetensors.torch import save_file

from ecgmm import EcgmmError
from ecgmm.folder import (
    load_model,
    read_config,
    save_decision,
    save_model,
    weights_digest,
)
from ecgmm.labels import Labels
from ecgmm.models import Classifier

LABELS = Labels.challenge2020().to_dict()
SMALL = {"signal": "xresnet1d_small", "spectrogram": "se_resnet_small"}


def classifier(modality, **more):
    "An untrained classifier and its config."
    config = {"branches": [{"modality": modality, "encoder": SMALL[modality]}], "labels": LABELS}
    config |= more
    torch.manual_seed(0)
    model = Classifier.from_config(config).eval()
    model.branches[modality].front.fit([torch.randn(8, 12, 250)])
    return model, config


def contents(folder):
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}


@pytest.fixture
def saved(tmp_path):
    model, config = classifier("signal", thresholds=[0.5] * 24)
    return save_model(tmp_path / "model", model, config), model, config


def test_the_same_model_is_there_already_and_another_needs_overwrite(tmp_path, saved):
    folder, model, config = saved
    first = contents(folder)
    for overwrite in (False, True):
        save_model(folder, model, config, overwrite=overwrite)
        assert contents(folder) == first  # nothing is written twice
    other = classifier("spectrogram")
    for changed in ((model, config | {"seed": 1}), other):
        with pytest.raises(EcgmmError, match="with another config"):
            save_model(folder, *changed)
        assert contents(folder) == first
    save_decision(folder, {"thresholds": [0.25] * 24})
    save_model(folder, *other, overwrite=True)  # the decision was about the old weights
    assert "decision.json" not in contents(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md", "decision.json"])
def test_a_foreign_folder_of_the_usual_names_is_left_alone(tmp_path, saved, name):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / name).write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(EcgmmError, match="is there already and is not a model of ours"):
            save_model(foreign, *saved[1:], overwrite=overwrite)
    assert {p.name: p.read_text() for p in foreign.iterdir()} == {name: "{}"}


def test_an_unfinished_model_is_not_read_and_the_same_call_ends_it(saved):
    folder, model, config = saved
    marker = folder / "run.json"
    marker.write_text(marker.read_text().replace('"done"', '"begun"'))
    before = contents(folder)

    def decide(folder):
        save_decision(folder, {"thresholds": [0.1] * 24})

    for reads in (load_model, read_config, weights_digest, decide):
        with pytest.raises(EcgmmError, match="model: this model is not finished"):
            reads(folder)
        assert contents(folder) == before
    save_model(folder, model, config)
    assert load_model(folder)[1]["thresholds"] == config["thresholds"]


def test_the_folder_of_a_run_names_the_model_in_it(tmp_path, saved):
    marker = (saved[0] / "run.json").read_text()
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(saved[0], run / "model")
    for kind in ("a classifier", "an encoder", "a store"):
        (run / "run.json").write_text(marker.replace('"model"', f'"{kind.split()[1]}"'))
        with pytest.raises(EcgmmError) as error:
            load_model(run)
        assert f"a model is needed, this is {kind}: its model is {run / 'model'}" in str(
            error.value
        )
    (run / "run.json").unlink()
    with pytest.raises(EcgmmError, match="has no config.json: its model is"):
        load_model(run)


DECISION = {"thresholds": [0.5] * 24, "calibration": {"kind": "none"}}


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d["decision"]["thresholds"].__setitem__(0, 0.4), "'thresholds' was changed"),
        (lambda d: d["decision"].pop("calibration"), "'calibration' was changed"),
        (lambda d: d["decision"].update(note="mine"), "'note' was changed"),
        (lambda d: d.pop("checksums"), "was changed after it was saved"),
        (lambda d: d.update(weights="0" * 24), "this decision belongs to other weights"),
        (lambda d: d["decision"].update(branches=[]), "'branches' belongs to the model"),
        (lambda d: d["decision"].update(thresholds=[0.5]), "24 finite thresholds are needed"),
        (lambda d: d.update(decision=[]), "a dictionary with thresholds"),
        (lambda d: d.update(format="another"), "is no decision of ecgmm"),
    ],
)
def test_a_decision_changed_by_hand_is_an_error_for_every_reader(saved, change, words):
    file = save_decision(saved[0], DECISION)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    for reads in (load_model, read_config):
        with pytest.raises(EcgmmError, match=words):
            reads(saved[0])


def test_a_file_that_is_no_decision_and_a_card_of_a_person_stay(saved):
    folder = saved[0]
    file = folder / "decision.json"
    file.write_text("{not json")
    with pytest.raises(EcgmmError, match="decision.json is not a JSON file"):
        load_model(folder)
    file.write_text('{"format": "theirs"}')
    with pytest.raises(EcgmmError, match="is there already and was not made by this command"):
        save_decision(folder, DECISION)
    assert file.read_text() == '{"format": "theirs"}'
    file.unlink()
    (folder / "README.md").write_text("# Our own words\n")
    save_decision(folder, DECISION)
    assert (folder / "README.md").read_text() == "# Our own words\n"
    with pytest.raises(EcgmmError, match="nowhere.json: No such file"):
        load_model(folder, decision=folder / "nowhere.json")


def test_files_that_cannot_be_read(tmp_path, saved):
    folder, model, config = saved
    file, weights = folder / "config.json", folder / "model.safetensors"
    kept = file.read_bytes()
    file.write_bytes(b"\xef\xbb\xbf" + kept)  # a byte order mark, as some editors save a text
    assert load_model(folder)[1]["labels"] == LABELS
    file.write_bytes(kept.decode().encode("utf-16"))
    with pytest.raises(EcgmmError, match="save it as text in UTF-8"):
        load_model(folder)
    for text in ("{not json", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(EcgmmError, match="is not a JSON file"):
            load_model(folder)
    file.write_bytes(kept)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(EcgmmError, match="model.safetensors cannot be read"):
        load_model(folder)
    save_file(model.state_dict(), weights)
    with pytest.raises(EcgmmError, match="it carries no checksums, so it is not of ecgmm"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(EcgmmError, match="has no model.safetensors"):
        load_model(folder)
    with pytest.raises(EcgmmError, match="nowhere has no config.json"):
        load_model(tmp_path / "nowhere")


def test_what_is_not_to_be_saved(tmp_path, saved):
    _, model, config = saved
    new = tmp_path / "new"
    with pytest.raises(EcgmmError, match="'branches.signal.front.mean' is not finite"):
        save_model(new, Classifier.from_config(config), config)
    wrong = [
        ({"auroc": float("nan")}, "plain JSON without NaN"),
        ({"fs": 500}, "the field 'fs' must be 100, got 500"),
        ({"labels": None}, "the field 'labels': this does not describe labels"),
        ({"thresholds": [0.5] * 23}, "24 finite thresholds"),
        ({"join": "gate"}, "'join.gate.bias' is missing"),
    ]
    window = "the field 'window' must be a whole number from 25 to 6000"
    wrong += [({"window": w}, window) for w in (10**12, 24, 250.0, None, True)]
    branch = config["branches"][0] | {"width": 16}
    wrong.append(({"branches": [branch]}, "residual.0.0.weight' must be"))
    for change, words in wrong:
        with pytest.raises(EcgmmError, match=words):
            save_model(new, model, config | change)
    assert not new.exists()


def stranger(folder, config, asks, numbers=1, text=None):
    "A config that asks for something, and a file that announces numbers without having them."
    folder.mkdir()
    config = config | {"branches": [{"modality": "spectrogram", "encoder": "se_resnet34"} | asks]}
    (folder / "config.json").write_text(text or json.dumps(config))
    crc = {k: zlib.crc32(json.dumps(v, sort_keys=True).encode()) for k, v in config.items()}
    sums = {"config": crc, "tensors": {"x": 0}}
    tensor = {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}
    meta = {"ecgmm": json.dumps(sums)}
    header = json.dumps({"__metadata__": meta, "x": tensor}).encode()
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        f.truncate(8 + len(header) + 4 * numbers)
    return folder


MEASURED = """
import os, resource, sys
from ecgmm.folder import load_model
for folder in sys.argv[1:]:
    if os.fork():  # a process for each, with a peak of its own
        os.wait()
        continue
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_model(folder)
        message = "loaded"
    except ValueError as error:
        message = str(error)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    # a compiler of torch's, which "meta" may bring along, takes seconds to import
    fine = more < 0.5 and "sympy" not in sys.modules
    print(f"{fine}: {more:.1f} GiB more, {message}", flush=True)
    os._exit(0)
"""


def test_a_folder_that_asks_for_much_costs_little(tmp_path, saved):
    "Refused within half a GiB, whatever it asks for."
    config = read_config(saved[0])
    strangers = {
        "together at most 64": dict(asks=dict(width=256, layers=[64] * 4)),
        "four numbers of blocks": dict(asks=dict(layers=[10**9] * 4)),
        "an even width from 2 to 256": dict(asks=dict(width=10**9)),
        "at most 33,554,432 numbers": dict(asks=dict(width=256, layers=[1, 1, 1, 8])),
        "are more than any model has": dict(asks={}, numbers=3 << 28),
        "residual.0.0.weight' is missing": dict(asks={}, numbers=1 << 25),
        "has more than 4,194,304 bytes": dict(asks={}, text='{"a": [' + "{}," * (4 << 20) + "{}]}"),
    }
    folders = [
        stranger(tmp_path / f"stranger{k}", config, **asks)
        for k, asks in enumerate(strangers.values())
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, folders)], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(strangers), done.stderr
    for needed, line in zip(strangers, lines, strict=True):
        assert line.startswith("True") and needed in line, (needed, line, done.stderr)
