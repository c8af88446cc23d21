"""The models that come with the package: they must be there, and better than classical methods."""

from itertools import product

import pytest

from cellseg_nb.data.catalog import samples
from cellseg_nb.data.io import luminance
from cellseg_nb.measure.matching import Matching, match, pool
from cellseg_nb.models.bundle import find_bundle, load_bundle, read_specification
from cellseg_nb.run.analyse import segment_image
from cellseg_nb.segment.stack import segment_stack
from cellseg_nb.segment.watershed import otsu_watershed
from cellseg_nb.train.crops import stack_samples
from cellseg_nb.train.settings import StackDataSettings
from cellseg_nb.train.tune import labelled_samples

OTSU_SETTINGS = [{"sigma_px": sigma, "seed_height_px": height} for sigma, height in product((1, 2), (0.5, 0.75, 1.0))]


def read(chosen) -> list[tuple]:
    """Gray pictures and labels."""
    pictures = []
    for sample in chosen:
        image = sample.image()
        pictures.append((luminance(image) if image.ndim == 3 else image, sample.labels()))
    return pictures


def score(pictures, segment) -> Matching:
    """Scores pooled over pictures."""
    return pool([match(truth, segment(image)) for image, truth in pictures])


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("nuclei")


LICENCES = {"phase-cells": "MIT"}  # of the others CC0


@pytest.mark.parametrize("name", ["nuclei", "nuclei-fast", "phase-cells", "membranes3d"])
def test_model_states_where_it_comes_from(name):
    specification = read_specification(name)
    assert specification.licence == LICENCES.get(name, "CC0-1.0")
    assert specification.training["seed"] == specification.training["config"]["seed"]
    assert specification.training["config"]["name"] == specification.name == name
    assert "test" in specification.scores
    weights = find_bundle(name) / "weights.safetensors"
    assert weights.stat().st_size <= 10e6


def test_model_for_stacks_finds_cells_it_never_saw():
    """F1@.5 of two test stacks, whose seeds no training uses; of all twelve it is in the bundle."""
    walls = load_bundle("membranes3d")
    assert walls.specification.data.startswith("simulated-germline (split train)")
    assert walls.specification.scores["test"]["F1@.5"] >= 0.85
    matchings = []
    for sample in stack_samples(StackDataSettings(split="test"))[:2]:
        stack = sample.read()
        found = segment_stack(stack.image, walls, pixel_size_um=stack.pixel_size_um)
        matchings.append(match(stack.labels, found.labels))
    assert pool(matchings).f1[0] >= 0.85


def test_simulated_nuclei_are_hard_for_otsu(bundle):
    """Otsu and watershed, tuned on training images, stay .15 below the model."""
    tuning = read(samples("simulated-nuclei", split="train")[:10])
    best = max(
        OTSU_SETTINGS,
        key=lambda one: score(tuning, lambda image: otsu_watershed(image, **one)).ap[0],
    )
    pictures = read(samples("simulated-nuclei", split="test")[:10])
    classical = score(pictures, lambda image: otsu_watershed(image, **best))
    model = score(pictures, lambda image: segment_image(image, bundle).labels)
    assert model.ap[0] >= classical.ap[0] + 0.15


@pytest.mark.needs_data("dsb2018")
@pytest.mark.parametrize("name", ["nuclei", "nuclei-fast"])
def test_model_on_real_images(name):
    """On a few test images of each size it keeps well above the classical method."""
    pictures = read(samples("dsb2018", split="test", kind="fluorescence")[::10])
    classical = score(pictures, otsu_watershed)
    model = score(pictures, lambda image: segment_image(image, name).labels)
    assert model.mean_ap > classical.mean_ap + 0.05


@pytest.mark.needs_data("phase_cells")
def test_model_outlines_cells_in_phase_contrast_that_it_never_saw():
    """Two of the pictures set aside in its training; their number of cells is right within a quarter."""
    bundle = load_bundle("phase-cells")
    pictures = read(labelled_samples(bundle, aside=True)[:2])
    found = score(pictures, lambda image: segment_image(image, bundle).labels)
    assert found.ap[0] >= 0.55
    assert abs(found.n_pred - found.n_truth) <= 0.25 * found.n_truth
