"The report in a browser, on a desk and on a telephone."

import pytest
from page import WIDTHS, browser, measure

from ecgmm.results import write_report
from ecgmm.settings import PrepareSettings, StudySettings
from ecgmm.store import prepare
from ecgmm.study import reproduce, standard_arms
from ecgmm.synthetic import synthesize

needs_browser = pytest.mark.skipif(browser() is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "The page of a tiny study: one model, one fold."
    folder = tmp_path_factory.mktemp("page")
    synthesize(folder / "hospitals", n=80, seed=1)
    settings = PrepareSettings(n_folds=4)
    store = prepare(folder / "hospitals", folder / "store", settings, progress=False)
    arms = standard_arms(("spectrogram",), ("scratch",), "small", epochs=1)
    reproduce(store, folder / "study", arms, StudySettings(folds=(0,)), cpu=True, progress=False)
    return write_report(store, folder / "study", folder / "report", "A tiny study")


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_fits(report, width):
    "No page that scrolls sideways, no picture without words, no fault."
    found = measure(report, width)
    assert found["width"] == width and found["pictures"] > 3
    assert found["scrolled"] <= width, found["wide"]
    assert found["silent"] == found["broken"] == 0
    assert found["faults"] == found["console"] == []
    assert width < 1200 or found["cut"] == []  # there all tables fit; on a telephone they scroll


@needs_browser
def test_what_is_measured(tmp_path):
    "Each fault is found on a page that has it."
    page = tmp_path / "index.html"
    page.write_text(
        "<!doctype html><html><head></head><body><div style='width:900px'>wide</div>"
        "<img src='data:image/png;base64,AAAA'><script>nothing()</script></body></html>"
    )
    found = measure(page, 400)
    assert found["scrolled"] >= 900 and found["silent"] == found["broken"] == 1
    assert any("nothing" in fault for fault in found["faults"]) and found["wide"]
