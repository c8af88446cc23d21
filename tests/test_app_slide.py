"""The app for whole slides as a person uses it: a web page in a browser, driven by playwright."""

import json
import os
from pathlib import Path

import pytest
from test_app import (
    CHROMIUM,
    NAMES,
    count,
    download,
    quiet_page,
    set_number,
    upload,
    wait_for_count,
    wait_for_line,
)

from cellseg_nb.data.simulate_slides import simulate_slide

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed")
FOUND = ".widget-html:has-text('objects ·')"
SHAPE = (2400, 3200)  # of the simulated slide; px


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with quiet_page(tmp_path_factory.mktemp("voila"), "slide") as page:
        page.locator(FOUND).wait_for()
        page.wait_for_function("document.querySelector('canvas[role=img]').dataset.shown")
        yield page


def canvas(page):
    return page.get_by_role("img", name="the slide")


def view(page) -> tuple[float, ...]:
    """Middle of what is seen (y, x), px of the slide; px of the slide per px of the screen."""
    page.wait_for_timeout(200)  # until it is drawn
    return tuple(map(float, canvas(page).get_attribute("data-view").split()))


def shown(page) -> list[float]:
    """Where the picture lies that Python sent: y0, x0, y1, x1; px of the slide."""
    return [float(one) for one in canvas(page).get_attribute("data-shown").split()[1:]]


def set_threshold(page, value: float) -> None:
    field = page.get_by_role("spinbutton", name="Threshold", exact=True)
    field.fill(str(value))
    field.press("Enter")


def wait_for_picture(page, act) -> None:
    """Do something, and wait until another picture is there."""
    before = canvas(page).get_attribute("data-shown")
    act()
    page.wait_for_function("old => document.querySelector('canvas[role=img]').dataset.shown !== old", arg=before)


def fits(page) -> bool:
    """Is what Python sent what is in view, with nothing left out that the slide has there?"""
    y, x, scale = view(page)
    box = canvas(page).bounding_box()
    sides = zip((y, x), (box["height"], box["width"]), SHAPE)
    wanted = [(max(0, m - n * scale / 2), min(size, m + n * scale / 2)) for m, n, size in sides]
    (y0, y1), (x0, x1) = wanted
    return max(abs(a - b) for a, b in zip(shown(page), (y0, x0, y1, x1))) <= 2 * max(1, scale)


def test_first_slide_without_code(page):
    assert page.title() == "Whole slides"
    assert count(page) > 5 and "per mm² of tissue" in page.locator(FOUND).inner_text()
    assert page.locator(".jp-InputArea-editor").count() == 0
    assert fits(page) and shown(page)[:2] == [0, 0]


def test_threshold_changes_the_count_without_the_network(page):
    usual, text = count(page), page.locator(FOUND).inner_text()
    wait_for_picture(page, lambda: set_threshold(page, 0.98))
    strict = wait_for_count(page, lambda n: n != usual)
    wait_for_picture(page, lambda: set_threshold(page, 0.5))
    assert wait_for_count(page, lambda n: n != strict) == usual
    assert page.locator(FOUND).inner_text() == text
    assert page.get_by_role("progressbar").count() == 0


def test_zoom_and_pan_read_what_is_in_view(page):
    place = page.locator(".widget-html:has-text('predicted at')")
    assert "shown at 1.25" not in place.inner_text()
    box = canvas(page).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
    _, _, whole = view(page)
    wait_for_picture(page, lambda: page.mouse.wheel(0, -1600))
    y, x, scale = view(page)
    assert scale < whole / 8 and fits(page)
    assert "shown at 1.25 µm per px" in place.inner_text()  # finer than the slide there is nothing
    page.mouse.down()
    wait_for_picture(page, lambda: (page.mouse.move(box["x"] + 60, box["y"] + 50, steps=5), page.mouse.up()))
    moved = view(page)
    assert moved[0] > y and moved[1] > x and moved[2] == scale and fits(page)
    wait_for_picture(page, lambda: page.get_by_role("button", name="Zoom out").click())
    assert fits(page)
    wait_for_picture(page, lambda: page.get_by_role("button", name="Whole slide").click())
    assert fits(page) and shown(page)[:2] == [0, 0]


def test_layers_and_tissue(page):
    for name in ("Tile grid", "Tissue mask", "Probability", "Outlines"):
        box = page.get_by_role("checkbox", name=name)
        for _ in range(2):
            wait_for_picture(page, box.click)
    before = page.locator(FOUND).inner_text()
    set_number(page, "Tissue threshold", 20)
    page.wait_for_function("old => !document.body.innerText.includes(old)", arg=before.split(" · ")[1])
    assert count(page) == int(before.split()[0].replace(",", ""))
    set_number(page, "Tissue threshold", 40)


def test_the_view_is_predicted_alone(page):
    wait_for_picture(page, lambda: page.get_by_role("button", name="Zoom in").click())
    usual = count(page)
    wait_for_picture(page, lambda: page.get_by_role("button", name="Predict the view").click())
    page.locator(".widget-html:has-text('in the part that was predicted')").wait_for()
    assert count(page) < usual
    wait_for_picture(page, lambda: page.get_by_role("button", name="Whole slide").click())
    wait_for_picture(page, lambda: page.get_by_role("button", name="Predict the slide").click())
    wait_for_count(page, lambda n: n == usual)
    if os.environ.get("CELLSEG_SCREENSHOT"):
        page.screenshot(path=Path(os.environ["CELLSEG_SCREENSHOT"]))


def test_results(page):
    path = download(page, "GeoJSON")
    assert path.name == "kidney_outlines.geojson"
    assert len(json.loads(path.read_text())["features"]) == count(page)
    assert len(download(page, "Save table").read_text().splitlines()) == 1 + count(page)


def test_a_path_and_an_upload(page, tmp_path):
    field = page.get_by_role("textbox", name="Path")
    field.fill(str(tmp_path / "none.tif"))
    field.press("Enter")
    wait_for_line(page, "there is no file")
    truth = simulate_slide(tmp_path / "other.tif", (600, 800), 2.5, seed=5)
    field.fill(str(tmp_path / "other.tif"))
    field.press("Enter")
    page.locator(".widget-html:has-text('other: 600 x 800 px')").wait_for()
    path = (tmp_path / "other.tif").rename(tmp_path / "again.tif")
    upload(page, path, "Open a slide file")
    page.locator(".widget-html:has-text('again: 600 x 800 px')").wait_for()
    assert truth.shape == (600, 800)
    notes = tmp_path / "notes.txt"
    notes.write_text("Dear all")
    upload(page, notes, "Open a slide file")
    assert "\n" not in wait_for_line(page, "notes.txt").strip()
