"The site up to the point where Quarto takes over: the pages show what they teach, and links lead."

import os
import re
import sys
from pathlib import Path

import make_docs
import nbformat
import pytest
import yaml
from conftest import CFG, ROOT, copy_of_the_tree, run

# What readers come to see: the page of a notebook shows the source of these, as `#| exports` does.
TAUGHT = {
    "00_data": ["Recording", "read_recording", "resample"],
    "01_labels": ["Label", "Labels"],
    "02_runs": ["write_whole", "fingerprint"],
    "02_settings": ["Branch", "TrainSettings", "ClassifierSettings", "read_options"],
    "03_synthetic": ["Heart", "Rhythm"],
    "04_copies": ["signature", "correlation", "find_copies"],
    "04_folds": ["make_groups", "make_folds", "Split"],
    "04_record_tables": ["RecordNames", "read_patients", "read_folds"],
    "05_store": ["prepare_samples"],
    "06_windows": ["window_starts"],
    "07_spectrogram": ["Spectrogram"],
    "08_views": ["time_mask", "add_noise", "crop"],
    "10_models": ["XResNet1d", "SEResNet", "Classifier"],
    "11_training": ["fit", "ema_update"],
    "12_metrics": ["challenge_score", "bootstrap_interval"],
    "13_intervals": ["wilson_interval", "auroc_interval", "within_auroc", "holm"],
    "13_probes": ["knn_probabilities"],
    "15_seen": ["joined", "seen_as"],
    "20_simclr": ["nt_xent", "SimCLR"],
    "21_byol": ["byol_loss", "BYOL"],
    "22_dino": ["dino_loss", "DINOHead", "DINO"],
    "24_simulated": ["Pool", "SimulatedBatches", "Simulated"],
    "50_thresholds": ["best_threshold", "coordinate_ascent", "shrunk_thresholds", "calibrate"],
    "51_clinic": ["clinical_table", "net_benefit", "subgroup_table"],
    "51_judgement": ["metric_interval", "judge"],
    "52_ensemble": ["joint_decision", "open_model", "seen_before"],
    "53_evaluate": ["match_labels", "seen_in", "evaluate"],
}


SITE = f"{CFG['doc_host']}{CFG['doc_baseurl']}/"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A copy of the tree with prepared pages, and what make_docs printed."
    folder = copy_of_the_tree(tmp_path_factory.mktemp("site"))
    path = os.environ["PATH"].split(os.pathsep)
    no_quarto = os.pathsep.join(p for p in path if not (Path(p) / "quarto").exists())
    status, output = run(
        sys.executable, "tools/make_docs.py", cwd=folder, PYTHONPATH=str(folder), PATH=no_quarto
    )
    return folder, status, output


def test_prepared_pages(site):
    folder, status, output = site
    assert status == 0, output[-8000:]
    pages = len(list((folder / "nbs").glob("*.ipynb")))
    assert f"{pages} pages are prepared" in output and "Quarto is not installed" in output


@pytest.mark.parametrize("notebook", TAUGHT)
def test_a_page_shows_the_source_that_it_teaches(site, notebook):
    page = site[0] / "_proc" / f"{notebook}.ipynb"
    assert page.is_file(), site[2][-8000:]
    hidden = [n for n in TAUGHT[notebook] if n not in make_docs.shown(make_docs.Page.read(page))]
    assert not hidden, f"{notebook}: `#| exports` is needed for {', '.join(hidden)}"


def faults(folder):
    "What make_docs finds in the prepared pages of a folder."
    probe = (
        "from make_docs import *; os.chdir(ROOT); "
        "print('\\n'.join(check(ROOT / '_proc', sorted((ROOT / 'nbs').glob('*.ipynb')))))"
    )
    tools = os.pathsep.join([str(folder), str(folder / "tools")])
    status, output = run(sys.executable, "-c", probe, cwd=folder, PYTHONPATH=tools)
    assert status == 0, output
    return set(output.strip().splitlines())


def test_each_kind_of_fault_is_found(site):
    "A page, a name's documentation, a link, an anchor, a constant, a place in the sidebar is lost."
    folder = site[0]
    before = faults(folder)
    proc = folder / "_proc"
    (proc / "13_probes.ipynb").rename(folder / "13_probes.ipynb")
    sidebar = proc / "_quarto.yml"
    sidebar.write_text(sidebar.read_text().replace("- 10_models.ipynb", "- nowhere.ipynb"))
    page = proc / "02_settings.ipynb"
    nb = nbformat.read(page, 4)
    nb.cells = [c for c in nb.cells if "show_doc(as_dict)" not in c.source]
    for cell in nb.cells:
        cell.source = cell.source.replace("METHODS", "names")
    nb.cells += [
        nbformat.v4.new_markdown_cell(text)
        for text in (
            "`as_dict` without a link, and [one](nowhere.md) to nowhere",
            "see 12_metrics and [a heading](12_metrics.ipynb#nowhere), [one](#data)",
            f"[its class]({SITE}settings.html#branch.nothing)",
        )
    ]
    nbformat.write(nb, page)
    assert sorted(faults(folder) - before) == [
        "02_settings.ipynb: 12_metrics is a notebook without a link",
        "02_settings.ipynb: `METHODS` is a public constant that its page does not show",
        "02_settings.ipynb: `as_dict` has no documentation on its page",
        "02_settings.ipynb: `as_dict` is a name of ours without a link",
        "02_settings.ipynb: a link to 12_metrics.ipynb#nowhere, which is no heading there",
        "02_settings.ipynb: a link to nowhere.md, which is not there",
        "02_settings.ipynb: a link to settings.html#as_dict, which is no heading there",
        "02_settings.ipynb: a link to settings.html#branch.nothing, which is no heading there",
        "13_probes.ipynb: no page was prepared",
        "_quarto.yml: the sidebar does not name 10_models.ipynb",
        "_quarto.yml: the sidebar names 13_probes.ipynb, which is not there",
        "_quarto.yml: the sidebar names nowhere.ipynb, which is not there",
    ]


@pytest.mark.parametrize(
    "heading, name",
    [
        ("Values that come as one word", "values-that-come-as-one-word"),
        ("Backbone.from_config", "backbone.from_config"),
        ("2. What (really) counts: `fit`", "what-really-counts-fit"),
        ("<kbd>class</kbd> [Store](x.html)", "class-store"),
        ("With a name {#mine}", "mine"),
    ],
)
def test_anchors_are_named_as_pandoc_does(heading, name):
    assert make_docs.anchor(heading) == name


def module_cell(stem):
    "What CONTRIBUTING's table has for the module of a notebook: a dash where it makes none."
    source = (ROOT / "nbs" / f"{stem}.ipynb").read_text(encoding="utf-8")
    return f"`{stem.split('_', 1)[1]}`" if "#| default_exp " in source else "-"


def test_the_three_lists_of_notebooks_agree():
    "The sidebar, the README's table and CONTRIBUTING's name every notebook, in file-name order."
    stems = sorted(p.stem for p in (ROOT / "nbs").glob("[0-9]*.ipynb"))
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    pages = make_docs.sidebar_pages(config["website"]["sidebar"])
    assert pages == ["index.ipynb", *(f"{stem}.ipynb" for stem in stems)]
    source = "\n".join(c.source for c in nbformat.read(ROOT / "nbs" / "index.ipynb", 4).cells)
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.ipynb\) \|", source, re.M)
    assert rows == [(stem, stem) for stem in stems]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\d\d_\w+)` \| (`\w+`|-) \|", text, re.M)
    assert rows == [(stem, module_cell(stem)) for stem in stems]
