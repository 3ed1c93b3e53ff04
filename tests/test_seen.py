"The same heart on both sides, wherever recordings are compared."

import numpy as np
import pandas as pd
import pytest

from ecgmm import EcgmmError
from ecgmm.data import Recording, read_recording, resample, write_recording
from ecgmm.finetune import finetune
from ecgmm.folder import load_model
from ecgmm.pretrain import allowed_rows, load_pretrained, pretrain
from ecgmm.seen import connected, listing_of, read_seen
from ecgmm.settings import Branch, ClassifierSettings, PretrainSettings, TrainSettings
from ecgmm.store import prepare
from ecgmm.synthetic import synthesize

QUIET = dict(cpu=True, progress=False)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    "A store, and another one with eight held-out recordings of it at 125 Hz under other names."
    folder = tmp_path_factory.mktemp("seen")
    synthesize(folder / "sim", n=100, seed=3)
    store = prepare(folder / "sim", folder / "store", workers=1, progress=False)
    held_out = store.split(fold=0).held_out[:8]
    for i in held_out:
        r = read_recording(folder / "sim" / store.records["path"][i])
        x = resample(r.x, r.fs, 125)
        write_recording(folder / "other" / "clinic", Recording(f"lr-{i}", x, 125))
    other = prepare(folder / "other", folder / "other-store", workers=1, progress=False)
    return folder, store, other, held_out


def test_pretraining_leaves_out_held_out_hearts_at_another_rate(stores):
    _, store, other, held_out = stores
    assert not set(other.records["hash"]) & set(store.records["hash"])
    rows = allowed_rows(store, store.split(fold=0), [other])
    assert len(rows[1]) == 0
    in_train = [k for k in range(2, 10) if not set(held_out) & set(store.split(fold=k).held_out)]
    assert len(allowed_rows(store, store.split(fold=in_train[0]), [other])[1]) == len(other)


def test_an_encoder_that_saw_them_is_refused(stores):
    folder, store, other, _ = stores
    train = TrainSettings(epochs=1, batch_size=4, windows_per_recording=1, lr=1e-3)
    branch = Branch("spectrogram", "se_resnet_small")
    settings = PretrainSettings(branch=branch, probe_every=0, train=train)
    pretrain(other, folder / "leaky", settings, split=other.split(fold=4), **QUIET)
    seen = pd.read_csv(folder / "leaky" / "seen.csv")
    assert seen["name"].str.startswith("lr-").all() and len(seen) > 3
    with pytest.raises(EcgmmError, match="held out here"):
        load_pretrained(folder / "leaky", store, store.split(fold=0))


def test_a_classifier_keeps_the_list_of_what_it_has_seen(stores):
    folder, store, other, held_out = stores
    train = TrainSettings(epochs=1, batch_size=16, windows_per_recording=1)
    settings = ClassifierSettings((Branch("spectrogram", "se_resnet_small"),), train=train)
    split = store.split(fold=0)
    finetune(store, folder / "run", settings, split=split, **QUIET)
    config = load_model(folder / "run" / "model")[1]
    seen = read_seen(folder / "run" / "model", config)
    roles = seen.table["role"].value_counts()
    assert roles.to_dict() == {"train": len(split.train), "tune": len(split.tune)}
    there = connected(listing_of(store), seen)
    assert there[split.train].all() and there[split.tune].all() and not there[split.test].any()
    tuned = np.isin(held_out, split.tune)  # the further store has copies of some of these
    assert connected(listing_of(other), seen).sum() == tuned.sum() > 0
    assert config["trained_positives"] == store.y[split.train].sum(axis=0).tolist()
