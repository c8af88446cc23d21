"""The app for StarDist models as a person uses it: a web page in a browser, driven by playwright."""

import json

import pytest
from test_app import (
    CHROMIUM,
    FOUND,
    NAMES,
    browser_page,
    count,
    download,
    open_app,
    served,
    set_number,
    upload,
    wait_for_count,
)

from cellseg_nb.data.catalog import samples
from cellseg_nb.data.io import read_labels
from cellseg_nb.measure.matching import match
from cellseg_nb.segment.stars import predict_stars

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("playwright", reason="the Python package playwright is not installed")
    folder = tmp_path_factory.mktemp("voila")
    with served(folder, "stars") as address, browser_page() as page:
        open_app(page, address)
        yield page


def picture(page) -> str:
    """Address of what is shown, which changes with it."""
    return page.get_by_role("img", name="the picture").get_attribute("src")


def test_thresholds_change_the_count(page):
    assert page.title() == "Star-convex nuclei"
    assert "AP@.5" in page.locator(FOUND).inner_text()
    assert "StarExplorer(" not in page.locator("body").inner_text()
    usual = count(page)
    set_number(page, "Overlap (NMS)", 0.8)
    doubled = wait_for_count(page, lambda n: n > usual)
    set_number(page, "Probability", 0.8)
    wait_for_count(page, lambda n: n < doubled)
    page.get_by_role("slider", name="Probability").press("Home")
    wait_for_count(page, lambda n: n > doubled)


def test_rays_are_shown(page):
    before = picture(page)
    page.get_by_role("checkbox", name="Show rays from the middle").check()
    page.wait_for_function("src => document.querySelector('img.cellseg').src != src", arg=before)


def test_upload_and_download(page):
    """What is saved is what `predict_stars` gives."""
    sample = samples("sample")[0]
    set_number(page, "Probability", 0.4)
    set_number(page, "Overlap (NMS)", 0.3)
    upload(page, sample.image_path)
    stars = predict_stars(sample.image(), "stars", 0.4, 0.3)
    wait_for_count(page, lambda n: n == stars.labels.max())
    path = download(page, "Labels")
    assert path.name == "img2d_labels.tif"
    assert match(stars.labels, read_labels(path)).mean_ap == 1
    rows = download(page, "Table").read_text().splitlines()
    features = json.loads(download(page, "GeoJSON").read_text())["features"]
    assert len(rows) - 1 == len(features) == stars.labels.max()
    assert download(page, "ROI zip").stat().st_size > 1000
