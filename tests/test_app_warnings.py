"""Every app says in red, above the picture, that it is unlike those the model was trained on; dark objects are turned bright."""

from pathlib import Path

import numpy as np
import pytest

from cellseg_nb.apps.scaffold import TaskPanel
from cellseg_nb.apps.stack_widgets import StackExplorer
from cellseg_nb.apps.star_widgets import StarExplorer
from cellseg_nb.apps.widgets import Explorer
from cellseg_nb.data.germline import simulate_germline
from cellseg_nb.data.phase import simulate_phase_contrast
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.models.bundle import load_bundle, save_bundle
from cellseg_nb.segment.count import count_image, count_statistics
from cellseg_nb.segment.familiarity import describe, learn_pictures
from cellseg_nb.segment.image import SegmentSettings, segment_image
from cellseg_nb.segment.stack import StackSettings, segment_stack
from cellseg_nb.segment.stars import load_stars

NUCLEI = [simulate_nuclei((128, 144), 8 + n, seed=60 + n)[0] for n in range(14)]
EDGES = (0.5, 0.2, 0.2)


def knowing(bundle, pictures, find, folder: Path) -> Path:
    """A copy of a model that knows some pictures."""
    about, known = bundle.specification, []
    for picture in pictures:
        seen = about.normalisation.prepare(picture)
        known.append(describe(seen, find(picture).labels, about.diameter_px))
    about = about.model_copy(update={"known_pictures": learn_pictures(known)})
    return save_bundle(folder, bundle.network, about)


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory) -> Path:
    bundle = load_bundle("nuclei")
    return knowing(bundle, NUCLEI, lambda one: segment_image(one, bundle), tmp_path_factory.mktemp("n"))


@pytest.fixture(scope="module")
def stars(tmp_path_factory) -> Path:
    bundle = load_stars("stars")
    return knowing(bundle, NUCLEI, lambda one: segment_image(one, bundle), tmp_path_factory.mktemp("s"))


def warned(app) -> bool:
    """Is a warning shown, in red, above the picture and with advice in the words of the app?"""
    assert not app.warning.value or "color:#b3261e" in app.warning.value
    right = app.children[0].children[1].children
    assert right.index(app.warning) == 2  # below count and messages, above everything else
    return "Unlike the images that the model is made for" in app.warning.value


@pytest.mark.parametrize(("app", "model"), [(Explorer, "nuclei"), (StarExplorer, "stars")])
def test_explorers_of_pictures(app, model, request):
    place, dark = request.getfixturevalue(model), 60_000 - NUCLEI[3]
    explorer = app(NUCLEI[3], model=place)
    assert not warned(explorer)
    explorer = app(dark, model=place)
    assert warned(explorer) and "darker than the ground: try “Invert”" in explorer.warning.value
    explorer.contrast["invert"].value = True
    assert not warned(explorer)
    found = segment_image(dark, place, SegmentSettings(invert=True))
    assert (explorer.labels == found.labels).all() and not found.familiarity.unusual
    explorer.contrast["percentiles"].value = "3, 99"
    found = segment_image(dark, place, SegmentSettings(invert=True, percentiles=(3, 99)))
    assert (explorer.labels == found.labels).all()
    explorer.source.value = "simulated nuclei"  # bright ones: what was ticked is wrong now, and said to be
    assert warned(explorer)
    explorer.contrast["percentiles"].value = "99"
    assert "takes two numbers, as in 1,99.8" in explorer.status.value and explorer.labels is None
    assert not warned(explorer)  # nothing is shown


def test_a_warning_does_not_depend_on_sliders(nuclei):
    explorer = Explorer(NUCLEI[3], model=nuclei)
    explorer.controls["network"]["min_area_px"].children[1].value = 1000
    assert explorer.labels.max() <= 1 and not warned(explorer)


def test_task_panel_of_nuclei(nuclei):
    panel = TaskPanel("segment", 60_000 - NUCLEI[3], model=nuclei)
    assert warned(panel) and "try “Invert”" in panel.warning.value
    panel.controls["invert"].value = True
    assert not warned(panel)
    panel.controls["percentiles"].value = "1,99.8"
    found = segment_image(60_000 - NUCLEI[3], nuclei, SegmentSettings(invert=True, percentiles=(1, 99.8)))
    assert (panel.labels == found.labels).all()
    panel.controls["percentiles"].value = "99.8,1"
    assert "the first must be smaller" in panel.status.value and panel.result is None


def test_task_panel_of_counts(tmp_path):
    pictures = [simulate_phase_contrast((128, 128), 6 + n, seed=n)[0] for n in range(12)]
    bundle, known = load_bundle("count-cells"), []
    for picture in pictures:
        known.append(count_statistics(picture, bundle, count_image(picture, bundle).density))
    changes = {"known_pictures": learn_pictures(known), "calibration": {}}  # it shall know these alone, and no kinds
    about = bundle.specification.model_copy(update=changes)
    model = save_bundle(tmp_path, bundle.network, about)
    for picture in (pictures[4], np.random.default_rng(0).integers(0, 255, (128, 128)).astype(np.uint8)):
        panel = TaskPanel("count", picture, model=model)
        unlike = count_image(picture, load_bundle(model)).unlike
        assert warned(panel) == unlike.unusual
    assert unlike.unusual and "it is mostly noise" in panel.warning.value
    panel = TaskPanel("count", 255 - pictures[4], model=model, invert=True)
    assert not warned(panel)


def test_explorer_of_stacks(tmp_path):
    bundle = load_bundle("membranes3d")
    stacks = [simulate_germline((8, 64, 64), n_cells=12, seed=n)[0][0] for n in range(10)]
    model = knowing(bundle, stacks, lambda one: segment_stack(one, bundle, StackSettings(), EDGES), tmp_path)
    explorer = StackExplorer(stacks[2], None, EDGES, model=model)
    assert not warned(explorer)
    dark = stacks[2].max() - stacks[2]
    explorer = StackExplorer(dark, None, EDGES, model=model)
    assert warned(explorer)
    explorer.contrast["invert"].value = True
    assert not warned(explorer)
    found = segment_stack(dark, model, StackSettings(invert=True), EDGES)
    assert (explorer.labels == found.labels).all() and not found.familiarity.unusual
